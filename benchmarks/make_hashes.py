"""Writes a synthetic pool for deduplication at COYO's own size: an id, a pHash, a score.

    python benchmarks/make_hashes.py /tmp/hashes10m
    python benchmarks/make_hashes.py /tmp/coyo --distinct 579_679_137 --rows 746_972_269
    python benchmarks/make_hashes.py /tmp/skewed --distinct 10_000_000 --rows 12_900_000 --skew
    python benchmarks/make_hashes.py --npy /tmp/hashes10m.npy       # the distinct hashes alone

Hashes are as published ones are: popcount 32, the top bit set. Of the distinct ones, one in ten is
another one with a set and an unset bit swapped (distance 2), one in fifty with two and one in fifty
with three such swaps (4, 6). One in 2,000 is flat: 8000000000000000 with a few bits flipped,
popcounts odd and even. With ``--skew`` a clump is among them: one hash and what swaps make of it,
near shells first, three quarters of each before the next begins; where rows repeat, its centre
repeats until the clump makes up 5 % of the rows.

Every hash is a function of its number, drawn from counters (splitmix64), so that nothing needs
remembering; all are sorted once, equal ones dropped and replaced, which makes them exactly
``--distinct``. Where there are more rows, seven tenths of the rest repeat a hash once, others
repeat some hashes many times. The order of rows is a keyed permutation of their numbers. Memory is
8 bytes a distinct hash and a row group a thread; the same arguments give the same rows.
"""

import argparse
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from hash_kernels import (
    fill_digits,
    fill_flips,
    fill_ordinary,
    fill_planted,
    fill_rows,
    fill_shuffled,
    fill_swaps,
    ordinary,
    unique,
)

from coyo_tools.columns import ID, IMAGE_PHASH

ROWS_PER_PART = 5_835_721  # 128 parts for COYO's 746,972,269 rows
ROW_GROUP = 250_000
SCORE = "clip_similarity_vitl14"
CLUMP = 0.05  # of all rows, with --skew
_CLUMP_DISTINCT = 2_000_000
_AT_ONCE = 1 << 20
_FLAT = 1 / 2000
_PLANTED = ((1, 1 / 10), (2, 1 / 50), (3, 1 / 50))  # swaps, their share of the distinct hashes
_FULL = 0.75  # of a shell, before the next one begins

Hashes = npt.NDArray[np.uint64]
Fill = Callable[[Hashes, int], None]


