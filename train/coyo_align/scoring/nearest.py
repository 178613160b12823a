"""Nearest neighbours of pictures among labelled ones: what the image tower knows without words.

1-NN by cosine is COYO-ALIGN's; k = 20 with votes of exp(cosine / .07) is DINO's (Caron et al. 2021,
appendix). Exact: every picture is compared with the whole gallery, a block at a time.

A tie counts as lost: neighbours of the right class stand a little further away than they are, so
that of equal ones the wrong come first. Left out: embeddings and labels, which ``evaluate`` gets.
"""

import numpy as np
from numpy.typing import NDArray

from coyo_align.scoring.retrieval import TIE, Embeddings, Ints

K, TEMPERATURE = 20, 0.07
_BLOCK = 2**23
_VOTES = 10_000


def neighbours(
    queries: Embeddings, classes: Ints, gallery: Embeddings, gallery_classes: Ints, k: int = K
) -> tuple[Ints, NDArray[np.float64]]:
    """The rows of the k nearest of the gallery, nearest first, and their cosines.

    Args:
        queries: (queries, width) unit vectors.
        classes: (queries,) what is right for each.
        gallery: (gallery, width) unit vectors.
        gallery_classes: (gallery,) their classes.
        k: how many; as many as there are, if there are fewer.

    Returns:
        Both (queries, k).
    """
    k = min(k, len(gallery))
    found = np.empty((len(queries), k), dtype=np.int64)
    cosines = np.empty((len(queries), k), dtype=np.float64)
    rows = max(1, _BLOCK // len(gallery))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ gallery.T
        block -= TIE * (classes[start : start + rows, None] == gallery_classes)
        nearest = np.argpartition(-block, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(block, nearest, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        found[start : start + rows] = np.take_along_axis(nearest, order, axis=1)
        cosines[start : start + rows] = np.take_along_axis(near, order, axis=1)
    return found, cosines


def vote(classes: Ints, voters: Ints, cosines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each query's class gets more than any other of its neighbours' weighted votes.

    Args:
        classes: (queries,) what is right.
        voters: (queries, k) the neighbours' classes.
        cosines: (queries, k) how near they are.
    """
    weights = np.exp(cosines / TEMPERATURE)
    right = voters == classes[:, None]
    own = (weights * right).sum(axis=1)
    best = np.zeros(len(classes))
    for place in range(voters.shape[1]):  # the votes for the class of the neighbour at each place
        votes = (weights * (voters == voters[:, place, None])).sum(axis=1)
        best = np.maximum(best, np.where(right[:, place], 0, votes))
    won: NDArray[np.bool_] = own > best
    return won


def chance_of_vote(
    classes: Ints, gallery_classes: Ints, found: Ints, cosines: NDArray[np.float64]
) -> tuple[float, float]:
    """What votes score, over queries and over classes, if the gallery's labels are shuffled.

    No closed form is known for weighted votes, so labels are drawn until 10,000 votes are counted.
    """
    random = np.random.default_rng(0)
    rounds = -(-_VOTES // len(classes))
    hits = np.zeros(len(classes))
    for _ in range(rounds):
        hits += vote(classes, random.permutation(gallery_classes)[found], cosines)
    hits /= rounds
    of_class = np.bincount(classes, hits) / np.maximum(np.bincount(classes), 1)
    return float(hits.mean()), float(of_class[np.unique(classes)].mean())
