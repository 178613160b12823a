"""DuckDB sessions over one pool, fenced in: the pool's files can be read, the output written.

Recipes are written by strangers. The fence is DuckDB's own: external access off, the pool's files
and the output's directory excepted, the configuration locked. A recipe that gets past the parser
still reads no other file.
"""

import contextlib
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.bundled import bundled
from coyo_tools.columns import ID
from coyo_tools.errors import ColumnError, OutputError, RecipeError, SourceError
from coyo_tools.manifest import IdDigest
from coyo_tools.pool_files import PoolFileSystem, ServedFile, served_path
from coyo_tools.source import Source

# 122,880 is DuckDB's own row group. COYO's rows are about 130 bytes compressed, so that parts of
# 256 MB hold about two million rows and sixteen row groups, enough to prune by.
ROW_GROUP_ROWS = 122_880
PART_BYTES = 256 * 1024 * 1024
ZSTD_LEVEL = 1  # 3 % larger than level 3, and a tenth of the writing time less
BATCH_ROWS = 1 << 20  # of a stream whose batches go through numpy
MISSING_ID = -(2**63)  # sorts before every id, so IdDigest never calls it ascending
# It trusts a footer's minimum and maximum, which leave NaN out, and folds isnan(score) to false
# (duckdb issue 25521). Row groups are pruned without it.
_UNSAFE_WITH_NAN = "statistics_propagation"
_USERS_SQL = (
    duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError, duckdb.PermissionException,
)  # fmt: skip


