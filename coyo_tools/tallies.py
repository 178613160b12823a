"""What one scan can tell of a column: moments, quantiles, histogram, in memory that does not grow.

Finite numbers are counted by the upper 20 bits of their float32 form, which keep their order: sign,
exponent and 11 bits of the mantissa. So quantiles are known to 1 part in 4096, whole numbers up to
4096 exactly, and every histogram can be read off. Where a histogram's edge lies inside one of these
counters, the values of that counter below the edge are counted apart, so that bins are exact.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from coyo_tools.bins import Bins

PERCENTS = (1, 5, 25, 50, 75, 95, 99)
QUANTILE_ERROR = 2.0**-12
_KEY_BITS = 20
_DROPPED = 32 - _KEY_BITS
_ZERO = 1 << (_KEY_BITS - 1)  # the key of 0.0
_LARGEST = float(np.finfo(np.float32).max)

Numbers = npt.NDArray[Any]
Keys = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Figures:
    """A column's figures; None where it has no finite number.

    ``count`` finite numbers; ``std`` is that of the population (divided by ``count``);
    ``quantiles`` by percent: the least value with at least that share of all at or below it.
    """

    count: int
    nulls: int
    nans: int
    infinite: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    quantiles: dict[str, float | None]


@dataclass(frozen=True)
class Bin:
    """A bin in words and its rows; ``low`` and ``high`` are its edges, None where it has none."""

    label: str
    rows: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Rows by bin, and those in none: they add up to all rows.

    A bin has its lower edge, the last one both edges. Floats are compared as float32.
    """

    bins: tuple[Bin, ...]
    under: int
    over: int
    nulls: int
    nans: int
    even: bool = False

    def all_bins(self) -> list[Bin]:
        """Return every bin with under, over, NULL and NaN as bins of their own."""
        first, last = self.bins[0].low, self.bins[-1].high
        under = Bin(f"below {first:g}", self.under)
        over = [] if last is None else [Bin(f"above {last:g}", self.over)]
        return [under, *self.bins, *over, Bin("NULL", self.nulls), Bin("NaN", self.nans)]


