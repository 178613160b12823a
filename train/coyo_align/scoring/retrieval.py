"""Ranks among embeddings, and what chance would score: arithmetic on arrays, no model.

The similarity matrix is never held whole: a block of queries at a time, so that tens of thousands
of pairs fit in memory. Left out: what counts as right, which ``evaluate`` decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coyo_align.scoring.bootstrap import Interval, interval, median, share_interval

Embeddings = NDArray[np.float32]
Ints = NDArray[np.int64]

KS = (1, 5, 10)

TIE = 1e-6
"""Nearer than this is a tie: the product of the same two vectors differs in its last bits with
their place in the matrix."""
_BLOCK = 2**23


@dataclass(frozen=True)
class Scores:
    """One direction of retrieval.

    Attributes:
        queries: how many were asked.
        candidates: how many there were to choose from.
        recall: share of queries with a right answer among the first k, by k.
        median_rank: the rank, from 1, within which half of the queries have a right answer.
        chance_recall: what a random order of the candidates scores on average, by k.
        chance_median_rank: the same for the median rank.
        recall_ci: the 95 % interval of each recall, were other pictures asked about.
        median_rank_ci: the same for the median rank.
    """

    queries: int
    candidates: int
    recall: dict[int, float]
    median_rank: int
    chance_recall: dict[int, float]
    chance_median_rank: int
    recall_ci: dict[int, Interval]
    median_rank_ci: Interval


def score(
    queries: Embeddings,
    candidates: Embeddings,
    right: Ints,
    asked: Ints | None = None,
    clusters: Ints | None = None,
    candidate_counts: Ints | None = None,
    on_ranks: Callable[[Ints, Ints], None] | None = None,
) -> Scores:
    """Score one direction.

    Args:
        queries: (queries, width) unit vectors.
        candidates: (candidates, width) unit vectors.
        right: (right answers, 2) distinct rows of query and candidate, one or more per query.
        asked: the row of each query that is asked, each once by default.
        clusters: the picture each of the asked queries belongs to, one each by default.
        candidate_counts: how many candidates each row stands for, one by default.
        on_ranks: told the rank of each asked query's first right answer, and its picture.
    """
    asked = np.arange(len(queries)) if asked is None else asked
    clusters = np.arange(len(asked)) if clusters is None else clusters
    there = np.ones(len(candidates), np.int64) if candidate_counts is None else candidate_counts
    ranks = first_right_ranks(queries, candidates, right, there)[asked]
    if on_ranks is not None:
        on_ranks(ranks, clusters)
    n = int(there.sum())
    answers = np.zeros(len(queries), np.int64)
    np.add.at(answers, right[:, 0], there[right[:, 1]])
    chance = chance_of_rank(answers[asked], n)
    return Scores(
        queries=len(asked),
        candidates=n,
        recall={k: float((ranks <= k).mean()) for k in KS},
        median_rank=int(np.sort(ranks)[(len(ranks) - 1) // 2]),
        chance_recall={k: float(chance[min(k, n) - 1]) for k in KS},
        chance_median_rank=int(np.searchsorted(chance, 0.5 - 1e-9)) + 1,
        recall_ci={k: share_interval(ranks <= k, clusters) for k in KS},
        median_rank_ci=interval(median(ranks), clusters),
    )


def first_right_ranks(
    queries: Embeddings, candidates: Embeddings, right: Ints, counts: Ints
) -> Ints:
    """For each query 1 + how many wrong candidates are at least as near as its nearest right one.

    Whatever is not surely further away counts against the query: ties, and similarities that are
    no numbers.
    """
    ranks = np.zeros(len(queries), np.int64)
    right = right[np.argsort(right[:, 0], kind="stable")]
    rows = max(1, _BLOCK // len(candidates))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ candidates.T
        first, last = np.searchsorted(right[:, 0], [start, start + rows])
        row, column = right[first:last, 0] - start, right[first:last, 1]
        best = np.full(len(block), -np.inf, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            np.maximum.at(best, row, block[row, column])
        ahead = ~(block < best[:, None] - TIE)
        ahead[row, column] = False
        ranks[start : start + rows] = 1 + ahead @ counts.astype(np.float64)
    return ranks


def chance_of_rank(answers: Ints, candidates: int) -> NDArray[np.float64]:
    """The chance that a random order has a right answer within rank 1, 2, ... of all candidates.

    For a query with m right ones among n that is 1 - C(n - m, r) / C(n, r), averaged over queries.

    Args:
        answers: right candidates of each query.
        candidates: n.
    """
    before = np.arange(candidates)
    total = np.zeros(candidates, dtype=np.float64)
    for m, queries in zip(*np.unique(answers, return_counts=True), strict=True):
        still_none = np.cumprod(np.clip(candidates - m - before, 0, None) / (candidates - before))
        total += queries * (1 - still_none)
    total /= len(answers)
    return total
