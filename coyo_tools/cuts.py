"""Cuts by fraction: thresholds that a pool's own scores decide, worked out once and written down.

``top_fraction(score, 0.3)`` is DataComp's rule (apply_filter.py of the DataComp paper, Gadre et al.
2023): the scores in descending order, the value at 0-based index ``int(rows * fraction)``, to be
kept with ``>=``. Rows without the score, NULL or NaN, are not among the rows. A matched cut is one
that passes here as many as another rule passes on another pool, for scores of another model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlglot
from sqlglot import exp

from coyo_tools.bites import float_columns
from coyo_tools.clauses import calls_of, lay_out, splice
from coyo_tools.engine import BATCH_ROWS, open_session, recipe_errors
from coyo_tools.errors import EmptyResultError, RecipeError
from coyo_tools.guard import bare_rule, guarded
from coyo_tools.manifest import mix64
from coyo_tools.ranks import Ranked, value_at_rank
from coyo_tools.recipe import Recipe, check_columns, parse_recipe
from coyo_tools.source import Source

TOP_FRACTION = "top_fraction"
POOL, SURVIVORS = "pool", "survivors"
_EXAMPLE = "For example: clip_similarity_vitl14 >= top_fraction(clip_similarity_vitl14, 0.3)"


@dataclass(frozen=True)
class Cut:
    """A threshold and where it comes from.

    ``value`` is the score at 0-based ``rank`` of the ``scores`` there were, best first.
    """

    expression: str
    fraction: float
    over: str
    value: float
    rank: int
    scores: int


def top_rule(text: str) -> str:
    """Write ``SCORE=FRACTION`` of ``--top`` as a rule.

    Raises:
        RecipeError: it is something else.
    """
    score, equals, fraction = text.rpartition("=")
    if not equals or not score.strip():
        raise RecipeError(
            f"--top {text} is not SCORE=FRACTION.", "For example: --top clip_similarity_vitl14=0.3"
        )
    return f"{score.strip()} >= {TOP_FRACTION}({score.strip()}, {fraction.strip()})"


def resolve_cuts(
    session: duckdb.DuckDBPyConnection, source: Source, recipe: Recipe, over: str = POOL
) -> tuple[Recipe, list[Cut]]:
    """Put the value of every ``top_fraction(…)`` into a recipe.

    Args:
        session: over the pool.
        source: the pool.
        recipe: what may call ``top_fraction``.
        over: ``"pool"`` for the scores of the whole pool, ``"survivors"`` for those of the rows
            that pass the recipe's other rules.

    Raises:
        RecipeError: a fraction is no number from 0 to 1, or a score no number.
        EmptyResultError: no row has the score.
    """
    calls = calls_of(recipe.sql, TOP_FRACTION)
    if not calls:
        return recipe, []
    floats = float_columns(source)
    condition = ""
    if over == SURVIVORS:
        others = [rule.sql for rule in recipe.rules if not calls_of(rule.sql, TOP_FRACTION)]
        condition = " AND ".join(f"({guarded(sql, floats)})" for sql in others)
    changes, cuts = [], []
    for start, end, arguments in calls:
        if len(arguments) != 2:
            raise RecipeError(f"{recipe.sql[start:end]} needs a score and a fraction.", _EXAMPLE)
        fraction = _fraction(arguments[1])
        with recipe_errors(source):
            kind, found = _score_at(
                session, recipe, arguments[0], condition, partial(_rank, fraction), True
            )
        if found is None:
            raise EmptyResultError(
                f"No row{' that passes the other rules' if condition else ''} has the score "
                f"{arguments[0]}: it is NULL or NaN on all of them."
            )
        value = float(found.value)
        cuts.append(Cut(arguments[0], fraction, over, value, found.rank, found.count))
        changes.append((start, end, _literal(found.value, kind)))
    resolved = parse_recipe(splice(recipe.sql, changes), name=recipe.name)
    origins = [rule.recipe for rule in recipe.rules]
    if len(origins) == len(resolved.rules):  # a combined recipe's rules keep their names
        rules = tuple(
            replace(rule, recipe=origin)
            for rule, origin in zip(resolved.rules, origins, strict=True)
        )
        resolved = replace(resolved, rules=rules)
    return resolved, cuts


@dataclass(frozen=True)
class Match:
    """A rule of another pool and the rule that passes the same share here.

    ``rate`` is the share of the other pool's rows with the score that pass ``rule``.
    """

    rule: str
    rate: float
    here: str
    scores: int


def match_rule(here: Source, other: Source, rule: str, *, memory: str | None = None) -> Match:
    """Find the cut on this pool that passes the share of rows which ``rule`` passes on another.

    Args:
        here: the pool to cut.
        other: the pool that the rule was made for.
        rule: a comparison of one column with a number, such as ``"watermark_score < 0.5"``.
        memory: DuckDB's memory limit.

    Raises:
        RecipeError: the rule is something else, or passes nothing there.
        EmptyResultError: no row of either pool has the score.
    """
    bare = bare_rule(rule, float_columns(other))
    if bare is None or bare.kind not in (exp.GT, exp.GTE, exp.LT, exp.LTE):
        raise RecipeError(
            f"--match {rule} is not a column compared with a number.",
            'For example: --match "watermark_score < 0.5"',
        )
    column = bare.column.sql(dialect="duckdb")
    # The rule comes from the command line and has been taken apart above.
    count = parse_recipe(
        f"SELECT count(*) FILTER (WHERE {bare.kept}) AS passing, "  # noqa: S608
        f"count({guarded(f'{column} = 0', float_columns(other))}) AS scored FROM pool",
        name="match",
    )
    check_columns(count, other.columns)
    check_columns(count, here.columns)
    with open_session(other, memory=memory) as session, recipe_errors(other):
        passing, scored = session.sql(count.sql).fetchall()[0]
    if scored == 0:
        raise EmptyResultError(f"No row of {other.path} has a {column}.")
    if passing == 0:
        raise RecipeError(f"{rule} passes no row of {other.path}, so there is no rate to match.")
    rate = passing / scored
    best_first = bare.kind in (exp.GT, exp.GTE)
    plain = parse_recipe("SELECT * FROM pool", name="match")
    with open_session(here, memory=memory) as session, recipe_errors(here):
        kind, found = _score_at(
            session, plain, column, "", lambda n: max(round(n * rate), 1) - 1, best_first
        )
    if found is None:
        raise EmptyResultError(f"No row of {here.path} has a {column}.")
    cut = f"{column} {'>=' if best_first else '<='} {_literal(found.value, kind)}"
    return Match(rule, rate, cut, found.count)


def parse_sample(text: str) -> int | float:
    """Read ``--sample``: a number of rows such as 10000, or a fraction such as 0.1.

    Raises:
        RecipeError: it is neither.
    """
    try:
        number: int | float = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = -1
        if not 0 < number <= 1:
            raise RecipeError(
                f"--sample {text} is neither a number of rows nor a fraction between 0 and 1.",
                "For example: --sample 10000, or --sample 0.1",
            ) from None
    if number <= 0:
        raise RecipeError(f"--sample {text} keeps nothing.", "Give at least 1 row.")
    return number


def sample_keys(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """Scatter ids over 64 bits, one to one and another way for every seed; the least are drawn.

    The macro ``sample_key`` of sql/macros.sql gives the same numbers, shape (n,).
    """
    salt = mix64(np.array([seed], dtype=np.int64))
    return mix64(ids.astype(np.uint64) ^ salt)


def _score_at(
    session: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    score: str,
    condition: str,
    rank: Callable[[int], int],
    best_first: bool,
) -> tuple[str, Ranked | None]:
    """Find a score's value at a rank; also its type, which the value must be written in."""
    tree = sqlglot.parse_one(recipe.sql, read="duckdb")
    pool = tree.args["from_"].this.sql(dialect="duckdb") if recipe.rules else "pool"
    where = f"WHERE {condition}" if condition else ""
    # The recipe's own words, which the parser has let pass; the session is fenced in besides.
    query = f"{lay_out(recipe.sql).with_text}SELECT ({score}) AS score FROM {pool} {where}"  # noqa: S608
    parse_recipe(query, name=recipe.name)
    kind = str(session.sql(query).types[0])
    if kind not in ("FLOAT", "DOUBLE", "SMALLINT", "INTEGER", "BIGINT"):
        if not kind.startswith(("DECIMAL", "TINYINT", "U", "HUGEINT")) or kind == "UUID":
            raise RecipeError(f"{score} is {kind}, not a number that can be ranked.", _EXAMPLE)
        query, kind = f"SELECT score::DOUBLE AS score FROM ({query})", "DOUBLE"  # noqa: S608

    def batches() -> Iterator[npt.NDArray[Any]]:
        for batch in session.sql(query).to_arrow_reader(BATCH_ROWS):
            values = pa.array(batch.column(0)).drop_null().to_numpy(zero_copy_only=False)
            yield values[~np.isnan(values)] if values.dtype.kind == "f" else values

    return kind, value_at_rank(batches, rank, descending=best_first)


def _rank(fraction: float, count: int) -> int:
    return int(count * fraction)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        hint = f"Percent? Write {fraction / 100:g}." if 1 < fraction <= 100 else _EXAMPLE
        raise RecipeError(f"The fraction {text} is not a number between 0 and 1.", hint)
    return fraction


def _literal(value: Any, kind: str) -> str:
    """Write a value so that DuckDB reads the very same one: decimals would be rounded twice."""
    return f"'{value!s}'::{kind}" if kind in ("FLOAT", "DOUBLE") else str(int(value))
