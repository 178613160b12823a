"""The plan of a download: which urls are fetched, in which order, and which rows wait for them.

One file of requests per batch and one of rows per shard, so that whoever works on one reads no
other. Making the plan again from the same rows gives the same numbers and shards.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.engine import count_rows, read_sql
from coyo_tools.fetching.journal import JOURNALS, REQUESTS
from coyo_tools.source import Source

ROWS = "rows"
FATES = "fates"
_FILE = "__file"
_PLAN = "plan.json"
_STREAM_ROWS = 20_000
# Small enough that every process has something to do, large enough that waiting for the slowest
# urls, when img2dataset's threads run dry at the end of each batch, is not most of it.
_SMALLEST_BATCH = 500


@dataclass(frozen=True)
class Plan:
    """What is to be fetched: ``batches`` says of each shard's number which batches it is made of.

    ``rows`` counts those that wait for a url; the others have one that nobody would fetch.
    """

    urls: int
    rows: int
    batches: dict[int, list[int]]

    @property
    def batch_count(self) -> int:
        """Count the batches of all shards."""
        return sum(len(batches) for batches in self.batches.values())


def number_urls(session: duckdb.DuckDBPyConnection, samples_per_shard: int) -> None:
    """Make the table ``urls``: url, rows, url_number, shard, host."""
    session.execute(read_sql("download/urls.sql"), {"samples_per_shard": samples_per_shard})


def write_plan(
    session: duckdb.DuckDBPyConnection,
    work: Path,
    samples_per_shard: int,
    processes: int,
    *,
    all_rows: bool = True,
) -> Plan:
    """Write requests and rows from the table ``urls``, and make the table ``planned``.

    ``keep_plan`` says at last that all is there.

    Args:
        session: with the table.
        work: the folder of the download.
        samples_per_shard: at most so many urls are in a batch.
        processes: for which there should be enough batches.
        all_rows: also write the fates of the rows for which nothing is fetched.
    """
    for name in (REQUESTS, ROWS, FATES, JOURNALS):
        (work / name).mkdir(exist_ok=True)
    urls = count_rows(session.table("urls"))
    ideal = -(-urls // (2 * processes))
    batch = min(max(ideal, _SMALLEST_BATCH), max(samples_per_shard, 1))
    session.execute(read_sql("download/batches.sql"), {"urls_per_batch": batch})
    rows = write_files(session.sql(read_sql("download/rows.sql")), work / ROWS)
    write_files(session.sql(read_sql("download/requests.sql")), work / REQUESTS)
    if all_rows:
        session.sql(read_sql("download/unfetchable.sql")).write_parquet(
            str(work / FATES / "unfetchable.parquet")
        )
    batches: dict[int, list[int]] = {}
    for shard, number in session.sql(read_sql("download/batches_of_shards.sql")).fetchall():
        batches.setdefault(shard, []).append(number)
    return Plan(urls, rows, batches)


def keep_plan(work: Path, plan: Plan) -> None:
    """Note that a plan is on disk as a whole; ``read_plan`` finds it then."""
    partial = work / f"{_PLAN}.partial"
    partial.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    partial.replace(work / _PLAN)


def read_plan(work: Path) -> Plan | None:
    """Return the plan that was written to a folder, or None if there is none, or half of one."""
    path = work / _PLAN
    if not path.is_file():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Plan(
        raw["urls"], raw["rows"], {int(shard): made for shard, made in raw["batches"].items()}
    )


def view_hashes(session: duckdb.DuckDBPyConnection, pool: Source) -> None:
    """Make the view ``hashes``: id and image_phash, NULL where the pool has no such column."""
    hashed: duckdb.Expression = duckdb.ColumnExpression(IMAGE_PHASH)
    if IMAGE_PHASH not in pool.columns:
        hashed = duckdb.ConstantExpression(None)
    session.view("pool").select(duckdb.ColumnExpression(ID), hashed.alias(IMAGE_PHASH)).create_view(
        "hashes"
    )


def file_name(number: int) -> str:
    """Return the file name of a batch's requests or a shard's rows.

    >>> file_name(7)
    '00007.parquet'
    """
    return f"{number:05d}.parquet"


def write_files(relation: duckdb.DuckDBPyRelation, folder: Path) -> int:
    """Write a relation that is sorted by ``__file`` into one parquet file for each of its values.

    Returns the number of rows.
    """
    rows = 0
    writer: pq.ParquetWriter | None = None
    current = -1
    try:
        for number, piece in _pieces(relation):
            if number != current:
                if writer is not None:
                    writer.close()
                current = number
                writer = pq.ParquetWriter(
                    folder / file_name(number), piece.schema, compression="zstd"
                )
            assert writer is not None  # noqa: S101 - the first number is no -1
            writer.write_batch(piece)
            rows += piece.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _pieces(relation: duckdb.DuckDBPyRelation) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in relation.to_arrow_reader(_STREAM_ROWS):
        files = batch.column(_FILE).to_numpy()
        rest = batch.drop_columns([_FILE])
        start = 0
        while start < len(files):
            number = files[start]
            end = int(files.searchsorted(number, side="right"))
            yield int(number), rest.slice(start, end - start)
            start = end
