"""Which columns of a pool can be measured, and the scan that measures them.

Measured is what has fixed bins (bins.py): COYO's numeric columns, two derived from the sides, and a
score of one's own where there is one.
What a pool lacks of them is said and never guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlglot import exp

from coyo_tools.bins import ASPECT_RATIO, BINS, MIN_SIDE, OWN
from coyo_tools.engine import BATCH_ROWS
from coyo_tools.source import Source
from coyo_tools.tallies import ColumnTally

_SIDES = ("width", "height")


@dataclass(frozen=True)
class Measurable:
    """The columns of a pool that can be measured, and why each other one can't."""

    columns: tuple[str, ...]
    lacking: dict[str, str]
    whole: frozenset[str]


def measurable(source: Source) -> Measurable:
    """Say which columns with bins a pool has as numbers."""
    lacking: dict[str, str] = {}
    whole = {MIN_SIDE}
    for name in BINS.keys() - {MIN_SIDE, ASPECT_RATIO}:
        if name not in source.columns:
            if name in OWN:
                continue
            lacking[name] = source.column_map.absent.get(name, "no such column")
            continue
        kind = source.schema.field(name).type
        if pa.types.is_integer(kind):
            whole.add(name)
        elif not pa.types.is_floating(kind):
            lacking[name] = f"{kind}, not a number"
    absent_side = next((name for name in _SIDES if name in lacking), None)
    if absent_side is not None:
        lacking |= dict.fromkeys((MIN_SIDE, ASPECT_RATIO), f"needs {absent_side}")
    elif not whole >= set(_SIDES):
        whole.discard(MIN_SIDE)
    columns = tuple(
        name for name in BINS if name not in lacking and (name in source.columns or name not in OWN)
    )
    ordered = {name: lacking[name] for name in BINS if name in lacking}
    return Measurable(columns, ordered, frozenset(whole))


def new_tallies(columns: Measurable) -> dict[str, ColumnTally]:
    """Return an empty tally for every column."""
    return {name: ColumnTally(BINS[name], name in columns.whole) for name in columns.columns}


def selected(columns: tuple[str, ...]) -> list[exp.Expr]:
    """Return what to select for some measured columns, the derived ones by their macros."""
    made: dict[str, exp.Expr] = {
        MIN_SIDE: exp.func("min_side", *map(exp.column, _SIDES)),
        ASPECT_RATIO: exp.func("aspect_ratio", *map(exp.column, _SIDES)),
    }
    return [exp.alias_(made.get(name, exp.column(name)), name) for name in columns]


def batches_of(session: duckdb.DuckDBPyConnection, query: exp.Select) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a query in batches, as DuckDB makes them."""
    yield from session.sql(query.sql(dialect="duckdb")).to_arrow_reader(BATCH_ROWS)


def add_batch(
    tallies: dict[str, ColumnTally],
    batch: pa.RecordBatch,
    rows: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Count a batch's columns, or some of its rows."""
    chosen = None if rows is None else pa.array(rows)
    for name, tally in tallies.items():
        column = batch.column(name)
        if chosen is not None:
            column = column.filter(chosen)
        nulls = column.null_count
        if nulls:
            column = column.drop_null()
        tally.add(column.to_numpy(zero_copy_only=False), nulls)
