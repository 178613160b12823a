"""Query: any one SELECT over a pool, its rows streamed as they come.

What ``coyo sql`` runs: aggregates, windows, CTEs, no ``id`` needed. Queries may come from strangers
as recipes may, so the same parser and the same fence stand around them. DuckDB itself writes csv,
JSON and parquet, through a pipe when they go to stdout, so that no row passes through Python.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType
from sqlglot import exp

from coyo_tools.bites import float_columns
from coyo_tools.engine import count_rows, open_session, recipe_errors
from coyo_tools.errors import OutputError
from coyo_tools.guard import guarded_for_scan
from coyo_tools.manifest import new_file
from coyo_tools.recipe import check_columns, parse_select, read_sql_file
from coyo_tools.source import Source, open_source

_BATCH_ROWS = 2048
# Further rows are counted as they come, so that an aggregate runs once; beyond so many the query is
# counted anew, because a count of stored rows needs no column of them.
_COUNTED_AS_THEY_COME = 1_000_000
_PIECE = 1 << 20
_WRITE = {
    "csv": "FORMAT csv, HEADER",
    "json": "FORMAT json, ARRAY",
    "parquet": "FORMAT parquet, COMPRESSION zstd",
}
FORMATS = tuple(_WRITE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


@dataclass(frozen=True)
class QueryTable:
    """A query's first rows, the names of their columns, and how many rows come after them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: int


def query_table(
    source: str | Path,
    query: str,
    *,
    max_rows: int,
    memory: str | None = None,
    threads: int | None = None,
) -> QueryTable:
    """Run a query and return its first ``max_rows`` rows.

    Raises:
        CoyoError: as ``write_query``, output aside.
    """
    pool = open_source(source)
    with _session(pool, query, None, memory, threads) as session, recipe_errors(pool):
        result = session.view("result")
        reader = result.to_arrow_reader(_BATCH_ROWS)
        shown: list[tuple[Any, ...]] = []
        seen = 0
        for batch in reader:
            if seen < max_rows:
                shown += _rows(batch.slice(0, max_rows - seen))
            seen += batch.num_rows
            if seen - max_rows > _COUNTED_AS_THEY_COME:
                reader.close()
                seen = count_rows(result)
                break
        return QueryTable(tuple(result.columns), tuple(shown), seen - len(shown))


def write_query(
    source: str | Path,
    query: str,
    target: Path | BinaryIO,
    form: str,
    *,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> None:
    """Run a query and write its rows to a file, which appears when it is whole, or to a stream.

    Args:
        source: the pool or subset.
        query: one SELECT over ``pool``, or a .sql file with one.
        target: a file, or a stream such as stdout.
        form: ``"csv"`` with a header; ``"json"``, one array with a row's object on each line, NaN
            and infinities as null; or ``"parquet"``.
        overwrite: replace a file that is there.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        RecipeError: the query is not one SELECT over ``pool``, or DuckDB refuses it.
        ColumnError: it names a column that is not there.
        OutputError: the file exists, or can't be written.
        BrokenPipeError: whoever reads the stream has had enough.
    """
    pool = open_source(source)
    with contextlib.ExitStack() as stack:
        if isinstance(target, Path):
            path = stack.enter_context(new_file(target, overwrite=overwrite))
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".query-"))) / "pipe"
        session = stack.enter_context(_session(pool, query, path.parent, memory, threads))
        stack.enter_context(recipe_errors(pool))
        result = session.view("result")
        if form == "json":
            columns = zip(result.columns, result.types, strict=True)
            result = result.select(
                *(
                    duckdb.SQLExpression(_finite(_quoted(name), kind)).alias(name)
                    for name, kind in columns
                )
            )
        result.create_view("copied")
        if not isinstance(target, Path):
            stack.enter_context(_piped_into(target, path))
        copy = f"COPY copied TO $path ({_WRITE[form]})"
        session.execute(copy, {"path": str(path.absolute())})


@contextlib.contextmanager
def _session(
    pool: Source, query: str, output: Path | None, memory: str | None, threads: int | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a session with a checked query as the view ``result``; nothing is computed yet."""
    text = query.strip()
    is_file = text.lower().endswith(".sql") and "\n" not in text
    select = parse_select(read_sql_file(text, what="query") if is_file else text, what="query")
    check_columns(select, pool.columns)
    sql = guarded_for_scan(select.sql, float_columns(pool))
    with open_session(pool, output=output, memory=memory, threads=threads) as session:
        with recipe_errors(pool):
            session.sql(sql).create_view("result")
        yield session


@contextlib.contextmanager
def _piped_into(target: BinaryIO, path: Path) -> Iterator[None]:
    """Pass on to a stream what is written to ``path``, which becomes a pipe.

    Raises:
        BrokenPipeError: the stream was closed at its other end.
        OutputError: it can't be written to.
    """
    os.mkfifo(path)
    read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    held = os.open(path, os.O_WRONLY)  # as long as it is open, an empty pipe is not at its end
    os.set_blocking(read_end, True)
    faults: list[OSError] = []
    on_terminal = target.isatty()

    def pump() -> None:
        try:
            while piece := os.read(read_end, _PIECE):
                target.write(_CONTROL.sub(b"?", piece) if on_terminal else piece)
            target.flush()
        except OSError as error:
            faults.append(error)
        finally:
            os.close(read_end)  # before the end, this ends the query

    pumping = threading.Thread(target=pump, daemon=True)
    pumping.start()
    try:
        yield
    except duckdb.Error:
        if not faults:
            raise
    finally:
        os.close(held)
        pumping.join()
    if faults and not isinstance(faults[0], BrokenPipeError):
        raise OutputError(f"The output can't be written: {faults[0].strerror}.") from faults[0]
    if faults:
        raise faults[0]


def _finite(value: str, kind: DuckDBPyType) -> str:
    """Write SQL for a value of some type with NULL for every NaN and infinity in it."""
    if kind.id in ("float", "double"):
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if not _holds_floats(kind):
        return value
    if kind.id in ("list", "array"):
        inner = _inner(kind)["child"]
        return f"list_transform({value}, lambda item: {_finite('item', inner)})"
    if kind.id == "struct":
        fields = ", ".join(
            f"{_quoted(name)} := {_finite(f'({value}).{_quoted(name)}', inner)}"
            for name, inner in _inner(kind).items()
        )
        return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({fields}) END"
    if kind.id == "map":
        inner = _inner(kind)["value"]
        entry = f"struct_pack(key := entry.key, value := {_finite('entry.value', inner)})"
        entries = f"list_transform(map_entries({value}), lambda entry: {entry})"
        return f"map_from_entries({entries})"
    return f"CAST({value} AS VARCHAR)"


def _holds_floats(kind: DuckDBPyType) -> bool:
    if kind.id in ("list", "array", "struct", "map", "union"):
        return any(_holds_floats(inner) for inner in _inner(kind).values())
    return kind.id in ("float", "double")


def _inner(kind: DuckDBPyType) -> dict[str, DuckDBPyType]:
    """Return the types that a nested type is made of; an array's size is among its children."""
    return {name: inner for name, inner in kind.children if isinstance(inner, DuckDBPyType)}


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql("duckdb")


def _rows(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    columns = [column.to_pylist() for column in batch.columns]
    return list(zip(*columns, strict=True))
