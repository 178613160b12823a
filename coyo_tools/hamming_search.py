"""The compiled loops that find all pairs of 64-bit hashes within a Hamming distance.

The bits are cut in m blocks. Two hashes that differ in at most R bits agree in at least m - R
blocks, so that every choice of m - R blocks is a key, and hashes with an equal key are compared.
Choices that begin with the same blocks share the work: hashes are parted by the first block, each
part by the next one, as in a radix sort, until few enough are left to compare each with each. A
pair is reported once, under the first blocks it agrees in.

A part that agrees in all blocks of a choice and is still large (real hashes clump) is cut again,
the same way, on the bits that are left; so no part is compared each with each because it is hot.

Only numba code is here; ``neighbours`` plans and calls it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from coyo_tools.compiled import compiled, popcount

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

MAX_RADIUS = 12
_MAX_DIGIT = 11  # bits parted by at a time: 2,048 counters stay in the first-level cache
_MAX_DEPTH = 66  # each level settles a bit or more of 64
_MAX_CUTS = (
    64 * 32
)  # blocks of all cuts on the way down: each cut has 32 at most, and settles two bits
_MAX_SKIPPED = 32 * MAX_RADIUS
_COMPARED_BITS = 10  # so few free bits allow 1,024 hashes at most: each is compared with each
_SAMPLED = 128  # pairs looked at to see whether a part is dense

# Where the search stands on one level; `at` and `count` say which hashes of `pool` it parts.
_LEVEL = np.dtype(
    [
        ("at", np.int64), ("count", np.int64), ("table", np.int64),
        ("cuts", np.int64), ("blocks", np.int64), ("first", np.int64), ("last", np.int64),
        ("block", np.int64), ("rest", np.int64), ("picks", np.int64), ("digit", np.int64),
        ("cell", np.int64), ("begin", np.int64), ("skipped", np.int64), ("all_skipped", np.int64),
        ("radius", np.int64), ("cut_skipped", np.int64),
        ("free", np.uint64), ("open", np.uint64), ("varying", np.uint64),
        ("same", np.uint64), ("all_same", np.uint64),
    ]
)  # fmt: skip


@compiled
def bits_of(width: int, shift: int) -> Any:
    """Return ``width`` ones, ``shift`` bits from the right, as a uint64; width 1 to 63."""
    return ((np.uint64(1) << np.uint64(width)) - np.uint64(1)) << np.uint64(shift)


@compiled
def _chosen(hash_: np.uint64, parity: int, least: int, most: int) -> Any:
    ones = popcount(hash_)
    return least <= ones <= most and (parity < 0 or ones & 1 == parity)


@compiled
def count_parities(hashes: Hashes, least: int, most: int, counts: Places) -> None:
    """Add to ``counts``, shape (2,), how many hashes have an even and an odd number of bits set.

    Those with fewer than ``least`` or more than ``most`` are left out.
    """
    for x in range(hashes.shape[0]):
        ones = popcount(hashes[x])
        if least <= ones <= most:
            counts[ones & 1] += 1


@compiled
def histogram(
    hashes: Hashes, parity: int, least: int, most: int, shift: int, width: int, counts: Places
) -> None:
    """Add to ``counts``, shape (2**width,), how often the bits from ``shift`` have each value.

    Only hashes count that have ``least`` to ``most`` bits set, and a number of the ``parity``, 0 or
    1; -1 takes both.
    """
    low = np.uint64((1 << width) - 1)
    for x in range(hashes.shape[0]):
        if _chosen(hashes[x], parity, least, most):
            counts[np.int64((hashes[x] >> np.uint64(shift)) & low)] += 1


@compiled
def scatter(
    hashes: Hashes,
    parity: int,
    least: int,
    most: int,
    shift: int,
    width: int,
    low: int,
    high: int,
    ends: Places,
    out: Hashes,
) -> None:
    """Copy the hashes whose bits from ``shift`` are in [low, high) to ``out``, parted by them.

    Which hashes are meant is said as for ``histogram``. ``ends[value]`` is where the next hash with
    this value goes, and moves on.
    """
    mask = np.uint64((1 << width) - 1)
    for x in range(hashes.shape[0]):
        value = np.int64((hashes[x] >> np.uint64(shift)) & mask)
        if low <= value < high and _chosen(hashes[x], parity, least, most):
            out[ends[value]] = hashes[x]
            ends[value] += 1


@compiled
def _compare(
    pool: Hashes,
    begin: int,
    end: int,
    radius: int,
    only_odd: bool,
    same: np.uint64,
    skipped: Hashes,
    skips: int,
    out: Hashes,
    found: int,
) -> Any:
    """Compare each with each; count on from ``found``, and store what fits into ``out``.

    Whether a pair belongs here is a matter of ``same``, the bits in which it must agree, and of the
    first ``skips`` of ``skipped``, the blocks in each of which it must differ.
    """
    for x in range(begin, end - 1):
        one = pool[x]
        for y in range(x + 1, end):
            difference = one ^ pool[y]
            distance = popcount(difference)
            if distance > radius or difference & same != 0 or (only_odd and distance & 1 == 0):
                continue
            first_here = True
            for k in range(skips):
                if difference & skipped[k] == 0:
                    first_here = False
                    break
            if first_here:
                if found < out.shape[0]:
                    out[found, 0] = min(one, pool[y])
                    out[found, 1] = max(one, pool[y])
                found += 1
    return found


@compiled
def _cut(free: np.uint64, blocks: int, shifts: Places, widths: Places) -> Any:
    """Cut the free bits in so many blocks, or as many as they allow; return how many there are."""
    count = 0
    bit = 0
    while bit < 64:
        start = bit
        while bit < 64 and (free >> np.uint64(bit)) & np.uint64(1):
            bit += 1
        if bit > start:
            shifts[count] = start
            widths[count] = bit - start
            count += 1
        else:
            bit += 1
    wanted = min(max(blocks, count), popcount(free))
    while count < wanted:
        widest = np.argmax(widths[:count])
        half = widths[widest] // 2
        shifts[count] = shifts[widest] + half
        widths[count] = widths[widest] - half
        widths[widest] = half
        count += 1
    return count


@compiled
def _varying(pool: Hashes, begin: int, end: int) -> Any:
    """Return the bits in which hashes of a part differ from each other."""
    bits = np.uint64(0)
    for x in range(begin + 1, end):
        bits |= pool[begin] ^ pool[x]
    return bits


@compiled
def _can_differ(skipped: Hashes, skips: int, varying: np.uint64) -> Any:
    """Say whether there may be a pair that differs in each of the skipped blocks."""
    for k in range(skips):  # noqa: SIM110, numba compiles loops better than generators
        if skipped[k] & varying == 0:
            return False
    return True


@compiled
def _is_dense(
    pool: Hashes,
    begin: int,
    end: int,
    radius: int,
    only_odd: bool,
    same: np.uint64,
    skipped: Hashes,
    skips: int,
) -> Any:
    """Say whether so many pairs of a part belong to it that comparing all is no waste.

    Looks at 128 pairs, always the same.
    """
    nothing = np.empty((0, 2), np.uint64)
    pair = np.empty(2, np.uint64)
    state = np.uint64(end - begin)
    found = 0
    for _ in range(_SAMPLED):
        for side in range(2):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            pair[side] = pool[begin + np.int64((state >> np.uint64(33)) % np.uint64(end - begin))]
        if pair[0] != pair[1]:
            found = _compare(pair, 0, 2, radius, only_odd, same, skipped, skips, nothing, found)
    return found >= _SAMPLED // 32


@compiled
def search(
    hashes: Hashes,
    shifts: Places,
    widths: Places,
    block: int,
    rest: int,
    picks: int,
    radius: int,
    only_odd: bool,
    compared: int,
    recut_above: int,
    out: Hashes,
) -> Any:
    """Find the pairs of a part of the hashes whose first agreeing block is ``block``.

    Args:
        hashes: distinct hashes, shape (n,), that agree in all bits of ``block`` but ``rest``.
        shifts: where each block begins, from the right, shape (m,).
        widths: how many bits each block has, shape (m,).
        block: the number of the first block picked.
        rest: the lower bits of that block, by which they are not parted yet; 0 only if more
            blocks are picked.
        picks: how many blocks are picked in all, that one included.
        radius: the greatest distance, below m.
        only_odd: leave out pairs at an even distance.
        compared: parts of up to so many are compared each with each.
        recut_above: parts that agree in all picked blocks are, up to so many.
        out: where pairs go, lesser hash first, shape (room, 2).

    Returns:
        How many pairs there are; more than there is room for means that the rest was left out.
    """
    count = hashes.shape[0]
    pool = np.empty(4 * count + 1024, np.uint64)
    pool[:count] = hashes
    tables = np.empty(1 << 14, np.int64)
    skipped = np.empty(_MAX_SKIPPED, np.uint64)
    cut_shifts = np.empty(_MAX_CUTS, np.int64)
    cut_widths = np.empty(_MAX_CUTS, np.int64)
    cut_shifts[: shifts.shape[0]] = shifts
    cut_widths[: shifts.shape[0]] = widths
    levels = np.empty(_MAX_DEPTH, _LEVEL)
    found = 0
    top = levels[0]
    top.varying = _varying(pool, 0, count)
    top.open = ~np.uint64(0)
    for s in range(block):
        skipped[s] = bits_of(widths[s], shifts[s])
        top.open &= ~skipped[s]
    if not _can_differ(skipped, block, top.varying):
        return found
    top.at = 0
    top.count = count
    top.table = 0
    top.cuts = 0
    top.blocks = shifts.shape[0]
    top.picks = picks
    top.radius = radius
    top.cut_skipped = 0
    top.skipped = block
    top.same = np.uint64(0)
    top.free = ~(bits_of(widths[block] - rest, shifts[block] + rest))
    if rest > 0:
        top.first = block
        top.last = block
    else:
        top.first = block + 1
        top.picks -= 1
        top.last = top.blocks - top.picks
        top.same = bits_of(widths[block], shifts[block])
    top.rest = rest
    top.block = top.first - 1
    top.digit = -1
    depth = 0
    while depth >= 0:
        level = levels[depth]
        at = level.at
        count = level.count
        work = at + count  # the parted copy lies behind the hashes themselves
        if level.digit < 0 or level.cell == 1 << level.digit:
            block = level.block + 1
            skips = level.skipped
            rest = level.rest
            possible = block <= level.last
            if possible and rest == 0:
                for s in range(level.first, block):
                    skipped[skips] = bits_of(cut_widths[level.cuts + s], cut_shifts[level.cuts + s])
                    skips += 1
                rest = cut_widths[level.cuts + block]
                # Nothing differs in a block that is the same in all of the part.
                possible = block == level.first or skipped[skips - 1] & level.varying != 0
            if not possible:
                depth -= 1
                continue
            level.block = block
            level.all_skipped = skips
            digit = 1
            while digit < rest and digit < _MAX_DIGIT and count >> (digit + 2) > 0:
                digit += 1
            level.digit = digit
            size = 1 << digit
            level.all_same = level.same | bits_of(
                cut_widths[level.cuts + block], cut_shifts[level.cuts + block]
            )
            shift = np.uint64(cut_shifts[level.cuts + block] + rest - digit)
            low = np.uint64(size - 1)
            if work + count > pool.shape[0]:
                larger = np.empty(2 * (work + count), np.uint64)
                larger[:work] = pool[:work]
                pool = larger
            if level.table + size + 1 > tables.shape[0]:
                wider = np.empty(2 * (level.table + size + 1), np.int64)
                wider[: level.table] = tables[: level.table]
                tables = wider
            ends = tables[level.table : level.table + size + 1]
            ends[:] = 0
            for x in range(at, work):
                ends[np.int64((pool[x] >> shift) & low) + 1] += 1
            for c in range(size):
                ends[c + 1] += ends[c]
            for x in range(at, work):
                value = np.int64((pool[x] >> shift) & low)
                pool[work + ends[value]] = pool[x]
                ends[value] += 1
            level.cell = 0
            level.begin = 0
        block = level.block
        rest = level.rest if level.rest > 0 else cut_widths[level.cuts + block]
        digit = level.digit
        size = 1 << digit
        skips = level.all_skipped
        same = level.all_same
        begin = level.begin
        cell = level.cell
        picked_all = rest == digit and level.picks == 1
        descended = False
        while cell < size:
            end = tables[level.table + cell]
            part = end - begin
            cell += 1
            if part > compared and not (picked_all and part <= recut_above):
                descended = True
                break
            if part > 1:
                found = _compare(
                    pool, work + begin, work + end, radius, only_odd,
                    same, skipped, skips, out, found,
                )  # fmt: skip
            begin = end
        if not descended:
            level.cell = size
            continue
        level.cell = cell
        level.begin = end
        varying = _varying(pool, work + begin, work + end)
        if not _can_differ(skipped, skips, varying):
            continue
        shift = np.uint64(cut_shifts[level.cuts + block] + rest - digit)
        child = levels[depth + 1]
        child.at = work + count
        child.count = part
        child.table = level.table + size + 1
        child.skipped = skips
        child.varying = varying
        child.free = level.free & ~(np.uint64(size - 1) << shift)
        child.open = level.open & child.free
        child.cuts = level.cuts
        child.blocks = level.blocks
        child.radius = level.radius
        child.cut_skipped = level.cut_skipped
        child.rest = 0
        child.same = same
        if rest > digit:
            child.rest = rest - digit
            child.first = block
            child.last = block
            child.picks = level.picks
            child.same = level.same
        elif level.picks > 1:
            child.first = block + 1
            child.picks = level.picks - 1
            child.last = level.blocks - child.picks
        else:
            if _is_dense(pool, work + begin, work + end, radius, only_odd, same, skipped, skips):
                found = _compare(
                    pool, work + begin, work + end, radius, only_odd,
                    same, skipped, skips, out, found,
                )  # fmt: skip
                continue
            # Each block skipped in this cut has one difference or more; so many fewer are left
            # for the bits that are in none of them.
            for s in range(level.cut_skipped, skips):
                child.open &= ~skipped[s]
            child.radius = level.radius - (skips - level.cut_skipped)
            child.cut_skipped = skips
            bits = child.open & varying
            if popcount(bits) <= child.radius or popcount(bits) == 0:
                # They are free to differ in these: cut anew, whatever was skipped.
                bits = child.free & varying
                child.open = child.free
                child.radius = radius
                if popcount(bits) <= max(radius + 1, _COMPARED_BITS):
                    found = _compare(
                        pool, work + begin, work + end, radius, only_odd,
                        same, skipped, skips, out, found,
                    )  # fmt: skip
                    continue
            child.cuts = level.cuts + level.blocks
            spare = 2 if child.radius > 0 else 1
            child.blocks = _cut(
                bits, child.radius + spare, cut_shifts[child.cuts :], cut_widths[child.cuts :]
            )
            child.first = 0
            child.picks = child.blocks - child.radius
            child.last = child.radius
        child.block = child.first - 1
        child.digit = -1
        if child.at + part > pool.shape[0]:
            larger = np.empty(2 * (child.at + part), np.uint64)
            larger[: child.at] = pool[: child.at]
            pool = larger
        for x in range(part):
            pool[child.at + x] = pool[work + begin + x]
        depth += 1
    return found
