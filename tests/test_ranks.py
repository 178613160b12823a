"""Values at ranks, against sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coyo_tools.ranks import value_at_rank

TYPES = [np.float32, np.float64, np.int16, np.int32, np.int64, np.uint64]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(TYPES), descending=st.booleans())
def test_it_is_the_value_that_sorting_gives(
    data: st.DataObject, dtype: type, descending: bool
) -> None:
    elements = {"allow_nan": False} if np.dtype(dtype).kind == "f" else None
    values = data.draw(arrays(dtype, st.integers(1, 50), elements=elements))
    rank = data.draw(st.integers(0, len(values) - 1))
    pieces = np.array_split(values, data.draw(st.integers(1, 4)))
    found = value_at_rank(lambda: iter(pieces), lambda _: rank, descending=descending)
    ordered = np.sort(values)[::-1] if descending else np.sort(values)
    assert found is not None
    assert found.value == ordered[rank]
    assert (found.rank, found.count) == (rank, len(values))


def test_ranks_beyond_the_ends_are_clamped() -> None:
    values = np.array([3.0, 1.0, 2.0], dtype=np.float32)
    for rank, expected in ((-5, 1.0), (99, 3.0)):
        found = value_at_rank(lambda: iter([values]), lambda _, rank=rank: rank)
        assert found is not None and found.value == expected


def test_nothing_has_no_rank() -> None:
    assert value_at_rank(lambda: iter([]), lambda _: 0) is None
    assert value_at_rank(lambda: iter([np.zeros(0, np.float32)]), lambda _: 0) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinities_and_both_zeros_have_their_places(dtype: type) -> None:
    values = np.array([np.inf, -0.0, -np.inf, 0.0, -1.0], dtype=dtype)
    order = [-np.inf, -1.0, 0.0, 0.0, np.inf]
    for rank, expected in enumerate(order):
        found = value_at_rank(lambda: iter([values]), lambda _, rank=rank: rank)
        assert found is not None and found.value == expected
