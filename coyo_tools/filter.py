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
    count_rows,
    digest_ids,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import EmptyResultError, RecipeError
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.recipe import Recipe, Rule, check_columns, load_recipe, parse_recipe
from coyo_tools.source import Source, open_source

_MOST_RULES = 62  # one bit each of a BIGINT
_ID_TYPES = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
)
BEYOND_RULES = "beside the rules: LIMIT, DISTINCT, GROUP BY, a join or a subquery"


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
    """What a filter did; ``beyond_where`` rows fell to what a recipe has beside its rules."""

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
            _refuse_without_ids(relation)
            parts = write_parts(relation, directory)
        written = session.read_parquet([str(part.absolute()) for part in parts])
        place = pool.path if parsed.where_decides else "the recipe's result"
        refuse_duplicate_ids(session, written, place)
        if not parsed.where_decides:
            _refuse_foreign_ids(session, written)
        digest = digest_ids(parts)
        if digest.count == 0:
            raise _nothing_left(session, pool, parsed, bites, passing)
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


def _refuse_without_ids(result: duckdb.DuckDBPyRelation) -> None:
    if ID not in result.columns:
        raise RecipeError(
            f"The recipe's result has no column `{ID}`.",
            "Select it too, or write SELECT * FROM pool WHERE …",
        )
    kind = str(result.types[result.columns.index(ID)])
    if kind not in _ID_TYPES:
        raise RecipeError(f"Column `{ID}` of the recipe's result is {kind}, not an integer.")


def _refuse_foreign_ids(
    session: duckdb.DuckDBPyConnection, written: duckdb.DuckDBPyRelation
) -> None:
    """Refuse a result that is no subset: later stages look its ids up in the pool."""
    ids = written.select(ID).set_alias("written")
    foreign = count_rows(ids.join(session.view("pool").select(ID), ID, how="anti"))
    if foreign:
        raise RecipeError(
            f"The recipe makes ids of its own: {foreign:,} of them are not in the pool.",
            "A subset keeps the ids of its rows: select `id` as it is.",
        )


def failed_rules(pool: Source, sql: str, ids: list[int]) -> dict[int, list[str]]:
    """Say of some rows of a pool which rules of a recipe they fail."""
    recipe = parse_recipe(sql, name="recipe")
    rules = _counted_rules(recipe)
    if not rules or not ids:
        return {}
    wanted = f"id IN ({', '.join(str(int(id_)) for id_ in ids)})"
    with open_session(pool) as session, recipe_errors(pool):
        rows = session.sql(_verdicts(recipe, rules)).filter(wanted).select("id, failed").fetchall()
    return {
        id_: [rule.sql for number, rule in enumerate(rules) if failed & (1 << number)]
        for id_, failed in rows
    }


def _counted_rules(recipe: Recipe) -> tuple[Rule, ...]:
    """Return the rules, the last of very many drawn together into one."""
    if len(recipe.rules) <= _MOST_RULES:
        return recipe.rules
    rest = " AND ".join(f"({rule.sql})" for rule in recipe.rules[_MOST_RULES - 1 :])
    return (*recipe.rules[: _MOST_RULES - 1], Rule(rest, "all further rules"))


def _measure_bites(
    session: duckdb.DuckDBPyConnection, pool: Source, recipe: Recipe
) -> tuple[list[Bite], int]:
    """Return the bite of each rule, and how many rows pass them all."""
    rules = _counted_rules(recipe)
    if not rules:
        return [], pool.rows
    with recipe_errors(pool):
        session.sql(_verdicts(recipe, rules)).create_view("verdicts", replace=True)
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


def _verdicts(recipe: Recipe, rules: tuple[Rule, ...]) -> str:
    """Write the view of sql/stats/verdicts.sql: every rule's verdict as one bit.

    What the rules may name comes along: the pool's alias, the WITH, aliases of the SELECT.
    """
    whole = sqlglot.parse_one(recipe.sql, read="duckdb")
    aliases = [item for item in whole.args["expressions"] if isinstance(item, exp.Alias)]
    named = {column.name for column in whole.args["where"].find_all(exp.Column)}

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
        exp.column(ID),
        *(alias for alias in aliases if alias.alias in named and alias.alias.lower() != ID),
        exp.alias_(exp.cast(mask("true"), "bigint"), "failed"),
        exp.alias_(exp.cast(mask("null"), "bigint"), "unknown"),
    ).from_(whole.args["from_"].this)
    select.set("with_", whole.args.get("with_"))
    return select.sql(dialect="duckdb")


def _losses(bites: list[Bite], beyond: int) -> dict[str, int]:
    lost: dict[str, int] = {}
    for bite in bites:
        lost[bite.rule] = lost.get(bite.rule, 0) + bite.in_order
    if beyond:
        lost[BEYOND_RULES] = beyond
    return lost


def _nothing_left(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    recipe: Recipe,
    bites: list[Bite],
    passing: int,
) -> EmptyResultError:
    said = f"No row of {pool.rows:,} passes the recipe {recipe.name}."
    if passing:
        rest = "its LIMIT, DISTINCT, GROUP BY, join or subquery leaves none"
        return EmptyResultError(said, f"{passing:,} rows pass its rules, {rest}.")
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
