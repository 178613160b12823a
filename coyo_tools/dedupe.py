"""Exact deduplication: of the rows that agree in some columns, the best one stays.

Which row is best is any ORDER BY; ties end by id, so that the result does not depend on threads.
What was removed, and in favour of which row, stands in ``removed.parquet``. Rows with a NULL in
one of the columns are nobody's duplicates: they stay, and are counted.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from sqlglot import exp

from coyo_tools.columns import ID
from coyo_tools.engine import (
    count_rows,
    digest_ids,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import RecipeError
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.recipe import missing_column, order_terms
from coyo_tools.source import Source, open_source

_KEEP_EXAMPLE = 'For example: --keep "clip_similarity_vitl14 DESC"'


@dataclass(frozen=True)
class DedupeResult:
    """What a deduplication did; ``group_sizes`` maps a size above 1 to its number of groups."""

    output: Path
    rows_in: int
    rows_out: int
    without_key: int
    group_sizes: dict[int, int]


def dedupe_pool(
    source: str | Path,
    output: Path,
    *,
    by: tuple[str, ...],
    keep: str = ID,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> DedupeResult:
    """Write one row of every group that agrees in the columns ``by``.

    Args:
        source: the pool or subset.
        output: the subset to write.
        by: columns that make two rows duplicates when all agree.
        keep: ORDER BY terms; the first row in that order stays. NULL and NaN come last, either
            way; ties end by id.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        CoyoError: of the kind that says which of source, columns or output is at fault.
    """
    watch = Stopwatch()
    pool = open_source(source)
    candidates = _candidates(pool, by, keep)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
    ):
        with recipe_errors(pool):
            refuse_duplicate_ids(session, session.view("pool"), pool.path)
            session.sql(candidates).create_view("candidates")
            session.execute(read_sql("dedupe/exact.sql"))
            parts = write_parts(session.sql(read_sql("dedupe/survivors.sql")), directory)
            session.table("removed").order(ID).write_parquet(
                str(directory / "removed.parquet"), compression="zstd"
            )
        sizes = dict(session.sql(read_sql("dedupe/group_sizes.sql")).fetchall())
        without_key = count_rows(session.view("candidates").filter("duplicate_key IS NULL"))
        digest = digest_ids(parts)
        removed = pool.rows - digest.count
        if sum((size - 1) * groups for size, groups in sizes.items()) != removed:
            raise RuntimeError(
                f"{removed} rows went but the groups explain another number: {sizes}"
            )
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters={"stage": "dedupe", "by": list(by), "keep": keep},
                inputs=[pool.as_input("pool")],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost={f"same {', '.join(by)}": removed},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={"group_sizes": sizes, "rows_without_key": without_key},
                sql=candidates + ";\n" + read_sql("dedupe/exact.sql"),
            ),
        )
    return DedupeResult(output, pool.rows, digest.count, without_key, sizes)


def _candidates(pool: Source, by: tuple[str, ...], keep: str) -> str:
    """Write the view of sql/dedupe/exact.sql for these columns and this ORDER BY."""
    if not by:
        raise RecipeError("--by names no column.", "For example: --by image_phash")
    for name in by:
        if name not in pool.columns:
            raise missing_column(name, pool.columns)
    columns = [exp.column(name, quoted=True) for name in by]
    nothing_null = exp.and_(*(exp.Not(this=exp.Is(this=c, expression=exp.null())) for c in columns))
    key = exp.func("row", *columns) if len(columns) > 1 else columns[0]
    select = exp.select(
        exp.column(ID),
        exp.alias_(exp.Case().when(nothing_null, key), "duplicate_key"),
        exp.alias_(_keep_order(pool, keep), "keep_order"),
    ).from_("pool")
    return select.sql(dialect="duckdb")


def _keep_order(pool: Source, keep: str) -> exp.Expr:
    """Write an ORDER BY as one sortable key; a NaN counts as NULL, NULLs come last."""
    arguments: list[exp.Expr] = []
    for term in order_terms(keep, pool.columns, option="--keep", example=_KEEP_EXAMPLE):
        nulls = "FIRST" if term.args.get("nulls_first") else "LAST"
        direction = "DESC" if term.args.get("desc") else "ASC"
        arguments += [
            term.this.transform(lambda node: _without_nan(node, pool)),
            exp.Literal.string(f"{direction} NULLS {nulls}"),
        ]
    arguments += [exp.column(ID), exp.Literal.string("ASC NULLS LAST")]
    return exp.func("create_sort_key", *arguments)


def _without_nan(node: exp.Expr, pool: Source) -> exp.Expr:
    if isinstance(node, exp.Column) and pa.types.is_floating(pool.schema.field(node.name).type):
        return exp.func("nan_to_null", node.copy())
    return node
