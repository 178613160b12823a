"""Which model was it: a digest of all that decides what a model directory gives for an input.

Embeddings of two models can't be compared, and a score means something for its model only, so
whatever is computed by a model is kept with this beside it.
"""

from hashlib import sha256
from pathlib import Path

from coyo_align.errors import AlignError

_DECIDING = (
    "config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_CHUNK = 2**22


def fingerprint_of(directory: Path) -> str:
    """The digest of a model's config, processor, tokenizer and weights, 16 hex digits.

    The same for a copy of the directory under another name, and whatever else lies in it. Reads
    all weights: about a second a gigabyte.

    Raises:
        AlignError: there is no config.json, or a file can't be read.
    """
    names = [name for name in _DECIDING if (directory / name).is_file()]
    if "config.json" not in names:
        raise AlignError(
            f"{directory} is not a Hugging Face model directory: it has no config.json."
        )
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
    digest = sha256()
    for name in names + weights:
        digest.update(f"{name} {(directory / name).stat().st_size}\n".encode())
        try:
            with (directory / name).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise AlignError(f"{directory / name} can't be read: {error.strerror}.") from error
    return digest.hexdigest()[:16]