def make_hashes(distinct: int, *, clump: int = 0, seed: int = 0) -> Hashes:
    """Return exactly so many distinct hashes, sorted but for a few that replaced equal ones.

    Args:
        distinct: how many.
        clump: how many of them are the clump's centre and what swaps make of it.
        seed: any number.
    """
    seed <<= 8  # kernels add small numbers to it
    binomials = _binomials()
    hashes = np.empty(distinct, np.uint64)
    fills = [*_flat_fills(round(distinct * _FLAT), seed, binomials)]
    fills += _clump_fills(clump, seed, binomials)
    planted = [(swaps, int(distinct * share)) for swaps, share in _PLANTED]
    bases = distinct - sum(count for count, _ in fills) - sum(count for _, count in planted)
    if bases < 1:
        raise ValueError(f"a clump of {clump:,} leaves nothing else of {distinct:,} hashes")
    fills += [
        (count, functools.partial(fill_planted, seed=seed, swaps=swaps, bases=bases))
        for swaps, count in planted
    ]
    fills.append((bases, functools.partial(fill_ordinary, seed=seed)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        offset = 0
        tasks = []
        for count, fill in fills:
            whole = hashes[offset : offset + count]
            tasks += [pool.submit(fill, whole[at : at + _AT_ONCE], at) for at in _steps(count)]
            offset += count
        for task in tasks:
            task.result()
        # Two halves, so that both cores sort.
        hashes.partition(distinct // 2)
        halves = [hashes[: distinct // 2], hashes[distinct // 2 :]]
        list(pool.map(lambda half: half.sort(), halves))
    found = unique(hashes)
    fresh = np.empty(0, np.uint64)
    drawn = bases
    while len(fresh) < distinct - found:
        more = np.empty(2 * (distinct - found), np.uint64)
        fill_ordinary(more, drawn, seed)
        drawn += len(more)
        fresh = np.unique(np.concatenate([fresh, _absent(more, hashes[:found])]))
    hashes[found:] = fresh[: distinct - found]
    return hashes


def centre_of(seed: int = 0) -> np.uint64:
    """Return the hash in the middle of the clump."""
    return np.uint64(ordinary(1, (seed << 8) + 99))


def clump_size(distinct: int, rows: int) -> int:
    """Return how many distinct hashes a clump has by default, its centre among them.

    5 % of them, but no more than two million as long as rows that repeat the centre make up the
    share: 29 M of COYO's would be neighbours of each other in more than a billion pairs.
    """
    usual = min(int(distinct * CLUMP), _CLUMP_DISTINCT)
    return max(1, usual, int(rows * CLUMP) - (rows - distinct))


def write_pool(
    directory: Path,
    hashes: Hashes,
    rows: int,
    *,
    clump: int = 0,
    seed: int = 0,
    codec: str = "zstd",
) -> None:
    """Write parquet parts that have every hash at least once, in shuffled order.

    Args:
        directory: where.
        hashes: distinct ones, from ``make_hashes`` with the same clump and seed.
        rows: how many, at least as many as hashes.
        clump: how many of the hashes make up the clump; its centre repeats until it has its share.
        seed: any number.
        codec: parquet's compression.
    """
    if rows < len(hashes):
        raise ValueError(f"{rows:,} rows can't hold {len(hashes):,} distinct hashes")
    repeats = 0
    if clump:
        repeats = max(0, min(rows - len(hashes), int(rows * CLUMP) - clump))
    fill = functools.partial(_row_group, hashes, rows, repeats, seed)
    directory.mkdir(parents=True, exist_ok=True)
    parts = -(-rows // ROWS_PER_PART)

    def write(part: int) -> None:
        first, last = part * ROWS_PER_PART, min(rows, (part + 1) * ROWS_PER_PART)
        path = directory / f"part-{part:05d}-of-{parts:05d}.{codec}.parquet"
        # No dictionaries: they would grow, and be given up, in every row group.
        with pq.ParquetWriter(
            path, _SCHEMA, compression=codec, compression_level=_LEVEL.get(codec),
            use_dictionary=False,
        ) as writer:  # fmt: skip
            for at in range(first, last, ROW_GROUP):
                count = min(ROW_GROUP, last - at)
                writer.write_table(fill(at, count, (part << 33) + at - first))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(parts)))


_SCHEMA = pa.schema([(ID, pa.int64()), (IMAGE_PHASH, pa.string()), (SCORE, pa.float32())])
_LEVEL = {"zstd": 1}


def save_npy(path: Path, hashes: Hashes, seed: int = 0) -> None:
    """Save hashes in shuffled order, as somebody would have them who read them from a pool."""
    out = np.lib.format.open_memmap(path, "w+", np.uint64, (len(hashes),))

    def fill(at: int) -> None:
        fill_shuffled(out[at : at + _AT_ONCE], at, seed << 8, hashes)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, _steps(len(hashes))))
    out.flush()


def _row_group(
    hashes: Hashes, rows: int, repeats: int, seed: int, start: int, count: int, first_id: int
) -> pa.Table:
    own, scores = np.empty(count, np.uint64), np.empty(count, np.float32)
    fill_rows(own, scores, start, seed << 8, hashes, rows, repeats, centre_of(seed))
    digits = np.empty(16 * count, np.uint8)
    fill_digits(digits, own)
    width = pa.py_buffer(np.arange(0, 16 * count + 16, 16, dtype=np.int32))
    text = pa.Array.from_buffers(pa.string(), count, [None, width, pa.py_buffer(digits)])
    # A score in a thousand is NULL and one in ten thousand NaN, as in make_pool.py.
    fate = (own ^ np.arange(start, start + count, dtype=np.uint64)) % np.uint64(10_000)
    scores[fate == 0] = np.nan
    masked = pa.array(scores, mask=(fate > 0) & (fate <= 10), from_pandas=False)
    ids = pa.array(first_id + np.arange(count))
    return pa.table([ids, text, masked], schema=_SCHEMA)


def _steps(count: int) -> Iterator[int]:
    return iter(range(0, count, _AT_ONCE))


def _binomials() -> npt.NDArray[np.uint64]:
    """Return n over k for n to 64 and k to 7, which is as far as any shell goes."""
    return np.array([[math.comb(n, k) for k in range(8)] for n in range(65)], np.uint64)


def _shells(count: int, sizes: list[int]) -> list[int]:
    """Return how many of each shell to take: three quarters of one before the next begins."""
    taken = []
    for size in sizes:
        taken.append(min(count, max(1, int(size * _FULL))))
        count -= taken[-1]
    if count:
        raise ValueError(f"{count:,} hashes too many for so many shells")
    return taken


def _flat_fills(count: int, seed: int, binomials: npt.NDArray[np.uint64]) -> list[tuple[int, Fill]]:
    sizes = [math.comb(64, flips) for flips in range(8)]
    return [
        (taken, functools.partial(fill_flips, seed=seed, flips=flips, binomials=binomials))
        for flips, taken in enumerate(_shells(count, sizes))
    ]


def _clump_fills(
    count: int, seed: int, binomials: npt.NDArray[np.uint64]
) -> list[tuple[int, Fill]]:
    sizes = [math.comb(31, swaps) * math.comb(32, swaps) for swaps in range(8)]
    centre = centre_of(seed >> 8)
    return [
        (
            taken,
            functools.partial(
                fill_swaps, seed=seed, swaps=swaps, binomials=binomials, centre=centre
            ),
        )
        for swaps, taken in enumerate(_shells(count, sizes))
    ]


def _absent(values: Hashes, among: Hashes) -> Hashes:
    places = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return values[among[places] != values]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", type=Path, nargs="?", help="the pool to write")
    parser.add_argument("--distinct", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, help="default: as many as distinct hashes")
    parser.add_argument("--skew", action="store_true", help="one clump has 5 %% of the rows")
    parser.add_argument(
        "--clump", type=int, help="how many distinct hashes it has, if not the default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", default="zstd", choices=["zstd", "snappy"])
    parser.add_argument("--npy", type=Path, help="save the distinct hashes, as uint64")
    chosen = parser.parse_args()
    if chosen.directory is None and chosen.npy is None:
        parser.error("name a directory, or a file with --npy")
    rows = chosen.rows or chosen.distinct
    clump = (chosen.clump or clump_size(chosen.distinct, rows)) if chosen.skew else 0
    made = make_hashes(chosen.distinct, clump=clump, seed=chosen.seed)
    if chosen.npy is not None:
        save_npy(chosen.npy, made, chosen.seed)
    if chosen.directory is not None:
        write_pool(chosen.directory, made, rows, clump=clump, seed=chosen.seed, codec=chosen.codec)
