"""How well a picture and its caption go together: cosines of a stream of pairs, row by row.

Captions come from the caller and not from the shards, because a pool's caption may have changed
since its picture was fetched. Rows come in batches of one size, cut from the first row on, so that
work that goes on at the end of a batch gives the same figures as work that never stopped.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coyo_align.embed import Embeddings
from coyo_align.errors import AlignError
from coyo_align.input.children import cores
from coyo_align.input.data import Pairs
from coyo_align.input.decode_worker import GOOD, REASONS
from coyo_align.input.images import Pixels, Preprocess
from coyo_align.input.index import Index, build_index
from coyo_align.input.pictures import InTars
from coyo_align.input.stream import stream

Ints = NDArray[np.int64]

NO_TEXT = max(REASONS) + 1
WHY = {**REASONS, NO_TEXT: "no text"}
"""Why a row has no cosine, by code; 0, GOOD, is for those that have one."""


class TwoTowers(Protocol):
    """What turns pictures and texts into unit vectors of one space."""

    preprocess: Preprocess

    def pixels(self, pixels: Pixels) -> Embeddings:
        """Embed decoded pictures, (pictures, width)."""

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, (texts, width)."""


@dataclass(frozen=True)
class Scored:
    """A batch of rows: cosines, NaN where there is none, and codes of ``WHY``."""

    cosines: NDArray[np.float32]
    codes: NDArray[np.uint8]


def index_pictures(
    shards: Path, workers: int | None = None, on_read: Callable[[float], None] = lambda _: None
) -> Index:
    """Where the pictures of shards lie, without their captions: about 32 bytes each.

    Args:
        shards: directory of WebDataset tars.
        workers: processes at most, None for one per core.
        on_read: called with the share of the tars read, 0 to 1.

    Raises:
        AlignError: there are no shards, no pictures in them, or an id is there twice.
    """
    index = build_index(shards, None, (), False, workers or cores(), on_read)
    index = replace(index, captions=[""] * len(index.captions))
    known = np.sort(index.ids[index.ids != _NO_ID])
    if not len(known):
        why = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
        raise AlignError(
            f"No picture in {shards} has an id{f' ({why})' if why else ''}. Give shards from "
            "coyo download or coyo index."
        )
    if len(twice := np.unique(known[1:][known[1:] == known[:-1]])):
        raise AlignError(
            f"{len(twice)} ids are in {shards} more than once, {twice[0]} among them: which "
            "picture is meant can't be told. Give shards in which each id is there once."
        )
    return index


_NO_ID = -1


def cosines(
    towers: TwoTowers,
    index: Index,
    rows: Ints,
    texts: Iterator[Sequence[str | None]],
    batch_size: int,
    workers: int | None = None,
) -> Generator[Scored]:
    """Yield the cosines of pictures and captions, ``batch_size`` rows at a time, in order.

    Args:
        towers: the model.
        index: where the pictures are.
        rows: of the index, in the order of the captions.
        texts: the captions of each batch; None and white space count as none.
        batch_size: rows at a time.
        workers: decoding processes, None for one per core.

    Raises:
        AlignError: an embedding is not a number.
    """
    images = InTars(index, towers.preprocess.geometry, workers or cores())
    pairs = Pairs(images, index.captions, index.ids, Counter(), 0)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with closing(stream(pairs, ((batch, None) for batch in batches))) as pictures:
        for batch, (seen, pixels) in zip(batches, pictures, strict=True):
            said = next(texts)
            if len(said) != len(batch):
                raise ValueError(f"{len(said)} captions for {len(batch)} pictures")
            yield _score(towers, images, batch, seen, pixels, said)


def _score(
    towers: TwoTowers,
    images: InTars,
    batch: Ints,
    seen: Ints,
    pixels: Pixels,
    said: Sequence[str | None],
) -> Scored:
    found = np.full(len(batch), np.nan, dtype=np.float32)
    codes = np.array([images.bad.get(int(row), GOOD) for row in batch], dtype=np.uint8)
    there = np.flatnonzero(codes == GOOD)
    if not np.array_equal(batch[there], seen):
        raise RuntimeError("the pictures of a batch are not those that decode")
    empty = np.array([not (text or "").strip() for text in said], dtype=np.bool_)
    codes[empty & (codes == GOOD)] = NO_TEXT
    good = np.flatnonzero(codes == GOOD)
    if len(good):
        vectors = towers.pixels(pixels[np.searchsorted(there, good)])
        captions = towers.texts([" ".join((said[row] or "").split()) for row in good.tolist()])
        found[good] = np.einsum("ij,ij->i", vectors, captions)
    return Scored(found, codes)
