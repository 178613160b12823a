"""Filter: the rows that come out, and what every rule is said to have removed."""

import json
import math
import operator
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from making import names_in, read_ids, write_pool

from coyo_tools.bites import MOST_RULES, failed_rules
from coyo_tools.engine import open_session
from coyo_tools.errors import (
    ColumnError,
    CoyoError,
    EmptyResultError,
    OutputError,
    RecipeError,
    SourceError,
)
from coyo_tools.explain import explain_pool
from coyo_tools.filter import FilterResult, filter_pool
from coyo_tools.manifest import read_manifest
from coyo_tools.source import open_source

Row = dict[str, Any]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Ten rows; width is NULL on one, clip_similarity_vitb32 runs from 0.0 to 0.9."""
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(10),
        text=[f"caption {i}" for i in range(10)],
        width=[100, 200, 300, 400, 500, None, 700, 800, 900, 1000],
        clip_similarity_vitb32=[i / 10 for i in range(10)],
        num_faces=[0, 1] * 5,
    )


# --- against brute force -------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A condition as SQL, and as Python that gives True, False or None like SQL's NULL."""

    sql: str
    judge: Callable[[Row], bool | None]


COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "<>": operator.ne,
}
FLIP = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "=": "=", "<>": "<>"}
LIMITS = {"width": st.integers(0, 4), "score": st.sampled_from([0.0, 0.25, 0.5, 1.0])}
COLUMNS = st.sampled_from(["width", "score"])


def _value(row: Row, name: str) -> float | None:
    """What a rule sees: a NaN is a missing value."""
    value = row[name]
    return None if value is None or math.isnan(value) else value


@st.composite
def comparisons(draw: st.DrawFn) -> Term:
    name, sign, limit = draw(COLUMNS), draw(st.sampled_from(sorted(COMPARE))), 0.0
    limit = draw(LIMITS[name])

    def judge(row: Row) -> bool | None:
        value = _value(row, name)
        return None if value is None else COMPARE[sign](value, limit)

    if draw(st.booleans()):
        return Term(f"{limit} {FLIP[sign]} {name}", judge)
    return Term(f"{name} {sign} {limit}", judge)


@st.composite
def between_columns(draw: st.DrawFn) -> Term:
    sign = draw(st.sampled_from(sorted(COMPARE)))

    def judge(row: Row) -> bool | None:
        width, score = _value(row, "width"), _value(row, "score")
        return None if width is None or score is None else COMPARE[sign](score, width / 4)

    return Term(f"score {sign} width / 4", judge)


@st.composite
def betweens(draw: st.DrawFn) -> Term:
    name = draw(COLUMNS)
    low, high = draw(LIMITS[name]), draw(LIMITS[name])
    negated = draw(st.booleans())

    def judge(row: Row) -> bool | None:
        value = _value(row, name)
        return None if value is None else (low <= value <= high) != negated

    return Term(f"{name} {'NOT ' if negated else ''}BETWEEN {low} AND {high}", judge)


@st.composite
def memberships(draw: st.DrawFn) -> Term:
    name = draw(COLUMNS)
    limits = draw(st.lists(LIMITS[name], min_size=1, max_size=3))
    negated = draw(st.booleans())

    def judge(row: Row) -> bool | None:
        value = _value(row, name)
        return None if value is None else (value in limits) != negated

    listed = ", ".join(map(str, limits))
    return Term(f"{name} {'NOT ' if negated else ''}IN ({listed})", judge)


@st.composite
def cases(draw: st.DrawFn) -> Term:
    limit = draw(LIMITS["score"])

    def judge(row: Row) -> bool | None:
        score, width = _value(row, "score"), _value(row, "width")
        if score is not None and score >= limit:
            return None if width is None else width > 1
        return None if width is None else width > 2

    return Term(f"CASE WHEN score >= {limit} THEN width > 1 ELSE width > 2 END", judge)


@st.composite
def null_tests(draw: st.DrawFn) -> Term:
    name = draw(COLUMNS)
    negated = draw(st.booleans())
    return Term(
        f"{name} IS {'NOT ' if negated else ''}NULL",
        lambda row: (_value(row, name) is None) != negated,
    )


