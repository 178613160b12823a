"""All pairs of hashes within a Hamming distance, for as many hashes as COYO has, none missed.

``near_pairs`` plans: how many blocks the 64 bits are cut in, what fits into the memory, what goes
to which thread. The loops are in ``hamming_search``.

Distances between hashes with the same number of bits set, or numbers that differ by an even one,
are even. Ordinary pHashes have 32 bits set, so radius 3 finds what radius 2 finds. The search uses
that and doesn't rely on it: hashes with an even and with an odd number are searched apart, and
then those few of the one kind against the other kind, at odd distances.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coyo_tools.bit_blocks import (
    COMPARING_NS,
    MOST_BLOCKS,
    PARTING_NS,
    Blocks,
    cut_bits,
)
from coyo_tools.errors import OutputError
from coyo_tools.hamming_search import (
    MAX_RADIUS,
    Hashes,
    count_parities,
    histogram,
    scatter,
    search,
)
from coyo_tools.hash_index import HashIndex, with_room
from coyo_tools.manifest import NO_ROOM
from coyo_tools.phash import PHASH_BITS
from coyo_tools.progress import Progress, no_progress

# Parts of up to so many hashes are compared each with each: 16 to 40 are equally fast.
_COMPARED = 24
_FIRST_DIGIT = 8
_FEW = 16  # one in so many is few: they are looked up rather than searched
_CHUNK = 1 << 20


@dataclass(frozen=True)
class NearPairs:
    """Pairs of hashes in a file: shape (count, 2) of uint64, the lesser hash first, in no order."""

    path: Path
    count: int

    @property
    def first(self) -> Hashes:
        """The lesser hash of each pair, shape (count,), read as it is used."""
        return self._pairs()[:, 0]

    @property
    def second(self) -> Hashes:
        """The greater hash of each pair, shape (count,), read as it is used."""
        return self._pairs()[:, 1]

    def blocks(self, rows: int = 1 << 22) -> Iterator[Hashes]:
        """Yield the pairs by ``rows`` at a time, shape (rows, 2)."""
        with self.path.open("rb") as file:
            while len(block := np.fromfile(file, np.uint64, 2 * rows)):
                yield block.reshape(-1, 2)

    def _pairs(self) -> Hashes:
        if self.count == 0:
            return np.empty((0, 2), np.uint64)
        return np.memmap(self.path, np.uint64, "r", shape=(self.count, 2))


@dataclass(frozen=True)
class _Members:
    """Which hashes are searched: by the parity of their bits set (-1: either), and their number."""

    parity: int
    least: int
    most: int

    def of(self, hashes: Hashes) -> Hashes:
        """Return those of the hashes that are meant, a copy."""
        ones = np.bitwise_count(hashes)
        meant = (ones >= self.least) & (ones <= self.most)
        if self.parity >= 0:
            meant &= ones & 1 == self.parity
        return hashes[meant]


def near_pairs(
    hashes: Hashes,
    radius: int,
    scratch: Path,
    *,
    memory: int,
    threads: int,
    bits_set: tuple[int, int] = (0, PHASH_BITS),
    on_progress: Progress = no_progress,
) -> NearPairs:
    """Find all pairs of distinct hashes that differ in 1 to ``radius`` bits.

    Args:
        hashes: distinct, in any order, shape (n,).
        radius: 0 to 12 bits.
        scratch: a directory for the file of pairs, ``pairs.u64``.
        memory: bytes for the search, beside ``hashes``; less means more passes over them.
        threads: how many threads.
        bits_set: leave out hashes with fewer or more bits set.
        on_progress: told how many steps of how many are done.

    Raises:
        ValueError: the radius is out of range.
        OutputError: the disk is full.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius {radius} is not in 0 to {MAX_RADIUS}")
    with _PairFile(scratch / "pairs.u64") as found:
        counts = _parities(hashes, bits_set, threads)
        even_radius = radius - radius % 2
        odd_radius = radius - 1 + radius % 2
        steps = _Steps(on_progress, 2 * (even_radius + 1) + (odd_radius + 1))
        for parity in (0, 1):
            if even_radius and counts[parity] > 1:
                members = _Members(parity, *bits_set)
                _search_all(
                    hashes,
                    members,
                    counts[parity],
                    even_radius,
                    False,
                    found,
                    memory,
                    threads,
                    steps,
                )
        if odd_radius > 0 and counts.min() > 0:
            rare = int(counts.argmin())
            if counts[rare] * _FEW <= counts[1 - rare]:
                few = np.concatenate(
                    [_Members(rare, *bits_set).of(chunk) for chunk in _chunks(hashes)]
                )
                index = HashIndex(few, odd_radius)
                _search_few(index, hashes, _Members(1 - rare, *bits_set), found, threads)
            else:
                _search_all(
                    hashes, _Members(-1, *bits_set), int(counts.sum()), odd_radius, True,
                    found, memory, threads, steps,
                )  # fmt: skip
    return NearPairs(found.path, found.count)


