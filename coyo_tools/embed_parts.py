"""Data to parts of embeddings: rows of shards or files of a folder, embedded a part at a time.

Part ``n`` is made of the same rows of the data whichever process makes it, so a stopped command
goes on with the next one. Rows that can't be used leave a part shorter, and a reason.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.columns import ID
from coyo_tools.vectors import SCHEMA, Matrix

if TYPE_CHECKING:
    from coyo_align.embed import Embedder
    from coyo_align.input.data import Pairs

_FILES = 65_536
"""Of a folder, that the decoding processes are told of at once; their start takes half a second."""
_NO_ID = -1  # of coyo_align

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartPlan:
    """Which parts are made.

    Attributes:
        sides: of ``vectors.SIDES``.
        rows: of the data in a part.
        first: number of the first part.
        workers: decoding processes, None for one per core.
    """

    sides: tuple[str, ...]
    rows: int
    first: int = 0
    workers: int | None = None


@dataclass(frozen=True)
class EmbeddedPart:
    """A part to be written.

    Attributes:
        table: its rows, with the columns of ``vectors.SCHEMA``.
        vectors: by side.
        lost: rows of the data that are not there, by reason.
        done: rows of the data up to and with this part.
    """

    table: pa.Table
    vectors: dict[str, Matrix]
    lost: dict[str, int]
    done: int


class Shards:
    """The samples of shards; pictures stay in their tars until their part is embedded.

    Attributes:
        rows: samples that have what is needed, as far as the tars' headers say.
        skipped: the others, by reason.
        missing_ids: ids that were asked for and are not there.
    """

    def __init__(
        self, shards: Path, ids: Path | None, embedder: "Embedder", plan: PartPlan
    ) -> None:
        from coyo_align.input.data import load_pairs

        self._pairs = load_pairs(
            shards,
            embedder.preprocess,
            ids,
            workers=plan.workers,
            fields=("key",),
            need_caption="text" in plan.sides,
            need_picture="image" in plan.sides,
            in_memory=0,
        )
        self.rows = len(self._pairs)
        self.skipped = dict(self._pairs.skipped)  # pictures that don't decode are their part's
        self.missing_ids = self._pairs.missing_ids

    def parts(self, embedder: "Embedder", plan: PartPlan) -> Generator[EmbeddedPart]:
        """Embed the parts from the plan's first on."""
        starts = range(plan.first * plan.rows, self.rows, plan.rows)
        ranges = [range(start, min(start + plan.rows, self.rows)) for start in starts]
        with closing(_embedded(embedder, self._pairs, ranges, plan.sides)) as embedded:
            for asked, (rows, vectors, lost) in zip(ranges, embedded, strict=True):
                yield EmbeddedPart(_described(self._pairs, rows), vectors, lost, asked.stop)


class PictureFolder:
    """Loose pictures, without captions or ids.

    Attributes:
        rows: files.
        skipped: none; which file can't be read is found out with its part.
        missing_ids: none.
    """

    missing_ids = 0

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        self._files = files
        self.rows = len(files)
        self.skipped: dict[str, int] = {}

    def parts(self, embedder: "Embedder", plan: PartPlan) -> Generator[EmbeddedPart]:
        """Embed the parts from the plan's first on."""
        stretch = max(1, _FILES // plan.rows) * plan.rows
        for start in range(plan.first * plan.rows, self.rows, stretch):
            yield from self._stretch(start, min(start + stretch, self.rows), embedder, plan)

    def _stretch(
        self, first: int, end: int, embedder: "Embedder", plan: PartPlan
    ) -> Generator[EmbeddedPart]:
        """Embed the parts that are made of these files, the last of which may be a short one."""
        from coyo_align.using.items import file_pairs, why_unusable

        files = self._files[first:end]
        unusable = {n: why for n, path in enumerate(files) if (why := why_unusable(path))}
        usable = np.setdiff1d(np.arange(len(files)), list(unusable))
        asked = [
            range(start, min(start + plan.rows, len(files)))
            for start in range(0, len(files), plan.rows)
        ]
        early = [dict(Counter(unusable[n] for n in part if n in unusable)) for part in asked]
        if not len(usable):
            for part, lost in zip(asked, early, strict=True):
                nothing = np.empty((0, embedder.widths["image"]), np.float32)
                yield EmbeddedPart(
                    SCHEMA.empty_table(), {"image": nothing}, lost, first + part.stop
                )
            return
        pairs = file_pairs([files[n] for n in usable], embedder.preprocess, plan.workers)
        ranges = [
            range(*np.searchsorted(usable, [part.start, part.stop]).tolist()) for part in asked
        ]
        with closing(_embedded(embedder, pairs, ranges, plan.sides)) as embedded:
            for part, before, (rows, vectors, lost) in zip(asked, early, embedded, strict=True):
                yield EmbeddedPart(
                    _described(pairs, rows, self._folder),
                    vectors,
                    dict(Counter(before) + Counter(lost)),
                    first + part.stop,
                )


def _embedded(
    embedder: "Embedder", pairs: "Pairs", parts: Sequence[range], sides: Sequence[str]
) -> Generator[tuple[Rows, dict[str, Matrix], dict[str, int]]]:
    """Yield of each part the rows that can be used, their vectors, and why others can't.

    Pictures of the next part are decoded while the captions of one are embedded.
    """
    from coyo_align.batch import cut
    from coyo_align.embed import why_bad

    if "image" not in sides:
        for part in parts:
            yield np.arange(part.start, part.stop), {"text": _texts(embedder, pairs, part)}, {}
        return
    size = embedder.batch_size
    batches = (batch for part in parts for batch in cut(np.arange(part.start, part.stop), size))
    with closing(embedder.batches(pairs, batches)) as embedded:
        for part in parts:
            # One array for the part: pieces that are put together take twice the memory.
            images = np.empty((len(part), embedder.widths["image"]), np.float32)
            rows = np.empty(len(part), np.int64)
            count = 0
            for _ in range(0, len(part), size):
                some, vectors = next(embedded)
                images[count : count + len(some)] = vectors
                rows[count : count + len(some)] = some
                count += len(some)
            rows = rows[:count]
            found = {"image": images[:count]}
            if "text" in sides:
                found["text"] = _texts(embedder, pairs, rows.tolist())
            yield rows, found, dict(Counter(why_bad(pairs, part).values()))


def _texts(embedder: "Embedder", pairs: "Pairs", rows: Sequence[int]) -> Matrix:
    captions = [pairs.captions[row] for row in rows]
    empty = np.empty((0, embedder.widths["text"]), np.float32)
    return np.concatenate([empty, *embedder.text_batches(captions)])


def _described(pairs: "Pairs", rows: Rows, folder: Path | None = None) -> pa.Table:
    """Return the rows' metadata under the columns of ``vectors.SCHEMA``."""
    from coyo_align.input.pictures import InTars

    if not isinstance(pairs.images, InTars):
        raise TypeError("pictures that were decoded at once have no place")
    index = pairs.images.index
    ids = pairs.ids[rows]
    sizes = index.size[rows].astype(np.int64)
    unpictured = sizes < 0
    paths = [index.tars[number].path for number in index.tar[rows]]
    if folder is None:
        places = [_as_text(path.name) for path in paths]
        keys = [pairs.fields["key"][row] for row in rows.tolist()]
    else:
        places = keys = [_as_text(path.relative_to(folder).as_posix()) for path in paths]
    captions = [pairs.captions[row] or None for row in rows.tolist()]
    return pa.table(
        {
            ID: pa.array(ids, pa.int64(), mask=ids == _NO_ID),
            "key": pa.array(keys, pa.string()),
            "text": pa.array(captions, pa.string()),
            "tar": pa.array(places, pa.string(), mask=unpictured),
            "offset": pa.array(index.offset[rows], pa.int64(), mask=unpictured),
            "size": pa.array(sizes, pa.int64(), mask=unpictured),
        }
    )


def _as_text(name: str) -> str:
    """A file's name as parquet can hold it: bytes that are no UTF-8 become "?"."""
    return name.encode("utf-8", "replace").decode()
