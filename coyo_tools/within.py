"""Within: the rows of a pool whose id another artifact has, such as those whose picture arrived.

A study compares arms on the pictures that there are: what never arrived is no arm's merit or fault,
and a control drawn at random has to be drawn from the same rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from coyo_tools.columns import ID
from coyo_tools.engine import BATCH_ROWS, digest_ids, id_numbers, open_session, recipe_errors
from coyo_tools.errors import EmptyResultError, SourceError
from coyo_tools.handover import open_shards
from coyo_tools.manifest import Input, Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.rows import KeptRows, write_kept
from coyo_tools.shard_hashes import holds_tars
from coyo_tools.shards import LEDGER
from coyo_tools.source import NOTES, open_source
from coyo_tools.tar_samples import tar_samples

ELSEWHERE = "not in the other"


@dataclass(frozen=True)
class WithinResult:
    """What was kept; ``rows_in`` less ``rows_out`` rows have an id that the other has not."""

    output: Path
    rows_in: int
    rows_out: int


def keep_within(
    source: str | Path,
    other: str | Path,
    output: Path,
    *,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> WithinResult:
    """Write the rows whose id is in shards, or in another pool or subset, in the pool's order.

    Args:
        source: the pool or subset.
        other: a directory of tars, of which only samples with a picture count; else any source.
        output: the subset to write.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.
        on_progress: told how many rows have been written.

    Raises:
        CoyoError: of the kind that says which of source, other or output is at fault; or no row is
            in both.
    """
    watch = Stopwatch()
    pool = open_source(source)
    ids, there = _ids_of(Path(other)) if holds_tars(Path(other)) else _ids_of_pool(str(other))
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
        recipe_errors(pool),
    ):
        kept = KeptRows(pool.rows)
        for batch in session.view("pool").select(ID).to_arrow_reader(BATCH_ROWS):
            kept.append(np.isin(id_numbers(batch.column(0)), ids))
        if kept.count == 0:
            raise EmptyResultError(
                f"None of the {pool.rows:,} ids of {source} is in {other}.",
                "Were the pictures fetched for this pool?",
            )
        digest = digest_ids(write_kept(session, pool, kept, directory, on_progress))
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters={"stage": "within", "other": str(other)},
                inputs=[pool.as_input("pool"), there],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost={ELSEWHERE: pool.rows - digest.count},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={NOTES: dict(pool.notes)},
            ),
        )
    return WithinResult(output, pool.rows, digest.count)


def _ids_of(shards: Path) -> tuple[npt.NDArray[np.int64], Input]:
    """The ids whose picture is in the tars, by the ledger where there is one."""
    described = open_shards(shards)
    ledger = shards / LEDGER
    if ledger.is_file():
        try:
            rows = pl.scan_parquet(ledger).filter(pl.col("shard").is_not_null()).select(ID)
            ids = rows.collect()[ID].to_numpy()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"{ledger} can't be read: {str(error)[:300]}") from error
        return np.unique(ids.astype(np.int64)), described
    found = [
        sample.id
        for tar in sorted(shards.glob("*.tar"))
        for sample in tar_samples(tar, lambda _reason, _detail: None)
        if sample.id is not None and sample.picture is not None
    ]
    return np.unique(np.array(found, dtype=np.int64)), described


def _ids_of_pool(other: str) -> tuple[npt.NDArray[np.int64], Input]:
    source = open_source(other)
    with open_session(source) as session, recipe_errors(source):
        batches = session.view("pool").select(ID).to_arrow_reader(BATCH_ROWS)
        ids = [id_numbers(batch.column(0)) for batch in batches]
    return np.unique(np.concatenate([np.empty(0, np.int64), *ids])), source.as_input("other")
