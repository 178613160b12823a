"""What is odd about a pool's columns, told from parquet footers alone, before any scan.

A stored type that COYO's can't be read from, values beyond the published range, nothing but nulls,
a score of another model under COYO's name. Remarks are data: who asked decides what to do. NaN
leaves no trace in a footer; `coyo info --scan` counts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from coyo_tools.columns import BY_NAME, ID, Column
from coyo_tools.footers import column_chunks, number
from coyo_tools.source import Source


@dataclass(frozen=True)
class Remark:
    """One thing that is odd about a column.

    ``kind`` is ``type`` (COYO's values can't be read from it), ``stored`` (another type that holds
    them), ``scale`` (values beyond COYO's range), ``all null``, ``null`` (some), ``nan``, or
    ``note`` (where the column comes from).
    """

    column: str
    kind: str
    text: str


@dataclass(frozen=True)
class ColumnStatistics:
    """Nulls and range of one column; ``None`` where a file doesn't say, or it is no number.

    ``nans`` is known after a scan only; ``low`` and ``high`` leave NaN out.
    """

    nulls: int | None
    low: float | int | None
    high: float | int | None
    nans: int | None = None


def check_source(source: Source, columns: Iterable[str] | None = None) -> list[Remark]:
    """Say what is odd about some of a pool's columns, from its footers.

    Args:
        source: the pool.
        columns: names in the view ``pool``, such as those a recipe uses; default all. Names that
            the pool doesn't have are passed over.
    """
    wanted = set(source.columns if columns is None else columns)
    names = [name for name in source.columns if name in wanted]
    known = column_statistics(source, names)
    return [remark for name in names for remark in remarks_on(source, name, known[name])]


def column_statistics(source: Source, names: Iterable[str]) -> dict[str, ColumnStatistics]:
    """Draw the footers' statistics on some columns together.

    A column that a macro computes is NULL where what it is made from is; its range is not stored.
    """
    shown = {column.name: column for column in source.column_map.columns}
    found: dict[str, ColumnStatistics] = {}
    parts = list(source.metadata())
    for name in names:
        column = shown[name]
        chunks = [chunk for part in parts for chunk in column_chunks(part, column.stored)]
        if not chunks:  # nested
            found[name] = ColumnStatistics(None, None, None)
            continue
        known = [chunk.statistics for chunk in chunks]
        nulls = [None if one is None or not one.has_null_count else one.null_count for one in known]
        ends = [
            (number(one.min), number(one.max))
            for one in known
            if one is not None and one.has_min_max
        ]
        lows = [low for low, _ in ends if low is not None]
        highs = [high for _, high in ends if high is not None]
        found[name] = ColumnStatistics(
            nulls=None if None in nulls else sum(count for count in nulls if count is not None),
            low=None if column.macro else min(lows, default=None),
            high=None if column.macro else max(highs, default=None),
        )
    return found


def remarks_on(source: Source, name: str, known: ColumnStatistics) -> list[Remark]:
    """Say what is odd about one column, given its statistics."""
    kind = source.schema.field(name).type
    coyos = BY_NAME.get(name)
    said: list[tuple[str, str]] = []
    if coyos is not None and not kind.equals(coyos.type):
        said.append(_on_type(kind, coyos))
    if known.nulls is not None and known.nulls == source.rows:
        said.append(("all null", "all null"))
    elif known.nulls and name == ID:
        said.append(("null", f"NULL on {known.nulls:,} rows, which can't be told apart"))
    elif known.nulls:
        said.append(("null", f"{known.nulls / source.rows:.1%} null"))
    if known.nans:
        said.append(("nan", f"NaN on {known.nans:,} rows, which counts as null"))
    said += _on_range(known, coyos) if coyos is not None else []
    if name in source.notes:
        said.append(("note", source.notes[name]))
    return [Remark(name, kind_, text) for kind_, text in said]


def _on_type(kind: pa.DataType, coyos: Column) -> tuple[str, str]:
    number_like = (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
    if number_like and not pa.types.is_string(coyos.type):
        return "stored", f"COYO has {coyos.type}"
    return "type", f"is {kind}, COYO has {coyos.type}: rules on it fail or compare as text"


def _on_range(known: ColumnStatistics, coyos: Column) -> list[tuple[str, str]]:
    said = []
    if None not in (known.low, coyos.low) and known.low < coyos.low:  # type: ignore[operator]
        said.append(f"down to {known.low:.5g}")
    if None not in (known.high, coyos.high) and known.high > coyos.high:  # type: ignore[operator]
        said.append(f"up to {known.high:.5g}")
    if not said:
        return []
    usual = f"COYO's is {coyos.low:g} to {coyos.high:g}: another scale, or damaged rows"
    return [("scale", f"{' and '.join(said)}, {usual}")]
