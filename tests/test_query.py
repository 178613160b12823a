"""`coyo sql`: any one SELECT, in every format, and nothing else."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from making import COYO, coyo, names_in, write_pool
from typer.testing import CliRunner

from coyo_tools.cli import app
from coyo_tools.errors import ColumnError, OutputError, RecipeError
from coyo_tools.query import query_table, write_query

NAN = float("nan")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(6),
        text=["a", "", None, 'é, "q"\n2', "\x1b[31mred\x07", "\x9b31m"],
        width=[100, 200, None, 400, 500, 600],
        clip_similarity_vitb32=[0.1, 0.3, NAN, None, 0.5, 0.3],
        tags=[["x", None], [], None, ["y"], ["z"], ["z"]],
    )


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def as_json(pool: Path, query: str) -> Any:
    ran = coyo("sql", pool, query, "--format", "json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout, parse_constant=refuse)


def answer(pool: Path, query: str) -> list[tuple[Any, ...]]:
    return list(query_table(pool, query, max_rows=40).rows)


# --- what may be asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT count(*) FROM pool", [(6,)]),
        ("select sum(width) from POOL where id < 2;  -- the end", [(300,)]),
        ("FROM pool SELECT max(id)", [(5,)]),
        ("WITH big AS (SELECT * FROM pool WHERE width > 300) SELECT count(*) FROM big", [(3,)]),
        ("SELECT id, row_number() OVER (ORDER BY id DESC) FROM pool ORDER BY 1 LIMIT 1", [(0, 6)]),
        ("SELECT id FROM pool WHERE id = 0 UNION ALL SELECT max(id) FROM pool", [(0,), (5,)]),
        ("SELECT min_side(width, 300) FROM pool WHERE id = 3", [(300,)]),
        ("SELECT url_domain('https://me@WWW.Ex.org:80/a') FROM pool LIMIT 1", [("ex.org",)]),
        ("SELECT now() > DATE '2020-01-01', random() < 2 FROM pool LIMIT 1", [(True, True)]),
        ("SELECT width FROM pool WHERE false", []),
    ],
)
def test_one_select_of_any_kind(pool: Path, query: str, expected: list[Any]) -> None:
    assert answer(pool, query) == expected


def test_a_nan_counts_as_null_where_it_is_compared_as_in_recipes(pool: Path) -> None:
    over = "SELECT count(*) FROM pool WHERE clip_similarity_vitb32 >= 0.3"
    assert answer(pool, over) == [(3,)]
    assert answer(pool, "SELECT count_if(isnan(clip_similarity_vitb32)) FROM pool") == [(1,)]
    best = "SELECT id FROM pool ORDER BY clip_similarity_vitb32 DESC LIMIT 1"
    assert answer(pool, best) == [(4,)]


def test_a_file_is_a_query(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "ask.sql").write_text("-- how many\nSELECT count(*) AS n\nFROM pool;\n")
    assert query_table(pool, str(tmp_path / "ask.sql"), max_rows=1).columns == ("n",)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT 1; SELECT 2 FROM pool", "A query is one SELECT; this one has 2 statements."),
        ("DROP TABLE pool", "not DROP"),
        ("COPY pool TO 'x.csv'", "not COPY"),
        ("width > 3", "not an expression"),
        ("SELECT 1", "The query does not read the table pool."),
        ("SELECT * FROM 'pool.parquet'", "A query reads only the table pool"),
        ("SELECT * FROM pool, read_csv('/etc/passwd')", "A query reads only the table pool"),
        ("SELECT * FROM pool WHERE id IN (SELECT id FROM other)", "this one reads other"),
        ("SELECT FROM WHERE", "does not parse"),
        ("nothing.sql", "can't be read: No such file"),
        ("SELECT sqrt(text) FROM pool", "No function matches"),
        ("SELECT text::INT FROM pool", "Could not convert string 'a' to INT32"),
        ("", "has 0 statements"),
    ],
)
def test_what_is_refused(pool: Path, query: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        query_table(pool, query, max_rows=1)
    assert said in str(refused.value)
    assert "\n\nLINE" not in str(refused.value)


def test_a_mistyped_column_gets_the_nearest_name(pool: Path) -> None:
    with pytest.raises(ColumnError, match="Did you mean `width`"):
        query_table(pool, "SELECT avg(widht) FROM pool", max_rows=1)
    with pytest.raises(RecipeError, match='Candidate bindings: "width"'):
        query_table(pool, "WITH p AS (FROM pool) SELECT widht FROM p", max_rows=1)


# --- the table -----------------------------------------------------------------------------------


def test_the_table_says_how_many_rows_it_leaves_out(pool: Path) -> None:
    ran = coyo("sql", pool, "SELECT id, width FROM pool ORDER BY id", "--max-rows", "2")
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["id", "width"], ["0", "100"], ["1", "200"],
    ]  # fmt: skip
    assert "4 more rows" in ran.stderr
    whole = CliRunner().invoke(app, ["sql", str(pool), "SELECT id, width FROM pool ORDER BY id"])
    assert whole.stderr == ""
    none = CliRunner().invoke(app, ["sql", str(pool), "SELECT id FROM pool LIMIT 0"])
    assert none.stderr == "No rows.\n"


def test_rows_beyond_a_million_are_counted_too(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(1_100_000))
    table = query_table(pool, "SELECT id FROM pool ORDER BY id", max_rows=3)
    assert (table.rows, table.more) == (((0,), (1,), (2,)), 1_099_997)


def test_numbers_can_be_copied_and_control_characters_do_nothing(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet", id=[8_589_934_592], text=["\x1b[31m[b]red\x07\x9b"]
    )
    shown = coyo("sql", pool, 'SELECT id, text AS "\x1b[32m" FROM pool').stdout
    assert "8589934592" in shown
    assert "�[31m[b]red��" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


def test_wide_rows_stand_below_each_other(pool: Path) -> None:
    wide = ", ".join(f"repeat('x', 40) AS column_{number}" for number in range(6))
    shown = coyo("sql", pool, "SELECT " + wide + " FROM pool", "--max-rows", "2").stdout
    assert shown.count("column_5") == 2
    assert "row 2" in shown


# --- csv, json, parquet --------------------------------------------------------------------------


def test_csv(pool: Path) -> None:
    ran = coyo("sql", pool, "SELECT id, text FROM pool ORDER BY id", "--format", "csv")
    assert list(csv.reader(ran.stdout.splitlines(keepends=True)))[:5] == [
        ["id", "text"], ["0", "a"], ["1", ""], ["2", ""], ["3", 'é, "q"\n2'],
    ]  # fmt: skip


def test_json_is_one_array_that_a_strict_parser_reads(pool: Path) -> None:
    query = """
        SELECT id, clip_similarity_vitb32 AS score, tags, 'inf'::DOUBLE AS big,
               {'at': DATE '2024-02-29', 'n': 'nan'::FLOAT} AS s, [1.5, 'nan'::DOUBLE] AS l,
               [['inf'::FLOAT]] AS deep, MAP {'k': 'nan'::DOUBLE} AS m,
               NULL::STRUCT(x FLOAT) AS nothing, text
        FROM pool ORDER BY id"""
    rows = as_json(pool, query)
    assert [row["score"] for row in rows][2:4] == [None, None]
    assert rows[0] | {"score": 0} == {
        "id": 0, "score": 0, "tags": ["x", None], "big": None, "s": {"at": "2024-02-29", "n": None},
        "l": [1.5, None], "deep": [[None]], "m": {"k": None}, "nothing": None, "text": "a",
    }  # fmt: skip
    assert rows[4]["text"] == "\x1b[31mred\x07"
    assert as_json(pool, "SELECT * FROM pool WHERE false") == []


def test_every_row_of_json_is_a_line(pool: Path) -> None:
    lines = coyo("sql", pool, "SELECT id FROM pool", "--format", "json").stdout.splitlines()
    assert [json.loads(line.strip(",")) for line in lines[1:-1]] == [{"id": i} for i in range(6)]


def test_a_file_gets_the_format_of_its_name(pool: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.json", "out.parquet"):
        query = "SELECT id FROM pool ORDER BY id"
        ran = CliRunner().invoke(app, ["sql", str(pool), query, "-o", str(tmp_path / name)])
        assert (ran.exit_code, ran.output) == (0, "")
    assert pl.read_parquet(tmp_path / "out.parquet")["id"].to_list() == list(range(6))
    assert pl.read_csv(tmp_path / "out.csv")["id"].to_list() == list(range(6))
    assert len(json.loads((tmp_path / "out.json").read_text())) == 6
    assert names_in(tmp_path) == {"pool.parquet", "out.csv", "out.json", "out.parquet"}


def test_parquet_goes_through_a_pipe(pool: Path) -> None:
    ran = subprocess.run(
        [COYO, "sql", str(pool), "SELECT id FROM pool", "--format", "parquet"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert pl.read_parquet(ran.stdout)["id"].to_list() == list(range(6))


def test_parquet_is_not_for_a_terminal(pool: Path) -> None:
    main, terminal = os.openpty()
    ran = subprocess.run(
        [COYO, "sql", str(pool), "SELECT id FROM pool", "--format", "parquet"],
        stdout=terminal, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(main)
    os.close(terminal)
    assert (ran.returncode, "Parquet is not for a terminal" in ran.stderr) == (2, True)


def test_csv_on_a_terminal_has_no_control_characters(pool: Path) -> None:
    main, terminal = os.openpty()
    subprocess.run(
        [COYO, "sql", str(pool), "SELECT text FROM pool WHERE id > 3", "--format", "csv"],
        stdout=terminal, check=True,
    )  # fmt: skip
    shown = os.read(main, 4096).decode()
    os.close(main)
    os.close(terminal)
    assert "?[31mred?" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


def test_a_reader_that_has_enough_ends_the_query_quietly(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(400_000), text=["x" * 50] * 400_000)
    ran = subprocess.run(
        [
            "sh",
            "-c",
            '"$0" sql "$1" "SELECT * FROM pool" --format csv | head -n 2',
            COYO,
            str(pool),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.stdout.count("\n"), ran.stderr) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_said(pool: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [COYO, "sql", str(pool), "SELECT id FROM pool", "--format", "csv"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (ran.returncode, "No space left" in ran.stderr) == (2, True)


def test_a_failing_query_leaves_the_old_file(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    with pytest.raises(OutputError, match="already exists"):
        write_query(pool, "SELECT 1 FROM pool", out, "csv")
    broken = "SELECT CASE WHEN id = 5 THEN error('no') ELSE id END FROM pool"
    with pytest.raises(RecipeError):
        write_query(pool, broken, out, "csv", overwrite=True)
    assert out.read_text() == "old"
    write_query(pool, "SELECT id FROM pool WHERE id = 1", out, "csv", overwrite=True)
    assert out.read_text().splitlines() == ["id", "1"]
    assert names_in(tmp_path) == {"pool.parquet", "out.csv"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "xml"], "There is no format xml."),
        (["-o", "out.txt"], "does not say which format"),
        (["--format", "table", "-o", "out.csv"], "A table is for the terminal."),
        (["--memory", "lots", "--format", "csv"], "DuckDB refuses --memory lots"),
    ],
)
def test_options_that_make_no_sense(pool: Path, options: list[str], said: str) -> None:
    ran = CliRunner().invoke(app, ["sql", str(pool), "SELECT id FROM pool", *options])
    assert isinstance(ran.exception, OutputError)
    assert said in str(ran.exception)
    assert ran.stdout == ""


def test_a_query_that_slips_past_the_parser_reads_no_other_file(pool: Path) -> None:
    # A file function where sqlglot sees a plain function: DuckDB has none of that kind.
    for query in ("SELECT read_text('/etc/passwd') FROM pool", "SELECT glob('/*') FROM pool"):
        with pytest.raises(RecipeError):
            query_table(pool, query, max_rows=1)


def test_help_needs_no_engine() -> None:
    program = "import sys; sys.argv=['coyo','sql','--help']\nfrom coyo_tools.cli import main\n"
    program += "try:\n    main()\nexcept SystemExit:\n    print('duckdb' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "False"
