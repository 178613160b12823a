"""COYO's ``image_phash``: imagehash's 64-bit perceptual hash, and distances between two.

The hash is taken from the picture before any resizing: shrinking first moves one hash in five by
two bits or more. A flip or a quarter turn moves all bits about, so turned pictures are hashed too
where they should be found.
"""

import imagehash
from PIL import Image

from coyo_tools.resample import grey_for_hashing

PHASH_BITS = 64

# How many bits an ordinary hash has set. The block is cut at its median, so that 32 are set unless
# many coefficients are equal, as in a flat picture: solid colour has 1, black none. Between 24 and
# 40 a few are equal, and the rest still says what the picture is like.
ORDINARY_BITS = (24, 40)

# The eight ways a picture can lie: as it is, then Pillow's seven flips and rotations. Rotations are
# counter-clockwise; transpose and transverse are the flips about the two diagonals.
TURNS = ("as_is", *(turn.name.lower() for turn in Image.Transpose))


def phash(image: Image.Image) -> str:
    """Hash a picture as COYO does: ``imagehash.phash`` with hash_size 8, 16 hex digits.

    The block of DCT coefficients includes the DC term and is cut at its own median, so ordinary
    pictures have 32 bits set, and their distances are even. The first two of imagehash's steps, to
    grey and to 32 x 32 pixels, come before it: it finds nothing left to shrink.
    """
    return str(imagehash.phash(grey_for_hashing(image.convert("L"))))


def turned_phashes(image: Image.Image) -> tuple[str, ...]:
    """Hash a picture in each of the eight ways it can lie, in the order of ``TURNS``.

    It is made grey once: that looks at one pixel at a time, so it may as well come before turning.
    """
    grey = image.convert("L")
    return phash(grey), *(phash(grey.transpose(turn)) for turn in Image.Transpose)


def hamming(one: str, other: str) -> int:
    """Count the bits in which two hashes of 16 hex digits differ, 0 to 64.

    >>> hamming("8000000000000000", "8000000000000003")
    2
    """
    return (int(one, 16) ^ int(other, 16)).bit_count()
