"""Captions to tokens: a WordPiece tokenizer trained on the captions when no model brings its own.

``BertTokenizer(vocab_file=...)`` of transformers 5 ignores the file and turns every word into
[UNK]; here the vocabulary is always passed as a mapping, and reloaded with ``from_pretrained``.
The tokenizer carries ``truncation`` among its own settings, because AlignProcessor pads to 64
tokens but does not cut at 64 unless its tokenizer asks for it.

Left out: any other kind of tokenizer. A checkpoint's own one is loaded in ``checkpoint``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer, PreTrainedTokenizerBase

from coyo_align.config import MAX_TOKENS

Tokens = NDArray[np.int32]

_SMALLEST_COUNT = 2
"""A piece seen once in the captions can't be learned from."""
_CHUNK = 50_000
_CHUNK_CHARACTERS = 4_000_000
"""Before it cuts, the tokenizer takes a hundred bytes a character."""
_LONGEST = 2**13
"""Characters of a text that are looked at: more than 64 words of up to 100 letters, which is where
WordPiece calls a word unknown. A stranger's caption may have 64 MiB."""
_LETTERS_SHARE = 8
"""One in eight entries at most is for single letters; the rarer ones of more scripts are [UNK]."""


def train_tokenizer(captions: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train an uncased WordPiece tokenizer with at most ``vocabulary`` entries on the captions.

    Deterministic: the same captions give the same vocabulary in the same order. The trainer of
    ``tokenizers`` alone is not: it numbers the letters inside words as it meets them in a randomly
    ordered table, and breaks ties by these numbers. So they are handed over numbered, as if they
    were special, and the letters to keep are chosen here too.
    """
    untrained = BertTokenizer()
    special = sorted(untrained.get_vocab(), key=untrained.convert_tokens_to_ids)
    backend = untrained.backend_tokenizer
    seen = Counter(
        letter
        for caption in captions
        for letter in backend.normalizer.normalize_str(caption)
        if not letter.isspace()
    )
    most = sorted(seen, key=lambda letter: (-seen[letter], letter))
    letters = sorted(most[: vocabulary // _LETTERS_SHARE])
    trainer = WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=_SMALLEST_COUNT,
        special_tokens=[*special, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    entries = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    return cut_at(BertTokenizer(vocab=dict(entries)), MAX_TOKENS)


def cut_at(tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedTokenizerBase:
    """Make the tokenizer, and the AlignProcessor around it, cut texts after ``length`` tokens.

    AlignProcessor merges the settings its tokenizer was made with into every call, so the setting
    survives saving and loading.
    """
    tokenizer.model_max_length = length
    tokenizer.init_kwargs["model_max_length"] = length
    tokenizer.init_kwargs["truncation"] = True
    return tokenizer


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids of different lengths, in one array: many small ones cost double."""

    flat: NDArray[np.int32]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int | np.int64) -> Tokens:
        return self.flat[self.ends[row - 1] if row else 0 : self.ends[row]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0)


def encode(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> TokenRows:
    """Turn captions into token ids, cut at the tokenizer's length and without padding.

    Half a surrogate pair, which no text file holds but a Python string can, counts as "?".
    """
    flat = [np.empty(0, np.int32)]
    lengths = [np.empty(0, np.int64)]
    for some in _chunks(captions):
        rows = tokenizer(some, truncation=True, padding=False)["input_ids"]
        lengths.append(np.fromiter((len(row) for row in rows), np.int64, len(rows)))
        flat.append(np.fromiter(chain.from_iterable(rows), np.int32, int(lengths[-1].sum())))
    return TokenRows(np.concatenate(flat), np.cumsum(np.concatenate(lengths)))


def _chunks(captions: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for caption in captions:
        chunk.append(caption[:_LONGEST].encode("utf-8", "replace").decode())
        characters += len(chunk[-1])
        if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def pad(
    rows: Sequence[Tokens], pad_id: int, multiple: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Stack token rows, padded to the longest of them only.

    Args:
        rows: token ids.
        pad_id: what follows them.
        multiple: the length is rounded up to a multiple of this, so that a compiler meets few.

    Returns:
        Token ids and a mask that is true where a token stands, both (rows, longest row). Padding
        further changes embeddings by less than 1e-6 and costs time.
    """
    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.bool_)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask
