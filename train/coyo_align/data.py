"""Shards to pairs in memory: every picture decoded once, every sample that is left out counted.

A compact model sees a picture many times and in far less time than it takes to decode it, so
decoding happens once, at the start. The bytes stay in memory up to a gigabyte and move to a
memory-mapped temporary file beyond. Left out: decoding while training, which pictures of 289
pixels by the million would need.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coyo_align.errors import AlignError
from coyo_align.images import BadPictureError, Pixels, Preprocess, open_picture
from coyo_align.shards import CutShortError, Sample, read_samples, tar_paths

Pictures = Pixels
OnLoad = Callable[[int, float], None]
"""Called with the pairs decoded so far and the share of the tars' bytes read, 0 to 1."""

_IN_MEMORY = 2**30
_CHUNK = 64


@dataclass(frozen=True)
class Pairs:
    """Pictures and their captions, row by row.

    Attributes:
        images: (pairs, height, width, 3) bytes, read-only.
        captions: the texts, white space joined.
        ids: the samples' ids, -1 where a sample has none.
        skipped: samples left out, by reason; a damaged tar counts once, under its name.
        missing_ids: ids that were asked for and are not in the shards at all.
    """

    images: Pixels
    captions: list[str]
    ids: NDArray[np.int64]
    skipped: dict[str, int]
    missing_ids: int

    def __len__(self) -> int:
        return len(self.captions)


def load_pairs(
    shards: Path,
    preprocess: Preprocess,
    ids: Path | None = None,
    *,
    cache=None,
    workers=None,
    threads: int | None = None,
    on_load: OnLoad | None = None,
) -> Pairs:
    """Decode the pairs of a shards directory, in the order of the tars.

    Args:
        shards: directory of WebDataset tars.
        preprocess: gives the pixels their size.
        ids: a parquet file or directory of ``part-*.parquet`` with a column ``id``; only these
            samples are used. None for all.
        threads: decoding threads, None for the machine's.
        on_load: progress.

    Raises:
        AlignError: there are no shards, ids can't be read, or no usable pair is left.
    """
    wanted = None if ids is None else read_ids(ids)
    seen: set[int] = set()
    skipped: Counter[str] = Counter()
    captions: list[str] = []
    found: list[int] = []
    store = _PixelStore(preprocess.height, preprocess.width)

    def decode(sample: Sample) -> Pixels | str:
        if not sample.caption:
            return "no caption"
        if sample.picture is None:
            return "no picture"
        try:
            return preprocess.resize(open_picture(sample.picture))
        except BadPictureError as error:
            return str(error)

    paths = tar_paths(shards)
    whole = sum(path.stat().st_size for path in paths) or 1
    read = 0
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            samples = _wanted(path, wanted, seen, skipped)
            while chunk := list(islice(samples, _CHUNK)):
                for sample, result in zip(chunk, pool.map(decode, chunk), strict=True):
                    if isinstance(result, str):
                        skipped[result] += 1
                        continue
                    store.append(result)
                    captions.append(sample.caption)
                    found.append(-1 if sample.id is None else sample.id)
                if on_load is not None:
                    on_load(len(captions), read / whole)
            read += path.stat().st_size
            if on_load is not None:
                on_load(len(captions), read / whole)
    missing = 0 if wanted is None else len(wanted - seen)
    if not captions:
        raise AlignError(_nothing_left(shards, ids, dict(skipped), missing))
    ids_found = np.asarray(found, dtype=np.int64)
    return Pairs(store.finish(), captions, ids_found, dict(skipped), missing)


def _wanted(
    path: Path, wanted: set[int] | None, seen: set[int], skipped: Counter[str]
) -> Iterator[Sample]:
    """The samples of one tar that were asked for; the damaged end of a tar is counted."""
    try:
        for sample in read_samples(path):
            if wanted is None:
                yield sample
            elif (number := sample.id) is not None and number in wanted:
                seen.add(number)
                yield sample
    except CutShortError:
        skipped[f"damaged tar, the rest of it is lost: {path.name}"] += 1


def _nothing_left(shards: Path, ids: Path | None, skipped: dict[str, int], missing: int) -> str:
    reasons = [f"{count} {reason}" for reason, count in skipped.items()]
    if missing:
        reasons.append(f"{missing} ids of {ids} that are not in the shards")
    seen = ", ".join(reasons) if reasons else "the tars are empty"
    return f"No usable pair in {shards}: {seen}. Each sample needs a .jpg and a non-empty .txt."


def stream(pairs, batches, workers=None):
    for rows, _ in batches:
        yield rows, np.take(pairs.images, rows, axis=0)


def read_ids(source: Path) -> set[int]:
    """The ids of a subset: a parquet file, or a directory of ``part-*.parquet``.

    Raises:
        AlignError: nothing is there, it isn't parquet, or it has no integer column ``id``.
    """
    paths = sorted(source.glob("part-*.parquet")) if source.is_dir() else [source]
    if not paths or not paths[0].exists():
        raise AlignError(
            f"No ids at {source}: give a parquet file, or a directory that holds part-*.parquet."
        )
    ids: set[int] = set()
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if "id" not in names or not pa.types.is_integer(file.schema_arrow.field("id").type):
                    raise AlignError(f"{path} has no integer column id to choose pairs by.")
                column = file.read(columns=["id"])["id"]
        except (pa.ArrowException, OSError) as error:
            raise AlignError(f"{path} can't be read as parquet: {error}") from error
        ids.update(value for value in column.to_pylist() if value is not None)
    return ids


class _PixelStore:
    """Rows of equal shape appended one by one, in memory first, in a temporary file later."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = (-1, height, width, 3)
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, row: Pixels) -> None:
        self._memory += row.data
        if len(self._memory) > _IN_MEMORY:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the map)
            self._file.write(self._memory)
            self._memory.clear()

    def finish(self) -> Pixels:
        if self._file is None:
            return np.frombuffer(self._memory, dtype=np.uint8).reshape(self._shape)
        self._file.write(self._memory)
        self._file.flush()
        return np.memmap(self._file, dtype=np.uint8, mode="r").reshape(self._shape)
