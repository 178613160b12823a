"""One independent stream of random numbers for each thing that is decided by chance.

A picture's stream depends on the toy web's seed, the stream's name and the picture's number, never
on what was drawn before it: so pictures can be drawn in any order, in several processes, and a new
kind of fault leaves the bytes of the others alone. No global generator is touched.
"""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """Return the generator of one named stream, the same in every process.

    The name goes in by its CRC, since ``hash`` of a string differs between processes.
    """
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *indices])


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Choose one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def weighted(rng: np.random.Generator, options: Sequence[tuple[T, float]]) -> T:
    """Choose one option of (option, weight) pairs; weights need not add up to one."""
    mark = rng.random() * sum(weight for _, weight in options)
    for option, weight in options:
        mark -= weight
        if mark < 0:
            return option
    return options[-1][0]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Say yes with the given probability."""
    return bool(rng.random() < probability)
