"""Which row replaces which, among rows whose hashes are equal or near.

Hashes that several rows have or that are near another one are nodes; near ones are joined by an
edge. Rows come in the order of the keep policy, best first:

- star: a row whose node nobody has claimed stays; it claims its node and every neighbour of it
  that is free. So every row that goes is within the radius of the one that replaces it.
- components: the first row of a connected component claims all of it (single linkage). In a chain
  the ends may have nothing in common.

All of it is a few arrays over nodes and edges; rows themselves are only passed by.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coyo_tools.compiled import compiled, popcount
from coyo_tools.hamming_search import Hashes, Places
from coyo_tools.neighbours import NearPairs
from coyo_tools.row_hashes import Distinct

Nodes = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.uint32] | npt.NDArray[np.int64]
UNCLAIMED = np.iinfo(np.uint32).max


@dataclass(frozen=True)
class Graph:
    """Nodes and what is near them.

    ``hashes`` are the nodes' own, ascending, shape (n,); the neighbours of node v are
    ``neighbours[offsets[v]:offsets[v + 1]]``, in no order. ``words`` and ``ranks`` lead from a
    hash's place among the distinct ones to its node.
    """

    hashes: Hashes
    offsets: Offsets
    neighbours: Nodes
    words: npt.NDArray[np.uint64]
    ranks: Places

    def nodes(self, places: Places) -> npt.NDArray[np.int64]:
        """Return the node of each place among the distinct hashes, -1 if it is none."""
        found = np.empty(len(places), np.int64)
        _nodes(places, self.words, self.ranks, found)
        return found


def build_graph(distinct: Distinct, pairs: NearPairs, threads: int) -> Graph:
    """Make nodes of the repeated and the near ones of the distinct hashes.

    Raises:
        ValueError: a pair is not among the distinct hashes, or there are more nodes than 32 bits
            can number.
    """
    involved = distinct.repeated.copy()
    with ThreadPoolExecutor(threads) as pool:
        for places in _places_of(pairs, distinct, pool, threads):
            if len(places) and places.min() < 0:
                raise ValueError("a pair of hashes that are not among the distinct ones")
            involved[places] = True
        words, ranks = _ranked(involved)
        hashes = distinct.hashes[involved]
        del involved
        if len(hashes) >= UNCLAIMED:
            raise ValueError(f"{len(hashes)} hashes with company are more than 32 bits can number")
        edges = np.empty(2 * pairs.count, np.uint32)
        done = 0
        for places in _places_of(pairs, distinct, pool, threads):
            found = np.empty(len(places), np.int64)
            _nodes(places, words, ranks, found)
            edges[done : done + len(found)] = found
            done += len(found)
    # Places in `neighbours` fit 32 bits up to two thousand million pairs.
    offsets: Offsets = np.zeros(len(hashes) + 1, np.uint32)
    if len(edges) >= UNCLAIMED:
        offsets = offsets.astype(np.int64)
    neighbours = np.empty(len(edges), np.uint32)
    _adjacency(edges, offsets, neighbours)
    return Graph(hashes, offsets, neighbours, words, ranks)


def _places_of(
    pairs: NearPairs, distinct: Distinct, pool: ThreadPoolExecutor, threads: int
) -> Iterator[Places]:
    """Yield the places of both hashes of each pair, one after the other."""
    for block in pairs.blocks():
        parts = np.array_split(block.ravel(), threads)
        yield np.concatenate(list(pool.map(distinct.find, parts)))


def link_rows(
    graph: Graph,
    node_of: Nodes,
    order: Iterable[npt.NDArray[np.integer[Any]]],
    *,
    components: bool,
    max_group: int | None = None,
) -> tuple[Nodes, int]:
    """Say for each node which row stays for it.

    Args:
        graph: nodes and neighbours.
        node_of: the node of each row, shape (rows,).
        order: the numbers of all rows, best first, in blocks.
        components: claim whole components instead of neighbours.
        max_group: leave components of more rows than this to ``star``.

    Returns:
        For each node the number of the row that stays, shape (nodes,); and how many components
        were too large.
    """
    keeper = np.full(len(graph.hashes), UNCLAIMED, np.uint32)
    root = np.arange(len(graph.hashes), dtype=np.uint32)
    too_large = 0
    if components:
        _join(graph.offsets, graph.neighbours, root)
        if max_group is not None:
            large = np.bincount(root[node_of], minlength=len(root)) > max_group
            too_large = int(np.count_nonzero(large))
            split = large[root]
            root[split] = np.flatnonzero(split)
            by_star = split
        else:
            by_star = np.zeros(len(root), np.bool_)
    else:
        by_star = np.ones(len(root), np.bool_)
    for rows in order:
        _claim(
            rows.astype(np.int64), node_of, root, by_star, graph.offsets, graph.neighbours, keeper
        )
    return keeper[root], too_large


def distances(graph: Graph, node_of: Nodes, rows: Places, keepers: Nodes) -> npt.NDArray[np.uint8]:
    """Count the bits between the hashes of rows and of those that replace them, shape (n,)."""
    own = graph.hashes[node_of[rows]]
    return np.asarray(np.bitwise_count(own ^ graph.hashes[node_of[keepers]]))


def _ranked(flags: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.uint64], Places]:
    """Pack flags 64 to a word, and count those before each word."""
    padded = -(-len(flags) // 64) * 64
    packed = np.zeros(padded // 8, np.uint8)
    packed[: -(-len(flags) // 8)] = np.packbits(flags, bitorder="little")
    words = packed.view("<u8").astype(np.uint64, copy=False)
    counts = np.bitwise_count(words).astype(np.int64)
    return words, np.cumsum(counts) - counts


@compiled
def _nodes(places: Places, words: npt.NDArray[np.uint64], ranks: Places, found: Places) -> None:
    for x in range(places.shape[0]):
        found[x] = -1
        if places[x] >= 0:
            word = places[x] >> 6
            bit = np.uint64(1) << np.uint64(places[x] & 63)
            if words[word] & bit:
                found[x] = ranks[word] + popcount(words[word] & (bit - np.uint64(1)))


@compiled
def _adjacency(edges: Nodes, offsets: Offsets, neighbours: Nodes) -> None:
    nodes = offsets.shape[0] - 1
    for e in range(edges.shape[0]):
        offsets[edges[e]] += 1
    for v in range(nodes):
        offsets[v + 1] += offsets[v]  # now where the neighbours of each end
    for e in range(0, edges.shape[0], 2):
        one = edges[e]
        other = edges[e + 1]
        offsets[one] -= 1
        neighbours[offsets[one]] = other
        offsets[other] -= 1
        neighbours[offsets[other]] = one


@compiled
def _join(offsets: Offsets, neighbours: Nodes, root: Nodes) -> None:
    """Give every node the least node of its component (union by the lesser, paths halved)."""
    nodes = root.shape[0]
    for v in range(nodes):
        for k in range(offsets[v], offsets[v + 1]):
            one = np.uint32(v)
            other = neighbours[k]
            while root[one] != one:
                root[one] = root[root[one]]
                one = root[one]
            while root[other] != other:
                root[other] = root[root[other]]
                other = root[other]
            if one < other:
                root[other] = one
            else:
                root[one] = other
    for v in range(nodes):  # each points at a lesser one, which has its own root by now
        root[v] = root[root[v]]


@compiled
def _claim(
    rows: Places,
    node_of: Nodes,
    root: Nodes,
    by_star: npt.NDArray[np.bool_],
    offsets: Offsets,
    neighbours: Nodes,
    keeper: Nodes,
) -> None:
    for row in rows:
        node = node_of[row]
        free = keeper[root[node]] == np.uint32(0xFFFFFFFF)
        if not free:
            continue
        keeper[root[node]] = row
        if by_star[node]:
            for k in range(offsets[node], offsets[node + 1]):
                if keeper[neighbours[k]] == np.uint32(0xFFFFFFFF):
                    keeper[neighbours[k]] = row
