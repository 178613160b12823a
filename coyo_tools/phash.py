"""COYO's ``image_phash``: imagehash's 64-bit perceptual hash, and distances between two.

The hash is taken from the picture before any resizing: shrinking first moves one hash in five by
two bits or more.
"""

import imagehash
from PIL import Image

PHASH_BITS = 64


def phash(image: Image.Image) -> str:
    """Hash a picture as COYO does: ``imagehash.phash`` with hash_size 8, 16 hex digits.

    The block of DCT coefficients includes the DC term and is cut at its own median, so ordinary
    pictures have 32 bits set, and their distances are even.
    """
    return str(imagehash.phash(image))


def hamming(one: str, other: str) -> int:
    """Count the bits in which two hashes of 16 hex digits differ, 0 to 64.

    >>> hamming("8000000000000000", "8000000000000003")
    2
    """
    return (int(one, 16) ^ int(other, 16)).bit_count()
