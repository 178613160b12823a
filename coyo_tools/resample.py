"""Shrinks decoded pictures with Pillow's arithmetic, several times faster, in compiled loops.

Pillow's own loops take one pixel at a time; these are written so that the compiler takes many. What
``grey_for_hashing`` gives is Pillow's to the bit, since a perceptual hash hangs on it. ``shrink``
may be off by one, as it goes down the columns first, which is less work. Enlarging is left to
Pillow.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coyo_tools.compiled import compiled

# Where each window begins, how many pixels it holds, and their weights, one row a window.
_Windows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]

# Pillow's src/libImaging/Resample.c: weights have 22 bits behind the point, so that a sum of 8-bit
# pixels fits into int32; each pass rounds and cuts to 8 bits.
_BITS = 22
_HALF = np.int32(1 << (_BITS - 1))

_HASHED_SIDE = 32


def grey_for_hashing(grey: Image.Image) -> Image.Image:
    """Return ``grey.resize((32, 32), LANCZOS)``, the same bytes, of an image in mode L.

    622 x 541 pixels take 0.4 ms in place of 1.1.
    """
    width, height = grey.size
    # Pillow skips passes that change nothing, and keeps sizes as float32, exact up to 2^24.
    # Since 13 it takes the columns of tall pictures first (found by trying 12,000 sizes).
    tall = height - _HASHED_SIDE > 2 * (width - _HASHED_SIDE)
    if tall or min(width, height) <= _HASHED_SIDE or max(width, height) > 1 << 24:
        return grey.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.LANCZOS)
    small = np.empty((_HASHED_SIDE, _HASHED_SIDE), np.uint8)
    _across_then_down(
        np.asarray(grey),
        small,
        _windows(width, _HASHED_SIDE, True),
        _windows(height, _HASHED_SIDE, True),
    )
    return Image.fromarray(small)


def shrink(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink an RGB picture to a size, width first, neither side larger than it was.

    The filter is Hamming's of support 1, chosen by measurement (docs/design.md, "Pictures").
    """
    width, height = size
    pixels = np.asarray(rgb)
    small = np.empty((height, width, 3), np.uint8)
    _down_then_across(
        pixels.reshape(rgb.height, -1),
        small.reshape(height, -1),
        _windows(rgb.height, height, False),
        _windows(rgb.width, width, False),
    )
    return Image.fromarray(small)


def compile_now() -> None:
    """Have everything compiled, or loaded from the cache, before a picture waits for it."""
    grey = Image.new("L", (40, 40))
    grey_for_hashing(grey)
    shrink(grey.convert("RGB"), (20, 20))


@compiled
def _windows(source: int, target: int, lanczos: bool) -> _Windows:
    """Weigh ``source`` pixels for each of no more ``target`` pixels: Lanczos, or else Hamming.

    The order of operations is Pillow's precompute_coeffs and normalize_coeffs_8bpc: another would
    round differently.
    """
    scale = source / target
    support = (3.0 if lanczos else 1.0) * scale
    room = math.ceil(support) * 2 + 1
    begins = np.empty(target, np.int64)
    counts = np.empty(target, np.int64)
    weights = np.empty((target, room), np.int32)
    exact = np.empty(room, np.float64)
    step = 1.0 / scale
    for place in range(target):
        center = (place + 0.5) * scale
        begin = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), source) - begin
        total = 0.0
        for tap in range(count):
            x = (tap + begin - center + 0.5) * step
            exact[tap] = _lanczos(x) if lanczos else _hamming(x)
            total += exact[tap]
        for tap in range(count):
            weight = exact[tap] / total
            weights[place, tap] = int(weight * (1 << _BITS) + (-0.5 if weight < 0 else 0.5))
        begins[place] = begin
        counts[place] = count
    return begins, counts, weights


@compiled
def _lanczos(x: float) -> float:
    if x == 0.0:
        return 1.0
    if not -3.0 <= x < 3.0:
        return 0.0
    near = x / 3 * math.pi
    far = x * math.pi
    return math.sin(far) / far * (math.sin(near) / near)


@compiled
def _hamming(x: float) -> float:
    if x == 0.0:
        return 1.0
    if abs(x) >= 1.0:
        return 0.0
    far = x * math.pi
    return math.sin(far) / far * (0.54 + 0.46 * math.cos(far))


@compiled
def _cut(total: np.int32) -> Any:
    return min(max(total >> _BITS, 0), 255)


@compiled
def _across_then_down(
    grey: NDArray[np.uint8], small: NDArray[np.uint8], across: _Windows, down: _Windows
) -> None:
    """Resample a picture of one band, rows first.

    Sums are brought back to int32 at each step: numba would go on in int64, which the processor
    multiplies at a quarter of the speed. Windows are cut out first, since an index that might be
    negative keeps a loop from being vectorised.
    """
    begins, counts, weights = across
    narrow = np.empty((grey.shape[0], small.shape[1]), np.uint8)
    for y in range(grey.shape[0]):
        for x in range(small.shape[1]):
            count = counts[x]
            window = grey[y, begins[x] : begins[x] + count]
            weigh = weights[x, :count]
            total = _HALF
            for tap in range(count):
                total = np.int32(total + np.int32(window[tap]) * weigh[tap])
            narrow[y, x] = _cut(total)
    totals = np.empty(small.shape[1], np.int32)
    for y in range(small.shape[0]):
        _sum_rows(narrow, totals, down, y)
        for x in range(small.shape[1]):
            small[y, x] = _cut(totals[x])


@compiled
def _down_then_across(
    rgb: NDArray[np.uint8], small: NDArray[np.uint8], down: _Windows, across: _Windows
) -> None:
    """Resample a picture of three bands, columns first; its rows are flat, as is what comes out."""
    begins, counts, weights = across
    totals = np.empty(rgb.shape[1], np.int32)
    low = np.empty(rgb.shape[1], np.uint8)
    for y in range(small.shape[0]):
        _sum_rows(rgb, totals, down, y)
        for x in range(rgb.shape[1]):
            low[x] = _cut(totals[x])
        for x in range(begins.size):
            count = counts[x]
            window = low[3 * begins[x] : 3 * (begins[x] + count)]
            weigh = weights[x, :count]
            red = green = blue = _HALF
            for tap in range(count):
                red = np.int32(red + np.int32(window[3 * tap]) * weigh[tap])
                green = np.int32(green + np.int32(window[3 * tap + 1]) * weigh[tap])
                blue = np.int32(blue + np.int32(window[3 * tap + 2]) * weigh[tap])
            small[y, 3 * x] = _cut(red)
            small[y, 3 * x + 1] = _cut(green)
            small[y, 3 * x + 2] = _cut(blue)


@compiled
def _sum_rows(
    rows: NDArray[np.uint8], totals: NDArray[np.int32], windows: _Windows, place: int
) -> None:
    """Sum one window of rows, weighted, column by column."""
    begins, counts, weights = windows
    totals[:] = _HALF
    for tap in range(counts[place]):
        row = rows[begins[place] + tap]
        weight = weights[place, tap]
        for x in range(totals.size):
            totals[x] += np.int32(row[x]) * weight
