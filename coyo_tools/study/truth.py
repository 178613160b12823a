"""What arms kept of what is known to be so: wrong captions that were planted, faults, copies.

Only studies on made data know the truth. They show whether an arm removed what it was meant to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from coyo_tools.columns import ID
from coyo_tools.errors import ColumnError
from coyo_tools.source import open_source
from coyo_tools.study.results import Row

_MOST_VALUES = 12


def planted_rows(truth: str, columns: Sequence[str], arms: Mapping[str, Path]) -> list[Row]:
    """Count every value of some columns in every arm; rows of the kind ``planted``.

    Rows of an arm that the truth says nothing of are counted as unknown.

    Args:
        truth: a pool or subset with an id and these columns.
        columns: of few values each, such as booleans.
        arms: their subsets, by name.

    Raises:
        ColumnError: a column is not there, or has more than a dozen values.
    """
    source = open_source(truth)
    for name in columns:
        if name not in source.schema.names:
            raise ColumnError(
                f"{truth} has no column {name}.", f"There are {', '.join(source.schema.names)}."
            )
    known = pl.scan_parquet(list(source.files))
    rows: list[Row] = []
    for arm, place in arms.items():
        ids = pl.scan_parquet(place / "part-*.parquet").select(pl.col(ID).cast(pl.Int64))
        for name in columns:
            said = known.select(pl.col(ID).cast(pl.Int64), value=pl.col(name))
            counts = ids.join(said, on=ID, how="left").group_by("value").len("rows").collect()
            if len(counts) > _MOST_VALUES:
                raise ColumnError(
                    f"{name} of {truth} has {len(counts)} values, more than {_MOST_VALUES}.",
                    "Give columns of few values, such as true and false.",
                )
            rows += [
                {"kind": "planted", "arm": arm, "item": f"{name}: {_shown(value)}",
                 "value": float(count)}
                for value, count in counts.sort("value", nulls_last=True).iter_rows()
            ]  # fmt: skip
    return rows


def _shown(value: object) -> str:
    """A value as words.

    >>> _shown(True), _shown(None), _shown("swapped")
    ('yes', 'unknown', 'swapped')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
