"""Intervals: they cover the truth as often as they say, and only because pictures are drawn."""

from collections.abc import Callable

import numpy as np
import pytest
from coyo_align.scoring.bootstrap import auc, class_mean, interval, median, share, share_interval
from numpy.typing import NDArray

PICTURES, CAPTIONS = 300, 5
CLUSTERS = np.repeat(np.arange(PICTURES), CAPTIONS)


def drawn_hits(random: np.random.Generator) -> NDArray[np.bool_]:
    """Five captions a picture, of pictures that are easy or hard: half of all captions hit."""
    ease = np.repeat(random.beta(0.5, 0.5, PICTURES), CAPTIONS)
    made: NDArray[np.bool_] = random.random(len(ease)) < ease
    return made


def covered(
    clusters: NDArray[np.int64], made: Callable[[np.random.Generator], NDArray[np.bool_]]
) -> float:
    random = np.random.default_rng(11)
    found = 0
    for _ in range(200):
        low, high = interval(share(made(random)), clusters, draws=500)
        found += low <= 0.5 <= high
    return found / 200


def test_95_of_100_intervals_hold_the_truth() -> None:
    assert 0.92 <= covered(CLUSTERS, drawn_hits) <= 0.98


def test_captions_drawn_one_by_one_give_intervals_that_are_too_narrow() -> None:
    assert covered(np.arange(len(CLUSTERS)), drawn_hits) < 0.85


def test_the_interval_is_as_wide_as_the_formula_for_clusters(random: np.random.Generator) -> None:
    hits = drawn_hits(random)
    low, high = share_interval(hits, CLUSTERS)
    of_picture = hits.reshape(PICTURES, CAPTIONS).mean(axis=1)
    error = of_picture.std() / np.sqrt(PICTURES)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (low + high) / 2 == pytest.approx(hits.mean(), abs=0.1 * error)


def test_the_same_queries_give_the_same_interval(random: np.random.Generator) -> None:
    hits = drawn_hits(random)
    assert share_interval(hits, CLUSTERS) == share_interval(hits, CLUSTERS)
    renamed = share_interval(hits, 10**6 - CLUSTERS[::-1])
    assert renamed != share_interval(~hits, CLUSTERS)
    assert interval(share(hits), CLUSTERS, seed=1) != interval(share(hits), CLUSTERS, seed=2)


def test_a_difference_of_two_models_is_paired(random: np.random.Generator) -> None:
    hits = drawn_hits(random)
    better = hits | (random.random(len(hits)) < 0.02)
    low, high = interval(share(better.astype(int) - hits), CLUSTERS)
    assert 0 < low < (better.mean() - hits.mean()) < high
    alone = share_interval(hits, CLUSTERS)
    assert high - low < 0.2 * (alone[1] - alone[0])


def test_blocks_change_nothing(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = drawn_hits(random)
    whole = interval(share(hits), CLUSTERS, draws=100)
    monkeypatch.setattr("coyo_align.scoring.bootstrap._BLOCK", 7 * len(hits))
    assert interval(share(hits), CLUSTERS, draws=100) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("hit", [False, True])
def test_no_hit_and_every_hit_leave_room(hit: bool) -> None:
    low, high = share_interval(np.full(20, hit), np.repeat(np.arange(10), 2))
    # Clopper and Pearson's for 0 of 10.
    assert (low, high) == pytest.approx((1 - 0.3085, 1.0) if hit else (0.0, 0.3085), abs=1e-4)


def test_the_mean_over_classes_weighs_rare_classes_as_much() -> None:
    hits = np.asarray([True] * 90 + [False] * 10)
    classes = np.asarray([4] * 90 + [2] * 10)
    once = np.ones((1, 100))
    assert class_mean(hits, classes)(once) == pytest.approx([0.5])
    without = np.where(classes == 2, 0.0, 1.0)[None]
    assert class_mean(hits, classes)(without) == pytest.approx([1.0])


def test_the_median_is_the_middle_of_what_was_drawn() -> None:
    ranks = np.asarray([9, 1, 5])
    weights = np.asarray([[1.0, 1, 1], [3, 1, 1], [0, 2, 1], [0, 1, 1]])
    assert median(ranks)(weights).tolist() == [5, 9, 1, 1]


def test_auc_counts_pairs_and_halves_ties(random: np.random.Generator) -> None:
    scores = random.integers(0, 6, 60).astype(np.float64)
    positive = random.random(60) < 0.4
    weights = random.integers(0, 4, (3, 60)).astype(np.float64)
    wanted = []
    for row in weights:
        above = scores[positive, None] > scores[None, ~positive]
        level = scores[positive, None] == scores[None, ~positive]
        pairs = row[positive, None] * row[None, ~positive]
        wanted.append((pairs * (above + level / 2)).sum() / pairs.sum())
    assert np.allclose(auc(scores, positive)(weights), wanted)


def test_auc_of_scores_that_tell_nothing_is_a_half() -> None:
    positive = np.arange(10) < 5
    assert auc(np.zeros(10), positive)(np.ones((1, 10)))[0] == 0.5
    assert auc(np.arange(10.0), ~positive)(np.ones((1, 10)))[0] == 1.0
    assert auc(np.arange(10.0), positive)(np.eye(10)[:1])[0] == 0.5  # no negative was drawn
