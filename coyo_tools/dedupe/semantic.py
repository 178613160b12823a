"""Semantic duplicates: rows whose pictures mean the same to a model, found from its embeddings.

SemDeDup (Abbas et al. 2023, arXiv 2303.09540): k-means parts the embeddings, and only pictures of
one cluster are compared. Two rows are duplicates if the cosine of their pictures is 1 - epsilon or
more. Rows come best first, and a row that nobody has claimed stays and claims all its free
duplicates; so each row that goes is within epsilon of the one that stays for it, as with the star
of hashes (SemDeDup's own code lets rows that went remove others, which chains). Pairs that k-means
parted are missed; one cluster misses none.

Memory: some eighty bytes a row that has an embedding, up to a gigabyte of them for k-means, and a
cluster or a block of one; the embeddings stay on the disk.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.clusters import Clusters, cluster, dots
from coyo_tools.columns import ID
from coyo_tools.dedupe.keep import keep_policy
from coyo_tools.dedupe.near import COMPANY, best_first, write_company
from coyo_tools.dedupe.removal import (
    LARGEST_GROUPS,
    MEMBERS_SHOWN,
    REMOVED,
    Removed,
    SemanticResult,
    describe_groups,
    figures_of,
    write_page_of,
    write_removed,
    write_rest,
)
from coyo_tools.engine import (
    BATCH_ROWS,
    id_numbers,
    memory_share,
    open_session,
    recipe_errors,
    refuse_duplicate_ids,
)
from coyo_tools.errors import EmptyResultError, RecipeError
from coyo_tools.manifest import IdDigest, Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.rows import KeptRows
from coyo_tools.source import NOTES, Source, open_source
from coyo_tools.vectors import Ints, Matrix, Vectors, open_vectors

SEMANTIC_STAGE = "semantic dedupe"
EMBEDDINGS_ROLE = "embeddings"
LEAST_TYPICAL = "least-typical"
SLACK = 1e-6  # what cosines of float32 embeddings are known to

_ENGINE_SHARE = 0.25
_SIDE = "image"
_SCORES = 1 << 24  # of a block against its cluster, 64 MiB
_BLOCK = 1024
_BINS = 10
_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),
        pa.field("duplicate_of", pa.int64()),
        pa.field("distance", pa.float32()),  # 1 - cosine
    ]
)


def dedupe_by_meaning(
    source: str | Path,
    output: Path,
    *,
    embeddings: Path,
    epsilon: float,
    clusters: int | None = None,
    keep: str = LEAST_TYPICAL,
    seed: int = 0,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> SemanticResult:
    """Write the rows of a pool without those whose picture means what another's does.

    Args:
        source: the pool or subset.
        output: the subset to write.
        embeddings: a directory of ``coyo embed`` with embeddings of images and ids of the pool.
        epsilon: rows are duplicates at a cosine of 1 - epsilon or more, 0 to 1.
        clusters: of k-means; default the square root of the rows, at which both steps cost alike.
            1 compares every pair.
        keep: ``least-typical``: of duplicates the one farthest from its centroid stays, as in
            SemDeDup. Or ORDER BY terms; ties end by id either way.
        seed: of k-means.
        overwrite: replace an earlier result.
        memory: what DuckDB and the embeddings in memory may take together, such as ``"8GB"``.
        threads: of DuckDB.
        on_progress: told how far the clusters are compared.

    Raises:
        CoyoError: of the kind that says which of source, embeddings, columns or output is at fault.
    """
    watch = Stopwatch()
    check_semantic(epsilon, clusters)
    pool = open_source(source)
    vectors = open_vectors(embeddings)
    vectors.width(_SIDE)
    policy = keep_policy(pool, ID if keep == LEAST_TYPICAL else keep)
    engine_memory, array_memory = memory_share(memory, _ENGINE_SHARE)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=engine_memory, threads=threads) as session,
        recipe_errors(pool),
    ):
        scratch = directory / ".semantic"
        scratch.mkdir()
        company, counts, numbers = _match(session, pool, vectors)
        if company.count == 0:
            raise EmptyResultError(
                f"No id of {pool.path} is among the {vectors.rows:,} embeddings of {embeddings}.",
                "Were they made from the pictures of this pool?",
            )
        ids = write_company(session, policy, company, scratch, array_memory // 4)
        ids = np.array(ids)  # a file of the scratch directory, perhaps
        watch.finished("matching ids")
        # Everything from here on is in the order of the embeddings, so that they are read in it.
        by_row = np.argsort(numbers, kind="stable")
        numbers = numbers[by_row]
        made = cluster(
            lambda rows: vectors.take(_SIDE, numbers[rows], unit=True),
            len(numbers),
            min(len(numbers), clusters or _default_clusters(len(numbers))),
            seed=seed,
            on_progress=on_progress,
        )
        watch.finished("k-means")
        if keep == LEAST_TYPICAL:
            order = np.lexsort((ids[by_row], made.cosines))
        else:
            place = np.empty(len(by_row), np.int64)
            place[by_row] = np.arange(len(by_row))
            best = np.concatenate(list(best_first(session, policy, scratch / COMPANY)))
            order = place[best]
        shutil.rmtree(scratch)
        found = _claim_all(vectors, numbers, made, order, epsilon, array_memory // 4, on_progress)
        watch.finished("comparing within clusters")
        groups = _Groups(ids, by_row, company, *found)
        kept = write_removed(groups.removed(), _SCHEMA, pool.rows, directory / REMOVED)
        result = SemanticResult(
            output,
            pool.rows,
            kept.count,
            without_key=counts.without_embedding,
            group_sizes=groups.sizes(),
            by_distance=groups.by_distance(epsilon),
            largest=describe_groups(session, pool, groups.largest()),
            clusters=len(made.centroids),
            largest_cluster=int(np.bincount(made.labels).max()),
            not_in_pool=counts.not_in_pool,
            without_id=counts.without_id,
            repeated=counts.repeated,
        )
        removed = sum(result.by_distance.values())
        digest = write_rest(session, pool, kept, removed, directory, on_progress)
        watch.finished("writing the rows that stay")
        manifest = Manifest(
            kind="subset",
            parameters={
                "stage": SEMANTIC_STAGE,
                "embeddings": str(embeddings),
                "epsilon": epsilon,
                "clusters": result.clusters,
                "keep": keep,
                "seed": seed,
            },
            inputs=[pool.as_input("pool"), vectors.as_input(EMBEDDINGS_ROLE)],
            rows_in=pool.rows,
            rows_out=digest.count,
            lost={f"cosine of {1 - epsilon:g} or more to a better row": removed},
            id_digest=digest.hexdigest(),
            seconds=watch.seconds(),
            details={
                **figures_of(result),
                "model": vectors.about.model,
                "model_fingerprint": vectors.about.fingerprint,
                "seconds_by_step": watch.steps,
                NOTES: dict(pool.notes),
            },
        )
        write_manifest(directory, manifest)
        write_page_of(directory, output.name, manifest)
    return result


def check_semantic(epsilon: float, clusters: int | None = None) -> None:
    """Raise ``RecipeError`` if settings of ``dedupe_by_meaning`` are none."""
    if not 0 <= epsilon < 1:
        raise RecipeError(
            f"--epsilon {epsilon:g} is not within 0 to 1.",
            "Rows are duplicates at a cosine of 1 - epsilon; 0.01 to 0.1 are usual.",
        )
    if clusters is not None and clusters < 1:
        raise RecipeError(f"--clusters {clusters} is not a number of clusters.")


def _default_clusters(rows: int) -> int:
    return max(1, round(math.sqrt(rows)))


@dataclass(frozen=True)
class _Counts:
    """Rows and embeddings that have no counterpart."""

    without_embedding: int
    not_in_pool: int
    without_id: int
    repeated: int


def _match(
    session: duckdb.DuckDBPyConnection, pool: Source, vectors: Vectors
) -> tuple[KeptRows, _Counts, Ints]:
    """Find the rows of the pool that have an embedding, and the number of each one's embedding.

    Of several embeddings of one id the first counts.

    Raises:
        SourceError: ids of the pool are not unique.
    """
    ids, numbers = [], []
    for part, part_ids, valid in vectors.ids():
        ids.append(part_ids[valid])
        numbers.append(part.start + np.flatnonzero(valid))
    known, rows = np.concatenate(ids), np.concatenate(numbers)
    without_id = vectors.rows - len(known)
    known, first = np.unique(known, return_index=True)
    repeated = len(rows) - len(known)
    rows = rows[first]
    company = KeptRows(pool.rows)
    digest = IdDigest()
    found = []
    for batch in session.view("pool").select(ID).to_arrow_reader(BATCH_ROWS):
        here = id_numbers(batch.column(0))
        digest.update(here)
        at = np.searchsorted(known, here)
        at[at == len(known)] = 0
        inside = known[at] == here if len(known) else np.zeros(len(here), np.bool_)
        company.append(inside)
        found.append(rows[at[inside]])
    if not digest.ascending:
        refuse_duplicate_ids(session, session.view("pool"), pool.path)
    counts = _Counts(pool.rows - company.count, len(known) - company.count, without_id, repeated)
    return company, counts, np.concatenate(found)


def _claim_all(
    vectors: Vectors,
    numbers: Ints,
    made: Clusters,
    order: Ints,
    epsilon: float,
    memory: int,
    on_progress: Progress,
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Return for each row who stays for it, itself if it stays, and the distance to that one."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    keeper = np.arange(len(order))
    distance = np.zeros(len(order), np.float32)
    grouped = np.lexsort((rank, made.labels))
    _, starts = np.unique(made.labels[grouped], return_index=True)
    ends = [*starts[1:].tolist(), len(grouped)]
    most = max(_BLOCK, memory // (4 * vectors.width(_SIDE)))
    for begin, end in zip(starts.tolist(), ends, strict=True):
        members = grouped[begin:end]
        _claim(_Members(vectors, numbers[members], most), members, epsilon, keeper, distance)
        on_progress(end, len(grouped))
    return keeper, distance


class _Members:
    """The unit vectors of a cluster's rows, best first; in memory if they are not too many."""

    def __init__(self, vectors: Vectors, numbers: Ints, most: int) -> None:
        self._vectors = vectors
        self._numbers = numbers
        self.step = most
        self._all = self._read(np.arange(len(numbers))) if len(numbers) <= most else None

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, places: Ints) -> Matrix:
        """Return some of them, (n, width)."""
        return self._read(places) if self._all is None else self._all[places]

    def _read(self, places: Ints) -> Matrix:
        ascending = np.argsort(self._numbers[places], kind="stable")
        found = self._vectors.take(_SIDE, self._numbers[places[ascending]], unit=True)
        back = np.empty(len(places), np.int64)
        back[ascending] = np.arange(len(places))
        return found[back]


