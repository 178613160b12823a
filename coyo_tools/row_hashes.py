"""The pHash of every row of a pool as a number, in a file; which are distinct; where each one is.

747 million hashes are 6 GB. They are read from the pool once, into a file in the pool's order, and
gone through from there as often as needed. Distinct ones stand sorted in an array, so that a hash
is looked up in a few steps.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.compiled import compiled
from coyo_tools.hamming_search import Hashes, Places
from coyo_tools.phash import ORDINARY_BITS, PHASH_BITS
from coyo_tools.rows import KeptRows

BLOCK_ROWS = 1 << 22
_PARTS = 1 << 8
_INVALID = 255
_GROUP = 64  # hashes looked up side by side


def _hex_values() -> npt.NDArray[np.uint8]:
    values = np.full(256, _INVALID, np.uint8)
    for value, digits in enumerate(zip("0123456789abcdef", "0123456789ABCDEF", strict=True)):
        for digit in digits:
            values[ord(digit)] = value
    return values


_HEX_VALUES = _hex_values()


@dataclass(frozen=True)
class RowHashes:
    """The hashes of a pool's rows in a file of uint64; ``valid`` says which rows have one."""

    path: Path
    valid: KeptRows
    heads: Places = field(repr=False)  # how many hashes begin with each of 256 bytes

    def blocks(self) -> Iterator[tuple[Hashes, npt.NDArray[np.bool_]]]:
        """Yield the hashes of consecutive rows, and which of these have one."""
        row = 0
        with self.path.open("rb") as file:
            while len(block := np.fromfile(file, np.uint64, BLOCK_ROWS)):
                yield block, self.valid.between(row, row + len(block))
                row += len(block)


class RowHashWriter:
    """Writes a column of hashes, batch by batch; use as a context manager."""

    def __init__(self, path: Path, rows: int):
        self._path = path
        self._valid = KeptRows(rows)
        self._heads = np.zeros(_PARTS, np.int64)
        self.flat = 0  # hashes so far that are not ordinary

    def __enter__(self) -> "RowHashWriter":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, column: pa.Array) -> None:
        """Add the next rows' hashes: strings of 16 hex digits; anything else is no hash."""
        hashes, valid = parse_hashes(column)
        self._file.write(hashes.data)  # tofile would not say why it can't
        ones = np.bitwise_count(hashes[valid])
        least, most = ORDINARY_BITS
        self.flat += int(np.count_nonzero((ones < least) | (ones > most)))
        self._heads += np.bincount(hashes[valid] >> np.uint64(56), minlength=_PARTS)
        self._valid.append(valid)

    def finished(self) -> RowHashes:
        """Return what was written."""
        self._file.flush()
        return RowHashes(self._path, self._valid, self._heads)