def _not(term: Term) -> Term:
    def judge(row: Row) -> bool | None:
        verdict = term.judge(row)
        return None if verdict is None else not verdict

    return Term(f"NOT ({term.sql})", judge)


def _or(one: Term, other: Term) -> Term:
    def judge(row: Row) -> bool | None:
        verdicts = {one.judge(row), other.judge(row)}
        return True if True in verdicts else None if None in verdicts else False

    return Term(f"({one.sql} OR {other.sql})", judge)


def _both(one: Term, other: Term) -> Term:
    def judge(row: Row) -> bool | None:
        verdicts = {one.judge(row), other.judge(row)}
        return False if False in verdicts else None if None in verdicts else True

    return Term(f"NOT (NOT ({one.sql} AND {other.sql}))", judge)


ATOMS = st.one_of(
    comparisons(),
    comparisons(),
    between_columns(),
    betweens(),
    memberships(),
    cases(),
    null_tests(),
)
TERMS = st.recursive(
    ATOMS,
    lambda terms: terms.map(_not) | st.builds(_or, terms, terms) | st.builds(_both, terms, terms),
    max_leaves=4,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "width": st.none() | st.integers(0, 4),
            "score": st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]),
        }
    ),
    min_size=1,
    max_size=12,
)
# Every one of these selects whole rows by the same WHERE, along another way through the code.
FORMS = (
    "{}",
    "SELECT * FROM pool AS p WHERE {}",
    "SELECT *, id AS own FROM pool WHERE {} LIMIT 99",
)


@settings(max_examples=80, deadline=None)
@given(
    rows=ROWS,
    terms=st.lists(TERMS, min_size=1, max_size=10),
    form=st.sampled_from(FORMS),
    group=st.integers(1, 4),
)
def test_rows_and_bites_are_those_of_brute_force(
    rows: list[Row], terms: list[Term], form: str, group: int
) -> None:
    verdicts = [[term.judge(row) for term in terms] for row in rows]
    kept = [number for number, row in enumerate(verdicts) if all(v is True for v in row)]
    with tempfile.TemporaryDirectory() as folder:
        table = pa.table(
            {
                "id": pa.array(range(len(rows)), type=pa.int64()),
                "width": pa.array([row["width"] for row in rows], type=pa.int32()),
                "score": pa.array([row["score"] for row in rows], type=pa.float32()),
            }
        )
        pool = Path(folder) / "pool.parquet"
        pq.write_table(table, pool, row_group_size=group)
        out = Path(folder) / "out"
        recipe = form.format(" AND ".join(term.sql for term in terms))
        explained = explain_pool(pool, recipe, threads=1)
        assert explained.rows_out == len(kept)
        if kept:
            result = filter_pool(pool, recipe, out, threads=1)
            assert sorted(read_ids(out)) == kept
            assert result.bites == explained.bites
            manifest = read_manifest(out)
            assert sum(manifest.lost.values()) == len(rows) - len(kept)
            assert (
                pl.read_parquet(out / "part-*.parquet")
                .select(table.column_names)
                .equals(pl.DataFrame(pl.from_arrow(table))[kept])
            )
        else:
            with pytest.raises(EmptyResultError):
                filter_pool(pool, recipe, out, threads=1)
            assert names_in(Path(folder)) == {"pool.parquet"}
    failed = [[verdict is not True for verdict in row] for row in verdicts]
    for number, bite in enumerate(explained.bites):
        assert bite.alone == sum(row[number] for row in failed)
        assert bite.in_order == sum(row[number] and not any(row[:number]) for row in failed)
        assert bite.only == sum(row[number] and sum(row) == 1 for row in failed)
        assert bite.left == sum(not any(row[: number + 1]) for row in failed)
        assert bite.null == sum(row[number] is None for row in verdicts)
        assert bite.nan == sum(
            row[number] is None and "score" in terms[number].sql and _is_nan(rows[place]["score"])
            for place, row in enumerate(verdicts)
        )
    assert [bite.rule for bite in explained.bites] == [_plain(term.sql) for term in terms]


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def _plain(sql: str) -> str:
    """A rule as it is shown: without parentheses around all of it."""
    tree = sqlglot.parse_one(sql, read="duckdb")
    return sql[1:-1] if isinstance(tree, sqlglot.exp.Paren) and sql.startswith("(") else sql


