"""image_phash: COYO's definition, checked against one written out by hand."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import encoded, picture
from PIL import Image
from scipy.fft import dctn

from coyo_tools.phash import PHASH_BITS, hamming, phash

HASHES = st.integers(min_value=0, max_value=2**64 - 1).map("{:016x}".format)


def by_hand(image: Image.Image) -> str:
    """The 8 by 8 lowest frequencies of 32 by 32 greys, cut at their median, row by row."""
    greys = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = dctn(greys)[:8, :8]
    bits = (low > np.median(low)).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_the_one_written_out_by_hand(seed: int) -> None:
    assert phash(picture(seed)) == by_hand(picture(seed))


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_pictures_have_half_their_bits_set_the_first_among_them(seed: int) -> None:
    bits = int(phash(picture(seed)), 16)
    assert bits.bit_count() == PHASH_BITS // 2
    assert bits >> 63 == 1


def test_flat_pictures_have_the_hashes_that_facts_gives_them() -> None:
    assert phash(Image.new("RGB", (40, 30), "black")) == "0000000000000000"
    assert phash(Image.new("RGB", (40, 30), "orange")) == "8000000000000000"


def test_reencoding_moves_the_hash_less_than_another_picture_does() -> None:
    one = picture(1)
    again = Image.open(io.BytesIO(encoded(one, "JPEG", quality=60)))
    assert hamming(phash(one), phash(again)) <= 4
    assert hamming(phash(one), phash(picture(2))) > 8


def test_the_mode_of_a_grey_picture_does_not_matter() -> None:
    grey = picture(3).convert("L")
    assert phash(grey) == phash(grey.convert("RGB")) == phash(grey.convert("RGBA"))


@given(HASHES, HASHES, HASHES)
def test_hamming_is_a_distance(one: str, two: str, three: str) -> None:
    assert hamming(one, one) == 0
    assert hamming(one, two) == hamming(two, one)
    assert hamming(one, three) <= hamming(one, two) + hamming(two, three)


@given(HASHES, st.sets(st.integers(0, 63)))
def test_hamming_counts_flipped_bits(one: str, flipped: set[int]) -> None:
    mask = sum(1 << bit for bit in flipped)
    assert hamming(one, f"{int(one, 16) ^ mask:016x}") == len(flipped)
    assert hamming(one.upper(), one) == 0
