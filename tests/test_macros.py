"""The macros of sql/macros.sql, on values as they come: missing, zero, malformed, not ASCII."""

from collections.abc import Iterator

import duckdb
import numpy as np
import pytest

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
        ("hamming('b', '0000000000000000')", None),
        ("hamming(NULL, '0000000000000000')", None),
        ("url_domain('https://example.com/a.jpg')", "example.com"),
        ("url_domain('HTTP://WWW.Example.COM:8080/a')", "example.com"),
        ("url_domain('https://user:pass@www.example.com?x=@y')", "example.com"),
        ("url_domain('https://www2.example.com#top')", "www2.example.com"),
        ("url_domain('//www.a.b/c')", "a.b"),
        ("url_domain('https://bücher.example/ü')", "bücher.example"),
        ("url_domain('http://[::1]:80/x')", "[::1]"),
        ("url_domain('https://')", None),
        ("url_domain('data:image/png;base64,xyz')", None),
        ("url_domain('')", None),
        ("url_domain(NULL)", None),
        ("lower_words('Été à Paris_2, 3!')", ["été", "à", "paris_2", "3"]),
        ("lower_words('...')", []),
        ("uni_and_bigrams(['a', 'b', 'c'])", ["a", "b", "c", "a b", "b c"]),
        ("uni_and_bigrams(['a'])", ["a"]),
        ("uni_and_bigrams([])", []),
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
