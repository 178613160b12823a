"""Decontaminate: remove the rows that are too near a picture of an evaluation set.

Rows are looked up one batch after the other; nothing of the pool is kept but a bit for each row.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.dedupe.removal import (
    REMOVED,
    DecontaminateResult,
    Removed,
    figures_of,
    refuse_settings,
    refuse_without_hashes,
    write_page_of,
    write_removed,
    write_rest,
)
from coyo_tools.engine import (
    BATCH_ROWS,
    available_cores,
    id_numbers,
    open_session,
    recipe_errors,
    refuse_duplicate_ids,
)
from coyo_tools.errors import EmptyResultError
from coyo_tools.evaluation import EvaluationSet, read_evaluation
from coyo_tools.hamming_search import Hashes
from coyo_tools.hash_index import HashIndex
from coyo_tools.manifest import IdDigest, Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.phash import ORDINARY_BITS, TURNS
from coyo_tools.progress import Progress, no_progress
from coyo_tools.row_hashes import parse_hashes
from coyo_tools.source import NOTES, Source, open_source

DEFAULT_RADIUS = 4  # docs/near_duplicates.md says why

_SHOWN = 1000  # evaluation pictures named in the manifest; removed.parquet names all
_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),
        pa.field("evaluation", pa.string()),
        pa.field("turn", pa.string()),
        pa.field("distance", pa.uint8()),
    ]
)


def decontaminate_pool(
    source: str | Path,
    output: Path,
    *,
    against: str | Path,
    radius: int = DEFAULT_RADIUS,
    augment: bool = False,
    flat: str = "exact",
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> DecontaminateResult:
    """Write the rows that are more than ``radius`` bits from every evaluation picture.

    Args:
        source: the pool or subset.
        output: the subset to write; its removed.parquet names for each row that went the nearest
            evaluation picture.
        against: the evaluation set: a pool or subset, a parquet file with hashes, or a folder of
            pictures.
        radius: 0 to 12 bits.
        augment: also look for the evaluation pictures flipped and turned.
        flat: ``exact``: a flat hash, of fewer than 24 or more than 40 bits set, is only found when
            equal. ``near``: as any other.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.
        on_progress: told how many rows have been looked up.

    Raises:
        CoyoError: of the kind that says which of source, evaluation set or output is at fault.
    """
    watch = Stopwatch()
    pool = open_source(source)
    refuse_without_hashes(pool)
    refuse_settings(radius, flat)
    cores = threads or available_cores()
    evaluation = read_evaluation(against, augment=augment, processes=cores)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
        recipe_errors(pool),
    ):
        search = _Search(evaluation, radius, flat == "near", cores)
        rows = search.removed(session, pool, on_progress)
        kept = write_removed(rows, _SCHEMA, pool.rows, directory / REMOVED)
        if not search.ids.ascending:
            refuse_duplicate_ids(session, session.view("pool"), pool.path)
        if kept.count == 0:
            raise EmptyResultError(
                f"All {pool.rows:,} rows are within {radius} bits of a picture of {against}.",
                "Is the evaluation set the pool itself?",
            )
        result = search.result(output, pool, kept.count)
        removed = sum(result.by_distance.values())
        digest = write_rest(session, pool, kept, removed, directory, on_progress)
        details = figures_of(result)
        details["found"] = dict(list(result.found.items())[:_SHOWN])
        details["evaluation_found"] = len(result.found)
        details["refused"] = [list(one) for one in result.refused[:_SHOWN]]
        details["evaluation_refused"] = len(result.refused)
        made = Manifest(
            kind="subset",
            parameters={
                "stage": "decontaminate",
                "against": str(against),
                "radius": radius,
                "augment": augment,
                "flat": flat,
            },
            inputs=[pool.as_input("pool"), evaluation.input],
            rows_in=pool.rows,
            rows_out=digest.count,
            lost={f"within {radius} bits of an evaluation picture": removed},
            id_digest=digest.hexdigest(),
            seconds=watch.seconds(),
            details={**details, NOTES: dict(pool.notes)},
        )
        write_manifest(directory, made)
        write_page_of(directory, output.name, made)
    return result


class _Search:
    """Looks rows up in an evaluation set, and counts what is found."""

    def __init__(
        self, evaluation: EvaluationSet, radius: int, flat_near: bool, threads: int
    ) -> None:
        self._evaluation = evaluation
        self._flat_near = flat_near
        self._threads = threads
        self._hashes, self._first = np.unique(evaluation.hashes, return_index=True)
        self._index = HashIndex(self._hashes, radius)
        self._by_distance = np.zeros(radius + 1, np.int64)
        self._found = np.zeros(len(evaluation.hashes), np.int64)
        self._without_hash = 0
        self.ids = IdDigest()

    def removed(
        self, session: duckdb.DuckDBPyConnection, pool: Source, on_progress: Progress
    ) -> Iterator[Removed]:
        """Yield the rows that are near a picture of the set, in the pool's order."""
        place = 0
        reader = session.view("pool").select(ID, IMAGE_PHASH).to_arrow_reader(BATCH_ROWS)
        with ThreadPoolExecutor(self._threads) as threads:
            for batch in reader:
                ids = id_numbers(batch.column(0))
                self.ids.update(ids)
                hashes, valid = parse_hashes(batch.column(1))
                self._without_hash += len(valid) - int(np.count_nonzero(valid))
                rows = np.flatnonzero(valid)
                parts = np.array_split(hashes[rows], self._threads)
                pairs = np.concatenate(list(threads.map(self._index.near, parts)))
                near, entries, bits = self._nearest(pairs)
                where = np.searchsorted(near, hashes[rows])
                where[where == len(near)] = 0
                hit = near[where] == hashes[rows] if len(near) else np.zeros(len(rows), np.bool_)
                rows, where = rows[hit], where[hit]
                np.add.at(self._found, entries[where], 1)
                self._by_distance += np.bincount(bits[where], minlength=len(self._by_distance))
                yield Removed(
                    place + rows,
                    {
                        ID: ids[rows],
                        "evaluation": [self._evaluation.names[int(e)] for e in entries[where]],
                        "turn": [TURNS[self._evaluation.turns[e]] for e in entries[where]],
                        "distance": bits[where].astype(np.uint8),
                    },
                )
                place += len(ids)
                on_progress(place, pool.rows)

    def _nearest(
        self, pairs: Hashes
    ) -> tuple[Hashes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return hashes of the pool, ascending, with the nearest entry of each, and the bits."""
        bits = np.bitwise_count(pairs[:, 0] ^ pairs[:, 1]).astype(np.int64)
        if not self._flat_near:
            least, most = ORDINARY_BITS
            ones = np.bitwise_count(pairs)
            ordinary = ((ones >= least) & (ones <= most)).all(axis=1)
            allowed = ordinary | (bits == 0)
            pairs, bits = pairs[allowed], bits[allowed]
        entries = self._first[np.searchsorted(self._hashes, pairs[:, 1])]
        order = np.lexsort((entries, bits, pairs[:, 0]))
        hashes = pairs[order, 0]
        first = np.ones(len(hashes), np.bool_)
        first[1:] = hashes[1:] != hashes[:-1]
        return hashes[first], entries[order][first], bits[order][first]

    def result(self, output: Path, pool: Source, rows_out: int) -> DecontaminateResult:
        """Return what was found."""
        evaluation = self._evaluation
        found: dict[str, int] = {}
        turns: dict[str, int] = {}
        for entry in np.flatnonzero(self._found):
            rows = int(self._found[entry])
            name = evaluation.names[int(entry)]
            found[name] = found.get(name, 0) + rows
            turn = TURNS[evaluation.turns[entry]]
            turns[turn] = turns.get(turn, 0) + rows
        return DecontaminateResult(
            output,
            pool.rows,
            rows_out,
            self._without_hash,
            evaluation.pictures,
            evaluation.without_hash,
            evaluation.refused,
            {bits: int(rows) for bits, rows in enumerate(self._by_distance) if rows},
            turns,
            dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))),
        )