def _claim(
    members: _Members,
    rows: Ints,
    epsilon: float,
    keeper: Ints,
    distance: npt.NDArray[np.float32],
) -> None:
    """Let the rows of one cluster, best first, claim their duplicates among those that follow."""
    least = 1 - epsilon - SLACK
    error = 2 * members.take(np.zeros(1, np.int64)).shape[1] * float(np.finfo(np.float32).eps)
    free = np.ones(len(members), np.bool_)
    size = max(1, min(_BLOCK, _SCORES // len(members)))
    for first in range(0, len(members), size):
        heads = first + np.flatnonzero(free[first : first + size])
        if len(heads) == 0:
            continue
        own = members.take(heads)
        for start in range(first, len(members), members.step):
            rest = start + np.flatnonzero(free[start : start + members.step])
            if len(rest) == 0:
                continue
            others = members.take(rest)
            near = own @ others.T >= np.float32(least - error)
            near &= rest[None, :] > heads[:, None]
            for head in np.flatnonzero(near.any(axis=1)):
                if not free[heads[head]]:
                    continue
                places = np.flatnonzero(near[head])
                places = places[free[rest[places]]]
                exact = dots(own, others, np.full(len(places), head), places)
                places, exact = places[exact >= least], exact[exact >= least]
                free[rest[places]] = False
                keeper[rows[rest[places]]] = rows[heads[head]]
                distance[rows[rest[places]]] = np.maximum(0, 1 - exact)


class _Groups:
    """The rows that have an embedding, in the pool's order, and who stays for each."""

    def __init__(
        self,
        ids: Ints,
        by_row: Ints,
        company: KeptRows,
        keeper: Ints,
        distance: npt.NDArray[np.float32],
    ) -> None:
        self._ids = ids
        self._company = company
        self._keeper = np.empty(len(ids), np.int64)
        self._keeper[by_row] = by_row[keeper]
        self._distance = np.empty(len(ids), np.float32)
        self._distance[by_row] = distance
        self._sizes = np.bincount(self._keeper, minlength=len(ids))

    def removed(self) -> Iterator[Removed]:
        """Yield the rows that go, in the pool's order."""
        first = 0
        for start in range(0, self._company.rows, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, self._company.rows)
            places = start + np.flatnonzero(self._company.between(start, stop))
            rows = np.arange(first, first + len(places))
            first += len(places)
            gone = self._keeper[rows] != rows
            rows = rows[gone]
            columns = {
                ID: self._ids[rows],
                "duplicate_of": self._ids[self._keeper[rows]],
                "distance": self._distance[rows],
            }
            yield Removed(places[gone], columns)

    def sizes(self) -> dict[int, int]:
        """Return how many groups there are of each size above 1."""
        large = self._sizes[self._sizes > 1]
        sizes, groups = np.unique(large, return_counts=True)
        return dict(zip(sizes.tolist(), groups.tolist(), strict=True))

    def by_distance(self, epsilon: float) -> dict[str, int]:
        """Count the rows that go by distance, in equal steps up to epsilon; keys are upper ends."""
        gone = self._distance[self._keeper != np.arange(len(self._keeper))]
        steps = gone / np.float32(epsilon) * _BINS if epsilon else np.zeros(len(gone))
        bins = np.clip(np.ceil(steps), 1, _BINS).astype(np.int64)
        counts = np.bincount(bins, minlength=_BINS + 1)
        return {
            f"{epsilon * step / _BINS:.4g}": int(counts[step])
            for step in range(1, _BINS + 1)
            if counts[step]
        }

    def largest(self) -> list[tuple[int, int, list[tuple[int, float]]]]:
        """Return the largest groups: the id that stays, the rows, ids and distances of some."""
        large = np.flatnonzero(self._sizes > 1)
        top = large[np.lexsort((self._ids[large], -self._sizes[large]))][:LARGEST_GROUPS]
        groups = []
        for head in top:
            members = np.flatnonzero(self._keeper == head)
            members = members[members != head][:MEMBERS_SHOWN]
            shown = [(int(self._ids[row]), round(float(self._distance[row]), 4)) for row in members]
            groups.append((int(self._ids[head]), int(self._sizes[head]), shown))
        return groups
