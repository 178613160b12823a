"""The nearest embeddings to a query: exact, by matrix product in blocks, in memory that stays flat.

The products are float32, so that they go at the speed of the machine; how they are rounded depends
on the block, the threads and the library. So they only choose candidates, everything that rounding
could have put among the first k. Candidates are scored again, one by one in float64, and it is
these scores that order them: the same hits whatever the blocks are, and equal embeddings in the
order of their rows.

An index that searches a part only (IVF, HNSW) is left out: a million embeddings take a tenth of a
second, and what such an index misses is hard to see.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coyo_tools.errors import MissingExtraError, SourceError
from coyo_tools.vectors import LENGTH_SLACK, PART_ROWS, Ints, Matrix, Vectors

_SCORES = 1 << 23  # of a block, 32 MiB
_CANDIDATES = 1 << 13  # scored again at a time
_SPARE = 64  # more than k that faiss is asked for, so that rounding can't hide a hit
_SAMPLE = 1024  # one length in so many is checked while searching

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """The nearest embeddings, best first: numbers of their rows, and cosines, both (queries, k)."""

    rows: Ints
    scores: Doubles


def search(
    vectors: Vectors,
    query: Matrix,
    k: int,
    side: str = "image",
    *,
    rows_per_block: int = PART_ROWS,
    faiss: bool = False,
) -> Hits:
    """Find the embeddings with the greatest cosine to each query.

    Args:
        vectors: what to search.
        query: (width,) or (queries, width), of any length but 0.
        k: how many hits; fewer where there are fewer rows.
        side: ``image`` or ``text``.
        rows_per_block: how many rows to multiply at a time; changes time and memory only.
        faiss: have faiss multiply and choose, which is quicker for many queries; the same hits.

    Returns:
        Hits by cosine; equal ones by row.

    Raises:
        SourceError: the side is not there, the widths differ, or an embedding is not finite, not of
            length 1 though the manifest says so, or of length 0.
        MissingExtraError: faiss is wanted and not installed.
    """
    if k < 1:
        raise ValueError(f"k is {k}")
    running = _Best(unit_queries(vectors, query, side), min(k, vectors.rows))
    if faiss:
        _search_with_faiss(vectors, side, running)
    else:
        rows = max(1, min(rows_per_block, _SCORES // len(running.queries)))
        for part, matrix in vectors.mapped(side):
            for first in range(0, part.rows, rows):
                block = matrix[first : first + rows]
                running.add(vectors, side, part.start + first, block)
    hits = running.hits()
    vectors.take(side, np.unique(hits.rows), unit=True)  # checks the length of each
    return hits


def add_queries(*queries: Matrix) -> Matrix:
    """Return the normalised sum of queries of one width, (width,), each counting the same.

    Raises:
        SourceError: they cancel out.
    """
    total = np.sum([query / np.linalg.norm(query) for query in queries], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise SourceError("The text and the picture point in opposite directions; nothing is left.")
    return np.asarray(total / length, np.float32)


def unit_queries(vectors: Vectors, query: Matrix, side: str) -> Matrix:
    """Return queries as unit vectors, (queries, width), if they can be compared with this side.

    Raises:
        SourceError: the width differs, or a query is not finite or zero.
    """
    queries = np.atleast_2d(np.asarray(query, np.float64))
    width = vectors.width(side)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise SourceError(
            f"The query has {queries.shape[-1]} numbers, the {side} embeddings of "
            f"{vectors.directory} have {width}.",
            f"They were made with {vectors.about.model}; search with that model.",
        )
    lengths = np.linalg.norm(queries, axis=1)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise SourceError("The embedding of the query is zero or not finite: its model is damaged.")
    return np.asarray(queries / lengths[:, None], np.float32)


class _Best:
    """The best rows of each query so far."""

    def __init__(self, queries: Matrix, k: int) -> None:
        self.queries = queries
        self.k = k
        self._turned = np.ascontiguousarray(queries.T)
        # How far a float32 dot product of unit vectors can be off (Higham 2002, 3.1), twice over.
        self._error = 2 * queries.shape[1] * float(np.finfo(np.float32).eps)
        self._rows = [np.empty(0, np.int64) for _ in queries]
        self._scores: list[Doubles] = [np.empty(0) for _ in queries]
        self.least = np.full(len(queries), -np.inf)  # of the k best, once there are k

    def add(self, vectors: Vectors, side: str, first: int, block: Matrix) -> None:
        """Take in a block of embeddings, the first of which is row ``first``."""
        with np.errstate(over="ignore", invalid="ignore"):
            if len(self.queries) == 1:
                scores = (block @ self.queries[0])[:, None]
            else:
                scores = block @ self._turned
        if vectors.about.normalised:
            most = max(float(scores.max()), -float(scores.min()))
            if not most <= 1 + LENGTH_SLACK:  # or a NaN
                vectors.checked(side, first, block, unit=True)  # names the row
            vectors.checked(
                side, first + np.arange(0, len(block), _SAMPLE), block[::_SAMPLE], unit=True
            )
        else:
            scores /= vectors.lengths(side, first, block)[:, None]
        floor = self.least
        if len(block) >= self.k and not np.isfinite(floor).all():
            floor = self.at_least(np.partition(scores, -self.k, axis=0)[-self.k])
        places, of = np.nonzero(scores >= self.candidate_from(floor))
        self.merge(vectors, first, block, places, of)

    def merge(self, vectors: Vectors, first: int, block: Matrix, places: Ints, of: Ints) -> None:
        """Score candidates exactly, places in the block for queries ``of``, and keep the best."""
        if len(places) == 0:
            return
        scores = np.empty(len(places))
        for start in range(0, len(places), _CANDIDATES):
            some = slice(start, start + _CANDIDATES)
            # Summed row by row: a matrix product would round by where a row stands in it.
            own = block[places[some]].astype(np.float64)
            scores[some] = (own * self.queries[of[some]]).sum(axis=1)
            if not vectors.about.normalised:
                scores[some] /= np.sqrt((own * own).sum(axis=1))
        order = np.argsort(of, kind="stable")
        queries, starts = np.unique(of[order], return_index=True)
        for query, chosen in zip(queries, np.split(order, starts[1:]), strict=True):
            rows = np.concatenate([self._rows[query], first + places[chosen]])
            found = np.concatenate([self._scores[query], scores[chosen]])
            best = np.lexsort((rows, -found))[: self.k]
            self._rows[query], self._scores[query] = rows[best], found[best]
            if len(best) == self.k:
                self.least[query] = found[best[-1]]

    def at_least(self, kth: Matrix) -> Doubles:
        """Return what the k-th best of each query surely has, if a block's k-th best is ``kth``."""
        return np.asarray(np.maximum(self.least, kth.astype(np.float64) - self._error))

    def candidate_from(self, floor: Doubles) -> Matrix:
        """Return the rounded score above which an embedding may have ``floor`` or more."""
        return np.asarray(floor - self._error, np.float32)

    def hits(self) -> Hits:
        """Return the best of all."""
        return Hits(np.stack(self._rows), np.stack(self._scores))


