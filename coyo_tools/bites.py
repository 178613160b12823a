"""The bite report: what every rule of a recipe removes, from one scan of the rules' columns.

Each row gets a code of two bits per rule (kept, not kept, NULL, NULL for want of a number), and the
codes are counted. Alone, in order, only it, null and NaN are then sums over the few codes there
are. A NaN counts as NULL (see guard.py); a NULL verdict removes the row.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlglot
from sqlglot import exp

from coyo_tools.clauses import lay_out
from coyo_tools.columns import ID
from coyo_tools.engine import BATCH_ROWS, open_session, recipe_errors
from coyo_tools.guard import BareRule, bare_rule, float_columns_of, guarded
from coyo_tools.recipe import Recipe, Rule, parse_recipe
from coyo_tools.rows import KeptRows
from coyo_tools.scales import rule_notes
from coyo_tools.source import Source

_RULES_PER_CODE = 8  # two bits each of a USMALLINT
MOST_RULES = 4 * _RULES_PER_CODE  # of a 64-bit code
_KEPT, _FAILED, _NULL, _NAN = range(4)

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bite:
    """What one rule removes, in rows: by itself, after the rules before it, and only it.

    ``left`` rows pass it and all rules before it. ``null`` rows are among those removed: the rule
    could not say, for want of a value; on ``nan`` of these because a score is NaN. ``notes`` say
    what looks odd about the rule on this pool.
    """

    rule: str
    reason: str
    recipe: str
    alone: int
    in_order: int
    only: int
    left: int
    null: int
    nan: int
    notes: tuple[str, ...] = ()

    @property
    def removes_nothing(self) -> bool:
        """Say whether the rule is a no-op on this pool."""
        return self.alone == 0


def float_columns(source: Source) -> frozenset[str]:
    """Name the columns that can hold a NaN, in lower case."""
    return frozenset(
        field.name.lower() for field in source.schema if pa.types.is_floating(field.type)
    )


def counted_rules(recipe: Recipe) -> tuple[Rule, ...]:
    """Return the rules, the last of very many drawn together into one."""
    if len(recipe.rules) <= MOST_RULES:
        return recipe.rules
    rest = " AND ".join(f"({rule.sql})" for rule in recipe.rules[MOST_RULES - 1 :])
    return (*recipe.rules[: MOST_RULES - 1], Rule(rest, "all further rules"))


def judge_rows(
    session: duckdb.DuckDBPyConnection,
    source: Source,
    recipe: Recipe,
    rules: tuple[Rule, ...],
) -> Iterator[tuple[Codes, Places | None]]:
    """Yield the codes of the pool's rows; 0 means that every rule keeps the row.

    Codes come in the pool's order; where a rule has a subquery, the engine may join, and they come
    in any order, with the rows' places in the pool beside them.
    """
    query = verdict_query(
        recipe, rules, float_columns(source), places=not recipe.row_by_row, ids=False
    )
    starts = np.cumsum([0, *source.file_rows[:-1]])
    for batch in session.sql(query).to_arrow_reader(BATCH_ROWS):
        pieces = list(batch.columns)
        places = None
        if not recipe.row_by_row:
            file, row = pieces.pop(0).to_numpy(), pieces.pop(0).to_numpy()
            places = starts[file.astype(np.int64)] + row.astype(np.int64)
        codes = pieces[0].to_numpy()
        for number, piece in enumerate(pieces[1:], 1):
            high = piece.to_numpy().astype(np.uint64) << np.uint64(2 * _RULES_PER_CODE * number)
            codes = codes.astype(np.uint64) | high
        yield codes, places


class Tally:
    """Counts how often each code was given."""

    def __init__(self, rules: int) -> None:
        self._rules = rules
        self._few = np.zeros(4**rules if rules <= _RULES_PER_CODE else 0, dtype=np.int64)
        self._many: dict[int, int] = {}

    def add(self, codes: Codes) -> None:
        """Count some rows' codes."""
        if len(self._few):
            self._few += np.bincount(codes, minlength=len(self._few))
            return
        for code, rows in zip(*np.unique(codes, return_counts=True), strict=True):
            self._many[int(code)] = self._many.get(int(code), 0) + int(rows)

    def bites(self, rules: tuple[Rule, ...], notes: Mapping[str, str]) -> list[Bite]:
        """Work out the bite of each rule from what was counted.

        ``notes`` says of some columns what is not quite as COYO has them.
        """
        if len(self._few):
            given = np.flatnonzero(self._few)
            codes, rows = given.astype(np.uint64), self._few[given]
        else:
            codes = np.fromiter(self._many.keys(), dtype=np.uint64, count=len(self._many))
            rows = np.fromiter(self._many.values(), dtype=np.int64, count=len(self._many))
        shifts = np.arange(self._rules, dtype=np.uint64) * np.uint64(2)
        verdicts = (codes[:, None] >> shifts) & np.uint64(3)
        removed = verdicts != _KEPT
        times_removed = removed.sum(axis=1)
        standing = np.ones(len(codes), dtype=np.bool_)  # no rule so far has removed these
        bites = []
        for number, rule in enumerate(rules):
            own, said = removed[:, number], verdicts[:, number]
            in_order = int(rows[standing & own].sum())
            standing &= ~own
            bites.append(
                Bite(
                    rule=rule.sql,
                    reason=rule.reason,
                    recipe=rule.recipe,
                    alone=int(rows[own].sum()),
                    in_order=in_order,
                    only=int(rows[own & (times_removed == 1)].sum()),
                    left=int(rows[standing].sum()),
                    null=int(rows[(said == _NULL) | (said == _NAN)].sum()),
                    nan=int(rows[said == _NAN].sum()),
                    notes=rule_notes(rule.sql, notes),
                )
            )
        return bites