def holds_hashes(kind: pa.DataType) -> bool:
    """Say whether hashes can be read from a type: text, or integers of 64 bits."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(test(inner) for test in texts) or inner in (pa.int64(), pa.uint64())


def parse_hashes(column: pa.Array) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """Read hashes as numbers: 16 hex digits, or the bits of an integer as they are.

    Returns:
        The hashes, shape (n,), and which are hashes: anything else counts as 0 and is false.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    valid = np.array(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    if pa.types.is_integer(kind):
        # With a sign, a hash whose first bit is set is a negative number.
        numbers = column.cast(kind).fill_null(0).to_numpy(zero_copy_only=False)
        return numbers.view(np.uint64), valid
    strings = column.cast(pa.large_string())
    rows = len(strings)
    hashes = np.zeros(rows, np.uint64)
    _, offsets, data = strings.buffers()
    if rows and data is not None:
        ends = np.frombuffer(offsets, np.int64, rows + 1, 8 * strings.offset)
        _parse(np.frombuffer(data, np.uint8), ends, _HEX_VALUES, hashes, valid)
    else:
        valid[:] = False
    return hashes, valid


@compiled
def _parse(
    text: npt.NDArray[np.uint8],
    ends: Places,
    values: npt.NDArray[np.uint8],
    hashes: Hashes,
    valid: npt.NDArray[np.bool_],
) -> None:
    for row in range(hashes.shape[0]):
        start = ends[row]
        if not valid[row] or ends[row + 1] - start != 16:
            valid[row] = False
            continue
        number = np.uint64(0)
        worst = np.uint8(0)
        for k in range(16):
            value = values[text[start + k]]
            worst = max(worst, value)
            number = (number << np.uint64(4)) | np.uint64(value & 15)
        if worst < 16:
            hashes[row] = number
        else:
            valid[row] = False


@dataclass(frozen=True)
class Distinct:
    """The distinct hashes of some rows, ascending, shape (n,); ``repeated``: more rows than one.

    ``starts`` is where the hashes with each beginning of ``bits`` bits start.
    """

    hashes: Hashes
    repeated: npt.NDArray[np.bool_]
    starts: Places
    bits: int

    def find(self, hashes: Hashes) -> Places:
        """Return the place of each hash in ``self.hashes``, -1 if it is not there."""
        places = np.full(len(hashes), -1, np.int64)
        if len(self.hashes):
            _find(hashes, self.hashes, self.starts, PHASH_BITS - self.bits, places)
        return places


def distinct_hashes(rows: RowHashes, hashes: Hashes, threads: int) -> Distinct:
    """Sort the hashes of all rows that have one, and drop what is twice.

    Args:
        rows: the rows' hashes.
        hashes: room for as many as there are, shape (rows.valid.count,).
        threads: how many threads.
    """
    ends = np.cumsum(rows.heads) - rows.heads
    # Each thread has some of the beginnings to itself.
    shares = np.searchsorted(ends, np.linspace(0, len(hashes), threads + 1))
    shares[0], shares[-1] = 0, _PARTS
    repeated = np.zeros(len(hashes), np.bool_)
    with ThreadPoolExecutor(threads) as pool:
        for block, valid in rows.blocks():
            spread = [
                pool.submit(_scatter_valid, block, valid, low, high, ends, hashes)
                for low, high in pairwise(shares.tolist())
            ]
            for done in spread:
                done.result()
        stops = np.concatenate([[0], ends])
        parts = [hashes[start:stop] for start, stop in pairwise(stops) if stop > start]
        marks = [repeated[start:stop] for start, stop in pairwise(stops) if stop > start]
        counts = list(pool.map(_unique, parts, marks))
    count = 0
    for part, mark, kept in zip(parts, marks, counts, strict=True):
        hashes[count : count + kept] = part[:kept]
        repeated[count : count + kept] = mark[:kept]
        count += kept
    del parts, marks
    if hashes.base is None and hashes.flags.owndata:
        hashes.resize(count, refcheck=False)  # gives the rest of the memory back
    found = hashes[:count]
    # About eight hashes for each beginning, in one cache line of 64 bytes or two.
    bits = min(26, max(1, count.bit_length() - 3))
    starts = np.zeros((1 << bits) + 1, np.int64)
    _index(found, PHASH_BITS - bits, starts)
    return Distinct(found, repeated[:count], starts, bits)


def _unique(part: Hashes, repeated: npt.NDArray[np.bool_]) -> int:
    part.sort()
    return int(_drop_doubles(part, repeated))


@compiled
def _scatter_valid(
    block: Hashes,
    valid: npt.NDArray[np.bool_],
    low: int,
    high: int,
    ends: Places,
    out: Hashes,
) -> None:
    for x in range(block.shape[0]):
        head = np.int64(block[x] >> np.uint64(56))
        if low <= head < high and valid[x]:
            out[ends[head]] = block[x]
            ends[head] += 1


@compiled
def _drop_doubles(hashes: Hashes, repeated: npt.NDArray[np.bool_]) -> Any:
    """Move the distinct ones of sorted hashes to the front, and return how many they are."""
    count = 0
    for x in range(hashes.shape[0]):
        if count and hashes[count - 1] == hashes[x]:
            repeated[count - 1] = True
        else:
            hashes[count] = hashes[x]
            repeated[count] = False
            count += 1
    return count


@compiled
def _index(hashes: Hashes, shift: int, starts: Places) -> None:
    for x in range(hashes.shape[0]):
        starts[np.int64(hashes[x] >> np.uint64(shift)) + 1] += 1
    for k in range(starts.shape[0] - 1):
        starts[k + 1] += starts[k]


@compiled
def _find(wanted: Hashes, hashes: Hashes, starts: Places, shift: int, places: Places) -> None:
    # Memory answers late. Asking for all of a group before using any answer lets it be late for
    # all at once, which takes a third less time.
    lows = np.empty(_GROUP, np.int64)
    highs = np.empty(_GROUP, np.int64)
    middles = np.empty(_GROUP, np.uint64)
    last = hashes.shape[0] - 1
    for base in range(0, wanted.shape[0], _GROUP):
        size = min(_GROUP, wanted.shape[0] - base)
        for k in range(size):
            head = np.int64(wanted[base + k] >> np.uint64(shift))
            lows[k] = starts[head]
            highs[k] = starts[head + 1]
        for k in range(size):
            middles[k] = hashes[min((lows[k] + highs[k]) >> 1, last)]
        for k in range(size):
            low = lows[k]
            high = highs[k]
            value = wanted[base + k]
            if low < high:
                if middles[k] <= value:
                    low = (low + high) >> 1
                else:
                    high = (low + high) >> 1
            while high - low > 8:
                middle = (low + high) >> 1
                if hashes[middle] <= value:
                    low = middle
                else:
                    high = middle
            places[base + k] = -1
            while low < high:
                if hashes[low] == value:
                    places[base + k] = low
                    break
                low += 1
