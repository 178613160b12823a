"""A selection: recipes AND-ed, cuts by fraction, and a sample, an order or a limit of what passes.

What filter and explain are asked for, in one place: as given (``Selection``), and as one recipe
whose thresholds are all known (``resolve``), which is what a manifest keeps.
"""

from dataclasses import dataclass

import duckdb
import sqlglot

from coyo_tools.bites import float_columns
from coyo_tools.columns import ID
from coyo_tools.cuts import POOL, SURVIVORS, Cut, Match, match_rule, resolve_cuts, top_rule
from coyo_tools.errors import RecipeError
from coyo_tools.guard import guarded, guarded_for_scan
from coyo_tools.manifest import Input
from coyo_tools.recipe import (
    Recipe,
    check_columns,
    combine_recipes,
    load_recipe,
    order_terms,
    parse_recipe,
)
from coyo_tools.source import Source, open_source

_ORDER_EXAMPLE = 'For example: --order-by "clip_similarity_vitl14 DESC"'


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted, as somebody asks for them.

    Args:
        recipes: names, files, queries or predicates; a row must pass all of them.
        where: further predicates.
        top: ``SCORE=FRACTION`` each: the score must be among that share of the best.
        top_of: whose scores the shares are of: ``"pool"``, or ``"survivors"`` of all other rules.
        match: rules made for another pool; the cut that passes the same share here is taken.
        match_from: that other pool.
        sample: how many of the rows that pass are drawn: a number, or a fraction such as ``"0.1"``.
        seed: of the sample; the same seed draws the same rows, in whatever order they stand.
        order_by: ORDER BY terms; NULL and NaN come last, ties end by id.
        limit: how many rows are kept, the first of that order, or of the pool's.
    """

    recipes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    top: tuple[str, ...] = ()
    top_of: str = POOL
    match: tuple[str, ...] = ()
    match_from: str | None = None
    sample: str | None = None
    seed: int = 0
    order_by: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Resolved:
    """A selection as one recipe with every threshold in it, and where the thresholds are from.

    ``query`` is the recipe before its ``top_fraction`` calls were worked out.
    """

    recipe: Recipe
    query: str
    cuts: tuple[Cut, ...]
    matches: tuple[Match, ...]
    inputs: tuple[Input, ...]


def compose(
    selection: Selection, pool: Source, memory: str | None = None
) -> tuple[Recipe, tuple[Match, ...], list[Input]]:
    """Draw a selection's rules together into one recipe, and check its columns.

    Raises:
        CoyoError: a recipe is none, can't be combined, or names a column that is not there.
    """
    if selection.top_of not in (POOL, SURVIVORS):
        raise RecipeError(f"--top-of is {POOL} or {SURVIVORS}, not {selection.top_of}.")
    if bool(selection.match) != bool(selection.match_from):
        raise RecipeError(
            "--match and --match-from go together.",
            'For example: --match "watermark_score < 0.5" --match-from laion/',
        )
    parsed = [load_recipe(text) for text in selection.recipes]
    parsed += [predicate(text, "--where") for text in selection.where]
    matches: list[Match] = []
    inputs: list[Input] = []
    if selection.match and selection.match_from:
        other = open_source(selection.match_from)
        inputs.append(other.as_input("matched pool"))
        matches = [match_rule(pool, other, rule, memory=memory) for rule in selection.match]
        for match in matches:
            reason = f"passes {match.rate:.2%}, as {match.rule} does on the matched pool"
            parsed.append(predicate(f"{match.here} -- {reason}", "--match"))
    parsed += [predicate(top_rule(text), "--top") for text in selection.top]
    if not parsed and (selection.sample or selection.limit or selection.order_by):
        parsed = [parse_recipe("SELECT * FROM pool", name="everything")]
    recipe = combine_recipes(parsed)
    check_columns(recipe, pool.columns, pool.column_map.absent)
    return recipe, tuple(matches), inputs


def resolve(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    selection: Selection,
    memory: str | None = None,
) -> Resolved:
    """Work out a selection's thresholds on a pool.

    Raises:
        CoyoError: as ``compose`` and ``resolve_cuts``.
    """
    recipe, matches, inputs = compose(selection, pool, memory)
    resolved, cuts = resolve_cuts(session, pool, recipe, selection.top_of)
    return Resolved(resolved, recipe.sql, tuple(cuts), matches, tuple(inputs))


def order_sql(order_by: str, pool: Source) -> str:
    """Write ORDER BY terms in which NULL and NaN come last and ties end by id.

    Raises:
        RecipeError: it is no list of ORDER BY terms.
    """
    floats = float_columns(pool)
    written = []
    for term in order_terms(order_by, pool.columns, option="--order-by", example=_ORDER_EXAMPLE):
        value = guarded(f"{term.this.sql(dialect='duckdb')} = 0", floats)[: -len(" = 0")]
        direction = "DESC" if term.args.get("desc") else "ASC"
        nulls = "FIRST" if term.args.get("nulls_first") else "LAST"
        written.append(f"{value} {direction} NULLS {nulls}")
    return ", ".join([*written, ID])


def final_sql(
    recipe: Recipe, pool: Source, selection: Selection, sample_threshold: int | None
) -> str:
    """Write the one query that gives the selected rows, in the DuckDB shell as well as here.

    ``sample_threshold`` is the greatest ``sample_key(id, seed)`` that is drawn.
    """
    sql = guarded_for_scan(recipe.sql, float_columns(pool))
    ordered = sqlglot.parse_one(recipe.sql, read="duckdb").args.get("order") is not None
    # Joins and groups come in any order; a subset's bytes must not.
    order = ID if not (recipe.row_by_row or recipe.whole_rows or ordered) else None
    if selection.order_by is not None:
        order = order_sql(selection.order_by, pool)
    if sample_threshold is None and order is None and selection.limit is None:
        return sql
    lines = ["SELECT *", "FROM (", sql, ")"]
    if sample_threshold is not None:
        lines.append(f"WHERE sample_key({ID}, {selection.seed}) <= {sample_threshold}")
    if order is not None:
        lines.append(f"ORDER BY {order}")
    if selection.limit is not None:
        lines.append(f"LIMIT {selection.limit}")
    return "\n".join(lines)


def predicate(text: str, option: str) -> Recipe:
    """Read what was given with an option such as ``--where`` as a recipe of its own.

    Raises:
        RecipeError: it is more or less than a predicate.
    """
    recipe = parse_recipe(f"SELECT * FROM pool WHERE\n{text}", name=option)  # noqa: S608
    if not recipe.whole_rows or not recipe.rules:
        raise RecipeError(f"{option} {text} is more than a predicate.")
    return recipe