@dataclass
class ColumnTally:
    """Counts one column, batch by batch.

    Args:
        bins: of its histogram.
        whole: its values are integers.
    """

    bins: Bins
    whole: bool
    nulls: int = 0
    nans: int = 0
    _infinite: list[int] = field(default_factory=lambda: [0, 0])
    _count: int = 0
    _mean: float = 0.0
    _squares: float = 0.0  # sum of squared differences from the mean
    _low: float = math.inf
    _high: float = -math.inf
    # Rows by key, from the key ``_first`` on: only as far as keys were seen.
    _first: int = 0
    _rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        self._edges, self._edge_keys, self._edge_in = _edges_of(self.bins)
        self._below = np.zeros(len(self._edges), dtype=np.int64)

    def add(self, values: Numbers, nulls: int = 0) -> None:
        """Count some values, shape (n,), NaN and infinities among them, and some NULLs."""
        self.nulls += nulls
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                rest = values[~finite]
                nans = int(np.isnan(rest).sum())
                above = int((rest > 0).sum())
                self.nans += nans
                self._infinite[0] += len(rest) - nans - above
                self._infinite[1] += above
                values = values[finite]
        if len(values) == 0:
            return
        self._add_moments(len(values), *_moments(values))
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        if values.dtype == np.float64:
            values = np.clip(values, -_LARGEST, _LARGEST)
        single = values.astype(np.float32, copy=False)
        keys = keys_of(single)
        first = int(keys.min())
        self._add_rows(first, np.bincount(keys - first))
        if self._edge_in is not None:
            edge = self._edge_in[keys]
            near = np.flatnonzero(edge >= 0)
            edge = edge[near]
            below = edge[single[near] < self._edges[edge]]
            self._below += np.bincount(below, minlength=len(self._edges))

    def plus(self, other: "ColumnTally") -> "ColumnTally":
        """Return the tally of this one's rows and another's of the same column."""
        both = ColumnTally(self.bins, self.whole, self.nulls + other.nulls, self.nans + other.nans)
        both._infinite = [a + b for a, b in zip(self._infinite, other._infinite, strict=True)]
        for part in (self, other):
            if part._count:
                both._add_moments(part._count, part._mean, part._squares)
        both._low, both._high = min(self._low, other._low), max(self._high, other._high)
        for part in (self, other):
            both._add_rows(part._first, part._rows)
        both._below = self._below + other._below
        return both

    def _add_moments(self, count: int, mean: float, squares: float) -> None:
        """Take in the moments of further values: Chan, Golub & LeVeque 1979."""
        total = self._count + count
        apart = mean - self._mean
        self._mean += apart * count / total
        self._squares += squares + apart * apart * self._count * count / total
        self._count = total

    def _add_rows(self, first: int, rows: npt.NDArray[np.int64]) -> None:
        if len(rows) == 0:
            return
        if len(self._rows) == 0:
            self._first, self._rows = first, rows.copy()
            return
        low = min(first, self._first)
        high = max(first + len(rows), self._first + len(self._rows))
        if high - low > len(self._rows):
            grown = np.zeros(high - low, dtype=np.int64)
            grown[self._first - low : self._first - low + len(self._rows)] = self._rows
            self._first, self._rows = low, grown
        self._rows[first - self._first : first - self._first + len(rows)] += rows

    def figures(self) -> Figures:
        """Return the column's figures so far."""
        known = self._count > 0
        return Figures(
            count=self._count,
            nulls=self.nulls,
            nans=self.nans,
            infinite=sum(self._infinite),
            mean=_number(self._mean) if known else None,
            std=_number(math.sqrt(self._squares / self._count)) if known else None,
            min=self._shown(self._low) if known else None,
            max=self._shown(self._high) if known else None,
            quantiles=dict(
                zip(map(str, PERCENTS), self._quantiles(PERCENTS), strict=True)
                if known
                else dict.fromkeys(map(str, PERCENTS))
            ),
        )

    def histogram(self) -> Histogram:
        """Return the rows by bin so far."""
        upto = np.concatenate([[0], np.cumsum(self._rows)])
        places = np.clip(self._edge_keys - self._first, 0, len(self._rows))
        below = upto[places] + self._below  # finite values below each edge
        if self.bins.open_end:
            below[-1] = self._count
        bins = []
        last = len(self.bins.edges) - 2
        for number, label in enumerate(self.bins.labels):
            low, high = self.bins.edges[number : number + 2]
            rows = int(below[number + 1] - below[number])
            open_end = self.bins.open_end and number == last
            if open_end:
                rows += self._infinite[1]
            bins.append(Bin(label, rows, low, None if open_end else high))
        over = 0 if self.bins.open_end else int(self._count - below[-1]) + self._infinite[1]
        under = int(below[0]) + self._infinite[0]
        return Histogram(tuple(bins), under, over, self.nulls, self.nans, self.bins.even)

    def _quantiles(self, percents: Sequence[int]) -> list[float | None]:
        upto = np.cumsum(self._rows)
        # -(-a // b) rounds up in whole numbers.
        ranks = [max(-(-percent * self._count // 100), 1) for percent in percents]
        found = self._first + np.searchsorted(upto, ranks, side="left")
        return [self._shown(self._within(int(key))) for key in found]

    def _within(self, key: int) -> float:
        """Return the middle of the numbers that a key stands for; a whole one of whole numbers."""
        low, high = sorted((lowest_of(key), highest_of(key)))
        middle: float
        if self.whole:
            middle = math.floor((math.ceil(low) + math.floor(high)) / 2)
        else:
            middle = 0.0 if key in (_ZERO, _ZERO - 1) else (low + high) / 2
        return min(max(middle, self._low), self._high)

    def _shown(self, value: float) -> float:
        return int(value) if self.whole else value


@functools.cache
def _edges_of(
    bins: Bins,
) -> tuple[npt.NDArray[np.float32], Keys, npt.NDArray[np.int8] | None]:
    """Return the edges of bins as float32, each one's key, and which edge lies inside which key.

    The last edge is moved up, so that values below it are those of the last bin.
    """
    edges = np.asarray(bins.edges, dtype=np.float32)
    if bins.open_end:
        edges[-1] = np.inf
    elif bins.whole:
        edges[-1] += 1
    else:
        edges[-1] = np.nextafter(edges[-1], np.float32(np.inf))
    keys = keys_of(edges)
    inside = [n for n, key in enumerate(keys) if lowest_of(int(key)) != edges[n]]
    if not inside:
        return edges, keys, None
    edge_in = np.full(1 << _KEY_BITS, -1, dtype=np.int8)
    edge_in[keys[inside]] = inside
    return edges, keys, edge_in


def keys_of(values: npt.NDArray[np.float32]) -> Keys:
    """Return the upper bits of float32 numbers as integers of the same order, from 0 up."""
    bits = (values + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (ordered >> _DROPPED) + np.int32(_ZERO)


def lowest_of(key: int) -> float:
    """Return the least number that has a key."""
    return _number_of((key - _ZERO) << _DROPPED)


def highest_of(key: int) -> float:
    """Return the greatest number that has a key."""
    return _number_of(((key - _ZERO) << _DROPPED) | ((1 << _DROPPED) - 1))


def _number_of(ordered: int) -> float:
    bits = ordered if ordered >= 0 else ordered ^ 0x7FFFFFFF
    return float(np.array([bits], dtype=np.int32).view(np.float32)[0])


def _moments(values: Numbers) -> tuple[float, float]:
    numbers = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(numbers.mean())
        numbers -= mean
        return mean, float(np.dot(numbers, numbers))


def _number(value: float) -> float | None:
    """Return a number that JSON can hold; the squares of absurd numbers are infinite."""
    return value if math.isfinite(value) else None
