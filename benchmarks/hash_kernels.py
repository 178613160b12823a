"""Compiled loops of make_hashes.py: hashes, scores and the order of rows from their numbers alone.

All take a number and a seed and draw from splitmix64, so that threads can fill any part of any
array, in any order, with the same result.
"""

import functools

import numpy as np
from numba import njit

_ONCE = 0.7  # of the rows that repeat a hash, those that repeat one no other of them does
_TOP = np.uint64(1 << 63)

_kernel = functools.partial(njit, nogil=True, cache=True)


@_kernel(inline="always")
def _mixed(x):  # splitmix64's finalizer: Steele, Lea, Flood 2014
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_kernel(inline="always")
def _popcount(x):
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_kernel(inline="always")
def _below(number, limit):
    """Map 64 random bits to a number below a limit of at most 2**32."""
    return ((number >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)


@_kernel
def permuted(number, size, key):
    """Return where a keyed permutation of the numbers below ``size`` takes one of them.

    Four Feistel rounds on an even number of bits; what falls outside walks on until inside.
    """
    half = np.uint64(1)
    while np.uint64(1) << (half + half) < np.uint64(size):
        half += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    number = np.uint64(number)
    while True:
        left, right = number >> half, number & mask
        for round_number in range(4):
            mixed = _mixed(
                right ^ (np.uint64(key) << np.uint64(34)) ^ np.uint64(round_number << 32)
            )
            left, right = right, left ^ (mixed & mask)
        number = (left << half) | right
        if number < np.uint64(size):
            return number


@_kernel
def ordinary(number, seed):
    """Return a random hash of popcount 32 with the top bit set."""
    draw = _mixed(_mixed(np.uint64(seed)) + np.uint64(number))
    while True:
        draw = _mixed(draw)
        hash_ = draw | _TOP
        if _popcount(hash_) == np.uint64(32):
            return hash_


@_kernel
def _nth_bit(hash_, place):
    """Return the set bit of a hash that ``place`` lower ones lie below."""
    for _ in range(place):
        hash_ &= hash_ - np.uint64(1)
    return hash_ & (~hash_ + np.uint64(1))


@_kernel
def swapped(hash_, swaps, draw):
    """Return a hash at distance ``2 * swaps``: bits set below the top one change places."""
    ones, zeros = hash_ ^ _TOP, ~hash_
    for swap in range(swaps):
        draw = _mixed(draw)
        bit = _nth_bit(ones, _below(draw, 31 - swap))
        draw = _mixed(draw)
        other = _nth_bit(zeros, _below(draw, 32 - swap))
        ones ^= bit
        zeros ^= other
        hash_ ^= bit | other
    return hash_


@_kernel
def _combination(rank, bits, size, binomials):
    """Return the ``size`` of the lowest ``bits`` bits that stand at a rank, as a mask."""
    mask = np.uint64(0)
    for bit in range(bits - 1, -1, -1):
        if size == 0:
            break
        without = binomials[bit, size]
        if rank >= without:
            rank -= without
            size -= 1
            mask |= np.uint64(1) << np.uint64(bit)
    return mask


@_kernel
def _spread(mask, places):
    """Return those set bits of ``places`` whose numbers, from the lowest, are bits of ``mask``."""
    out = np.uint64(0)
    while places:
        low = places & (~places + np.uint64(1))
        if mask & np.uint64(1):
            out |= low
        mask >>= np.uint64(1)
        places ^= low
    return out


@_kernel
def fill_ordinary(out, start, seed):
    for place in range(len(out)):
        out[place] = ordinary(start + place, seed)


@_kernel
def fill_planted(out, start, seed, swaps, bases):
    for place in range(len(out)):
        draw = _mixed(_mixed(np.uint64(seed + swaps)) ^ np.uint64(start + place))
        base = permuted((start + place) % bases, bases, seed + swaps)
        out[place] = swapped(ordinary(base, seed), swaps, draw)


@_kernel
def fill_flips(out, start, seed, flips, binomials):
    size = binomials[64, flips]
    for place in range(len(out)):
        rank = permuted(start + place, size, seed + flips)
        out[place] = _TOP ^ _combination(rank, 64, flips, binomials)


@_kernel
def fill_swaps(out, start, seed, swaps, binomials, centre):
    away, size = binomials[31, swaps], binomials[31, swaps] * binomials[32, swaps]
    for place in range(len(out)):
        rank = permuted(start + place, size, seed + swaps)
        ones = _combination(rank % away, 31, swaps, binomials)
        zeros = _combination(rank // away, 32, swaps, binomials)
        out[place] = centre ^ _spread(ones, centre ^ _TOP) ^ _spread(zeros, ~centre)


@_kernel
def unique(hashes):
    """Move the distinct values of a sorted array to its beginning; return how many."""
    count = min(1, len(hashes))
    for place in range(1, len(hashes)):
        if hashes[place] != hashes[count - 1]:
            hashes[count] = hashes[place]
            count += 1
    return count


@_kernel
def fill_rows(out, scores, start, seed, hashes, rows, clump_repeats, centre):
    distinct = len(hashes)
    for place in range(len(out)):
        number = permuted(start + place, rows, seed + 1)
        draw = _mixed(_mixed(np.uint64(seed + 2)) ^ np.uint64(start + place))
        # The bits of a draw are as good as normal: 64 coins, and a uniform step between.
        step = np.float64(_mixed(draw) >> np.uint64(11)) / 9007199254740992.0 - 0.5
        scores[place] = 0.255 + 0.05 * (np.float64(_popcount(draw)) - 32.0 + step) / 4.0
        if number < np.uint64(distinct):
            out[place] = hashes[number]
            continue
        number -= np.uint64(distinct)
        if number < np.uint64(clump_repeats):
            out[place] = centre
            continue
        number -= np.uint64(clump_repeats)
        draw = _mixed(draw + np.uint64(1))
        share = np.float64(draw >> np.uint64(11)) / 9007199254740992.0
        if share < _ONCE:
            out[place] = hashes[permuted(number % np.uint64(distinct), distinct, seed + 3)]
        else:
            popular = np.uint64(distinct * ((share - _ONCE) / (1 - _ONCE)) ** 3)
            out[place] = hashes[permuted(min(popular, np.uint64(distinct - 1)), distinct, seed + 4)]


@_kernel
def fill_digits(out, hashes):
    for place in range(len(hashes)):
        for digit in range(16):
            nibble = (hashes[place] >> np.uint64(60 - 4 * digit)) & np.uint64(15)
            out[16 * place + digit] = nibble + (np.uint64(48) if nibble < 10 else np.uint64(87))


@_kernel
def fill_shuffled(out, start, seed, hashes):
    for place in range(len(out)):
        out[place] = hashes[permuted(start + place, len(hashes), seed + 5)]
