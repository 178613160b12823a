"""Whole rows of a pool, picked by where they stand: remembered as bits, copied by Polars.

DuckDB judges the rows and Polars copies those that passed, because its reader decodes the long
columns of a row group only for the rows that are wanted, and its writer gives the same bytes for
any number of threads. See docs/performance.md for what the other ways cost.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.engine import PART_BYTES, ROW_GROUP_ROWS, ZSTD_LEVEL, write_parts
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import found_no_room
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import Source

Booleans = npt.NDArray[np.bool_]
_STEP = 1 << 20


class KeptRows:
    """Which rows of a pool are kept, one bit each: 93 MB for all of COYO."""

    def __init__(self, rows: int) -> None:
        self._all = rows
        self._bits = np.zeros(-(-rows // 8), dtype=np.uint8)
        self._rest = np.zeros(0, dtype=np.bool_)  # fewer than eight, not packed yet
        self.rows = 0  # judged so far
        self.count = 0

    def append(self, kept: Booleans) -> None:
        """Add the verdicts on the next rows, shape (n,)."""
        waiting = np.concatenate([self._rest, kept])
        whole = len(waiting) // 8 * 8
        place = (self.rows - len(self._rest)) // 8
        self._bits[place : place + whole // 8] = np.packbits(waiting[:whole])
        self._rest = waiting[whole:]
        if len(self._rest):
            self._bits[place + whole // 8] = np.packbits(self._rest)[0]
        self.rows += len(kept)
        self.count += int(np.count_nonzero(kept))

    def keep(self, places: npt.NDArray[np.int64]) -> None:
        """Keep some rows of the pool by their places, in any order and each at most once."""
        bits = np.uint8(128) >> (places % 8).astype(np.uint8)
        np.bitwise_or.at(self._bits, places // 8, bits)
        self.count += len(places)
        self.rows = self._all

    def complement(self) -> "KeptRows":
        """Return the rows of the pool that are not kept."""
        other = KeptRows(self._all)
        other._bits = ~self._bits
        if self._all % 8:
            other._bits[-1] &= np.uint8(256 - (1 << (8 - self._all % 8)))
        other.rows = self._all
        other.count = self._all - self.count
        return other

    def between(self, start: int, stop: int) -> Booleans:
        """Return the verdicts on the rows from ``start`` up to ``stop``."""
        bits = np.unpackbits(self._bits[start // 8 : -(-stop // 8)])
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def spans(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield consecutive spans (start, stop) of the pool with ``rows`` kept rows each."""
        start, inside = 0, 0
        for begin in range(0, self.rows, _STEP):
            stop = min(begin + _STEP, self.rows)
            upto = np.cumsum(self.between(begin, stop))
            while inside + int(upto[-1]) >= rows:
                cut = begin + int(np.searchsorted(upto, rows - inside)) + 1
                yield start, cut
                start = cut
                inside -= rows
            inside += int(upto[-1])
        if inside:
            yield start, self.rows


def can_copy(schema: pa.Schema) -> bool:
    """Say whether Polars reads and writes all of a schema's types as they are."""
    return all(_is_plain(field.type) for field in schema)


def is_copyable(source: Source) -> bool:
    """Say whether a pool's rows can be copied: local files, shown as they are stored."""
    return (
        source.column_map.plain
        and not source.unify_types
        and not source.remote
        and can_copy(source.schema)
    )


def copy_rows(
    files: Sequence[Path],
    file_rows: Sequence[int],
    kept: KeptRows,
    directory: Path,
    on_progress: Progress = no_progress,
) -> list[Path]:
    """Write the kept rows of local parquet files as ``part-00000.parquet``, … into ``directory``.

    Rows stay in order. The size of a part is reckoned from the size of the files, so the same
    files and the same rows give the same bytes.

    Raises:
        SourceError: a file is damaged or has changed since it was judged.
        OutputError: the disk is full.
    """
    bytes_per_row = sum(file.stat().st_size for file in files) / max(sum(file_rows), 1)
    groups = max(1, int(PART_BYTES / max(bytes_per_row, 1.0)) // ROW_GROUP_ROWS)
    ends = list(accumulate(file_rows))
    parts: list[Path] = []
    written = 0
    for start, stop in kept.spans(groups * ROW_GROUP_ROWS):
        touched = [n for n, end in enumerate(ends) if end > start and end - file_rows[n] < stop]
        base = ends[touched[0]] - file_rows[touched[0]]
        part = directory / f"part-{len(parts):05d}.parquet"
        chosen = kept.between(start, stop)
        _copy_span([files[n] for n in touched], start - base, chosen, part)
        rows = pq.read_metadata(part).num_rows
        wanted = int(np.count_nonzero(chosen))
        if rows != wanted:
            raise SourceError(
                f"{wanted:,} rows of {files[touched[0]]} passed, but {rows:,} were there to copy.",
                "Has the file changed meanwhile? Run the command again.",
            )
        parts.append(part)
        written += rows
        on_progress(written, kept.count)
    return parts


def write_kept(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    kept: KeptRows,
    directory: Path,
    on_progress: Progress,
) -> list[Path]:
    """Write the rows that stay: copied by place where they can be, else streamed by DuckDB."""
    if is_copyable(pool):
        files = [Path(file) for file in pool.files]
        return copy_rows(files, pool.file_rows, kept, directory, on_progress)
    return write_parts(session.view("pool"), directory, kept.between)


def _copy_span(files: list[Path], first: int, kept: Booleans, part: Path) -> None:
    """Write the kept rows of a span that begins at row ``first`` of the files."""
    taken = pq.read_schema(files[0]).names
    place = "__place"
    while place in taken:
        place += "_"
    scan = pl.scan_parquet(
        files,
        glob=False,
        hive_partitioning=False,
        row_index_name=place,
        use_statistics=False,  # of the place: Polars asks about made-up ones then
        cache=False,
    )
    # With a stored column in the predicate, Polars decodes the others for the wanted rows alone.
    wanted = pl.struct([ID, place]).map_batches(
        _look_up(place, kept, first), return_dtype=pl.Boolean, is_elementwise=True
    )
    try:
        scan.slice(first, len(kept)).filter(wanted).drop(place).sink_parquet(
            part,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            row_group_size=ROW_GROUP_ROWS,
            statistics=True,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        if found_no_room(error):
            raise OutputError("The disk is full; nothing was written.") from error
        said = " ".join(str(error).split())[:300]
        raise SourceError(f"{files[0]} can't be read: {said}") from error


def _look_up(place: str, kept: Booleans, first: int) -> Callable[[pl.Series], pl.Series]:
    # By place and not by position in the batch: Polars may ask twice, of rows it has thinned out.
    def look_up(rows: pl.Series) -> pl.Series:
        return pl.Series(kept[rows.struct.field(place).to_numpy().astype(np.int64) - first])

    return look_up


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_plain(kind.value_type) and not pa.types.is_list(kind.value_type)
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_string(kind)
        or pa.types.is_boolean(kind)
    )