def test_sixty_rules_and_more_are_counted_exactly(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(100))
    recipe = " AND ".join(f"id <> {number}" for number in range(90))
    result = filter_pool(pool, recipe, tmp_path / "out")
    assert result.rows_out == 10
    assert [bite.in_order for bite in result.bites[:-1]] == [1] * (MOST_RULES - 1)
    assert result.bites[-1].reason == "all further rules"
    assert result.bites[-1].alone == result.bites[-1].only == 90 - (MOST_RULES - 1)


# --- forms of recipes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "ids"),
    [
        ("width >= 800", [7, 8, 9]),
        ("width >= 800; -- big", [7, 8, 9]),
        ("FROM pool WHERE width >= 800", [7, 8, 9]),
        ("SELECT * FROM pool AS p WHERE p.width >= 800 AND clip_similarity_vitb32 > 0.75", [8, 9]),
        ("SELECT *, width * 2 AS twice FROM pool WHERE twice >= 1600", [7, 8, 9]),
        ("SELECT id, width + 900 AS width FROM pool WHERE width >= 800", [7, 8, 9]),
        ("FROM (FROM pool WHERE id > 7) WHERE width >= 800", [8, 9]),
        (
            "WITH w AS (SELECT *, width * 2 AS twice FROM pool) FROM w WHERE twice >= 1600",
            [7, 8, 9],
        ),
        (
            "WITH big AS (SELECT id FROM pool WHERE width >= 800) "
            "SELECT * FROM pool WHERE id IN (FROM big) AND num_faces = 0",
            [8],
        ),
        ("width > (SELECT avg(width) FROM pool)", [6, 7, 8, 9]),
        (
            "clip_similarity_vitb32 >= "
            "(SELECT quantile_disc(clip_similarity_vitb32, 0.7) FROM pool)",
            [6, 7, 8, 9],
        ),
        (
            "EXISTS (SELECT 1 FROM pool AS p WHERE p.id = pool.id + 1 AND p.num_faces = 0)",
            [1, 3, 5, 7],
        ),
        ("SELECT * FROM pool LIMIT 3", [0, 1, 2]),
        ("SELECT * FROM pool WHERE id > 3 LIMIT 2 OFFSET 1", [5, 6]),
        ("SELECT * FROM pool WHERE id > 3 ORDER BY width DESC NULLS LAST LIMIT 2", [9, 8]),
        ("SELECT DISTINCT ON (num_faces) * FROM pool ORDER BY id", [0, 1]),
        (
            "FROM pool QUALIFY row_number() OVER (PARTITION BY num_faces ORDER BY id DESC) = 1",
            [8, 9],
        ),
        ("SELECT min(id) AS id, num_faces FROM pool GROUP BY num_faces", [0, 1]),
        ("SELECT id FROM pool WHERE id < 2 UNION SELECT id FROM pool WHERE id > 8", [0, 1, 9]),
        ("SELECT a.* FROM pool AS a JOIN pool AS b ON a.id = b.id + 8", [8, 9]),
        ("hash(id) % 4 = 1", None),
    ],
)
def test_every_form_of_recipe_runs_and_its_losses_add_up(
    pool: Path, tmp_path: Path, recipe: str, ids: list[int] | None
) -> None:
    result = filter_pool(pool, recipe, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    written = read_ids(tmp_path / "out")
    if ids is not None:
        assert sorted(written) == sorted(ids)
    assert 0 < len(written) == result.rows_out == manifest.rows_out < 10
    assert sum(manifest.lost.values()) == manifest.rows_in - manifest.rows_out
    assert sum(b.in_order for b in result.bites) + result.beyond_where == 10 - result.rows_out


def test_rows_keep_the_pools_order_columns_and_types(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "id <> 4", tmp_path / "out", threads=2)
    before, after = pl.read_parquet(pool), pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert after.equals(before.filter(pl.col("id") != 4))
    assert open_source(tmp_path / "out").schema == open_source(pool).schema


def test_a_score_that_is_exactly_at_the_threshold_stays(tmp_path: Path) -> None:
    # 0.28 as a 32-bit float is greater than 0.28 as a 64-bit one; the literal must not be widened.
    exact = np.float32(0.28)
    scores = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1))]
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2, 3], clip_similarity_vitb32=scores)
    for sign, ids in ((">=", [1, 3]), (">", [3]), ("=", [1]), ("<=", [1, 2]), ("<", [2])):
        recipe = f"clip_similarity_vitb32 {sign} 0.28"
        result = filter_pool(pool, recipe, tmp_path / "out", overwrite=True)
        assert read_ids(tmp_path / "out") == ids
        assert result.bites[0].alone == 3 - len(ids)


