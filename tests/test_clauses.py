"""Clauses: where the parts of a query stand in its text."""

import pytest

from coyo_tools.clauses import calls_of, lay_out, splice


@pytest.mark.parametrize(
    ("sql", "terms"),
    [
        ("SELECT * FROM pool WHERE a > 1", ["a > 1"]),
        ("FROM pool WHERE a > 1 AND b < 2 ORDER BY a LIMIT 3", ["a > 1", "b < 2"]),
        ("FROM pool SELECT a WHERE a > 1 GROUP BY a", ["a > 1"]),
        ("SELECT * FROM pool WHERE a BETWEEN 1 AND 2 AND b > 1", ["a BETWEEN 1 AND 2", "b > 1"]),
        (
            "SELECT * FROM pool WHERE a NOT BETWEEN 1 AND 2 AND b BETWEEN 3 AND 4",
            ["a NOT BETWEEN 1 AND 2", "b BETWEEN 3 AND 4"],
        ),
        ("SELECT * FROM pool WHERE a OR b AND c", ["a OR b AND c"]),
        ("SELECT * FROM pool WHERE (a OR b) AND c", ["a OR b", "c"]),
        ("SELECT * FROM pool WHERE ((a > 1) AND (b > 2))", ["a > 1", "b > 2"]),
        ("SELECT * FROM pool WHERE (a) > (b)", ["(a) > (b)"]),
        (
            "SELECT * FROM pool WHERE CASE WHEN a AND b THEN c ELSE d END AND e",
            ["CASE WHEN a AND b THEN c ELSE d END", "e"],
        ),
        (
            "SELECT * FROM pool WHERE a IN (SELECT a FROM pool WHERE b AND c LIMIT 3) AND d",
            ["a IN (SELECT a FROM pool WHERE b AND c LIMIT 3)", "d"],
        ),
        ("SELECT * FROM pool WHERE a = 'x AND y -- z' AND b", ["a = 'x AND y -- z'", "b"]),
        ("SELECT * FROM pool WHERE a > 1 -- why\n  /* how */ AND b > 2", ["a > 1", "b > 2"]),
        ("SELECT * FROM pool WHERE a\n   + 1 -- one\n  > 2", ["a + 1 > 2"]),
        ("SELECT * FROM pool WHERE é = 'ü' AND b > 2", ["é = 'ü'", "b > 2"]),
        ("WITH w AS (SELECT 1 WHERE x) SELECT * FROM pool WHERE a > 1 QUALIFY b", ["a > 1"]),
        ("SELECT count(*) FILTER (WHERE a AND b) FROM pool", []),
        ("", []),
    ],
)
def test_the_terms_of_the_outermost_where_are_cut_out_of_the_text(
    sql: str, terms: list[str]
) -> None:
    layout = lay_out(sql)
    assert [term for term, _, _ in layout.terms] == terms
    for term, start, end in layout.terms:
        if "\n" not in sql[start:end]:
            assert sql[start:end] == term


def test_the_items_and_the_with_are_found() -> None:
    layout = lay_out(
        "-- head\nWITH w AS (SELECT 1, 2) SELECT *, f(a, b) AS c FROM pool WHERE c > 1"
    )
    assert layout.with_text == "WITH w AS (SELECT 1, 2) "
    assert layout.items == ("*", "f(a, b) AS c")
    assert lay_out("-- head\nSELECT * FROM pool").with_text == ""


def test_calls_are_found_with_their_arguments() -> None:
    sql = "x >= TOP_fraction(f(a, 'b)'), 0.3) AND top_fraction > 1 AND y < top_fraction ( c,0.1 )"
    calls = calls_of(sql, "top_fraction")
    assert [arguments for _, _, arguments in calls] == [["f(a, 'b)')", "0.3"], ["c", "0.1"]]
    assert [sql[start:end] for start, end, _ in calls] == [
        "TOP_fraction(f(a, 'b)'), 0.3)",
        "top_fraction ( c,0.1 )",
    ]


def test_changes_are_spliced_in_from_the_back() -> None:
    assert splice("abcdef", [(0, 1, "XX"), (3, 4, ""), (5, 6, "F")]) == "XXbceF"
