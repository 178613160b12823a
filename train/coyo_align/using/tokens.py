"""How many tokens a text has by somebody's tokenizer, as COYO counts BERT's and GPT-2's.

Special tokens are not counted, and nothing is cut. Left out: the tokens themselves.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from coyo_align.checkpoint import quietly
from coyo_align.errors import AlignError


class TokenCounter:
    """A tokenizer of transformers that counts; ``fingerprint`` is of all that decides a count."""

    def __init__(self, name: str) -> None:
        """Load a tokenizer, never with code of its own.

        Args:
            name: a directory, or a name on the hub.

        Raises:
            AlignError: there is none, or it is not one of the fast ones.
        """
        if not Path(name).is_dir() and (Path(name).exists() or name.startswith((".", "/"))):
            raise AlignError(f"{name} is not a directory that holds a tokenizer.")
        try:
            with quietly():
                found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else "nothing there"
            raise AlignError(
                f"No tokenizer can be loaded from {name}: {first}\nGive a directory with "
                "tokenizer.json, or a name on the hub such as google-bert/bert-base-uncased."
            ) from error
        if not isinstance(found, PreTrainedTokenizerFast):
            raise AlignError(f"The tokenizer in {name} has no tokenizer.json; only such can count.")
        self._tokenizer: Tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.fingerprint = sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    def count(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Count the tokens of each text, (texts,)."""
        rows = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter((len(row) for row in rows), np.int32, len(texts))
