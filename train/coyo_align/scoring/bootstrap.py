"""How far a figure would stray with other pictures: the image-clustered bootstrap.

What is drawn again is pictures, never captions: the five captions of one picture succeed and fail
together, and drawing them one by one gives an interval that is far too narrow. Whatever belongs to
a drawn picture goes along with it, as often as it was drawn.

A figure is a function of the weights of all queries, many draws at a time. The draws depend on the
seed and the number of pictures alone, so two models that are asked the same queries are drawn
alike: the interval of ``share(hits - hits_of_the_other)`` is the paired one.

Left out: the candidates. They stay as they are, so an interval is one for this gallery.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]
Statistic = Callable[[Floats], Floats]
"""Weights (draws, queries) to the figure of each draw."""

DRAWS = 2000
"""With 1,000, the ends of an interval move by a tenth of its half-width from seed to seed."""
_LEVEL = 0.95
_BLOCK = 2**23


def interval(statistic: Statistic, clusters: Ints, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The bootstrap percentile interval of a figure, at 95 %.

    Args:
        statistic: see ``share``, ``class_mean`` and ``median``.
        clusters: (queries,) the picture each query belongs to, any numbers.
        draws: how often as many pictures are drawn as there are.
        seed: of the draws.
    """
    _, members = np.unique(clusters, return_inverse=True)
    pictures = int(members.max()) + 1
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(members))
    figures = []
    for start in range(0, draws, rows):
        drawn = random.integers(pictures, size=(min(rows, draws - start), pictures))
        counts = np.stack([np.bincount(row, minlength=pictures) for row in drawn])
        figures.append(statistic(counts[:, members].astype(np.float64)))
    ends = np.quantile(np.concatenate(figures), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(ends[0]), float(ends[1])


def share_interval(hits: NDArray[np.bool_], clusters: Ints) -> Interval:
    """The interval of a share of hits.

    Where every query hits, or none does, all draws are alike. Then the interval is the exact one
    for as many independent pictures (Clopper and Pearson): 0 of n has 1 - .025^(1/n) above it.
    """
    if hits.all() or not hits.any():
        reach = 1 - ((1 - _LEVEL) / 2) ** (1 / len(np.unique(clusters)))
        return (1 - reach, 1.0) if hits.all() else (0.0, reach)
    return interval(share(hits), clusters)


def share(hits: NDArray[np.generic]) -> Statistic:
    """The mean of a value of each query, such as whether it hit."""
    values = hits.astype(np.float64)

    def figure(weights: Floats) -> Floats:
        found: Floats = weights @ values / weights.sum(axis=1)
        return found

    return figure


def class_mean(hits: NDArray[np.bool_], classes: Ints) -> Statistic:
    """The mean over classes of the share of hits in each; a class that isn't drawn is left out."""
    order = np.argsort(classes, kind="stable")
    _, starts = np.unique(classes[order], return_index=True)

    def figure(weights: Floats) -> Floats:
        by_class = weights[:, order]
        asked = np.add.reduceat(by_class, starts, axis=1)
        hit = np.add.reduceat(by_class * hits[order], starts, axis=1)
        shares = np.divide(hit, asked, out=np.zeros_like(hit), where=asked > 0)
        found: Floats = shares.sum(axis=1) / (asked > 0).sum(axis=1)
        return found

    return figure


def auc(scores: Floats, positive: NDArray[np.bool_]) -> Statistic:
    """How often a positive has the higher score of a positive and a negative; ties count half.

    The area under the ROC curve, by its other meaning (Mann and Whitney). Each weight stands for
    so many copies of its query.
    """
    order = np.argsort(scores, kind="stable")
    _, groups = np.unique(scores[order], return_index=True)
    right = positive[order]

    def figure(weights: Floats) -> Floats:
        ordered = weights[:, order]
        above = np.add.reduceat(ordered * right, groups, axis=1)
        below = np.add.reduceat(ordered * ~right, groups, axis=1)
        lower = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(axis=1) * below.sum(axis=1)
        won = (above * lower).sum(axis=1)
        found: Floats = np.divide(won, pairs, out=np.full(len(won), 0.5), where=pairs > 0)
        return found

    return figure


def median(ranks: Ints) -> Statistic:
    """The rank within which half of the queries have their answer."""
    order = np.argsort(ranks, kind="stable")

    def figure(weights: Floats) -> Floats:
        reached = np.cumsum(weights[:, order], axis=1)
        middle = (reached >= reached[:, -1:] / 2).argmax(axis=1)
        found: Floats = ranks[order][middle].astype(np.float64)
        return found

    return figure
