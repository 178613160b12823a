"""The macros of sql/macros.sql, on values as they come: missing, zero, malformed, not ASCII."""

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import urlsplit

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coyo_tools.bundled import bundled
from coyo_tools.cuts import sample_keys
from coyo_tools.manifest import mix64


@pytest.fixture(scope="module")
def shell() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE VIEW pool AS SELECT * FROM (VALUES (1, 0.5::FLOAT), (2, 0.25::FLOAT), "
            "(3, 'nan'::FLOAT), (4, NULL), (5, 0.25::FLOAT), (6, -1::FLOAT)) AS rows(id, score)"
        )
        connection.execute((bundled("sql") / "macros.sql").read_text(encoding="utf-8"))
        yield connection


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("aspect_ratio(300, 100)", 3.0),
        ("aspect_ratio(100, 300)", 3.0),
        ("aspect_ratio(300, 300)", 1.0),
        ("aspect_ratio(NULL, 300)", None),
        ("aspect_ratio(300, NULL)", None),
        ("aspect_ratio(0, 300)", None),
        ("aspect_ratio(0, 0)", None),
        ("aspect_ratio(65535, 1)", 65535.0),
        ("min_side(300, 100)", 100),
        ("min_side(NULL, 100)", None),
        ("min_side(0, 300)", 0),
        ("nan_to_null('nan'::FLOAT)", None),
        ("nan_to_null('inf'::FLOAT)", float("inf")),
        ("nan_to_null(0.5::DOUBLE)", 0.5),
        ("nan_to_null(NULL::FLOAT)", None),
        ("phash_bits('8000000000000000')", 1 << 63),
        ("phash_bits('FFFFffffFFFFffff')", (1 << 64) - 1),
        ("phash_bits('800000000000000')", None),
        ("phash_bits('80000000000000000')", None),
        ("phash_bits('-000000000000001')", None),
        ("phash_bits('')", None),
        ("phash_bits(NULL)", None),
        ("hamming('8000000000000000', '0000000000000001')", 2),
        ("hamming('ffffffffffffffff', '0000000000000000')", 64),
        ("hamming('8000000000000000', '8000000000000000')", 0),
        ("hamming('b', '0000000000000000')", None),
        ("phash_bits('１２３４５６７８９０１２３４５６')", None),
        ("phash_bits('8000000000000000 ')", None),
        ("hamming(NULL, '0000000000000000')", None),
        ("url_domain('https://example.com/a.jpg')", "example.com"),
        ("url_domain('HTTP://WWW.Example.COM:8080/a')", "example.com"),
        ("url_domain('https://user:pass@www.example.com?x=@y')", "example.com"),
        ("url_domain('https://www2.example.com#top')", "www2.example.com"),
        ("url_domain('//www.a.b/c')", "a.b"),
        ("url_domain('https://bücher.example/ü')", "bücher.example"),
        ("url_domain('http://[::1]:80/x')", "[::1]"),
        ("url_domain('http://u:p@ss@a.b/c')", "a.b"),
        ("url_domain('http://a.b#@evil.example')", "a.b"),
        (r"url_domain('http://a.b\c@d')", "a.b"),
        ("url_domain('http://a.b:port/')", "a.b"),
        ("url_domain('HTTP://WWW.A.CO.UK./x')", "a.co.uk"),
        ("url_domain('http://www.com/x')", "www.com"),
        ("url_domain('http://www./x')", "www"),
        ("url_domain('http://../x')", None),
        ("url_domain('http://@:80/x')", None),
        ("url_domain('http:///x')", None),
        ("url_domain('http://a b/x')", None),
        ("url_domain('http://a' || chr(10) || 'b/x')", None),
        ("url_domain('a.b/c')", None),
        ("url_domain('http:a.b/c')", None),
        ("url_domain('https://')", None),
        ("url_domain('data:image/png;base64,xyz')", None),
        ("url_domain('')", None),
        ("url_domain(NULL)", None),
        ("lower_words('Été à Paris_2, 3!')", ["été", "à", "paris_2", "3"]),
        ("lower_words('...')", []),
        ("len(word_grams('a dog barks'))", 5),
        ("word_grams('A dog') = [hash('a'), hash('dog'), hash('a dog')]", True),
        ("word_grams('a-a a') = [hash('a'), hash('a'), hash('a'), hash('a a'), hash('a a')]", True),
        ("len(word_grams('été'))", 1),
        ("len(word_grams('!!'))", 0),
        ("len(word_grams(''))", 0),
        ("word_grams(NULL)", []),
    ],
)
def test_macros(shell: duckdb.DuckDBPyConnection, call: str, value: object) -> None:
    assert shell.sql(f"SELECT {call}").fetchall() == [(value,)]


@pytest.mark.parametrize(
    ("fraction", "value"),
    # 0.5, 0.25, 0.25 and -1 are there: int(4 * fraction) is 0, 1, 2, 3, and at most 3.
    [(0, 0.5), (0.2, 0.5), (0.25, 0.25), (0.5, 0.25), (0.75, -1.0), (1, -1.0)],
)
def test_top_fraction(shell: duckdb.DuckDBPyConnection, fraction: float, value: float) -> None:
    assert shell.sql(f"SELECT top_fraction(score, {fraction})").fetchall() == [(value,)]


