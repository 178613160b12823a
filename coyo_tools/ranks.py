"""The value at a rank of a column that is too long to sort: exact, in a few scans and no memory.

A radix selection: numbers become unsigned keys of the same order, and every pass counts the next
16 bits of those keys that share the bits found so far. 32-bit scores take two passes, 64-bit ones
four, with 65,536 counters, however many rows there are. Sorting 747 M scores would spill 12 GB.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
_DIGIT_BITS = 16


@dataclass(frozen=True)
class Ranked:
    """A value, its 0-based rank, and how many values there are."""

    value: Any
    rank: int
    count: int


def value_at_rank(
    batches: Callable[[], Iterable[Numbers]],
    rank: Callable[[int], int],
    *,
    descending: bool = False,
) -> Ranked | None:
    """Return the value at a rank of all numbers that ``batches`` yields; None when it yields none.

    Args:
        batches: starts a scan; every scan yields the same numbers in arrays of one dtype (float32,
            float64, or integers of 16 bits or more), in any order and without NaN.
        rank: the 0-based rank to look for, given the number of values; clamped to what there is.
        descending: rank 0 is the greatest value instead of the least.
    """
    counts, dtype = _count_digits(batches, prefix=None, shift=None)
    count = int(counts.sum())
    if dtype is None or count == 0:
        return None
    wanted = min(max(rank(count), 0), count - 1)
    place = count - 1 - wanted if descending else wanted
    prefix = 0
    shift = dtype.itemsize * 8 - _DIGIT_BITS
    while True:
        upto = np.cumsum(counts)
        digit = int(np.searchsorted(upto, place, side="right"))
        place -= int(upto[digit] - counts[digit])
        prefix = prefix << _DIGIT_BITS | digit
        if shift == 0:
            return Ranked(_value_of_key(prefix, dtype), wanted, count)
        shift -= _DIGIT_BITS
        counts, _ = _count_digits(batches, prefix=prefix, shift=shift)


def _count_digits(
    batches: Callable[[], Iterable[Numbers]], *, prefix: int | None, shift: int | None
) -> tuple[npt.NDArray[np.int64], np.dtype[Any] | None]:
    """Count 16 bits of the keys that begin with ``prefix``; without one, the topmost of all."""
    counts = np.zeros(1 << _DIGIT_BITS, dtype=np.int64)
    dtype: np.dtype[Any] | None = None
    for batch in batches():
        dtype = batch.dtype
        keys = _ordered_keys(batch)
        low = dtype.itemsize * 8 - _DIGIT_BITS if shift is None else shift
        if prefix is not None:
            keys = keys[keys >> np.uint64(low + _DIGIT_BITS) == np.uint64(prefix)]
        digits = (keys >> np.uint64(low)) & np.uint64(0xFFFF)
        counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT_BITS)
    return counts, dtype


def _ordered_keys(values: Numbers) -> npt.NDArray[np.uint64]:
    """Map numbers to unsigned integers that sort alike (of IEEE 754 floats, flip the negative)."""
    bits = values.dtype.itemsize * 8
    if values.dtype.kind == "u":
        return values.astype(np.uint64)
    unsigned = f"u{values.dtype.itemsize}"
    top = np.uint64(1 << (bits - 1))
    if values.dtype.kind == "i":
        return values.view(unsigned).astype(np.uint64) ^ top
    raw = (values + values.dtype.type(0)).view(unsigned).astype(np.uint64)  # -0.0 becomes 0.0
    keys: npt.NDArray[np.uint64] = np.where(raw & top, raw ^ np.uint64((1 << bits) - 1), raw | top)
    return keys


def _value_of_key(key: int, dtype: np.dtype[Any]) -> Any:
    bits = dtype.itemsize * 8
    top = 1 << (bits - 1)
    if dtype.kind == "u":
        return key
    if dtype.kind == "i":
        return key - top
    raw = key ^ top if key & top else key ^ ((1 << bits) - 1)
    return np.array([raw], dtype=f"u{dtype.itemsize}").view(dtype)[0]
