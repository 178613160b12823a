"""How the 64 bits of a hash are cut in blocks, of which near hashes must agree in some."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coyo_tools.phash import PHASH_BITS

# Choices grow faster than keys get narrower; beyond this, more blocks never paid.
MOST_BLOCKS = 24

# Nanoseconds on one core of the machine of docs/performance.md; their ratio is what matters.
PARTING_NS = 3.0  # a hash, by one digit
COMPARING_NS = 0.8  # two hashes
PROBING_NS = 4.0  # a hash, in one table


@dataclass(frozen=True)
class Blocks:
    """How the bits are cut: where each block begins, from the right, and how many bits it has.

    ``picks`` blocks are the same in every two hashes within the radius.
    """

    shifts: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    picks: int

    def mask(self, block: int) -> int:
        """Return the bits of a block."""
        return ((1 << int(self.widths[block])) - 1) << int(self.shifts[block])


def cut_bits(blocks: int, radius: int) -> Blocks:
    """Cut 64 bits in blocks of nearly one width, the leftmost first."""
    edges = np.round(np.linspace(PHASH_BITS, 0, blocks + 1)).astype(np.int64)
    return Blocks(edges[1:].copy(), -np.diff(edges), blocks - radius)