def failed_by(codes: Sequence[int], rules: tuple[Rule, ...]) -> list[str]:
    """Name the rules that removed a row, from its code as ``verdict_query`` gives it, in pieces."""
    return [
        rule.sql
        for number, rule in enumerate(rules)
        if codes[number // _RULES_PER_CODE] >> (2 * (number % _RULES_PER_CODE)) & 3 != _KEPT
    ]


def verdict_query(
    recipe: Recipe,
    rules: tuple[Rule, ...],
    floats: Collection[str],
    *,
    places: bool,
    ids: bool,
) -> str:
    """Write the query whose rows are a row's place or id, if asked for, and its code in pieces.

    A rule on a bare column is judged where its code is made, every other one once, in the inner
    SELECT; there, what it may name comes along: the pool's alias, the WITH, aliases of the
    recipe's SELECT.
    """
    tree = sqlglot.parse_one(recipe.sql, read="duckdb")
    table = tree.args["from_"].this
    if places:
        table = exp.alias_(exp.to_table("placed_pool"), table.alias_or_name, table=True)
    named = {column.name.lower() for column in tree.args["where"].find_all(exp.Column)}
    layout = lay_out(recipe.sql)
    aliases = [
        item for item in layout.items if (alias := _alias_of(item)) and alias.lower() in named
    ]
    judged: list[str] = []
    codes: list[list[str]] = []
    for number, rule in enumerate(rules):
        if number % _RULES_PER_CODE == 0:
            codes.append([])
        place = 4 ** (number % _RULES_PER_CODE)
        bare = bare_rule(rule.sql, floats) if not aliases else None
        if bare is not None and len(bare.column.parts) == 1:
            codes[-1].append(_code_of_bare(rule, bare, place, floats))
        else:
            judged.append(f"({guarded(rule.sql, floats)}) AS __rule_{number}")
            codes[-1].append(_code_of_judged(number, rule, place, floats))
    wanted = (["__file", "__row"] if places else []) + ([ID] if ids else [])
    wanted += [" | ".join(bits) for bits in codes]
    inner = ", ".join(["*", *aliases, *judged])
    # The recipe's own words, which the parser has let pass; the session is fenced in besides.
    judged_rows = f"SELECT {inner} FROM {table.sql(dialect='duckdb')}"  # noqa: S608
    return f"{layout.with_text}SELECT {', '.join(wanted)} FROM ({judged_rows})"  # noqa: S608


def _code_of_bare(rule: Rule, bare: BareRule, place: int, floats: Collection[str]) -> str:
    """Write the code of a rule on one column, which is NULL just where the column is."""
    column = bare.column.sql(dialect="duckdb")
    of_nan = f"isnan({column})" if bare.column.name.lower() in floats else ""
    kept, failed, null, nan = _values(place)
    first = f"WHEN {of_nan} THEN {nan} " if of_nan else ""
    return (
        f"(CASE {first}WHEN {rule.sql} THEN {kept} WHEN {column} IS NOT NULL THEN {failed} "
        f"ELSE {null} END)"
    )


def _code_of_judged(number: int, rule: Rule, place: int, floats: Collection[str]) -> str:
    columns = [name for name in float_columns_of(rule.sql, floats) if "." not in name]
    of_nan = " OR ".join(f"isnan({name})" for name in columns)
    kept, failed, null, nan = _values(place)
    last = f"WHEN {of_nan} THEN {nan} " if of_nan else ""
    return (
        f"(CASE WHEN __rule_{number} THEN {kept} WHEN NOT __rule_{number} THEN {failed} "
        f"{last}ELSE {null} END)"
    )


def _values(place: int) -> list[str]:
    return [f"{code * place}::USMALLINT" for code in (_KEPT, _FAILED, _NULL, _NAN)]


def _alias_of(item: str) -> str:
    try:
        return str(sqlglot.parse_one(f"SELECT {item}", read="duckdb").expressions[0].alias)
    except (sqlglot.errors.SqlglotError, IndexError):
        return ""


def judge_pool(
    session: duckdb.DuckDBPyConnection, pool: Source, recipe: Recipe
) -> tuple[list[Bite], KeptRows]:
    """Judge every row of the pool; return the bite of each rule, and which rows pass them all.

    Raises:
        CoyoError: the engine refuses a rule, or the pool can't be read.
    """
    rules = counted_rules(recipe)
    kept = KeptRows(pool.rows)
    if not rules:
        for start in range(0, pool.rows, BATCH_ROWS):
            kept.append(np.ones(min(BATCH_ROWS, pool.rows - start), dtype=np.bool_))
        return [], kept
    tally = Tally(len(rules))
    with recipe_errors(pool):
        for codes, places in judge_rows(session, pool, recipe, rules):
            tally.add(codes)
            if places is None:
                kept.append(codes == 0)
            else:
                kept.keep(places[codes == 0])
    return tally.bites(rules, pool.notes), kept


def failed_rules(pool: Source, sql: str, ids: list[int]) -> dict[int, list[str]]:
    """Say of some rows of a pool which rules of a recipe they fail."""
    recipe = parse_recipe(sql, name="recipe")
    rules = counted_rules(recipe)
    if not rules or not ids:
        return {}
    wanted = f"id IN ({', '.join(str(int(id_)) for id_ in ids)})"
    with open_session(pool) as session, recipe_errors(pool):
        query = verdict_query(recipe, rules, float_columns(pool), places=False, ids=True)
        rows = session.sql(query).filter(wanted).fetchall()
    return {int(id_): failed_by(codes, rules) for id_, *codes in rows}
