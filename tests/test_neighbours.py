"""All pairs within a distance: those of brute force, for ordinary, random and hostile hashes."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coyo_tools.bit_blocks import cut_bits
from coyo_tools.hash_index import HashIndex
from coyo_tools.neighbours import choose_blocks, near_pairs, search_cost

Hashes = npt.NDArray[np.uint64]
TOP = np.uint64(1 << 63)
MANY = 20_000


def ordinary(rng: np.random.Generator, count: int) -> Hashes:
    """Hashes with 32 bits set, the first among them, as published ones."""
    drawn = rng.integers(1 << 63, (1 << 64) - 1, 14 * count + 200, dtype=np.uint64)
    return drawn[np.bitwise_count(drawn) == 32][:count]


def flipped(rng: np.random.Generator, hashes: Hashes, bits: int) -> Hashes:
    """The hashes with up to so many bits changed, anywhere."""
    for _ in range(bits):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, len(hashes)).astype(np.uint64))
    return hashes


def in_one_block(rng: np.random.Generator, count: int) -> Hashes:
    """Hashes that agree in all but 16 neighbouring bits."""
    shift = np.uint64(rng.integers(0, 49))
    low = rng.integers(0, 1 << 16, count, dtype=np.uint64) << shift
    return low ^ rng.integers(0, 1 << 64, dtype=np.uint64)


def flat(rng: np.random.Generator, count: int) -> Hashes:
    """Zero, one bit set, and what is a few bits from them."""
    start = np.where(rng.random(count) < 0.5, TOP, np.uint64(0)).astype(np.uint64)
    return flipped(rng, start, 3)


def clump(rng: np.random.Generator, count: int) -> Hashes:
    """An ordinary hash and its neighbourhood, with as many ordinary ones elsewhere."""
    centre = np.repeat(ordinary(rng, 1), count // 2)
    return np.concatenate([flipped(rng, centre, 4), ordinary(rng, count - count // 2)])


def planted(rng: np.random.Generator, count: int) -> Hashes:
    """Ordinary hashes, a third of them again with up to ten bits changed."""
    hashes = ordinary(rng, count)
    third = hashes[: count // 3]
    return np.concatenate([hashes, flipped(rng, third, int(rng.integers(1, 11)))])


KINDS = {
    "ordinary": ordinary,
    "random": lambda rng, count: rng.integers(0, 1 << 64, count, dtype=np.uint64),
    "planted": planted,
    "in one block": in_one_block,
    "flat": flat,
    "clump": clump,
}


def brute_force(hashes: Hashes, radius: int) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Every pair within the radius, sorted, shape (pairs, 2), and its distance."""
    ordered = np.sort(hashes)
    pairs, distances = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint8)]
    for place in range(len(ordered) - 1):
        bits = np.bitwise_count(ordered[place] ^ ordered[place + 1 :])
        near = np.flatnonzero(bits <= radius)
        if len(near):
            others = ordered[place + 1 + near]
            pairs.append(np.stack([np.full_like(others, ordered[place]), others], axis=1))
            distances.append(bits[near])
    return np.concatenate(pairs), np.concatenate(distances)


def pairs_of(hashes: Hashes, radius: int, **options: object) -> Hashes:
    """What the search finds, sorted, shape (pairs, 2)."""
    with tempfile.TemporaryDirectory() as folder:
        settled = {"memory": 1 << 30, "threads": 2} | options
        found = near_pairs(hashes, radius, Path(folder), **settled)  # type: ignore[arg-type]
        pairs = np.concatenate([np.empty((0, 2), np.uint64), *found.blocks(1001)])
        assert np.array_equal(pairs[:, 0], found.first)
        assert np.array_equal(pairs[:, 1], found.second)
    assert len(pairs) == found.count
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@settings(max_examples=8, deadline=None)
@given(kind=st.sampled_from(["ordinary", "random", "planted"]), seed=st.integers(0, 2**32))
def test_all_pairs_of_twenty_thousand_are_those_of_brute_force(kind: str, seed: int) -> None:
    hashes = np.unique(KINDS[kind](np.random.default_rng(seed), MANY))[:MANY]
    known, bits = brute_force(hashes, 8)
    for radius in range(1, 9):
        assert np.array_equal(pairs_of(hashes, radius), known[bits <= radius])