def test_top_fraction_multiplies_as_python_does(shell: duckdb.DuckDBPyConnection) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE VIEW pool AS SELECT range::FLOAT AS score FROM range(100)")
        connection.execute((bundled("sql") / "macros.sql").read_text(encoding="utf-8"))
        # int(100 * 0.29) is 28, for 100 * 0.29 is 28.999999999999996.
        assert connection.sql("SELECT top_fraction(score, 0.29)").fetchall() == [(99.0 - 28,)]


@pytest.mark.parametrize("fraction", ["NULL", "'nan'::DOUBLE", "1.001", "-0.1", "30"])
def test_top_fraction_of_what_is_no_fraction_keeps_nothing(
    shell: duckdb.DuckDBPyConnection, fraction: str
) -> None:
    assert shell.sql(f"SELECT top_fraction(score, {fraction})").fetchall() == [(None,)]


@pytest.mark.parametrize(
    "query",
    [
        "FROM pool WHERE score >= top_fraction(score, 0.25) AND NOT isnan(score)",
        "FROM pool WHERE pool.score >= top_fraction(pool.score, 0.25) AND NOT isnan(score)",
        "FROM pool AS p WHERE score >= top_fraction(score, 0.25) AND NOT isnan(score)",
        "FROM pool WHERE -score <= -top_fraction(score, 0.25) AND NOT isnan(score)",
        "FROM pool WHERE 2 * score >= top_fraction(2 * score, 0.25) AND NOT isnan(score)",
    ],
)
def test_top_fraction_binds_in_a_where_over_the_pool(
    shell: duckdb.DuckDBPyConnection, query: str
) -> None:
    assert [row[0] for row in shell.sql(f"SELECT id {query} ORDER BY id").fetchall()] == [1, 2, 5]


def test_top_fraction_is_refused_where_it_would_mean_a_row_and_not_the_pool(
    shell: duckdb.DuckDBPyConnection,
) -> None:
    with pytest.raises(duckdb.Error, match="correlated"):
        shell.sql("SELECT id FROM pool AS p WHERE p.score >= top_fraction(p.score, 0.25)")


@given(
    scores=st.lists(st.none() | st.floats(width=32, allow_infinity=False), min_size=1, max_size=60),
    fraction=st.floats(0, 1) | st.decimals(0, 1, places=3),
)
@settings(max_examples=60, deadline=None)
def test_top_fraction_is_datacomps_rule(
    scores: list[float | None], fraction: float | Decimal
) -> None:
    there = sorted((x for x in scores if x is not None and not math.isnan(x)), reverse=True)
    index = min(int(len(there) * float(fraction)), len(there) - 1)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE pool(score FLOAT)")
        connection.executemany("INSERT INTO pool VALUES (?)", [[score] for score in scores])
        connection.execute((bundled("sql") / "macros.sql").read_text(encoding="utf-8"))
        found = connection.sql(f"SELECT top_fraction(score, {fraction})").fetchall()
    assert found == [(there[index] if there else None,)]


@given(
    host=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z]{2,5}){1,3}", fullmatch=True),
    user=st.sampled_from(["", "me@", "me:secret@"]),
    port=st.sampled_from(["", ":80", ":65535"]),
    rest=st.sampled_from(["", "/", "/a.jpg?u=http://other.example/", "?x=//y", "#z"]),
)
@settings(max_examples=60, deadline=None)
def test_url_domain_is_urllibs_host_without_www(
    shell: duckdb.DuckDBPyConnection, host: str, user: str, port: str, rest: str
) -> None:
    url = f"https://{user}{host}{port}{rest}"
    parsed = urlsplit(url).hostname
    assert parsed is not None
    stripped = parsed.removeprefix("www.")
    expected = stripped if "." in stripped else parsed
    assert shell.execute("SELECT url_domain($url)", {"url": url}).fetchall() == [(expected,)]


@given(garbage=st.text(max_size=40) | st.from_regex(r"[a-z]{0,4}:?/{0,3}.{0,20}"))
@settings(max_examples=100, deadline=None)
def test_macros_on_text_survive_garbage(shell: duckdb.DuckDBPyConnection, garbage: str) -> None:
    rows = shell.execute(
        "SELECT url_domain($text), phash_bits($text), len(word_grams($text))", {"text": garbage}
    ).fetchall()
    domain = rows[0][0]
    assert domain is None or (domain and not re.search(r"[\s/?#]", domain, re.ASCII))


def test_top_fraction_of_nothing_is_nothing() -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE VIEW pool AS SELECT NULL::FLOAT AS score")
        connection.execute((bundled("sql") / "macros.sql").read_text(encoding="utf-8"))
        assert connection.sql("SELECT top_fraction(score, 0.3)").fetchall() == [(None,)]


def test_mixing_is_that_of_the_library(shell: duckdb.DuckDBPyConnection) -> None:
    numbers = np.array([0, 1, -1, 2**63 - 1, -(2**63), 4896263451343], dtype=np.int64)
    listed = ", ".join(f"({number}::HUGEINT)" for number in numbers)
    rows = shell.sql(f"SELECT mix64(n) FROM (VALUES {listed}) AS t(n)").fetchall()
    assert [row[0] for row in rows] == mix64(numbers).tolist()
    for seed in (0, 1, 12345):
        rows = shell.sql(
            f"SELECT sample_key(n::BIGINT, {seed}) FROM (VALUES {listed}) AS t(n)"
        ).fetchall()
        assert [row[0] for row in rows] == sample_keys(numbers, seed).tolist()
