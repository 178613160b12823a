"""Equal and near pictures: rows whose hashes differ in few bits, found from the metadata alone.

What is done once for each distinct hash is done in arrays: sorting, finding pairs, linking. What is
done for each row is done in passes over the pool or over a file of its hashes. The keep policy is
DuckDB's to sort, and only for rows that have company.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sqlglot import exp

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.dedupe.keep import KeepPolicy
from coyo_tools.dedupe.removal import LARGEST_GROUPS, MEMBERS_SHOWN, Removed
from coyo_tools.engine import BATCH_ROWS, id_numbers, refuse_duplicate_ids
from coyo_tools.hamming_search import Hashes
from coyo_tools.linkage import Graph, Nodes, build_graph, distances, link_rows
from coyo_tools.manifest import IdDigest, Stopwatch
from coyo_tools.neighbours import near_pairs
from coyo_tools.phash import ORDINARY_BITS, PHASH_BITS
from coyo_tools.progress import Progress
from coyo_tools.row_hashes import Distinct, RowHashes, RowHashWriter, distinct_hashes
from coyo_tools.rows import KeptRows
from coyo_tools.source import Source

T = TypeVar("T", bound=np.generic)
COMPANY = "company.parquet"
_ROWS = 1 << 20
_LEAST_SEARCH = 1 << 28  # bytes, however little is left beside the hashes


@dataclass(frozen=True)
class NearSettings:
    """How near rows are found and linked; see ``dedupe_pool``."""

    radius: int
    components: bool
    max_group: int | None
    flat_near: bool


class NearDuplicates:
    """The rows of a pool that have company, and what became of them.

    ``removed`` may be gone through once; the counts are true afterwards.
    """

    def __init__(
        self,
        graph: Graph,
        node_of: Nodes,
        ids: npt.NDArray[np.int64],
        company: KeptRows,
        keepers: Nodes,
        settings: NearSettings,
    ) -> None:
        self._graph = graph
        self._node_of = node_of
        self._ids = ids
        self._company = company
        self._keepers = keepers
        self._settings = settings
        self._sizes = np.ones(len(graph.hashes), np.uint32)
        self.by_distance = np.zeros(PHASH_BITS + 1, np.int64)

    def removed(self) -> Iterator[Removed]:
        """Yield the rows that go, in the pool's order."""
        for places, rows in self._rows():
            keepers = self._keepers[self._node_of[rows]]
            gone = keepers != rows
            rows, keepers = rows[gone], keepers[gone]
            bits = distances(self._graph, self._node_of, rows, keepers)
            self.by_distance += np.bincount(bits, minlength=PHASH_BITS + 1)
            np.add.at(self._sizes, self._node_of[keepers], np.uint32(1))
            yield Removed(
                places[gone],
                {ID: self._ids[rows], "duplicate_of": self._ids[keepers], "distance": bits},
            )

    def group_sizes(self) -> dict[int, int]:
        """Return how many groups there are of each size above 1."""
        counts: dict[int, int] = {}
        for start in range(0, len(self._sizes), _ROWS):
            block = self._sizes[start : start + _ROWS]
            for size, groups in zip(*np.unique(block[block > 1], return_counts=True), strict=True):
                counts[int(size)] = counts.get(int(size), 0) + int(groups)
        return dict(sorted(counts.items()))

    def chained(self) -> tuple[int, int]:
        """Count the rows that are farther from their keeper than the radius; and the farthest."""
        beyond = self.by_distance[self._settings.radius + 1 :]
        farthest = np.flatnonzero(self.by_distance)
        return int(beyond.sum()), int(farthest[-1]) if len(farthest) else 0

    def largest(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Return the largest groups: the id that stays, the rows, ids and distances of some."""
        top = np.empty(0, np.int64)
        least = 2
        for start in range(0, len(self._sizes), _ROWS):
            large = start + np.flatnonzero(self._sizes[start : start + _ROWS] >= least)
            groups = np.concatenate([top, large])
            kept = self._ids[self._keepers[groups]]
            order = np.lexsort((kept, -self._sizes[groups].astype(np.int64)))
            top = groups[order[:LARGEST_GROUPS]]
            if len(top) == LARGEST_GROUPS:
                least = int(self._sizes[top[-1]])
        if len(top) == 0:
            return []
        members: dict[int, list[tuple[int, int]]] = {int(node): [] for node in top}
        wanted = np.zeros(len(self._sizes), np.bool_)
        wanted[top] = True
        for _, rows in self._rows():
            keepers = self._keepers[self._node_of[rows]]
            heads = self._node_of[keepers]
            chosen = np.flatnonzero(wanted[heads] & (keepers != rows))
            chosen = chosen[_first_of_each(heads[chosen], MEMBERS_SHOWN)]
            bits = distances(self._graph, self._node_of, rows[chosen], keepers[chosen])
            for head, row, distance in zip(heads[chosen], rows[chosen], bits, strict=True):
                shown = members[int(head)]
                if len(shown) < MEMBERS_SHOWN:
                    shown.append((int(self._ids[row]), int(distance)))
                wanted[head] = len(shown) < MEMBERS_SHOWN
        return [
            (int(self._ids[self._keepers[node]]), int(self._sizes[node]), members[int(node)])
            for node in top
        ]

    def _rows(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield the places in the pool of the rows with company, and their numbers."""
        first = 0
        for start in range(0, self._company.rows, _ROWS):
            inside = self._company.between(start, min(start + _ROWS, self._company.rows))
            places = start + np.flatnonzero(inside)
            yield places, np.arange(first, first + len(places))
            first += len(places)


def _first_of_each(groups: Nodes, count: int) -> npt.NDArray[np.int64]:
    """Return the places of the first ``count`` members of each group, in order."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.searchsorted(ordered, ordered)
    return np.sort(order[np.arange(len(order)) - begins < count])


@dataclass(frozen=True)
class NearFound:
    """What was found: who goes, and counts of rows and hashes."""

    duplicates: NearDuplicates
    without_hash: int
    flat: int
    distinct: int
    pairs: int
    split: int


def find_near(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    policy: KeepPolicy,
    settings: NearSettings,
    scratch: Path,
    *,
    memory: int,
    threads: int,
    watch: Stopwatch,
    on_progress: Progress,
) -> NearFound:
    """Find the rows with equal or near hashes, and which of them stays.

    Args:
        session: over the pool.
        pool: what it shows.
        policy: which row stays.
        settings: how.
        scratch: a directory that the session may write to.
        memory: bytes for arrays, beside the session's own memory.
        threads: how many threads.
        watch: told what each step takes.
        on_progress: told of the search for pairs.

    Raises:
        SourceError: ids are not unique.
    """
    hashes, flat = _read_hashes(session, pool, scratch)
    watch.finished("reading hashes")
    count = hashes.valid.count
    room = _array(count, np.uint64, scratch / "distinct.u64", int(memory * 0.7))
    distinct = distinct_hashes(hashes, room, threads)
    watch.finished("sorting them")
    bits_set = (0, PHASH_BITS) if settings.flat_near else ORDINARY_BITS
    pairs = near_pairs(
        distinct.hashes,
        settings.radius,
        scratch,
        memory=max(_LEAST_SEARCH, memory - 9 * count),
        threads=threads,
        bits_set=bits_set,
        on_progress=on_progress,
    )
    watch.finished("finding pairs")
    graph = build_graph(distinct, pairs, threads)
    node_of, company = _rows_with_company(hashes, distinct, graph, scratch, pool.rows, threads)
    distinct_count = len(distinct.hashes)
    del distinct, room
    watch.finished("finding rows with company")
    ids = write_company(session, policy, company, scratch, memory // 4)
    keepers, split = link_rows(
        graph,
        node_of,
        best_first(session, policy, scratch / COMPANY),
        components=settings.components,
        max_group=settings.max_group,
    )
    watch.finished("linking them in the order of --keep")
    return NearFound(
        NearDuplicates(graph, node_of, ids, company, keepers, settings),
        without_hash=pool.rows - count,
        flat=flat,
        distinct=distinct_count,
        pairs=pairs.count,
        split=split,
    )


def _read_hashes(
    session: duckdb.DuckDBPyConnection, pool: Source, scratch: Path
) -> tuple[RowHashes, int]:
    """Read all hashes into a file, and count flat ones; refuse ids that are not unique."""
    digest = IdDigest()
    with RowHashWriter(scratch / "rows.u64", pool.rows) as writer:
        relation = session.view("pool").select(ID, IMAGE_PHASH)
        for batch in relation.to_arrow_reader(BATCH_ROWS):
            digest.update(id_numbers(batch.column(0)))
            writer.append(batch.column(1))
        hashes = writer.finished()
    if not digest.ascending:
        refuse_duplicate_ids(session, session.view("pool"), pool.path)
    return hashes, writer.flat


def _array(count: int, kind: type[T], path: Path, memory: int) -> npt.NDArray[T]:
    """Make room for numbers: in memory, or in a file if they would fill more than ``memory``."""
    size = count * np.dtype(kind).itemsize
    if size <= memory or count == 0:
        return np.empty(count, kind)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a signal
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, kind, "r+", shape=(count,))


def _rows_with_company(
    hashes: RowHashes,
    distinct: Distinct,
    graph: Graph,
    scratch: Path,
    pool_rows: int,
    threads: int,
) -> tuple[Nodes, KeptRows]:
    """Return the node of each row that has company, in the pool's order, and which those are."""
    company = KeptRows(pool_rows)
    path = scratch / "nodes.u32"

    def look_up(part: Hashes) -> npt.NDArray[np.int64]:
        return graph.nodes(distinct.find(part))

    with path.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        for block, valid in hashes.blocks():
            nodes = np.concatenate(list(pool.map(look_up, np.array_split(block, threads))))
            inside = valid & (nodes >= 0)
            company.append(inside)
            file.write(nodes[inside].astype(np.uint32).data)
    node_of = np.fromfile(path, np.uint32)
    path.unlink()
    return node_of, company


def write_company(
    session: duckdb.DuckDBPyConnection,
    policy: KeepPolicy,
    company: KeptRows,
    scratch: Path,
    memory: int,
) -> npt.NDArray[np.int64]:
    """Write what the keep policy needs of the rows with company; return their ids."""
    path = scratch / COMPANY
    ids = _array(company.count, np.int64, scratch / "ids.i64", memory)
    select = exp.select(exp.column(ID), *policy.selected()).from_("pool")
    place = 0
    number = 0
    reader = session.sql(select.sql(dialect="duckdb")).to_arrow_reader(BATCH_ROWS)
    schema = pa.schema([pa.field("number", pa.uint32()), *reader.schema])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for batch in reader:
            inside = company.between(place, place + batch.num_rows)
            place += batch.num_rows
            chosen = batch.filter(pa.array(inside))
            count = chosen.num_rows
            ids[number : number + count] = id_numbers(chosen.column(0))
            numbers = pa.array(np.arange(number, number + count, dtype=np.uint32))
            number += count
            writer.write_batch(
                pa.RecordBatch.from_arrays([numbers, *chosen.columns], schema=schema)
            )
    return ids


def best_first(
    session: duckdb.DuckDBPyConnection, policy: KeepPolicy, path: Path
) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the numbers of the rows with company, best first."""
    company = session.read_parquet(str(path.absolute()))
    for batch in company.order(policy.order_by()).select("number").to_arrow_reader(BATCH_ROWS):
        yield batch.column(0).to_numpy()