def _search_with_faiss(vectors: Vectors, side: str, best: _Best) -> None:
    """Have faiss choose the candidates of each part, as its ``IndexFlatIP`` would, without a copy.

    Where it gave so many that more may be as good, which takes embeddings that are nearly equal,
    the part is searched without it.
    """
    try:
        from faiss import METRIC_INNER_PRODUCT, knn
    except ModuleNotFoundError as error:
        raise MissingExtraError("coyo search --faiss", "search", "faiss") from error
    for part, matrix in vectors.mapped(side):
        for start in range(0, part.rows, PART_ROWS):
            block = matrix[start : start + PART_ROWS]
            first = part.start + start
            lengths = vectors.lengths(side, first, block)
            units = block if vectors.about.normalised else block / lengths[:, None]
            wanted = min(best.k + _SPARE, len(block))
            scores, found = knn(best.queries, units, wanted, metric=METRIC_INNER_PRODUCT)
            if wanted < len(block):
                lowest = best.candidate_from(best.at_least(scores[:, best.k - 1]))
                if (scores[:, -1] >= lowest).any():
                    best.add(vectors, side, first, block)
                    continue
            else:
                lowest = best.candidate_from(best.least)
            of, columns = np.nonzero(scores >= lowest[:, None])
            best.merge(vectors, first, block, found[of, columns], of)
