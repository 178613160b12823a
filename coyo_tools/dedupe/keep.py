"""The keep policy: which row of a group stays, as an ORDER BY over columns ``keep_1``, …."""

from dataclasses import dataclass

import pyarrow as pa
from sqlglot import exp

from coyo_tools.columns import ID
from coyo_tools.recipe import order_terms
from coyo_tools.source import Source

_EXAMPLE = 'For example: --keep "clip_similarity_vitl14 DESC"'


@dataclass(frozen=True)
class KeepPolicy:
    """What rows are ordered by, and which way: the first row of a group stays, ties end by id."""

    columns: tuple[exp.Expr, ...]
    directions: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """What the columns are called where they stand beside ``id``."""
        return [f"keep_{number}" for number in range(1, len(self.columns) + 1)]

    def selected(self) -> list[exp.Expr]:
        """Return the columns for a SELECT over the pool, under their names."""
        return [
            exp.alias_(column.copy(), name)
            for column, name in zip(self.columns, self.names, strict=True)
        ]

    def order_by(self) -> str:
        """Write the ORDER BY terms over the names."""
        terms = [f"{name} {way}" for name, way in zip(self.names, self.directions, strict=True)]
        return ", ".join([*terms, f"{ID} ASC NULLS LAST"])

    def sort_key(self) -> exp.Expr:
        """Write one sortable value over the names, the least of which is the first row's."""
        arguments: list[exp.Expr] = []
        for name, way in zip(self.names, self.directions, strict=True):
            arguments += [exp.column(name), exp.Literal.string(way)]
        arguments += [exp.column(ID), exp.Literal.string("ASC NULLS LAST")]
        return exp.func("create_sort_key", *arguments)


def keep_policy(pool: Source, keep: str) -> KeepPolicy:
    """Read an ORDER BY over the pool's columns; a NaN counts as NULL, NULLs come last either way.

    Raises:
        RecipeError: it is something else.
        ColumnError: a column is not there.
    """
    columns: list[exp.Expr] = []
    directions: list[str] = []
    for term in order_terms(keep, pool.columns, option="--keep", example=_EXAMPLE):
        nulls = "FIRST" if term.args.get("nulls_first") else "LAST"
        direction = "DESC" if term.args.get("desc") else "ASC"
        columns.append(term.this.transform(lambda node: _without_nan(node, pool)))
        directions.append(f"{direction} NULLS {nulls}")
    return KeepPolicy(tuple(columns), tuple(directions))


def _without_nan(node: exp.Expr, pool: Source) -> exp.Expr:
    if isinstance(node, exp.Column) and pa.types.is_floating(pool.schema.field(node.name).type):
        return exp.func("nan_to_null", node.copy())
    return node