@pytest.mark.parametrize("sign", [">", ">=", "<", "<="])
def test_nan_to_null_keeps_a_nan_out_of_either_side(tmp_path: Path, sign: str) -> None:
    scores = [0.1, 0.28, 0.4, math.nan, None]
    pool = write_pool(tmp_path / "pool.parquet", id=range(5), clip_similarity_vitb32=scores)
    result = filter_pool(pool, f"nan_to_null(clip_similarity_vitb32) {sign} 0.28", tmp_path / "out")
    assert set(read_ids(tmp_path / "out")) < {0, 1, 2}
    assert result.bites[0].null == 2


def test_a_nan_fares_the_same_however_the_rows_are_laid_out(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "score": pa.array([0.1, 0.9, math.nan], type=pa.float32())})
    kept = []
    for size in (1, 3):
        pq.write_table(table, tmp_path / "pool.parquet", row_group_size=size)
        try:
            filter_pool(tmp_path / "pool.parquet", "score > 0.9", tmp_path / f"out{size}")
            kept.append(read_ids(tmp_path / f"out{size}"))
        except EmptyResultError:
            kept.append([])
    assert kept[0] == kept[1]


def test_a_limit_is_counted_beside_the_rules(pool: Path, tmp_path: Path) -> None:
    result = filter_pool(pool, "SELECT * FROM pool WHERE id >= 4 LIMIT 1", tmp_path / "out")
    assert (result.bites[0].in_order, result.beyond_where, result.rows_out) == (4, 5, 1)
    assert list(read_manifest(tmp_path / "out").lost.values()) == [4, 5]


def test_the_same_rule_twice_is_counted_once_in_order(pool: Path, tmp_path: Path) -> None:
    result = filter_pool(pool, "id > 3 AND id > 3", tmp_path / "out")
    assert [bite.in_order for bite in result.bites] == [4, 0]
    assert [bite.only for bite in result.bites] == [0, 0]
    assert read_manifest(tmp_path / "out").lost == {"id > 3": 4}


def test_failed_rules_names_them_row_by_row(pool: Path) -> None:
    sql = "SELECT *, width / 100 AS w FROM pool AS p WHERE p.id > 3 AND w > 2 AND num_faces = 0"
    assert failed_rules(open_source(pool), sql, [1, 5, 8]) == {
        1: ["p.id > 3", "w > 2", "num_faces = 0"],
        5: ["w > 2", "num_faces = 0"],
        8: [],
    }
    assert failed_rules(open_source(pool), "SELECT * FROM pool LIMIT 3", [8]) == {}


def test_the_same_command_gives_the_same_ids_and_digest(pool: Path, tmp_path: Path) -> None:
    digests = set()
    for number, threads in enumerate((1, 2, 2)):
        filter_pool(pool, "hash(id) % 2 = 0", tmp_path / f"out{number}", threads=threads)
        manifest = read_manifest(tmp_path / f"out{number}")
        digests.add((manifest.id_digest, manifest.inputs[0].fingerprint, manifest.sql))
    assert len(digests) == 1
    filter_pool(pool, "hash(id) % 2 = 1", tmp_path / "other")
    assert read_manifest(tmp_path / "other").id_digest not in {digest[0] for digest in digests}


