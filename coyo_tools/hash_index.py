"""A few hashes, filed under every key, to look up what is near each of very many others."""

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from coyo_tools.bit_blocks import COMPARING_NS, MOST_BLOCKS, PROBING_NS, Blocks, cut_bits
from coyo_tools.compiled import compiled, popcount
from coyo_tools.hamming_search import Hashes, Places
from coyo_tools.phash import PHASH_BITS


class HashIndex:
    """A few hashes, filed so that what is near each of very many others is found quickly."""

    def __init__(self, hashes: Hashes, radius: int) -> None:
        self.radius = radius
        self._bits = min(24, max(8, len(hashes).bit_length() + 2))
        blocks = _blocks_to_probe(len(hashes), self._bits, radius)
        self._masks = np.array(
            [
                sum(blocks.mask(block) for block in picked)
                for picked in combinations(range(len(blocks.widths)), blocks.picks)
            ],
            np.uint64,
        )
        self._ends = np.empty((len(self._masks), (1 << self._bits) + 1), np.int64)
        self._entries = np.empty((len(self._masks), len(hashes)), np.uint64)
        build_index(hashes, self._masks, self._bits, self._ends, self._entries)

    def near(self, hashes: Hashes) -> Hashes:
        """Find the pairs, 0 to ``radius`` bits apart, of one of ``hashes`` and one of the index.

        Returns:
            Shape (pairs, 2), the one of ``hashes`` first; equal ``hashes`` give equal pairs.
        """
        return with_room(
            len(hashes) // 16 + 1024,
            lambda out: probe(
                hashes, self._masks, self._bits, self._ends, self._entries, self.radius, out
            ),
        )


def with_room(room: int, work: Callable[[Hashes], int]) -> Hashes:
    """Run ``work``, which fills an array of pairs and returns how many there are.

    Args:
        room: how many pairs are expected; if there are more, the work is done once more.
        work: fills what fits, shape (room, 2).

    Returns:
        The pairs, shape (n, 2).
    """
    out = np.empty((room, 2), np.uint64)
    count = work(out)
    if count > room:
        out = np.empty((count, 2), np.uint64)
        count = work(out)
    return out[:count]


def _blocks_to_probe(few: int, bits: int, radius: int) -> Blocks:
    def cost(count: int) -> float:
        keys = 2.0 ** min(bits, PHASH_BITS * (count - radius) / count)
        return float(comb(count, radius) * (PROBING_NS + few / keys * COMPARING_NS))

    return cut_bits(min(range(radius + 1, MOST_BLOCKS + 1), key=cost), radius)


@compiled
def _bucket(hash_: np.uint64, mask: np.uint64, bits: int) -> Any:
    """Return the bucket of a key among 2**bits, by Fibonacci hashing (Knuth, TAOCP 3, 6.4)."""
    return np.int64(((hash_ & mask) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))


@compiled
def build_index(hashes: Hashes, masks: Hashes, bits: int, ends: Places, entries: Hashes) -> None:
    """File the hashes under every key: ``masks`` are what each choice of blocks keeps.

    Args:
        hashes: shape (n,).
        masks: shape (c,).
        bits: buckets of each key are 2**bits.
        ends: to be filled, shape (c, 2**bits + 1): where each bucket begins, and the last one ends.
        entries: to be filled, shape (c, n).
    """
    for c in range(masks.shape[0]):
        places = ends[c]
        places[:] = 0
        for x in range(hashes.shape[0]):
            places[_bucket(hashes[x], masks[c], bits) + 1] += 1
        for k in range(1 << bits):
            places[k + 1] += places[k]
        for x in range(hashes.shape[0] - 1, -1, -1):
            bucket = _bucket(hashes[x], masks[c], bits) + 1
            places[bucket] -= 1
            entries[c, places[bucket]] = hashes[x]
        for k in range(1 << bits):  # each place now says where its bucket begins, one too far on
            places[k] = places[k + 1]
        places[1 << bits] = hashes.shape[0]


@compiled
def probe(
    hashes: Hashes,
    masks: Hashes,
    bits: int,
    ends: Places,
    entries: Hashes,
    radius: int,
    out: Hashes,
) -> Any:
    """Find the pairs of one of ``hashes`` and one of an index, see ``build_index``.

    Returns:
        How many pairs there are; those that fit are in ``out``, shape (room, 2), the hash before
        the index's.
    """
    found = 0
    for x in range(hashes.shape[0]):
        for c in range(masks.shape[0]):
            bucket = _bucket(hashes[x], masks[c], bits)
            for k in range(ends[c, bucket], ends[c, bucket + 1]):
                difference = hashes[x] ^ entries[c, k]
                if difference & masks[c] != 0 or popcount(difference) > radius:
                    continue
                first_here = True
                for earlier in range(c):
                    if difference & masks[earlier] == 0:
                        first_here = False
                        break
                if first_here:
                    if found < out.shape[0]:
                        out[found, 0] = hashes[x]
                        out[found, 1] = entries[c, k]
                    found += 1
    return found
