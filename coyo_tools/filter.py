"""Filter: the rows of a pool that a recipe keeps, and what each of its rules removed.

The recipe runs in DuckDB as it stands; a second scan over the rules' columns alone counts what
every rule bites.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import sqlglot
from sqlglot import exp

from coyo_tools.columns import ID
from coyo_tools.engine import (
    digest_ids,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import EmptyResultError, RecipeError
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.recipe import Recipe, Rule, check_columns, load_recipe
from coyo_tools.source import Source, open_source

_MOST_RULES = 62  # one bit each of a BIGINT


@dataclass(frozen=True)
class Bite:
    """What one rule removes, in rows: by itself, after the rules before it, and only it.

    ``null`` rows are among those removed: the rule could not say, mostly for want of a score.
    """

    rule: str
    reason: str
    alone: int
    in_order: int
    only: int
    null: int


@dataclass(frozen=True)
class FilterResult:
    """What a filter did; ``beyond_where`` rows fell to a LIMIT, DISTINCT, QUALIFY or GROUP BY."""

    output: Path
    rows_in: int
    rows_out: int
    bites: tuple[Bite, ...]
    beyond_where: int


def filter_pool(
    source: str | Path,
    recipe: str,
    output: Path,
    *,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> FilterResult:
    """Write the rows of ``source`` that ``recipe`` keeps as a subset.

    Rows keep the pool's order and all that the recipe selects; ``id`` must be among it and stay
    unique. Nothing is written unless everything holds.

    Raises:
        CoyoError: of the kind that says which of source, recipe or output is at fault.
    """
    watch = Stopwatch()
    pool = open_source(source)
    parsed = load_recipe(recipe)
    check_columns(parsed, pool.columns)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
    ):
        bites, passing = _measure_bites(session, pool, parsed)
        with recipe_errors(pool):
            relation = session.sql(parsed.sql)
            if ID not in relation.columns:
                raise RecipeError(
                    f"The recipe's result has no column `{ID}`.",
                    "Select it too, or write SELECT * FROM pool WHERE …",
                )
            parts = write_parts(relation, directory)
        digest = digest_ids(parts)
        if digest.count == 0:
            raise _nothing_left(session, pool, parsed, bites)
        refuse_duplicate_ids(
            session,
            session.read_parquet([str(part.absolute()) for part in parts]),
            pool.path if parsed.where_decides else "the recipe's result",
        )
        beyond = max(passing - digest.count, 0)
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters={"stage": "filter", "recipe": parsed.name},
                inputs=[pool.as_input("pool")],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost=_losses(bites, beyond),
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={"bites": [asdict(bite) for bite in bites]},
                sql=parsed.sql,
            ),
        )
    return FilterResult(output, pool.rows, digest.count, tuple(bites), beyond)


def _measure_bites(
    session: duckdb.DuckDBPyConnection, pool: Source, recipe: Recipe
) -> tuple[list[Bite], int]:
    """Return the bite of each rule, and how many rows pass them all."""
    if not recipe.rules:
        return [], pool.rows
    rules = recipe.rules
    if len(rules) > _MOST_RULES:
        rest = " AND ".join(f"({rule.sql})" for rule in rules[_MOST_RULES - 1 :])
        rules = (*rules[: _MOST_RULES - 1], Rule(rest, "all further rules"))
    with recipe_errors(pool):
        session.sql(_verdicts(rules)).create_view("verdicts", replace=True)
        counts: list[tuple[int, int, int]] = session.sql(read_sql("stats/verdicts.sql")).fetchall()
    bites = []
    for number, rule in enumerate(rules):
        bit = 1 << number
        before = bit - 1
        bites.append(
            Bite(
                rule=rule.sql,
                reason=rule.reason,
                alone=sum(rows for failed, _, rows in counts if failed & bit),
                in_order=sum(
                    rows for failed, _, rows in counts if failed & bit and not failed & before
                ),
                only=sum(rows for failed, _, rows in counts if failed == bit),
                null=sum(rows for _, unknown, rows in counts if unknown & bit),
            )
        )
    return bites, sum(rows for failed, _, rows in counts if failed == 0)


def _verdicts(rules: tuple[Rule, ...]) -> str:
    """Write the view of sql/stats/verdicts.sql: every rule's verdict as one bit."""

    def mask(test: str) -> exp.Expr:
        bits = []
        for number, rule in enumerate(rules):
            term = exp.paren(sqlglot.parse_one(rule.sql, read="duckdb"))
            tested = exp.Is(this=term, expression=exp.true() if test == "true" else exp.null())
            bit = exp.cast(exp.Literal.number(1 << number), "bigint")
            zero = exp.Literal.number(0)
            when_true, otherwise = (zero, bit) if test == "true" else (bit, zero)
            bits.append(exp.Case().when(tested, when_true).else_(otherwise))
        total: exp.Expr = bits[0]
        for bit_ in bits[1:]:
            total = exp.Add(this=total, expression=bit_)
        return total

    select = exp.select(
        exp.alias_(exp.cast(mask("true"), "bigint"), "failed"),
        exp.alias_(exp.cast(mask("null"), "bigint"), "unknown"),
    ).from_("pool")
    return select.sql(dialect="duckdb")


def _losses(bites: list[Bite], beyond: int) -> dict[str, int]:
    lost: dict[str, int] = {}
    for bite in bites:
        lost[bite.rule] = lost.get(bite.rule, 0) + bite.in_order
    if beyond:
        lost["LIMIT, DISTINCT, QUALIFY, GROUP BY or sampling"] = beyond
    return lost


def _nothing_left(
    session: duckdb.DuckDBPyConnection, pool: Source, recipe: Recipe, bites: list[Bite]
) -> EmptyResultError:
    said = f"No row of {pool.rows:,} passes the recipe {recipe.name}."
    alone = [bite for bite in bites if bite.alone == pool.rows]
    if not alone:
        return EmptyResultError(said, "No rule removes every row alone: together they do.")
    notes = []
    for bite in alone:
        note = f"`{bite.rule}` alone removes every row"
        if bite.null == pool.rows:
            note += " (it is NULL on all of them)"
        else:
            note += _seen_range(session, bite.rule, pool)
        notes.append(note)
    return EmptyResultError(said, "; ".join(notes) + ".")


def _seen_range(session: duckdb.DuckDBPyConnection, rule: str, pool: Source) -> str:
    """Say what values the pool really has in the first column of a rule."""
    names = [node.name for node in sqlglot.parse_one(rule, read="duckdb").find_all(exp.Column)]
    known = [name for name in names if name in pool.columns]
    if not known:
        return ""
    column = duckdb.ColumnExpression(known[0])
    low, high = (
        session.view("pool")
        .aggregate(
            [duckdb.FunctionExpression("min", column), duckdb.FunctionExpression("max", column)]
        )
        .fetchall()[0]
    )
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in (low, high)]
    return f" ({known[0]} runs from {shown[0]} to {shown[1]} here)"