@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from(["in one block", "flat", "clump"]), seed=st.integers(0, 2**32))
def test_all_pairs_of_hostile_hashes_are_those_of_brute_force(kind: str, seed: int) -> None:
    # Nearly all of them are near nearly all: 2,000 have two million pairs.
    hashes = np.unique(KINDS[kind](np.random.default_rng(seed), 2000))
    known, bits = brute_force(hashes, 8)
    for radius in range(1, 9):
        assert np.array_equal(pairs_of(hashes, radius), known[bits <= radius])


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.integers(1, 120)),
        min_size=1,
        max_size=4,
    ),
    extremes=st.lists(st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1, 0xAAAA << 48]), max_size=5),
    radius=st.integers(0, 12),
    threads=st.integers(1, 3),
    memory=st.sampled_from([1, 4096, 1 << 20]),
)
def test_mixtures_at_every_radius(
    parts: list[tuple[str, int, int]],
    extremes: list[int],
    radius: int,
    threads: int,
    memory: int,
) -> None:
    made = [KINDS[kind](np.random.default_rng(seed), count) for kind, seed, count in parts]
    hashes = np.unique(np.concatenate([*made, np.array(extremes, np.uint64)]))
    np.random.default_rng(0).shuffle(hashes)
    expected, _ = brute_force(hashes, radius)
    assert np.array_equal(pairs_of(hashes, radius, threads=threads, memory=memory), expected)


def test_hot_parts_are_cut_again() -> None:
    """100,000 neighbours of one hash: each with each would be 5e9 comparisons."""
    rng = np.random.default_rng(3)
    centre = int(ordinary(rng, 1)[0])
    ones = np.array([1 << k for k in range(64) if centre >> k & 1], np.uint64)
    zeros = np.array([1 << k for k in range(64) if not centre >> k & 1], np.uint64)
    hashes = np.full(100_000, centre, np.uint64)
    for drawn in rng.integers(0, 32, (3, 2, len(hashes))):
        hashes = (hashes & ~ones[drawn[0]]) | zeros[drawn[1]]
    hashes = np.unique(hashes[np.bitwise_count(hashes) == 32])
    assert len(hashes) > 50_000
    pairs = pairs_of(hashes, 2)
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    for one in hashes[rng.integers(0, len(hashes), 300)]:
        near = hashes[(np.bitwise_count(hashes ^ one) <= 2) & (hashes != one)]
        mine = pairs[(pairs == one).any(axis=1)]
        assert np.array_equal(np.sort(mine[mine != one]), near)


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_hashes_of_few_or_many_bits_can_be_left_out(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = np.unique(np.concatenate([flat(rng, 400), planted(rng, 400)]))
    ones = np.bitwise_count(hashes)
    kept = hashes[(ones >= 24) & (ones <= 40)]
    assert 400 < len(kept) < len(hashes)
    found = pairs_of(hashes, radius, bits_set=(24, 40))
    assert np.array_equal(found, brute_force(kept, radius)[0])


@pytest.mark.parametrize("radius", range(9))
def test_an_index_of_few_finds_what_is_near_each_of_many(radius: int) -> None:
    rng = np.random.default_rng(radius)
    few = np.unique(np.concatenate([ordinary(rng, 200), flat(rng, 20)]))
    many = np.concatenate([flipped(rng, few, 5), ordinary(rng, 2000), few[:50]])
    expected = {
        (int(one), int(other))
        for one in many
        for other in few[np.bitwise_count(one ^ few) <= radius]
    }
    found = HashIndex(few, radius).near(many)
    assert {(int(one), int(other)) for one, other in found} == expected
    assert len(found) >= len(expected)


def test_nothing_and_one_have_no_pairs() -> None:
    assert len(pairs_of(np.empty(0, np.uint64), 4)) == 0
    assert len(pairs_of(np.array([7], np.uint64), 4)) == 0
    with pytest.raises(ValueError, match="radius 13"):
        near_pairs(np.empty(0, np.uint64), 13, Path(), memory=1, threads=1)


@pytest.mark.parametrize("radius", range(1, 13))
def test_blocks_make_up_all_bits_and_more_hashes_get_wider_keys(radius: int) -> None:
    for count in (2, 10_000, 10**7, 6 * 10**8):
        blocks = choose_blocks(count, radius)
        cost = search_cost(count, radius, len(blocks.widths))
        assert cost == min(search_cost(count, radius, m) for m in range(radius + 1, 25))
        assert blocks.picks == len(blocks.widths) - radius >= 1
    narrow, wide = choose_blocks(10**4, radius), choose_blocks(6 * 10**8, radius)
    assert wide.picks * wide.widths.max() >= narrow.picks * narrow.widths.max()
    for count in range(radius + 1, 25):
        cut = cut_bits(count, radius)
        assert sum(cut.mask(block) for block in range(count)) == (1 << 64) - 1
        assert cut.widths.max() - cut.widths.min() <= 1
