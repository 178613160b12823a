"""Parquet footers: the one part of a file that opening a pool reads.

A footer lies at the end of its file, so one read of the tail gets it (two where it is longer than
the tail), for files on disk and behind a url alike. Its raw bytes are kept: they make the
fingerprint, hold the statistics, and save reading them again.
"""

import math
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

# COYO's parts have footers of tens of kB; a tail this long takes no longer to fetch than a short
# one where every request costs 50 ms.
TAIL_BYTES = 128 * 1024
# DuckDB asks for this much at the end of every file, for every thread that opens it.
ENGINE_TAIL_BYTES = 32 * 1024
_MAGIC = b"PAR1"
_LEAST_BYTES = 12  # the magic twice and a length


def read_tail(size: int, read: Callable[[int, int], bytes], *, keep: int = 0) -> bytes:
    """Return a parquet file's last bytes: its footer, the footer's length, the magic.

    Args:
        size: the file's size, bytes.
        read: returns the bytes from a start to an end.
        keep: return at least so many bytes, if the file has them.

    Raises:
        ValueError: it is no parquet file, or cut short; the message says which.
    """
    if size < _LEAST_BYTES:
        raise ValueError(f"it has only {size} bytes")
    start = max(size - TAIL_BYTES, 0)
    tail = read(start, size)
    if tail[-4:] != _MAGIC:
        raise ValueError("it doesn't end as parquet files do")
    length = int.from_bytes(tail[-8:-4], "little")
    if length > size - _LEAST_BYTES:
        raise ValueError(f"its footer would be {length:,} bytes long, the file has {size:,}")
    if length + 8 > len(tail):
        tail = read(size - 8 - length, start) + tail
    return tail[-max(length + 8, keep) :]


def parse_tail(tail: bytes) -> pq.FileMetaData:
    """Read what the footer in a file's last bytes says.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + footer_of(tail)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).splitlines()[0].rstrip(".")) from error


def footer_of(tail: bytes) -> bytes:
    """Return the footer alone, with its length and the magic."""
    return tail[-8 - int.from_bytes(tail[-8:-4], "little") :]


def column_chunks(metadata: pq.FileMetaData, name: str) -> Iterator[pq.ColumnChunkMetaData]:
    """Yield a column's chunk of each row group; none for a nested column."""
    for position in range(metadata.num_columns):
        if metadata.schema.column(position).path == name:
            for group in range(metadata.num_row_groups):
                yield metadata.row_group(group).column(position)


def column_ends(metadata: pq.FileMetaData, name: str) -> Iterator[float]:
    """Yield least and greatest value of a number column's row groups, where they are known."""
    for chunk in column_chunks(metadata, name):
        known = chunk.statistics
        if known is not None and known.has_min_max:
            yield from (end for end in map(number, (known.min, known.max)) if end is not None)


def number(value: object) -> float | int | None:
    """Return a statistic that is a finite number, ``None`` for any other."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None  # type: ignore[return-value, arg-type]
