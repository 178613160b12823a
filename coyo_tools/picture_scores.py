"""Faces, sizes and hashes of the pictures in shards, measured in processes that can be killed.

What is measured is the stored picture. `coyo download` makes pictures smaller and encodes them
anew, so width and height are those of the copy, and of 800 hashes one in five moved, by two bits
as a rule: for the originals' own values keep the ledger's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coyo_tools.columns import IMAGE_PHASH
from coyo_tools.engine import available_cores
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import PictureSettings, Refusal
from coyo_tools.score_parts import WHY

if TYPE_CHECKING:
    from coyo_align.input.index import Index

_REASONS = (
    "missing file", "not an image", "too many pixels", "undecodable", "too slow", "unreadable shard"
)  # fmt: skip
REASONS = dict(enumerate(_REASONS, 1))
"""Why a picture has no measures, by code; 0 is for those that have."""
_CODES = {reason: code for code, reason in REASONS.items()}
_BATCH = 256


@dataclass(frozen=True)
class Wish:
    """What to measure; ``faces`` is a detector, see ``faces``."""

    sizes: bool = False
    phash: bool = False
    faces: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """COYO's names for what is asked for."""
        return (
            *(("width", "height") if self.sizes else ()),
            *((IMAGE_PHASH,) if self.phash else ()),
            *(("num_faces",) if self.faces else ()),
        )

    def dtype(self) -> npt.DTypeLike:
        """Of a record: the hash as a number, and why there is none of it all."""
        kinds = [(n, np.uint64 if n == IMAGE_PHASH else np.int32) for n in self.columns]
        return np.dtype([*kinds, (WHY, np.uint8)])


def measured(
    index: "Index", rows: npt.NDArray[np.int64], wish: Wish, processes: int | None = None
) -> Iterator[npt.NDArray[Any]]:
    """Yield records of the pictures in some rows of an index, in order, a batch at a time."""
    processes = min(processes or available_cores(), max(1, len(rows)))
    with PictureWorkers(PictureSettings(), processes) as workers:
        found = workers.measure(
            _pictures(index, rows), phash_too=wish.phash, faces=wish.faces
        )  # fmt: skip
        batch = np.zeros(_BATCH, wish.dtype())
        filled = 0
        for _, made in found:
            if isinstance(made, Refusal):
                batch[filled][WHY] = _CODES[made.reason]
            else:
                for name in wish.columns:
                    value = getattr(made, name)
                    batch[filled][name] = int(value, 16) if name == IMAGE_PHASH else value
            filled += 1
            if filled == _BATCH:
                yield batch
                batch, filled = np.zeros(_BATCH, wish.dtype()), 0
        if filled:
            yield batch[:filled]


def _pictures(
    index: "Index", rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, bytes | Path | Refusal]]:
    """Read the encoded pictures out of their tars, the one in use kept open."""
    number, file = -1, None
    try:
        for row in rows.tolist():
            try:
                if index.tar[row] != number:
                    if file is not None:
                        file.close()
                    number, file = int(index.tar[row]), None
                    file = index.tars[number].path.open("rb")
                if file is None:  # it could not be opened the time before
                    yield row, Refusal("unreadable shard", index.tars[number].path.name)
                    continue
                file.seek(int(index.offset[row]))
                yield row, file.read(int(index.size[row]))
            except OSError as error:
                yield row, Refusal("unreadable shard", error.strerror or str(error))
    finally:
        if file is not None:
            file.close()
