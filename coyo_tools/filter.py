"""Filter: the rows of a pool that a selection keeps, and what each of its rules removed.

One scan of the rules' columns judges every row. Where the recipe keeps rows as they are, those that
passed are copied by their place; every other recipe is run in DuckDB and its result written.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import sqlglot
from sqlglot import exp

from coyo_tools.bites import Bite, float_columns, judge_pool
from coyo_tools.columns import ID
from coyo_tools.cuts import Cut, Match, parse_sample, sample_keys
from coyo_tools.engine import (
    count_rows,
    digest_ids,
    ids_of,
    open_session,
    recipe_errors,
    refuse_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import EmptyResultError, RecipeError
from coyo_tools.guard import guarded_for_scan
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.ranks import value_at_rank
from coyo_tools.recipe import Recipe
from coyo_tools.rows import KeptRows, copy_rows, is_copyable
from coyo_tools.selection import Resolved, Selection, final_sql, resolve
from coyo_tools.source import NOTES, Source, open_source

_ID_TYPES = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
)
BEYOND_RULES = "beside the rules: LIMIT, DISTINCT, GROUP BY, a join or a subquery"
NOT_DRAWN = "not drawn by the sample"
BEYOND_LIMIT = "beyond the limit"

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FilterResult:
    """What a filter did.

    ``beyond_where`` rows fell to what a recipe has beside its rules, ``not_drawn`` to the sample,
    ``beyond_limit`` to the limit.
    """

    output: Path
    rows_in: int
    rows_out: int
    bites: tuple[Bite, ...]
    beyond_where: int
    not_drawn: int
    beyond_limit: int
    cuts: tuple[Cut, ...]
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class _Written:
    """What was written, and how many rows went where after the rules."""

    parts: list[Path]
    sql: str
    beyond_where: int
    not_drawn: int
    beyond_limit: int


def filter_pool(
    source: str | Path,
    selection: Selection | str,
    output: Path,
    *,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> FilterResult:
    """Write the rows of ``source`` that ``selection`` keeps as a subset.

    Rows keep the pool's order unless another is asked for, and all that the recipe selects; ``id``
    must be among it and stay unique. Nothing is written unless everything holds. The same pool and
    selection give the same bytes.

    Raises:
        CoyoError: of the kind that says which of source, recipe or output is at fault.
    """
    watch = Stopwatch()
    pool = open_source(source)
    wanted = Selection(recipes=(selection,)) if isinstance(selection, str) else selection
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
    ):
        resolved = resolve(session, pool, wanted, memory)
        bites, kept = judge_pool(session, pool, resolved.recipe)
        passing = kept.count
        if passing == 0 and bites:
            raise _nothing_left(session, pool, resolved.recipe, bites, passing)
        if _copies_rows(resolved.recipe, pool, wanted):
            written = _copy(session, pool, resolved, wanted, kept, directory, on_progress)
        else:
            written = _run(session, pool, resolved, wanted, passing, directory)
        digest = digest_ids(written.parts)
        rows = session.read_parquet([str(part.absolute()) for part in written.parts])
        if not digest.ascending:
            place = pool.path if resolved.recipe.where_decides else "the recipe's result"
            refuse_duplicate_ids(session, rows, place)
        if not resolved.recipe.where_decides:
            _refuse_foreign_ids(session, rows)
        if digest.count == 0:
            raise _nothing_left(session, pool, resolved.recipe, bites, passing)
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters=_parameters(resolved, wanted),
                inputs=[pool.as_input("pool"), *resolved.inputs],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost=_losses(bites, written),
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={
                    "resolved": resolved.recipe.sql,
                    "bites": [asdict(bite) for bite in bites],
                    "cuts": [asdict(cut) for cut in resolved.cuts],
                    "matches": [asdict(match) for match in resolved.matches],
                    NOTES: dict(pool.notes),
                },
                sql=written.sql,
            ),
        )
    return FilterResult(
        output,
        pool.rows,
        digest.count,
        tuple(bites),
        written.beyond_where,
        written.not_drawn,
        written.beyond_limit,
        resolved.cuts,
        resolved.matches,
    )


def _copies_rows(recipe: Recipe, pool: Source, selection: Selection) -> bool:
    """Say whether the rows that pass are written just as they are stored."""
    return recipe.whole_rows and selection.order_by is None and is_copyable(pool)


def _copy(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    resolved: Resolved,
    selection: Selection,
    kept: KeptRows,
    directory: Path,
    on_progress: Progress,
) -> _Written:
    """Copy the kept rows, or the sample or first of them, by their place in the pool."""
    passing = kept.count
    threshold = None
    if selection.sample is not None:
        threshold = _threshold(
            lambda: (ids[verdicts] for ids, verdicts in _with_verdicts(session, kept)),
            passing,
            selection,
        )
    drawn_rows = passing if threshold is None else _drawn(passing, selection)
    if threshold is not None or selection.limit is not None:
        chosen = KeptRows(pool.rows)
        left = pool.rows if selection.limit is None else selection.limit
        for ids, verdicts in _with_verdicts(session, kept):
            drawn = verdicts
            if threshold is not None:
                drawn = drawn & (sample_keys(ids, selection.seed) <= np.uint64(threshold))
            drawn = drawn & (np.cumsum(drawn) <= left)
            left -= int(np.count_nonzero(drawn))
            chosen.append(drawn)
        kept = chosen
    files = [Path(file) for file in pool.files]
    return _Written(
        copy_rows(files, pool.file_rows, kept, directory, on_progress),
        final_sql(resolved.recipe, pool, selection, threshold),
        beyond_where=0,
        not_drawn=passing - drawn_rows,
        beyond_limit=drawn_rows - kept.count,
    )


def _run(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    resolved: Resolved,
    selection: Selection,
    passing: int,
    directory: Path,
) -> _Written:
    """Run the recipe and write its result."""
    recipe = resolved.recipe
    with recipe_errors(pool):
        _refuse_unordered_limit(recipe)
        result = session.sql(guarded_for_scan(recipe.sql, float_columns(pool)))
        _refuse_without_ids(result)
        thinned = selection.sample is not None or selection.limit is not None
        rows = count_rows(result) if thinned and not recipe.where_decides else passing
        threshold = None
        if selection.sample is not None:
            threshold = _threshold(lambda: ids_of(result.select(ID)), rows, selection)
        sql = final_sql(recipe, pool, selection, threshold)
        parts = write_parts(session.sql(sql), directory)
    written = sum(pq.read_metadata(part).num_rows for part in parts)
    if not thinned:
        rows = written
    drawn = rows if threshold is None else _drawn(rows, selection)
    return _Written(
        parts,
        sql,
        beyond_where=max(passing - rows, 0),
        not_drawn=rows - drawn,
        beyond_limit=drawn - written,
    )


def _threshold(batches: Callable[[], Iterator[Ids]], rows: int, selection: Selection) -> int | None:
    """Find the greatest sample key that is drawn of so many rows; None if every row is."""
    wanted = _drawn(rows, selection)
    if wanted >= rows:
        return None
    keys = value_at_rank(
        lambda: (sample_keys(ids, selection.seed) for ids in batches()), lambda _: wanted - 1
    )
    return int(keys.value) if keys is not None else None


def _drawn(rows: int, selection: Selection) -> int:
    asked = parse_sample(selection.sample or "1.0")
    return min(rows, asked if isinstance(asked, int) else max(1, round(asked * rows)))


def _with_verdicts(
    session: duckdb.DuckDBPyConnection, kept: KeptRows
) -> Iterator[tuple[Ids, npt.NDArray[np.bool_]]]:
    place = 0
    for ids in ids_of(session.view("pool").select(ID)):
        yield ids, kept.between(place, place + len(ids))
        place += len(ids)


def _parameters(resolved: Resolved, selection: Selection) -> dict[str, object]:
    """Return what ``coyo verify`` needs to do it all again."""
    return {
        "stage": "filter",
        "recipe": resolved.recipe.name,
        "query": resolved.query,
        "top_of": selection.top_of,
        "sample": selection.sample,
        "seed": selection.seed,
        "order_by": selection.order_by,
        "limit": selection.limit,
    }


def _refuse_without_ids(result: duckdb.DuckDBPyRelation) -> None:
    names = [name.lower() for name in result.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"The recipe's result has two columns called `{twice}`.",
            "Name what it selects, or give one of them another name with AS.",
        )
    if ID not in result.columns:
        raise RecipeError(
            f"The recipe's result has no column `{ID}`.",
            "Select it too, or write SELECT * FROM pool WHERE …",
        )
    kind = str(result.types[result.columns.index(ID)])
    if kind not in _ID_TYPES:
        raise RecipeError(f"Column `{ID}` of the recipe's result is {kind}, not an integer.")


def _refuse_unordered_limit(recipe: Recipe) -> None:
    tree = sqlglot.parse_one(recipe.sql, read="duckdb")
    if tree.args.get("limit") and not tree.args.get("order") and not recipe.row_by_row:
        raise RecipeError(
            "LIMIT without ORDER BY, on a join, subquery or group, takes other rows on every run.",
            "Add ORDER BY id.",
        )


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


def _losses(bites: list[Bite], written: _Written) -> dict[str, int]:
    lost: dict[str, int] = {}
    for bite in bites:
        lost[bite.rule] = lost.get(bite.rule, 0) + bite.in_order
    further = {
        BEYOND_RULES: written.beyond_where,
        NOT_DRAWN: written.not_drawn,
        BEYOND_LIMIT: written.beyond_limit,
    }
    return lost | {reason: rows for reason, rows in further.items() if rows}


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
