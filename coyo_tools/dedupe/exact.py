"""Equal rows: those that agree in some columns, or whose texts agree once they are normalized.

All of it is SQL that spills to the disk. Rows with a NULL in one of the columns are nobody's
duplicates.
"""

from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
from sqlglot import exp

from coyo_tools.columns import ID
from coyo_tools.dedupe.keep import KeepPolicy
from coyo_tools.dedupe.removal import (
    LARGEST_GROUPS,
    MEMBERS_SHOWN,
    DuplicateGroup,
    Removed,
    describe_groups,
    file_starts,
)
from coyo_tools.engine import BATCH_ROWS, read_sql
from coyo_tools.errors import ColumnError, RecipeError
from coyo_tools.recipe import missing_column
from coyo_tools.source import Source


def candidates_sql(pool: Source, by: tuple[str, ...], policy: KeepPolicy, normalize: bool) -> str:
    """Write the view ``candidates`` of sql/dedupe/exact.sql.

    Raises:
        ColumnError: a column is not there, or is to be normalized and is no text.
        RecipeError: no column is named.
    """
    if not by:
        raise RecipeError("--by names no column.", "For example: --by image_phash")
    for name in by:
        if name not in pool.columns:
            raise missing_column(name, pool.columns)
        kind = pool.schema.field(name).type
        if normalize and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ColumnError(
                f"Column `{name}` is {kind}; --normalize is for texts.",
                "For example: --by text --normalize",
            )
    columns: list[exp.Expr] = [exp.column(name, quoted=True) for name in by]
    if normalize:
        columns = [exp.func("normalized_text", column) for column in columns]
    key = columns[0] if len(columns) == 1 else _row_without_null(columns)
    select = exp.select(
        exp.column(ID),
        exp.column("__file"),
        exp.column("__row"),
        exp.alias_(key, "duplicate_key"),
        *policy.selected(),
    ).from_("placed_pool")
    return select.sql(dialect="duckdb")


def _row_without_null(columns: list[exp.Expr]) -> exp.Expr:
    nothing_null = exp.and_(
        *(exp.Not(this=exp.Is(this=column.copy(), expression=exp.null())) for column in columns)
    )
    return exp.Case().when(nothing_null, exp.func("row", *columns))


def find_equal(session: duckdb.DuckDBPyConnection, candidates: str, policy: KeepPolicy) -> str:
    """Make the tables ``kept`` and ``removed``; return the SQL that did."""
    session.sql(candidates).create_view("candidates")
    session.execute(read_sql("dedupe/exact.sql"))
    ranked = exp.select("*", exp.alias_(policy.sort_key(), "keep_order")).from_("company")
    session.sql(ranked.sql(dialect="duckdb")).create_view("ranked")
    session.execute(read_sql("dedupe/removed.sql"))
    return ";\n".join(
        [
            candidates,
            read_sql("dedupe/exact.sql"),
            ranked.sql(dialect="duckdb"),
            read_sql("dedupe/removed.sql"),
        ]
    )


def removed_rows(session: duckdb.DuckDBPyConnection, pool: Source) -> Iterator[Removed]:
    """Yield the rows that go, in the pool's order."""
    starts = file_starts(pool)
    reader = session.sql(read_sql("dedupe/removed_in_order.sql")).to_arrow_reader(BATCH_ROWS)
    for batch in reader:
        file = batch.column("__file").to_numpy().astype(np.int64)
        place = starts[file] + batch.column("__row").to_numpy().astype(np.int64)
        yield Removed(
            place,
            {
                ID: batch.column(ID),
                "duplicate_of": batch.column("duplicate_of"),
                "distance": np.zeros(len(place), np.uint8),
            },
        )


def group_sizes(session: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """Return how many groups there are of each size."""
    return dict(session.sql(read_sql("dedupe/group_sizes.sql")).fetchall())


def rows_without_key(session: duckdb.DuckDBPyConnection) -> int:
    """Count the rows that have a NULL in one of the columns."""
    return int(session.sql(read_sql("dedupe/without_key.sql")).fetchall()[0][0])


def largest_groups(session: duckdb.DuckDBPyConnection, pool: Source) -> tuple[DuplicateGroup, ...]:
    """Describe the largest groups."""
    found = session.execute(
        read_sql("dedupe/largest.sql"), {"groups": LARGEST_GROUPS, "members": MEMBERS_SHOWN}
    ).fetchall()
    return describe_groups(
        session, pool, [(kept, rows, [(id_, 0) for id_ in ids]) for kept, rows, ids in found]
    )
