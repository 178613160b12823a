"""Which of many phrases stand in which texts: a tree of words, walked for all texts at once.

A phrase stands in a text if its words follow each other there. That is what looking for the phrase
between spaces finds, and because every match begins and ends at a space, words can be numbered and
compared as numbers. For half a million phrases this takes a fraction of the time of Aho-Corasick
automata, which go from letter to letter; see docs/performance.md.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Numbers = npt.NDArray[np.int64]
_HALF = 32  # a node and a word, or a text and a phrase, share 64 bits
_LOW = (1 << _HALF) - 1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing


class Phrases:
    """A tree of the words of some phrases, which must differ from each other.

    Args:
        phrases: words lie between single spaces; two spaces have an empty word between them.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self.count = len(phrases)
        split = pc.split_pattern(pa.array(phrases, pa.string()), pattern=" ")
        encoded = split.flatten().dictionary_encode()
        self._words: pa.Array = encoded.dictionary
        numbers = encoded.indices.to_numpy().astype(np.int64)
        lengths = _lengths(split)
        starts = np.cumsum(lengths) - lengths
        # Nodes are numbered level by level, in the order of (parent, word): so the edges of all
        # levels are one ascending list, and the node that an edge leads to is its place there + 1.
        edges: list[Numbers] = []
        node = np.zeros(len(phrases), dtype=np.int64)
        nodes = 1
        for depth in range(int(lengths.max())):
            longer = np.flatnonzero(lengths > depth)
            edge = node[longer] << _HALF | numbers[starts[longer] + depth]
            different, which = np.unique(edge, return_inverse=True)
            node[longer] = nodes + which
            edges.append(different)
            nodes += len(different)
        self._edges = _Edges(np.concatenate(edges))
        self._phrase_at = np.full(nodes, -1, dtype=np.int64)
        self._phrase_at[node] = np.arange(len(phrases))
        self._goes_on = np.zeros(nodes, dtype=np.bool_)
        self._goes_on[np.concatenate(edges) >> _HALF] = True
        self._first = np.full(len(self._words) + 1, -1, dtype=np.int64)  # the last: other words
        self._first[edges[0] & _LOW] = np.arange(1, len(edges[0]) + 1)

    def find(self, texts: pa.ListArray) -> tuple[Numbers, Numbers]:
        """Find which phrases stand in each of some texts, once each however often they do.

        Args:
            texts: the words of each text, shape (n,); NULL has none.

        Returns:
            Numbers of texts and of phrases, shape (matches,) both, ascending by text and phrase.
        """
        lengths = _lengths(texts)
        text = np.repeat(np.arange(len(texts)), lengths)
        end = np.repeat(np.cumsum(lengths), lengths)
        known = pc.index_in(texts.flatten(), value_set=self._words)
        word = pc.fill_null(known, len(self._words)).to_numpy()
        node = self._first[word]
        place = np.flatnonzero(node >= 0)
        node = node[place]
        found: list[Numbers] = []
        while len(place):
            phrase = self._phrase_at[node]
            whole = phrase >= 0
            found.append(text[place[whole]] << _HALF | phrase[whole])
            on = self._goes_on[node] & (place + 1 < end[place])
            place = place[on] + 1
            node = self._edges.places(node[on] << _HALF | word[place]) + 1
            place, node = place[node > 0], node[node > 0]
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        matches = np.sort(np.concatenate(found))
        matches = matches[np.diff(matches, prepend=-1) != 0]  # np.unique is ten times slower here
        return matches >> _HALF, matches & _LOW


class _Edges:
    """Finds edges by their hash: with a binary search, finding phrases takes 1.5 times as long."""

    def __init__(self, edges: Numbers) -> None:
        bits = max(int(2 * len(edges)).bit_length(), 1)
        self._shift = np.uint64(64 - bits)
        slots = self._slots(edges)
        self._order = np.argsort(slots, kind="stable")
        self._edges = edges[self._order]
        self._start = np.searchsorted(slots[self._order], np.arange((1 << bits) + 1))

    def _slots(self, edges: Numbers) -> Numbers:
        with np.errstate(over="ignore"):
            mixed = edges.astype(np.uint64) * _SPREAD
        return (mixed >> self._shift).astype(np.int64)

    def places(self, edges: Numbers) -> Numbers:
        """Return where each of some edges stands among those given at first, or -1."""
        slots = self._slots(edges)
        at, stop = self._start[slots], self._start[slots + 1]
        found = np.full(len(edges), -1, dtype=np.int64)
        open_ = np.flatnonzero(at < stop)
        while len(open_):
            here = at[open_]
            same = self._edges[here] == edges[open_]
            found[open_[same]] = self._order[here[same]]
            at[open_] += 1
            open_ = open_[~same & (here + 1 < stop[open_])]
        return found


def _lengths(lists: pa.ListArray) -> Numbers:
    counted = pc.fill_null(pc.list_value_length(lists), 0)
    return np.asarray(counted.to_numpy(), dtype=np.int64)
