"""Scores against counting by hand, and against models that must not look good."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.scoring.evaluate import RetrievalScores, evaluate_retrieval
from coyo_align.scoring.retrieval import Scores, chance_of_rank, score
from numpy.typing import NDArray

from align.conftest import Trained
from align.making import encoded, sample, square, write_tar


def unit_rows(random: np.random.Generator, rows: int, width: int = 6) -> NDArray[np.float32]:
    drawn = random.normal(size=(rows, width))
    made: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype("f4")
    return made


def by_hand(
    queries: NDArray[np.float32], candidates: list[NDArray[np.float32]], right: list[set[int]]
) -> list[int]:
    """The rank of each query's first right answer in a list sorted by similarity."""
    ranks = []
    for query, answers in zip(queries, right, strict=True):
        nearest = sorted(range(len(candidates)), key=lambda c: -float(query @ candidates[c]))
        ranks.append(1 + next(i for i, c in enumerate(nearest) if c in answers))
    return ranks


def test_ranks_and_recall_are_those_of_a_sorted_list(random: np.random.Generator) -> None:
    queries, candidates = unit_rows(random, 40), unit_rows(random, 25)
    right = [set(random.choice(25, size=random.integers(1, 4), replace=False)) for _ in range(40)]
    pairs = np.asarray([(q, c) for q in range(40) for c in sorted(right[q])])
    ranks = by_hand(queries, list(candidates), right)
    got = score(queries, candidates, random.permutation(pairs))
    assert got.recall == {k: sum(rank <= k for rank in ranks) / 40 for k in (1, 5, 10)}
    assert got.median_rank == sorted(ranks)[19]
    assert (got.queries, got.candidates) == (40, 25)


def test_counts_stand_for_repeated_rows(random: np.random.Generator) -> None:
    queries, candidates = unit_rows(random, 9), unit_rows(random, 7)
    right = np.asarray([(q, q % 7) for q in range(9)])
    asked, there = random.integers(0, 9, 20), random.integers(1, 4, 7)
    rows = [c for c in range(7) for _ in range(there[c])]
    answers = [{i for i, c in enumerate(rows) if c == q % 7} for q in range(9)]
    once = by_hand(queries, [candidates[c] for c in rows], answers)
    ranks = [once[query] for query in asked]
    got = score(queries, candidates, right, asked, candidate_counts=there)
    assert (got.queries, got.candidates) == (20, sum(there))
    for k, recall in got.recall.items():
        assert recall == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))


def test_blocks_change_nothing(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, candidates = unit_rows(random, 50), unit_rows(random, 30)
    right = np.asarray([(q, q % 30) for q in range(50)])
    whole = score(queries, candidates, right)
    monkeypatch.setattr("coyo_align.scoring.retrieval._BLOCK", 200)
    assert score(queries, candidates, right) == whole


def test_chance_is_the_share_over_all_orders() -> None:
    n = 5
    answers = [1, 2, 3]
    within = np.zeros(n)
    for m in answers:
        firsts = [min(order.index(c) for c in range(m)) for order in permutations_of(n)]
        within += [np.mean([first < r for first in firsts]) for r in range(1, n + 1)]
    got = chance_of_rank(np.asarray(answers), n)
    np.testing.assert_allclose(got, within / 3)


def permutations_of(n: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(n)))


def test_plain_chance_is_k_of_n(random: np.random.Generator) -> None:
    rows = unit_rows(random, 40)
    got = score(rows, rows, np.stack([np.arange(40)] * 2, axis=1))
    assert got.chance_recall == pytest.approx({1: 1 / 40, 5: 5 / 40, 10: 10 / 40})
    assert got.chance_median_rank == 20
    assert (got.recall[1], got.median_rank) == (1.0, 1)


def test_fewer_candidates_than_k(random: np.random.Generator) -> None:
    rows = unit_rows(random, 3)
    got = score(rows, rows[::-1].copy(), np.stack([np.arange(3)] * 2, axis=1))
    assert (got.recall[5], got.chance_recall[5], got.chance_recall[10]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_model_that_embeds_everything_alike_comes_last(value: float) -> None:
    n, width = 300, 96
    rows = np.full((n, width), value / np.sqrt(width), dtype=np.float32)
    got = score(rows, rows, np.stack([np.arange(n)] * 2, axis=1))
    assert got.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert got.median_rank == n


def test_a_random_model_scores_about_chance(random: np.random.Generator) -> None:
    got = score(
        unit_rows(random, 2000), unit_rows(random, 2000), np.stack([np.arange(2000)] * 2, axis=1)
    )
    assert got.recall[10] == pytest.approx(got.chance_recall[10], abs=0.005)
    assert got.median_rank == pytest.approx(got.chance_median_rank, rel=0.1)


def check_ranges(scores: RetrievalScores) -> None:
    for one in (scores.image_to_text, scores.text_to_image):
        assert isinstance(one, Scores)
        assert 0 <= one.recall[1] <= one.recall[5] <= one.recall[10] <= 1
        assert 1 <= one.median_rank_ci[0] <= one.median_rank <= one.median_rank_ci[1]
        assert one.median_rank_ci[1] <= one.candidates
        for k, (low, high) in one.recall_ci.items():
            assert 0 <= low <= one.recall[k] <= high <= 1


def test_a_run_is_evaluated_on_shards(trained: Trained) -> None:
    told: list[tuple[int, int]] = []
    embedder = Embedder(trained.run, on_progress=lambda *progress: told.append(progress))
    scores = evaluate_retrieval(embedder, trained.shards, threads=1)
    check_ranges(scores)
    assert (scores.n_images, scores.n_texts, scores.skipped, scores.missing_ids) == (36, 36, {}, 0)
    assert told[-1] == (72, 72)
    assert scores.image_to_text.chance_recall[10] == pytest.approx(10 / 36)


def test_the_batch_size_of_evaluation_changes_nothing(trained: Trained) -> None:
    one, other = (
        evaluate_retrieval(Embedder(trained.run, batch_size=size), trained.shards, threads=1)
        for size in (5, 64)
    )
    assert one == other


def test_equal_captions_and_equal_pictures_are_each_others_answers(
    trained: Trained, tmp_path: Path
) -> None:
    red, blue, green = (
        encoded(square(colour, "left", "white")) for colour in ("red", "blue", "green")
    )
    made = [(red, "one"), (red, "two"), (blue, "two"), (green, "two"), (green, "two")]
    write_tar(tmp_path / "0.tar", [sample(i, *pair) for i, pair in enumerate(made)])
    scores = evaluate_retrieval(Embedder(trained.run), tmp_path, threads=1)
    check_ranges(scores)
    # Three pictures; five captions: "one" is right for the red one, every "two" for all three.
    assert (scores.n_images, scores.n_texts) == (3, 5)
    assert scores.image_to_text.chance_recall[1] == pytest.approx((5 / 5 + 4 / 5 + 4 / 5) / 3)
    assert scores.text_to_image.chance_recall[1] == pytest.approx((1 / 3 + 4 * 1) / 5)


def test_one_pair_is_too_few(trained: Trained, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(1, encoded(square("red", "left", "white")), "text")])
    with pytest.raises(AlignError, match="at least 2"):
        evaluate_retrieval(Embedder(trained.run), tmp_path)
