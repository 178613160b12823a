"""Spherical k-means over embeddings that lie on the disk: centroids by cosine, in flat memory.

Lloyd's algorithm on a sample, then one pass over everything. Products are float32; where rounding
could decide between two centroids, the cosines are computed again in float64, so that the same
seed gives the same clusters with any number of threads. scipy's k-means wants all rows in memory as
float64, faiss's is quicker and depends on threads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coyo_tools.manifest import mix64
from coyo_tools.progress import Progress, no_progress
from coyo_tools.vectors import Ints, Matrix

BLOCK_ROWS = 4096
ITERATIONS = 20
# Enough for a stable centroid; k-means of faiss takes as many.
SAMPLE_PER_CLUSTER = 256
_SAMPLE_BYTES = 1 << 30  # whatever memory there is, for the same clusters on every machine
_SCORES = 1 << 23  # of a block, 32 MiB

Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Clusters:
    """Which cluster each row is in, and the cosine to its centroid, both (rows,)."""

    centroids: Matrix
    labels: Labels
    cosines: Doubles


def cluster(
    read: Callable[[Ints], Matrix],
    rows: int,
    clusters: int,
    *,
    seed: int = 0,
    on_progress: Progress = no_progress,
) -> Clusters:
    """Find clusters of unit vectors by k-means with cosines.

    Args:
        read: gives the unit vectors of rows, ascending numbers from 0 on, as (n, width).
        rows: how many there are.
        clusters: how many to make, 1 to ``rows``. Fewer come out where vectors repeat.
        seed: of the draw that they begin with.
        on_progress: told the rows that have been assigned, of the last pass.
    """
    if not 1 <= clusters <= rows:
        raise ValueError(f"{clusters} clusters of {rows} rows")
    width = read(np.zeros(1, np.int64)).shape[1]
    most = max(clusters, _SAMPLE_BYTES // (4 * width))
    drawn = _draw(rows, min(rows, SAMPLE_PER_CLUSTER * clusters, most), seed)
    order = np.argsort(drawn)
    sample = np.empty((len(drawn), width), np.float32)
    for block in _blocks(len(drawn), BLOCK_ROWS):
        sample[block] = read(drawn[order[block]])
    first = np.empty(len(drawn), np.int64)
    first[order] = np.arange(len(drawn))
    centroids = _lloyd(sample, sample[first[:clusters]])
    labels, cosines = np.empty(rows, np.int32), np.empty(rows)
    for block in _blocks(rows, BLOCK_ROWS):
        labels[block], cosines[block] = assign(read(np.arange(block.start, block.stop)), centroids)
        on_progress(block.stop, rows)
    return Clusters(centroids, labels, cosines)


def assign(vectors: Matrix, centroids: Matrix) -> tuple[Labels, Doubles]:
    """Return the centroid of the greatest cosine for each vector, the first of equals; and it.

    Args:
        vectors: (n, width) unit vectors.
        centroids: (k, width) unit vectors.
    """
    labels = np.empty(len(vectors), np.int32)
    cosines = np.empty(len(vectors))
    turned = np.ascontiguousarray(centroids.T)
    error = 2 * vectors.shape[1] * float(np.finfo(np.float32).eps)
    for block in _blocks(len(vectors), max(1, _SCORES // len(centroids))):
        own = vectors[block]
        scores = own @ turned
        close = scores >= (scores.max(axis=1) - np.float32(error))[:, None]
        places, of = np.nonzero(close)
        exact = dots(own, centroids, places, of)
        # By row, then the greatest cosine, then the first centroid.
        best = np.lexsort((of, -exact, places))
        heads = best[np.unique(places[best], return_index=True)[1]]
        labels[block], cosines[block] = of[heads], exact[heads]
    return labels, cosines


def dots(left: Matrix, right: Matrix, rows: Ints, columns: Ints) -> Doubles:
    """Return the dot products of some pairs in float64, each rounded the same wherever it stands.

    Args:
        left: (n, width).
        right: (m, width).
        rows: places in ``left``, (pairs,).
        columns: places in ``right``, (pairs,).
    """
    found = np.empty(len(rows))
    for block in _blocks(len(rows), BLOCK_ROWS):
        # Summed pair by pair: a matrix product rounds by where a row stands in it.
        found[block] = (left[rows[block]].astype(np.float64) * right[columns[block]]).sum(axis=1)
    return found


def _lloyd(sample: Matrix, centroids: Matrix) -> Matrix:
    labels = np.full(len(sample), -1, np.int32)
    for _ in range(ITERATIONS):
        now, cosines = assign(sample, centroids)
        if np.array_equal(now, labels):
            break
        labels = now
        centroids = _means(sample, labels, cosines, len(centroids))
    return centroids


def _means(sample: Matrix, labels: Labels, cosines: Doubles, clusters: int) -> Matrix:
    """Return the directions of the clusters' sums; a lost one begins anew at an outlier."""
    sums = np.zeros((clusters, sample.shape[1]))
    for block in _blocks(len(sample), BLOCK_ROWS):
        order = np.argsort(labels[block], kind="stable")
        there, starts = np.unique(labels[block][order], return_index=True)
        sums[there] += np.add.reduceat(sample[block][order].astype(np.float64), starts, axis=0)
    lengths = np.sqrt((sums * sums).sum(axis=1))
    lost = np.flatnonzero(lengths < 1e-9)
    if len(lost):
        outliers = np.argsort(cosines, kind="stable")[: len(lost)]
        sums[lost], lengths[lost] = sample[outliers], 1
    return np.asarray(sums / lengths[:, None], np.float32)


def _draw(rows: int, count: int, seed: int) -> Ints:
    """Draw rows by the order of their mixed numbers, which no library's version changes."""
    with np.errstate(over="ignore"):
        keys = mix64(np.arange(rows, dtype=np.uint64) ^ mix64(np.array([seed], np.int64)))
    return np.argsort(keys, kind="stable")[:count]


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
