"""Hashes of the pictures in shards, for an evaluation set that is nothing but tars.

A sample's json has the hash that its picture had before it was shrunk, where it was written by
coyo; that one is taken. Else, and for the ways it can be turned, the stored picture is hashed,
which moves few bits (docs/near_duplicates.md).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from coyo_tools.columns import IMAGE_PHASH
from coyo_tools.engine import available_cores
from coyo_tools.manifest import digest_of
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import PictureSettings, Refusal
from coyo_tools.tar_samples import TarSample, read_file, tar_samples

_HASH = re.compile("[0-9a-fA-F]{16}")
_LARGEST_PICTURE = 64 * 2**20


def holds_tars(path: Path) -> bool:
    """Whether a directory holds tars, and so is no folder of pictures."""
    return path.is_dir() and any(path.glob("*.tar"))


def tars_fingerprint(directory: Path) -> str:
    """The digest of the tars' names and sizes, as training has it for shards without a manifest."""
    tars = sorted(directory.glob("*.tar"))
    return digest_of([f"{tar.name} {tar.stat().st_size}" for tar in tars])


def hash_tars(
    directory: Path, *, turns: bool = False, processes: int | None = None
) -> Iterator[tuple[str, tuple[str, ...] | Refusal]]:
    """Yield the key and the hashes of every sample, in order; a tar's faults under its own name.

    Args:
        directory: with the tars.
        turns: give the hashes of all of ``phash.TURNS``, the first one still the json's.
        processes: hashing processes, by default one per core.
    """
    faults: list[tuple[str, Refusal]] = []

    def items() -> Iterator[tuple[tuple[str, str | None], bytes | Refusal]]:
        for tar in sorted(directory.glob("*.tar")):

            def tell(reason: str, detail: str, name: str = tar.name) -> None:
                faults.append((name, Refusal(reason, detail)))

            for sample in tar_samples(tar, tell):
                known = _known_hash(sample)
                if known is not None and not turns:
                    yield (sample.key, known), _ASK_NOT
                else:
                    yield (sample.key, known), _picture(tar, sample)

    with PictureWorkers(PictureSettings(), processes or available_cores()) as workers:
        for (key, known), result in workers.hash(items(), turns=turns):
            if known is not None and isinstance(result, Refusal):
                yield key, (known,)
            elif known is not None and not isinstance(result, Refusal):
                yield key, (known, *result[1:])
            else:
                yield key, result
    yield from faults


_ASK_NOT = Refusal("known", "its hash stands in the json")


def _known_hash(sample: TarSample) -> str | None:
    file = sample.files.get("json")
    if file is None or file.text is None:
        return None
    try:
        said = json.loads(file.text)[IMAGE_PHASH]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return said if isinstance(said, str) and _HASH.fullmatch(said) else None


def _picture(tar: Path, sample: TarSample) -> bytes | Refusal:
    if sample.picture is None:
        return Refusal("no picture", "the sample has none")
    if sample.picture.size > _LARGEST_PICTURE:
        return Refusal("too large", f"{sample.picture.size:,} bytes")
    return read_file(tar, sample.picture)
