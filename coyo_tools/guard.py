"""NaN is a missing score: guards for a query's comparisons that make DuckDB see it so.

DuckDB ranks NaN above every number, so ``NaN >= 0.3`` is true there; and when it skips a row group
by the footer's maximum, which leaves NaN out, the same row is not kept. A guarded query reads a NaN
of a float column as NULL wherever values are compared: in comparisons, BETWEEN, IN, IS NULL and
ORDER BY. What it selects and computes is left as it is, and ``isnan(score)`` sees the NaN.
"""

from collections.abc import Collection
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from coyo_tools.clauses import calls_of, lay_out, splice

_COMPARES: tuple[type[exp.Expr], ...] = (
    exp.GT, exp.GTE, exp.LT, exp.LTE, exp.EQ, exp.NEQ, exp.NullSafeEQ, exp.NullSafeNEQ,
    exp.Between, exp.In, exp.Is, exp.Ordered,
)  # fmt: skip
_SEES_NAN = frozenset({"isnan", "is_nan", "isinf", "is_inf", "isfinite", "nan_to_null"})
_FLIPPED: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.GT: exp.LT, exp.GTE: exp.LTE, exp.LT: exp.GT, exp.LTE: exp.GTE, exp.EQ: exp.EQ,
}  # fmt: skip


def guarded(text: str, floats: Collection[str]) -> str:
    """Return a condition or query that takes a NaN for a NULL wherever it compares values.

    Args:
        text: DuckDB SQL.
        floats: the names of the columns that may hold a NaN, in lower case.
    """
    text = _asking_rows(text)
    return splice(text, _wrapped(text, floats))


def guarded_for_scan(sql: str, floats: Collection[str]) -> str:
    """Return a query that keeps the rows of ``guarded``, and still skips row groups by statistics.

    DuckDB prunes by comparisons of a bare column, so an AND-term ``score >= 0.3`` stays as it is
    and gets ``NOT isnan(score)`` beside it. So does ``score < 0.3``, although that is false for
    NaN: where the footer's maximum, which leaves NaN out, is below 0.3, DuckDB takes the comparison
    for true without looking. ``score <= 'Infinity'`` would be no guard for the same reason.
    """
    sql = _asking_rows(sql)
    changes = _wrapped(sql, floats)
    for term, start, end in lay_out(sql).terms:
        bare = bare_rule(term, floats)
        if bare is not None and bare.column.name.lower() in floats:
            changes = [change for change in changes if not start <= change[0] < end]
            changes.append((start, end, bare.kept))
    return splice(sql, changes)


@dataclass(frozen=True)
class BareRule:
    """A rule that compares a bare column with values free of columns.

    ``kind`` is the comparison with the column on its left; ``values`` has one value, for BETWEEN
    two. ``kept`` is the rule as a condition that no NaN meets and that DuckDB can prune by.
    """

    column: exp.Column
    kind: type[exp.Expr]
    values: tuple[exp.Expr, ...]
    kept: str


def bare_rule(term: str, floats: Collection[str]) -> BareRule | None:
    """Take a rule apart if it compares a bare column; None for every other rule."""
    tree = _parse(term)
    column: exp.Expr
    kind: type[exp.Expr]
    values: tuple[exp.Expr, ...]
    if isinstance(tree, exp.Between):
        column, kind = tree.this.unnest(), exp.Between
        values = (tree.args["low"], tree.args["high"])
    elif tree is not None and type(tree) in _FLIPPED and isinstance(tree, exp.Binary):
        column, kind, values = tree.left.unnest(), type(tree), (tree.right.unnest(),)
        if isinstance(values[0], exp.Column):
            column, kind, values = values[0], _FLIPPED[kind], (column,)
    else:
        return None
    if not isinstance(column, exp.Column) or len(column.parts) > 2:
        return None
    if any(value.find(exp.Column, exp.Query, exp.Null) or _is_nan(value) for value in values):
        return None
    is_float = column.name.lower() in floats
    kept = f"({term} AND NOT isnan({column.sql('duckdb')}))" if is_float else term
    return BareRule(column, kind, values, kept)


def _is_nan(value: exp.Expr) -> bool:
    return any(literal.name.lower() == "nan" for literal in value.find_all(exp.Literal))


def float_columns_of(term: str, floats: Collection[str]) -> list[str]:
    """Name the float columns that a condition compares, as it writes them."""
    places = sorted({(start, end) for start, end, _ in _wrapped(term, floats)})
    return list(dict.fromkeys(term[start:end] for start, end in places))


def _asking_rows(text: str) -> str:
    """Write ``isnan(…)`` so that DuckDB asks the rows and not the footer, which knows of no NaN."""
    return splice(
        text,
        [
            (start, end, f"is_nan({', '.join(arguments)})")
            for start, end, arguments in calls_of(text, "isnan")
        ],
    )


def _wrapped(text: str, floats: Collection[str]) -> list[tuple[int, int, str]]:
    tree = _parse(text)
    if tree is None:
        return []
    places: set[tuple[int, int]] = set()
    for node in tree.find_all(*_COMPARES):
        if isinstance(node, exp.Ordered) and _orders_a_distinct(node):
            continue  # DuckDB takes only what is selected there
        for column in node.find_all(exp.Column):
            if column.name.lower() in floats and not _nan_is_asked_for(column, node):
                first, last = column.parts[0].meta, column.parts[-1].meta
                if len(column.parts) <= 2 and "start" in first and "end" in last:
                    places.add((first["start"], last["end"] + 1))
    return [(start, end, f"nan_to_null({text[start:end]})") for start, end in places]


def _parse(text: str) -> exp.Expr | None:
    try:
        return sqlglot.parse_one(text, read="duckdb")
    except sqlglot.errors.SqlglotError:
        return None


def _orders_a_distinct(node: exp.Ordered) -> bool:
    query = node.find_ancestor(exp.Query, exp.Window)
    return isinstance(query, exp.SetOperation) or (
        isinstance(query, exp.Select) and query.args.get("distinct") is not None
    )


def _nan_is_asked_for(column: exp.Expr, within: exp.Expr) -> bool:
    node = column.parent
    while node is not None and node is not within:
        if isinstance(node, exp.Func):
            name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
            if name.lower() in _SEES_NAN:
                return True
        node = node.parent
    return False
