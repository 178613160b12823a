"""Guards against NaN: what is wrapped, what stays, and that row groups are still skipped."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import write_pool

from coyo_tools.engine import open_session
from coyo_tools.guard import bare_rule, guarded, guarded_for_scan
from coyo_tools.source import open_source

FLOATS = frozenset({"score", "other score"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score >= 0.3", "nan_to_null(score) >= 0.3"),
        ("pool.score <> 0.3", "nan_to_null(pool.score) <> 0.3"),
        ('0.3 < "Other Score"', '0.3 < nan_to_null("Other Score")'),
        ("score IS NULL", "nan_to_null(score) IS NULL"),
        ("score IN (1, 2)", "nan_to_null(score) IN (1, 2)"),
        ("abs(score) + 1 > width", "abs(nan_to_null(score)) + 1 > width"),
        ("isnan(score) = true", "is_nan(score) = true"),
        ("isfinite(score)", "isfinite(score)"),
        ("nan_to_null(score) > 1", "nan_to_null(score) > 1"),
        ("width > 1", "width > 1"),
        ("text = 'score > 1'", "text = 'score > 1'"),
        ("é = 'ü' AND score > 1", "é = 'ü' AND nan_to_null(score) > 1"),
        (
            "SELECT score FROM pool WHERE width > 1 ORDER BY score DESC",
            "SELECT score FROM pool WHERE width > 1 ORDER BY nan_to_null(score) DESC",
        ),
        (
            "SELECT DISTINCT score FROM pool ORDER BY score",
            "SELECT DISTINCT score FROM pool ORDER BY score",
        ),
        (
            "SELECT score FROM pool UNION SELECT score FROM pool ORDER BY score",
            "SELECT score FROM pool UNION SELECT score FROM pool ORDER BY score",
        ),
        (
            "score > (SELECT avg(score) FROM pool)",
            "nan_to_null(score) > (SELECT avg(nan_to_null(score)) FROM pool)",
        ),
    ],
)
def test_floats_that_are_compared_are_wrapped_and_nothing_else(text: str, expected: str) -> None:
    assert guarded(text, FLOATS) == expected


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("score >= 0.3", "(score >= 0.3 AND NOT isnan(score))"),
        ("0.3 > score", "(0.3 > score AND NOT isnan(score))"),
        ("score BETWEEN 0 AND 1", "(score BETWEEN 0 AND 1 AND NOT isnan(score))"),
        ("score > -0.5::FLOAT", "(score > -0.5::FLOAT AND NOT isnan(score))"),
        ("score <> 0.3", "nan_to_null(score) <> 0.3"),
        ("score > width", "nan_to_null(score) > width"),
        ("score = 'NaN'", "nan_to_null(score) = 'NaN'"),
        ("width > 3", "width > 3"),
    ],
)
def test_a_bare_comparison_stays_as_it_is_for_the_scan(term: str, expected: str) -> None:
    query = f"SELECT * FROM pool WHERE id > 1 AND {term}"
    assert guarded_for_scan(query, FLOATS) == f"SELECT * FROM pool WHERE id > 1 AND {expected}"


def test_a_bare_rule_is_taken_apart_with_the_column_on_the_left() -> None:
    rule = bare_rule("0.3 < score", FLOATS)
    assert rule is not None
    assert (rule.column.name, rule.kind.__name__, rule.values[0].sql()) == ("score", "GT", "0.3")
    assert bare_rule("score > (SELECT 1)", FLOATS) is None
    assert bare_rule("score > NULL", FLOATS) is None
    assert bare_rule("not a rule at all )", FLOATS) is None


@pytest.mark.parametrize("size", [2, 3, 100])
@pytest.mark.parametrize(
    ("term", "ids"),
    [
        ("score < 2", [0, 1]),
        ("score <= 'Infinity'", [0, 1]),
        ("score >= 0", [0, 1]),
        ("score > 0.5", [1]),
        ("score = 1", [1]),
        ("score BETWEEN 0 AND 2", [0, 1]),
        ("NOT score > 5", [0, 1]),
        ("score IS NOT NULL", [0, 1]),
        ("score IS NULL", [2, 3]),
        ("isnan(score)", [2]),
        ("NOT isnan(score)", [0, 1]),
        ("score IS NULL OR score > 0.5", [1, 2, 3]),
    ],
)
def test_footers_that_leave_nan_out_mislead_nobody(
    tmp_path: Path, term: str, ids: list[int], size: int
) -> None:
    # The footer says 0 to 1, or that all is 0: DuckDB 2.0 takes it at its word.
    scores = pa.array([0.0, 1.0, np.nan, None], type=pa.float32())
    table = pa.table({"id": range(4), "score": scores})
    pq.write_table(table, tmp_path / "pool.parquet", row_group_size=size)
    with open_session(open_source(tmp_path)) as session:
        for guard in (guarded, guarded_for_scan):
            sql = guard(f"SELECT id FROM pool WHERE {term}", {"score"})
            assert [id_ for (id_,) in session.sql(sql).fetchall()] == ids, sql


def test_row_groups_are_still_skipped(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "one.parquet", id=range(1000))
    table = pq.read_table(pool).append_column(
        "score", pa.array(np.linspace(0, 1, 1000), type=pa.float32())
    )
    pq.write_table(table, pool, row_group_size=100)
    query = guarded_for_scan("SELECT id FROM pool WHERE score >= 0.95", {"score"})
    with open_session(open_source(pool)) as session:
        plan = session.sql(f"EXPLAIN ANALYZE {query}").fetchall()[0][1]
    assert "Row Groups Scanned: 1 / 10" in plan
