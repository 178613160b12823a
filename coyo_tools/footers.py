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
_MAGIC = b"PAR1"


def read_footer(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """Return the raw footer of a parquet file, without length and magic.

    Args:
        size: the file's size, bytes.
        read: returns the bytes from a start to an end.

    Raises:
        ValueError: it is no parquet file, or cut short; the message says which.
    """
    if size < 12:
        raise ValueError(f"it has only {size} bytes")
    start = max(size - TAIL_BYTES, 0)
    tail = read(start, size)
    if tail[-4:] != _MAGIC:
        raise ValueError("it doesn't end as parquet files do")
    length = int.from_bytes(tail[-8:-4], "little")
    if length > size - 12:
        raise ValueError(f"its footer would be {length:,} bytes long, the file has {size:,}")
    if length + 8 > len(tail):
        tail = read(size - 8 - length, start) + tail
    return tail[len(tail) - 8 - length : len(tail) - 8]


def parse_footer(footer: bytes) -> pq.FileMetaData:
    """Read a raw footer.

    Raises:
        ValueError: it is damaged.
    """
    whole = b"".join([_MAGIC, footer, len(footer).to_bytes(4, "little"), _MAGIC])
    try:
        return pq.read_metadata(pa.BufferReader(whole))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


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
            for end in (known.min, known.max):
                if isinstance(end, int | float) and math.isfinite(end):
                    yield end