def choose_blocks(hashes: int, radius: int) -> Blocks:
    """Choose how many blocks cost least for so many ordinary hashes at a radius of 1 or more."""
    best = min(range(radius + 1, MOST_BLOCKS + 1), key=lambda m: search_cost(hashes, radius, m))
    return cut_bits(best, radius)


def search_cost(hashes: int, radius: int, blocks: int) -> float:
    """Estimate the nanoseconds on one core to search so many ordinary hashes with so many blocks.

    After j picks, C(radius + j, j) beginnings of choices are left, and each has all hashes in parts
    that agree in j blocks. A part is worked on until it is small enough to be compared.
    """
    picks = blocks - radius
    width = PHASH_BITS / blocks
    cost = 0.0
    part = float(hashes)
    for pick in range(1, picks + 1):
        prefixes = comb(radius + pick, pick)
        digits = 0.0
        left = width
        while left > 0 and part > _COMPARED:
            step = min(left, 11.0, max(1.0, float(np.log2(part)) - 1.0))
            part /= 2**step
            left -= step
            digits += 1
        cost += prefixes * hashes * digits * PARTING_NS
        if part <= _COMPARED or pick == picks:
            return cost + prefixes * hashes * part / 2 * COMPARING_NS
    return cost


def _recut_above(radius: int) -> int:
    """Return the size above which cutting a hot part again is cheaper than comparing in it."""
    return int(2 * comb(radius + 2, 2) * 2 * PARTING_NS / COMPARING_NS)


