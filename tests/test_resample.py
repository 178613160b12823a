"""Shrinking in compiled loops: Pillow's bytes for hashes, for JPEGs Pillow's but for a rounding."""

import numpy as np
import pytest
from PIL import Image

from coyo_tools.resample import grey_for_hashing, shrink

LANCZOS = Image.Resampling.LANCZOS
HAMMING = Image.Resampling.HAMMING


def contents(random: np.random.Generator, size: tuple[int, int], kind: int) -> Image.Image:
    """Noise, hard edges of black and white that overshoot, a ramp, or one grey."""
    width, height = size
    if kind == 0:
        pixels = random.integers(0, 256, (height, width))
    elif kind == 1:
        pixels = 255 * random.integers(0, 2, (height, width))
    elif kind == 2:
        pixels = np.add.outer(np.arange(height), np.arange(width)) % 256
    else:
        pixels = np.full((height, width), random.integers(256))
    return Image.fromarray(pixels.astype(np.uint8))


def same_as_pillow(grey: Image.Image) -> bool:
    return grey_for_hashing(grey).tobytes() == grey.resize((32, 32), LANCZOS).tobytes()


def test_the_grey_of_thousands_of_sizes_is_pillows_to_the_bit() -> None:
    random = np.random.default_rng(0)
    wrong = []
    for number in range(4_000):
        longest = (40, 100, 400, 900)[number % 4]
        width, height = (int(side) for side in random.integers(1, longest, 2))
        if not same_as_pillow(contents(random, (width, height), number % 3 + number % 8 // 7)):
            wrong.append((width, height))
    assert wrong == []


@pytest.mark.parametrize(
    "size",
    [
        (1, 1), (31, 33), (33, 31), (32, 32), (32, 33), (33, 32), (33, 33), (32, 900), (900, 32),
        (64, 64), (33, 4_000), (4_000, 33), (33, 70_000), (70_000, 33), (1, 5_000), (5_000, 1),
        (3_000, 2_000), (4_096, 4_096),
    ],
)  # fmt: skip
def test_the_grey_of_odd_and_large_sizes_is_pillows_to_the_bit(size: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    assert all(same_as_pillow(contents(random, size, kind)) for kind in range(3))


def test_shrinking_is_pillows_hamming_but_for_a_rounding() -> None:
    random = np.random.default_rng(2)
    for _ in range(300):
        width, height = (int(side) for side in random.integers(1, 400, 2))
        to = (int(random.integers(1, width + 1)), int(random.integers(1, height + 1)))
        rgb = Image.merge("RGB", [contents(random, (width, height), kind) for kind in range(3)])
        small = shrink(rgb, to)
        assert (small.mode, small.size) == ("RGB", to)
        difference = np.asarray(small).astype(int) - np.asarray(rgb.resize(to, HAMMING))
        # A rounding of the pass before is weighed again by the second one, and rounded.
        assert np.abs(difference).max() <= 1


def test_one_colour_stays_that_colour() -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (1, 2, 254)):
        small = shrink(Image.new("RGB", (1_237, 411), colour), (100, 33))
        assert small.getcolors() == [(3_300, colour)]
