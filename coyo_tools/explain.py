"""Explain: what each rule of a selection would do to a pool, without writing anything."""

from dataclasses import dataclass
from pathlib import Path

from coyo_tools.bites import Bite, judge_pool
from coyo_tools.cuts import Cut, Match
from coyo_tools.engine import open_session
from coyo_tools.errors import RecipeError
from coyo_tools.selection import Selection, final_sql, resolve
from coyo_tools.source import open_source


@dataclass(frozen=True)
class Explained:
    """What a selection would do to a pool: ``rows_out`` pass all its rules."""

    recipe: str
    sql: str
    rows_in: int
    rows_out: int
    bites: tuple[Bite, ...]
    cuts: tuple[Cut, ...]
    matches: tuple[Match, ...]


def explain_pool(
    source: str | Path,
    selection: Selection | str,
    *,
    memory: str | None = None,
    threads: int | None = None,
) -> Explained:
    """Tell what each rule of a selection removes from a pool, without writing anything.

    Raises:
        CoyoError: of the kind that says which of source or recipe is at fault.
    """
    pool = open_source(source)
    wanted = Selection(recipes=(selection,)) if isinstance(selection, str) else selection
    with open_session(pool, memory=memory, threads=threads) as session:
        resolved = resolve(session, pool, wanted, memory)
        if not resolved.recipe.rules:
            raise RecipeError(
                f"The recipe {resolved.recipe.name} has no rules to explain.",
                "Only the WHERE of a SELECT from pool itself is made of rules.",
            )
        bites, kept = judge_pool(session, pool, resolved.recipe)
        return Explained(
            resolved.recipe.name,
            final_sql(resolved.recipe, pool, wanted, None),
            pool.rows,
            kept.count,
            tuple(bites),
            resolved.cuts,
            resolved.matches,
        )
