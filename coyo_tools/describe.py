"""Describe: what a pool holds, from its footers alone, so at once for any size; or scanned."""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from coyo_tools.checks import ColumnStatistics, column_statistics, remarks_on
from coyo_tools.columns import BY_NAME
from coyo_tools.engine import open_session, read_sql, recipe_errors
from coyo_tools.manifest import MANIFEST, Manifest, read_manifest
from coyo_tools.source import Source, open_source


@dataclass(frozen=True)
class ColumnFacts:
    """One column; ``None`` where the footers don't say. ``nans`` is known after a scan only.

    ``remark`` says what is odd: a type or a range that is not COYO's, nothing but nulls, a score
    of another model.
    """

    name: str
    type: str
    nulls: int | None
    low: float | int | None
    high: float | int | None
    meaning: str
    remark: str
    nans: int | None = None


@dataclass(frozen=True)
class IdFacts:
    """How sound the ids are: rows without one, ids on more than one row, and those rows."""

    missing: int
    doubled_ids: int
    doubled_rows: int


@dataclass(frozen=True)
class PoolFacts:
    """A pool's size, layout and columns and, if coyo made it, how; ``ids`` after a scan."""

    path: str
    layout: str
    files: int
    rows: int
    bytes: int
    columns: tuple[ColumnFacts, ...]
    absent: dict[str, str]
    manifest: Manifest | None
    ids: IdFacts | None = None


def describe_pool(
    source: str | Path,
    *,
    scan: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> PoolFacts:
    """Read a pool's schema, rows, nulls and ranges.

    Args:
        source: what to open.
        scan: read every row: nulls, NaNs and ranges become exact, ids are checked.
        memory: DuckDB's memory limit for a scan.
        threads: threads for a scan.

    Raises:
        CoyoError: it can't be opened or read.
    """
    pool = open_source(source)
    directory = Path(source)
    made = not pool.remote and directory.is_dir() and (directory / MANIFEST).is_file()
    ids = None
    if scan:
        with open_session(pool, memory=memory, threads=threads) as session, recipe_errors(pool):
            statistics = _scan_columns(session, pool)
            ids = IdFacts(*session.sql(read_sql("checks/id_counts.sql")).fetchall()[0])
    else:
        statistics = column_statistics(pool, pool.columns)
    return PoolFacts(
        path=pool.path,
        layout=pool.column_map.layout,
        files=len(pool.files),
        rows=pool.rows,
        bytes=sum(pool.file_bytes),
        columns=tuple(_facts(pool, name, statistics[name]) for name in pool.columns),
        absent=pool.column_map.absent,
        manifest=read_manifest(directory) if made else None,
        ids=ids,
    )


def _scan_columns(session: duckdb.DuckDBPyConnection, pool: Source) -> dict[str, ColumnStatistics]:
    """Count nulls and NaNs and find the range of every column, in one scan."""
    call, counted = duckdb.FunctionExpression, []
    for name in pool.columns:
        column: duckdb.Expression = duckdb.ColumnExpression(name)
        kind = pool.schema.field(name).type
        floating = pa.types.is_floating(kind)
        counted.append(call("count", column))
        counted.append(call("count_if", call("isnan", column)) if floating else _NOTHING)
        value = duckdb.CaseExpression(~call("isnan", column), column) if floating else column
        ranged = floating or pa.types.is_integer(kind)
        counted += [call("min", value), call("max", value)] if ranged else [_NOTHING, _NOTHING]
    row = session.view("pool").aggregate(counted).fetchall()[0]
    found = {}
    for position, name in enumerate(pool.columns):
        count, nans, low, high = row[4 * position : 4 * position + 4]
        if pa.types.is_floating(pool.schema.field(name).type):
            nans = nans or 0  # count_if is NULL where every value is
        found[name] = ColumnStatistics(pool.rows - count, low, high, nans)
    return found


_NOTHING = duckdb.ConstantExpression(None)


def _facts(pool: Source, name: str, known: ColumnStatistics) -> ColumnFacts:
    coyos = BY_NAME.get(name)
    return ColumnFacts(
        name=name,
        type=str(pool.schema.field(name).type),
        nulls=known.nulls,
        low=known.low,
        high=known.high,
        meaning=coyos.meaning if coyos is not None else "",
        remark="; ".join(remark.text for remark in remarks_on(pool, name, known)),
        nans=known.nans,
    )