def test_the_manifest_says_what_was_done(pool: Path, tmp_path: Path) -> None:
    recipe = "SELECT * FROM pool WHERE width > 300 -- big enough\n"
    filter_pool(pool, recipe, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert raw["kind"] == "subset"
    assert raw["sql"] == recipe.strip()
    assert raw["inputs"] == [
        {"role": "pool", "path": str(pool), "fingerprint": open_source(pool).fingerprint}
    ]
    assert raw["details"]["bites"] == [
        {
            "rule": "width > 300",
            "reason": "big enough",
            "recipe": "query",
            "alone": 4,
            "in_order": 4,
            "only": 4,
            "left": 6,
            "null": 1,
            "nan": 0,
            "notes": [],
        }
    ]
    assert raw["versions"]["duckdb"] == duckdb.__version__


# --- what is refused, and what is left behind ----------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "kind", "said"),
    [
        ("clip_similarity_vitb23 > 0", ColumnError, "Did you mean `clip_similarity_vitb32`?"),
        ("text > 3", RecipeError, "Cannot compare values of type VARCHAR"),
        ("width + text > 3", RecipeError, "You might need to add explicit type casts."),
        ("width > 'wide'", RecipeError, "Could not convert string 'wide'"),
        ("nosuch(width) > 1", RecipeError, "nosuch does not exist"),
        ("width > $1", RecipeError, "parameters"),
        ("SELECT text FROM pool", RecipeError, "no column `id`"),
        ("SELECT id::DOUBLE AS id FROM pool", RecipeError, "is DOUBLE, not an integer"),
        ("SELECT text AS id FROM pool", RecipeError, "is VARCHAR, not an integer"),
        ("SELECT id + 5 AS id FROM pool", RecipeError, "5 of them are not in the pool"),
        ("SELECT id FROM pool UNION ALL SELECT -1", RecipeError, "1 of them are not in the pool"),
        ("FROM pool CROSS JOIN pool AS b", RecipeError, "two columns called `id`"),
        ("SELECT a.* FROM pool AS a CROSS JOIN pool AS b", SourceError, "0 on 10 rows"),
        ("SELECT id, unnest([1, 2]) AS u FROM pool", SourceError, "in the recipe's result: 0 on 2"),
        (
            "width > 5000",
            EmptyResultError,
            "`width > 5000` alone removes every row (width runs from",
        ),
        ("width > 5000 AND id > 3", EmptyResultError, "width runs from 100 to 1000 here"),
        ("id < 5 AND id > 5", EmptyResultError, "No rule removes every row alone"),
        ("SELECT * FROM pool WHERE id > 3 LIMIT 0", EmptyResultError, "6 rows pass its rules, its"),
        ("FROM (FROM pool WHERE id > 99)", EmptyResultError, "subquery leaves none"),
    ],
)
def test_what_cant_be_is_said_and_leaves_nothing(
    pool: Path, tmp_path: Path, recipe: str, kind: type[CoyoError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        filter_pool(pool, recipe, tmp_path / "out")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600
    assert names_in(tmp_path) == {"pool.parquet"}


def test_a_score_that_is_null_everywhere_is_named_as_the_reason(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet", id=[1, 2], watermark_score=[None, None], width=[200, 300]
    )
    with pytest.raises(EmptyResultError) as caught:
        filter_pool(pool, "width >= 200 AND watermark_score < 0.5", tmp_path / "out")
    assert (
        caught.value.hint
        == "`watermark_score < 0.5` alone removes every row (it is NULL on all of them)."
    )


def test_duplicate_ids_are_named_and_the_way_out_works(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2, 2, 3, 3, 3], width=[1] * 6)
    with pytest.raises(SourceError, match="3 on 3 rows, 2 on 2 rows") as caught:
        filter_pool(pool, "width = 1", tmp_path / "out")
    assert names_in(tmp_path) == {"pool.parquet"}
    query = caught.value.hint.split('"')[1]
    assert filter_pool(pool, query, tmp_path / "out").rows_out == 3


@pytest.mark.parametrize("made", ["folder", "file"])
def test_a_strangers_place_is_never_replaced(pool: Path, tmp_path: Path, made: str) -> None:
    out = tmp_path / "out"
    if made == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
    before = names_in(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"already exists|was not made by coyo"):
            filter_pool(pool, "id > 3", out, overwrite=overwrite)
    assert (out if made == "file" else out / "thesis.txt").read_text() == "precious"
    assert names_in(tmp_path) == before


def test_an_earlier_result_is_replaced_only_when_asked(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    filter_pool(pool, "id > 3", out)
    with pytest.raises(OutputError, match="already exists") as caught:
        filter_pool(pool, "id > 7", out)
    assert "--overwrite" in caught.value.hint
    assert len(read_ids(out)) == 6
    filter_pool(pool, "id > 7", out, overwrite=True)
    assert read_ids(out) == [8, 9]
    assert names_in(tmp_path) == {"pool.parquet", "out"}


def test_a_failed_replacement_leaves_the_earlier_result(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "id > 3", tmp_path / "out")
    with pytest.raises(EmptyResultError):
        filter_pool(pool, "id > 99", tmp_path / "out", overwrite=True)
    assert len(read_ids(tmp_path / "out")) == 6
    assert names_in(tmp_path) == {"pool.parquet", "out"}


def test_a_subset_can_be_filtered_into_its_own_place(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "id > 3", tmp_path / "out")
    filter_pool(tmp_path / "out", "id > 7", tmp_path / "out", overwrite=True)
    assert read_ids(tmp_path / "out") == [8, 9]


@pytest.mark.parametrize("out", ["pool.parquet/out", "x" * 300])
def test_a_place_that_cant_be_written_is_named(pool: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(OutputError, match="Can't write to"):
        filter_pool(pool, "id > 3", tmp_path / out)
    assert names_in(tmp_path) == {"pool.parquet"}


def test_a_memory_limit_is_understood_or_named(pool: Path, tmp_path: Path) -> None:
    assert filter_pool(pool, "id > 3", tmp_path / "out", memory="500MB").rows_out == 6
    with pytest.raises(OutputError, match="refuses --memory plenty: Memory must") as caught:
        filter_pool(pool, "id > 3", tmp_path / "other", memory="plenty")
    assert "2GB" in caught.value.hint
    with pytest.raises(OutputError, match="ran out of memory") as caught:
        grouped = "text IN (SELECT text FROM pool GROUP BY text HAVING count(*) < 9)"
        filter_pool(pool, grouped, tmp_path / "other", memory="10KB")
    assert "--memory" in caught.value.hint


# --- the fence: what SQL can do that got past the parser -----------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret.csv").write_text("word\nhunter2\n")
    write_pool(tmp_path / "secret.parquet", id=[1])
    return tmp_path


@pytest.mark.parametrize(
    "attack",
    [
        "SELECT * FROM read_csv('{there}/secret.csv')",
        "SELECT * FROM read_text('{there}/secret.csv')",
        "SELECT * FROM '{there}/secret.parquet'",
        "SELECT * FROM read_parquet('{there}/pool.parquet/../secret.parquet')",
        "SELECT * FROM glob('{there}/*')",
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY (SELECT 1) TO '{there}/stolen.csv'",
        "COPY pool TO '{there}/out/../stolen.parquet'",
        "COPY pool TO '{there}/pool.parquet'",
        "ATTACH '{there}/stolen.db'",
        "EXPORT DATABASE '{there}/stolen'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SET memory_limit = '1TB'",
        "PRAGMA temp_directory = '{there}'",
    ],
)
def test_the_session_itself_reads_and_writes_nothing_else(
    pool: Path, secret: Path, attack: str
) -> None:
    (secret / "out").mkdir()
    before = pool.read_bytes()
    with open_session(open_source(pool), output=secret / "out") as session:
        with pytest.raises(duckdb.Error):
            session.execute(attack.format(there=secret)).fetchall()
        # The session goes on working.
        assert session.sql("SELECT count(*) FROM pool").fetchall() == [(10,)]
    assert not list(secret.glob("stolen*"))
    assert pool.read_bytes() == before
    assert names_in(secret / "out") == set()


def test_the_session_may_write_into_its_output(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open_session(open_source(pool), output=tmp_path / "out") as session:
        session.execute(f"COPY pool TO '{tmp_path}/out/copy.parquet'")
    assert names_in(tmp_path / "out") == {"copy.parquet"}


def test_a_session_sees_no_python_variable(pool: Path) -> None:
    frame = pl.DataFrame({"id": [1]})
    with open_session(open_source(pool)) as session, pytest.raises(duckdb.Error):
        session.sql("SELECT * FROM frame").fetchall()
    assert frame.height == 1


def test_filter_results_name_their_place(pool: Path, tmp_path: Path) -> None:
    result = filter_pool(pool, "id > 3", tmp_path / "out")
    assert isinstance(result, FilterResult)
    assert result.output == tmp_path / "out"
    assert (result.rows_in, result.rows_out) == (10, 6)
