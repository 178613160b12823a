"""Search finds what sorting all cosines finds, whatever the blocks, the parts and the ties are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_making import ABOUT, on_sphere, write_vectors

from coyo_tools.errors import SourceError
from coyo_tools.search import Hits, add_queries, search
from coyo_tools.vectors import Matrix


def sorted_all(matrix: Matrix, queries: Matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All cosines in float64, sorted; equal ones by row. Works a row at a time."""
    rows, scores = [], []
    for query in queries.astype(np.float64):
        unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
        all_ = np.array([(row.astype(np.float64) * unit).sum() for row in matrix], dtype=np.float64)
        best = np.lexsort((np.arange(len(all_)), -all_))[:k]
        rows.append(best)
        scores.append(all_[best])
    return np.stack(rows), np.stack(scores)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 9),
    distinct=st.integers(1, 70),
    k=st.integers(1, 90),
    part_rows=st.integers(1, 40),
    rows_per_block=st.integers(1, 40),
    queries=st.integers(1, 4),
    faiss=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_search_gives_the_first_of_all_cosines_sorted(
    tmp_path_factory, rows, width, distinct, k, part_rows, rows_per_block, queries, faiss, seed
):
    if faiss:
        pytest.importorskip("faiss")
    made = on_sphere(min(distinct, rows), width, seed)
    matrix = made[np.random.default_rng(seed).integers(0, len(made), rows)]  # many are equal
    query = np.random.default_rng(seed + 1).normal(size=(queries, width)).astype(np.float32)
    vectors = write_vectors(
        tmp_path_factory.mktemp("v") / "emb", {"image": matrix}, part_rows=part_rows
    )
    hits = search(vectors, query, k, rows_per_block=rows_per_block, faiss=faiss)
    wanted_rows, wanted_scores = sorted_all(matrix, query, k)
    assert hits.rows.tolist() == wanted_rows.tolist()
    assert np.array_equal(hits.scores, wanted_scores)


@pytest.mark.parametrize("normalised", [True, False])
def test_blocks_and_faiss_change_nothing_where_thousands_nearly_tie(tmp_path: Path, normalised):
    near = on_sphere(1, 64) + np.random.default_rng(1).normal(size=(6000, 64)) * 1e-6
    matrix = near / np.linalg.norm(near, axis=1, keepdims=True)
    if not normalised:
        matrix *= np.random.default_rng(2).uniform(0.1, 30, (6000, 1))
    vectors = write_vectors(
        tmp_path / "emb",
        {"text": matrix.astype(np.float32)},
        part_rows=2500,
        about=replace(ABOUT, normalised=normalised),
    )
    query = on_sphere(3, 64, seed=5)
    found: list[Hits] = [
        search(vectors, query, 50, "text", rows_per_block=size) for size in (1, 17, 4096)
    ]
    pytest.importorskip("faiss")
    found.append(search(vectors, query, 50, "text", faiss=True))
    for hits in found[1:]:
        assert np.array_equal(hits.rows, found[0].rows)
        assert np.array_equal(hits.scores, found[0].scores)


def test_raw_embeddings_are_compared_by_direction(tmp_path: Path):
    matrix = on_sphere(300, 16) * np.linspace(0.01, 50, 300, dtype=np.float32)[:, None]
    query = on_sphere(1, 16, seed=3)
    vectors = write_vectors(
        tmp_path / "emb", {"image": matrix}, about=replace(ABOUT, normalised=False)
    )
    hits = search(vectors, query * 7, 5)
    cosines = (matrix @ query[0]) / np.linalg.norm(matrix, axis=1)
    assert hits.rows[0].tolist() == np.argsort(-cosines)[:5].tolist()
    np.testing.assert_allclose(hits.scores[0], np.sort(cosines)[::-1][:5], atol=1e-6)


def test_two_queries_added_count_the_same(tmp_path: Path):
    one, other = np.eye(2, 8, dtype=np.float32)
    both = add_queries(one * 100, other)
    np.testing.assert_allclose(both[:2], [2**-0.5] * 2, atol=1e-6)
    with pytest.raises(SourceError, match="opposite"):
        add_queries(one, -one)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(7, np.float32), "has 7 numbers, the image embeddings of .* have 8"),
        (np.zeros(8, np.float32), "zero or not finite"),
        (np.full(8, np.nan, np.float32), "zero or not finite"),
    ],
)
def test_a_query_that_can_not_be_compared_is_refused(tmp_path: Path, query, message):
    vectors = write_vectors(tmp_path / "emb", {"image": on_sphere(5, 8)})
    with pytest.raises(SourceError, match=message):
        search(vectors, query, 3)


@pytest.mark.parametrize("faiss", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"part-00001\.image\.npy: the embedding of row 2 is not finite"),
        (np.inf, r"part-00001\.image\.npy: the embedding of row 2 is not finite"),
        (90.0, r"part-00001\.image\.npy: the embedding of row 2 does not have length 1"),
    ],
)
def test_a_bad_embedding_is_named_by_part_and_row(tmp_path: Path, faiss, value, message):
    if faiss:
        pytest.importorskip("faiss")
    vectors = write_vectors(tmp_path / "emb", {"image": on_sphere(20, 8)}, part_rows=10)
    path = tmp_path / "emb" / "part-00001.image.npy"
    matrix = np.load(path)
    matrix[2] = value
    np.save(path, matrix)
    with pytest.raises(SourceError, match=message):
        search(vectors, on_sphere(1, 8, seed=4), 3, faiss=faiss)
