"""Describe: what a pool holds, from the parquet footers alone, so at once for any size."""

import math
from dataclasses import dataclass
from pathlib import Path

from coyo_tools.columns import BY_NAME
from coyo_tools.manifest import MANIFEST, Manifest, read_manifest
from coyo_tools.source import Source, open_source


@dataclass(frozen=True)
class ColumnFacts:
    """One column as the footers tell: ``None`` where a file was written without statistics.

    ``remark`` says what is odd: a type or a range that is not COYO's, nothing but nulls.
    """

    name: str
    type: str
    nulls: int | None
    low: float | int | None
    high: float | int | None
    meaning: str
    remark: str


@dataclass(frozen=True)
class PoolFacts:
    """A pool's size, columns and, if coyo made it, how."""

    path: str
    files: int
    rows: int
    bytes: int
    columns: tuple[ColumnFacts, ...]
    manifest: Manifest | None


def describe_pool(source: str | Path) -> PoolFacts:
    """Read a pool's schema, rows, nulls and ranges.

    Raises:
        CoyoError: it can't be opened.
    """
    pool = open_source(source)
    directory = Path(source)
    made = directory.is_dir() and (directory / MANIFEST).is_file()
    return PoolFacts(
        path=pool.path,
        files=len(pool.files),
        rows=pool.rows,
        bytes=sum(pool.file_bytes),
        columns=_columns(pool),
        manifest=read_manifest(directory) if made else None,
    )


def _columns(pool: Source) -> tuple[ColumnFacts, ...]:
    nulls: dict[str, int | None] = dict.fromkeys(pool.columns, 0)
    lows: dict[str, list[float]] = {name: [] for name in pool.columns}
    highs: dict[str, list[float]] = {name: [] for name in pool.columns}
    for metadata in pool.metadata():
        for group in range(metadata.num_row_groups):
            for position in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(position)
                name = chunk.path_in_schema
                if name not in nulls:
                    continue  # a leaf of a nested column
                known = chunk.statistics
                count = nulls[name]
                if known is None or not known.has_null_count or count is None:
                    nulls[name] = None
                else:
                    nulls[name] = count + known.null_count
                if known is not None and known.has_min_max and _is_number(known.min):
                    lows[name].append(known.min)
                    highs[name].append(known.max)
    return tuple(
        _facts(
            pool, name, nulls[name], min(lows[name], default=None), max(highs[name], default=None)
        )
        for name in pool.columns
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _facts(
    pool: Source, name: str, nulls: int | None, low: float | None, high: float | None
) -> ColumnFacts:
    kind = pool.schema.field(name).type
    known = BY_NAME.get(name)
    remarks = []
    if known is not None and not kind.equals(known.type):
        remarks.append(f"COYO has {known.type}")
    if nulls is not None and nulls == pool.rows:
        remarks.append("all null")
    elif nulls:
        remarks.append(f"{nulls / pool.rows:.1%} null")
    if known is not None and low is not None and known.low is not None and low < known.low:
        remarks.append(f"below {known.low:g}: another scale?")
    if known is not None and high is not None and known.high is not None and high > known.high:
        remarks.append(f"above {known.high:g}: another scale?")
    meaning = known.meaning if known is not None else ""
    return ColumnFacts(name, str(kind), nulls, low, high, meaning, "; ".join(remarks))