@contextlib.contextmanager
def open_session(
    source: Source,
    *,
    output: Path | None = None,
    memory: str | None = None,
    threads: int | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB session with the view ``pool`` and the macros of sql/macros.sql.

    Args:
        source: what ``pool`` reads.
        output: the one directory that may be written to.
        memory: DuckDB's memory limit such as ``"2GB"``; default 80 % of the machine's memory.
        threads: how many threads; default all cores.

    Raises:
        OutputError: the memory limit can't be understood, or is too low for what is done.
        KeyboardInterrupt: Ctrl-C during a query.
    """
    spill_parent = output if output is not None else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=spill_parent) as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": spill,
            "disabled_optimizers": _UNSAFE_WITH_NAN,
        }
        if memory is not None:
            config["memory_limit"] = memory
        if threads is not None:
            config["threads"] = threads
        try:
            connection = duckdb.connect(config=config)
        except duckdb.Error as error:
            raise OutputError(
                f"DuckDB refuses --memory {memory}: {engine_message(error)}",
                "Write the memory like 2GB or 500MB.",
            ) from error
        with connection, _memory_errors():
            served = _serve_remote(connection, source)
            writable = [spill] if output is None else [spill, str(output.absolute())]
            try:
                _set_up(connection, source, writable)
                with _interruptible(connection):
                    yield connection
            except Exception as error:
                if served is not None and served.fault is not None:
                    raise served.fault from error  # DuckDB passes on what it says, not what it is
                raise


def _set_up(connection: duckdb.DuckDBPyConnection, source: Source, writable: list[str]) -> None:
    """Make the macros and the view, then close the fence."""
    if not source.column_map.plain:
        connection.execute(read_sql("layouts.sql"))
    pool_relation(connection, source).create_view("pool")
    pool_relation(connection, source, placed=True).create_view("placed_pool")
    connection.execute(read_sql("macros.sql"))  # one of them reads the pool
    # It would be drawn on stdout, into what is printed there, when a stream of rows is read slowly.
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET allowed_paths = $paths", {"paths": _engine_paths(source)})
    connection.execute("SET allowed_directories = $directories", {"directories": writable})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def pool_relation(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    files: Sequence[str] | None = None,
    *,
    placed: bool = False,
) -> duckdb.DuckDBPyRelation:
    """Return what the view ``pool`` shows, from all of a source's files or some of them.

    Rows come in the order of the files and of the rows in each. Filters on stored and on renamed
    columns reach the parquet scan, and prune row groups there.

    Args:
        connection: one that ``open_session`` made.
        source: what to read.
        files: some of ``source.files``; default all.
        placed: add the columns ``__file`` and ``__row``, the number of a row's file and its place
            in that, both from 0.
    """
    paths = _engine_paths(source)
    if files is not None:
        by_file = dict(zip(source.files, paths, strict=True))
        paths = [by_file[file] for file in files]
    stored = connection.read_parquet(
        paths, union_by_name=source.unify_types, hive_partitioning=False
    )
    shown: list[duckdb.Expression] = []
    if placed:
        shown = [
            duckdb.ColumnExpression("file_index").alias("__file"),
            duckdb.ColumnExpression("file_row_number").alias("__row"),
        ]
    if source.column_map.plain:
        return stored.select(duckdb.StarExpression(), *shown) if placed else stored
    for column in source.column_map.columns:
        value: duckdb.Expression = duckdb.ColumnExpression(column.stored)
        if column.macro:
            value = duckdb.FunctionExpression(column.macro, value)
        shown.append(value.alias(column.name))
    return stored.select(*shown)


def _engine_paths(source: Source) -> list[str]:
    """Return what DuckDB calls a source's files."""
    if source.remote:
        return [served_path(number) for number in range(len(source.files))]
    return [str(Path(file).absolute()) for file in source.files]


def _serve_remote(connection: duckdb.DuckDBPyConnection, source: Source) -> PoolFileSystem | None:
    if not source.remote:
        return None
    files = zip(source.files, source.file_bytes, source.tails, source.reads, strict=True)
    system = PoolFileSystem([ServedFile(*file) for file in files])
    connection.register_filesystem(system)
    return system


@contextlib.contextmanager
def _interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let Ctrl-C end a query.

    While DuckDB works, Python's own handler has to wait until the query is over. The signal's
    number is written to a pipe at once, though, and a thread that reads it can ask DuckDB to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        while signals := os.read(read_end, 64):
            if signal.SIGINT in signals:
                connection.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # all that DuckDB makes of a Ctrl-C
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        watcher.join()
        os.close(read_end)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise OutputError(
            f"DuckDB ran out of memory: {engine_message(error)}",
            "Give it more with --memory, or fewer threads with --threads.",
        ) from error


def read_sql(name: str) -> str:
    """Return one of the shipped SQL files, such as ``"dedupe/exact.sql"``."""
    return (bundled("sql") / name).read_text(encoding="utf-8")


@contextlib.contextmanager
def recipe_errors(source: Source) -> Iterator[None]:
    """Turn what DuckDB says against a user's SQL into a ``RecipeError``, other faults into theirs.

    Raises:
        RecipeError: the SQL names what is not there or mixes types.
        SourceError: a data page of the pool is damaged.
        OutputError: the disk is full.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise  # open_session says what to do
    except duckdb.Error as error:
        message = str(error)
        if "No space left" in message:
            raise OutputError("The disk is full; nothing was written.") from error
        # Damaged pages raise many classes; the bare one stands for a page header that is no Thrift.
        damaged = "Failed to read file" in message or type(error) is duckdb.Error
        if damaged or isinstance(error, duckdb.IOException):
            raise SourceError(f"{source.path} can't be read: {engine_message(error)}") from error
        if isinstance(error, _USERS_SQL):
            raise RecipeError(f"DuckDB refuses the SQL: {engine_message(error)}") from error
        raise


def engine_message(error: duckdb.Error) -> str:
    """Return DuckDB's message in one paragraph, without its class and the echo of the query."""
    text = re.split(r"\n\nLINE |Candidate functions:|Possible solutions:", str(error))[0]
    text = re.sub(r"^[A-Z][A-Za-z ]*Error: ", "", text)
    return " ".join(text.split())


def write_parts(
    relation: duckdb.DuckDBPyRelation,
    directory: Path,
    kept: Callable[[int, int], npt.NDArray[np.bool_]] | None = None,
) -> list[Path]:
    """Write a relation as ``part-00000.parquet``, … into ``directory``, in its own order.

    The same rows give the same bytes, whatever the number of threads: DuckDB's own COPY lets the
    row groups depend on it, so it only streams the rows, and pyarrow writes them.

    Args:
        relation: the rows.
        directory: where the parts go.
        kept: says of the rows from one place up to another which are written; default all.
    """
    reader = relation.to_arrow_reader(ROW_GROUP_ROWS)
    return write_batches(
        reader.schema, reader if kept is None else _thinned(reader, kept), directory
    )


def write_batches(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], directory: Path
) -> list[Path]:
    """Write a stream of rows as ``write_parts`` does."""
    columns = [field.name for field in schema if _repeats(field.type)]
    parts: list[Path] = []
    writer: pq.ParquetWriter | None = None
    try:
        for group in _groups(batches):
            if writer is None:
                parts.append(directory / f"part-{len(parts):05d}.parquet")
                sink = pa.OSFile(str(parts[-1]), "wb")
                writer = pq.ParquetWriter(
                    sink,
                    schema,
                    compression="zstd",
                    compression_level=ZSTD_LEVEL,
                    use_dictionary=columns,
                )
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            if sink.tell() >= PART_BYTES:
                writer.close()
                sink.close()
                writer = None
        if writer is None and not parts:  # no rows: a part that says so
            parts.append(directory / "part-00000.parquet")
            pq.write_table(schema.empty_table(), parts[-1])
    finally:
        if writer is not None:
            writer.close()
            sink.close()
    return parts