def _search_all(
    hashes: Hashes,
    members: _Members,
    count: int,
    radius: int,
    only_odd: bool,
    found: "_PairFile",
    memory: int,
    threads: int,
    steps: "_Steps",
) -> None:
    """Search a set of hashes among itself: for each block that may be the first to agree in."""
    blocks = choose_blocks(count, radius)
    chunks = [
        hashes[len(hashes) * k // threads : len(hashes) * (k + 1) // threads]
        for k in range(threads)
    ]
    meant = (members.parity, members.least, members.most)
    buffer = np.empty(0, np.uint64)
    with _Threads(threads) as pool:
        for block in range(radius + 1):
            # A bit less than a block that is picked alone: the search parts by what is left.
            alone = blocks.picks == 1
            width = int(min(_FIRST_DIGIT, blocks.widths[block] - alone))
            rest = int(blocks.widths[block]) - width
            shift = int(blocks.shifts[block]) + rest
            counts = np.zeros((threads, 1 << width), np.int64)
            _all_done(
                [
                    pool.submit(histogram, chunk, *meant, shift, width, counts[k])
                    for k, chunk in enumerate(chunks)
                ]
            )
            sizes = counts.sum(axis=0)
            room = max(int(sizes.max()), memory // 16)  # the other half is for threads and pairs
            for low, high in _ranges(sizes, room):
                if len(buffer) < sizes[low:high].sum():
                    buffer = np.empty(min(room, count), np.uint64)
                ends = np.zeros_like(counts)
                inside = counts[:, low:high].T.ravel()
                ends[:, low:high] = (np.cumsum(inside) - inside).reshape(high - low, threads).T
                _all_done(
                    [
                        pool.submit(
                            scatter, chunk, *meant, shift, width, low, high, ends[k], buffer
                        )
                        for k, chunk in enumerate(chunks)
                    ]
                )
                stops = np.cumsum(sizes[low:high])
                parts = [
                    buffer[stop - size : stop]
                    for size, stop in zip(sizes[low:high], stops, strict=True)
                    if size > 1
                ]
                parts.sort(key=len, reverse=True)  # so that no thread begins a large one last
                _all_done(
                    [
                        pool.submit(
                            _search_part, part, blocks, block, rest, radius, only_odd, found
                        )
                        for part in parts
                    ]
                )
            steps.done()


def _search_part(
    part: Hashes,
    blocks: Blocks,
    block: int,
    rest: int,
    radius: int,
    only_odd: bool,
    found: "_PairFile",
) -> None:
    found.collect(
        len(part) // 4 + 1024,
        lambda out: search(
            part, blocks.shifts, blocks.widths, block, rest, blocks.picks, radius, only_odd,
            _COMPARED, _recut_above(radius), out,
        ),
    )  # fmt: skip


def _search_few(
    index: HashIndex, many: Hashes, members: _Members, found: "_PairFile", threads: int
) -> None:
    """Look up all of the many that are meant in an index of few."""

    def work(chunk: Hashes) -> None:
        found.add(np.sort(index.near(members.of(chunk)), axis=1))

    with _Threads(threads) as pool:
        waiting: list[Future[None]] = []
        for chunk in _chunks(many):
            waiting.append(pool.submit(work, chunk))
            if len(waiting) >= 4 * threads:
                _all_done([waiting.pop(0)])
        _all_done(waiting)


def _parities(hashes: Hashes, bits_set: tuple[int, int], threads: int) -> npt.NDArray[np.int64]:
    """Count the hashes with an even and an odd number of bits set."""
    chunks = list(_chunks(hashes))
    counts = np.zeros((len(chunks), 2), np.int64)
    with _Threads(threads) as pool:
        _all_done(
            [
                pool.submit(count_parities, chunk, *bits_set, counts[k])
                for k, chunk in enumerate(chunks)
            ]
        )
    return np.asarray(counts.sum(axis=0))


def _chunks(hashes: Hashes) -> Iterator[Hashes]:
    for start in range(0, len(hashes), _CHUNK):
        yield hashes[start : start + _CHUNK]


def _ranges(sizes: npt.NDArray[np.int64], room: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of parts that are together no larger than ``room``, or one part alone."""
    low = 0
    inside = 0
    for part, size in enumerate(sizes):
        if inside and inside + size > room:
            yield low, part
            low, inside = part, 0
        inside += int(size)
    if inside:
        yield low, len(sizes)


class _Threads(ThreadPoolExecutor):
    """Threads that drop what waits when something goes wrong or Ctrl-C is pressed."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _all_done(futures: "list[Future[None]]") -> None:
    """Wait for all; raise what one raised. A Ctrl-C is noticed within a fraction of a second."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2)
        for future in done:
            future.result()


class _PairFile:
    """A file that threads append pairs to; use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "_PairFile":
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def collect(self, room: int, work: Callable[[Hashes], int]) -> None:
        """Run ``work`` with room for so many pairs, again with enough if there were more."""
        self.add(with_room(room, work))

    def add(self, pairs: Hashes) -> None:
        """Append pairs, shape (n, 2)."""
        with self._lock:
            try:
                self._file.write(np.ascontiguousarray(pairs).data)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise OutputError(
                    f"The disk is full: {self.count:,} pairs were found, and there are more.",
                    "Free some space, or take a smaller --radius: pairs multiply with it.",
                ) from error
            self.count += len(pairs)


class _Steps:
    """Counts steps for a progress bar."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def done(self) -> None:
        """Say that a step is done."""
        self._done += 1
        self._on_progress(self._done, self._total)