def _thinned(
    reader: pa.RecordBatchReader, kept: Callable[[int, int], npt.NDArray[np.bool_]]
) -> Iterator[pa.RecordBatch]:
    place = 0
    for batch in reader:
        yield batch.filter(pa.array(kept(place, place + batch.num_rows)))
        place += batch.num_rows


def _groups(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield a stream's rows in tables of exactly ``ROW_GROUP_ROWS``, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(waiting)
            # In one piece: pages end where pieces do, and those depend on DuckDB's threads.
            yield table.slice(0, ROW_GROUP_ROWS).combine_chunks()
            rest = table.slice(ROW_GROUP_ROWS)
            waiting, rows = rest.to_batches(), rest.num_rows
    if rows:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _repeats(kind: pa.DataType) -> bool:
    """Say whether a column is worth a dictionary: texts, urls and scores hardly repeat."""
    return bool(pa.types.is_integer(kind) and kind.bit_width <= 32)


def digest_ids(parts: Sequence[Path]) -> IdDigest:
    """Return the digest of the ids in some parquet files, in order."""
    digest = IdDigest()
    for part in parts:
        with pq.ParquetFile(part) as parquet:
            for batch in parquet.iter_batches(columns=[ID], batch_size=1 << 20):
                digest.update(id_numbers(batch.column(0)))
    return digest


def id_numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return a column of ids as numbers, a missing one as ``MISSING_ID``.

    Raises:
        ColumnError: an id doesn't fit 64 bits with a sign.
    """
    try:
        ids = column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ColumnError(f"Ids must fit 64 bits with a sign: {error}.") from error
    if ids.null_count:
        ids = ids.fill_null(MISSING_ID)
    return np.asarray(ids.to_numpy(zero_copy_only=False), dtype=np.int64)


def ids_of(relation: duckdb.DuckDBPyRelation) -> Iterator[npt.NDArray[np.int64]]:
    """Stream the first column of a relation as ids, in its order; see ``id_numbers``."""
    for batch in relation.to_arrow_reader(BATCH_ROWS):
        yield id_numbers(batch.column(0))


def refuse_duplicate_ids(
    session: duckdb.DuckDBPyConnection, rows: duckdb.DuckDBPyRelation, where: str
) -> None:
    """Raise ``SourceError`` if an id stands on more than one of ``rows``, or one has none."""
    rows.select(ID).create_view("checked", replace=True)
    doubled = session.sql(read_sql("checks/duplicate_ids.sql")).fetchall()
    if doubled and doubled[0][0] is None:
        raise SourceError(
            f"In {where} the id is missing (NULL) on {doubled[0][1]:,} rows.",
            'Leave them out with: coyo filter SOURCE "id IS NOT NULL" -o OUT',
        )
    if doubled:
        shown = ", ".join(f"{id_} on {count:,} rows" for id_, count in doubled)
        raise SourceError(
            f"Ids are not unique in {where}: {shown}.",
            'Keep one row of each with: coyo filter SOURCE "SELECT DISTINCT ON (id) * FROM pool '
            'ORDER BY id" -o OUT',
        )


def refuse_pool_with_duplicate_ids(session: duckdb.DuckDBPyConnection, where: str) -> None:
    """As ``refuse_duplicate_ids`` for the whole pool; ids that ascend take one look at each."""
    digest = IdDigest()
    for ids in ids_of(session.view("pool").select(ID)):
        digest.update(ids)
    if not digest.ascending:  # not before the stream is over: DuckDB runs one query at a time
        refuse_duplicate_ids(session, session.view("pool"), where)


def count_rows(relation: duckdb.DuckDBPyRelation) -> int:
    """Count a relation's rows."""
    return int(relation.aggregate("count(*)").fetchall()[0][0])


def memory_share(memory: str | None, share: float) -> tuple[str, int]:
    """Part the memory between DuckDB and arrays of ours.

    Args:
        memory: all of it, as DuckDB writes it; default 80 % of the machine's.
        share: DuckDB's part; more where that would be less than half a gigabyte.

    Returns:
        DuckDB's limit, and the bytes that are left.

    Raises:
        OutputError: the memory can't be understood.
    """
    if memory is None:
        total = int(0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    else:
        written = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", memory, re.IGNORECASE)
        if written is None:
            raise OutputError(
                f"--memory {memory!r} can't be understood.", "Write it like 2GB or 500MB."
            )
        number, unit, binary = written.groups()
        power = " KMGT".index(unit.upper() or " ")
        total = int(float(number) * (1024 if binary else 1000) ** power)
    # However little there is: below half a gigabyte DuckDB can't sort.
    engine = max(int(total * share), min(total // 2, 500_000_000))
    return f"{engine // 1000} KB", total - engine


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
