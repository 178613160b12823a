"""The command line: what is printed where, what it costs to start, how it fails."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from making import (
    COYO,
    alive,
    coyo,
    descendants,
    names_in,
    needs_proc,
    picture,
    read_ids,
    write_pool,
)
from typer.testing import CliRunner

from coyo_tools import __version__
from coyo_tools.cli import app
from coyo_tools.recipe import shipped_recipes

MAKE_CLI = Path(__file__).parents[1] / "docs" / "make_cli.py"
HEAVY = {
    "PIL", "datasets", "duckdb", "imagehash", "img2dataset", "jinja2", "matplotlib", "numpy",
    "pandas", "polars", "pyarrow", "rich", "sqlglot", "torch", "transformers",
}  # fmt: skip


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(10),
        text=[f"caption {i}" for i in range(10)],
        width=[100 * (i + 1) if i != 5 else None for i in range(10)],
        image_phash=[16 * digit if digit != " " else None for digit in "aabbbc def"],
        watermark_score=[None] * 10,
    )


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    for seed in range(2):
        picture(seed).save(tmp_path / f"{seed}.png")
    path = tmp_path / "captions.csv"
    path.write_text("file,caption\n0.png,a red cat\n1.png,two dogs\nnone.png,nobody\n")
    return path


def _docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", MAKE_CLI)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commands() -> list[tuple[str, ...]]:
    """Every command there is, as typer knows them."""
    found: list[tuple[str, ...]] = [(str(command.name),) for command in app.registered_commands]
    for group in app.registered_groups:
        found.append((str(group.name),))
        assert group.typer_instance is not None
        found += [
            (str(group.name), str(inner.name)) for inner in group.typer_instance.registered_commands
        ]
    return found


# --- help and documentation ----------------------------------------------------------------------


def test_there_is_a_command_for_every_stage() -> None:
    assert {command[0] for command in _commands()} >= {
        "filter", "dedupe", "download", "index", "train", "evaluate", "run", "demo", "recipes",
        "info",
    }  # fmt: skip


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_help_text_ends_with_two_examples_that_begin_with_the_command(
    command: tuple[str, ...],
) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], prog_name="coyo", terminal_width=200)
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    examples = shown.output.split("Examples:")[1].strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"coyo {command[0]}") for line in examples)


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_examples_name_only_options_that_there_are(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], prog_name="coyo", terminal_width=200)
    options, _, examples = shown.output.partition("Examples:")
    if command == ("recipes",):
        options += CliRunner().invoke(app, ["recipes", "show", "--help"]).output
    for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", examples):
        assert re.search(rf"(?<![a-z-]){option}\b", options), option


def test_the_page_of_the_docs_is_current() -> None:
    module = _docs()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run `make docs`"
    assert set(module.commands()) == {(), *_commands()}


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['coyo', '--help']\n"
        "from coyo_tools.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('MODULES', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = set(ran.stdout.partition("MODULES")[2].split())
    assert "typer" in modules
    assert "Commands:" in ran.stdout
    assert modules & HEAVY == set()


def test_no_command_shows_the_help_and_version_the_version() -> None:
    assert "Commands:" in coyo().stdout + coyo().stderr
    assert coyo("--version").stdout == f"coyo-tools {__version__}\n"


# --- what goes where -----------------------------------------------------------------------------


def run_json(*arguments: str | Path) -> Any:
    """Run a command and read its stdout, all of it, as JSON."""
    ran = coyo(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_json_of_filter(pool: Path, tmp_path: Path) -> None:
    shown = run_json("filter", pool, "width >= 300 AND id < 9", "-o", tmp_path / "out")
    assert (shown["rows_in"], shown["rows_out"], shown["beyond_where"]) == (10, 6, 0)
    assert shown["output"] == str(tmp_path / "out")
    assert shown["bites"][0] == {
        "rule": "width >= 300", "reason": "", "recipe": "predicate", "alone": 3, "in_order": 3,
        "only": 3, "left": 7, "null": 1, "nan": 0, "notes": [],
    }  # fmt: skip


def test_json_of_explain_is_what_filter_says(pool: Path, tmp_path: Path) -> None:
    asked = (pool, "width >= 300", "--where", "id < 9", "--top", "width=0.5")
    told = run_json("explain", *asked)
    done = run_json("filter", *asked, "-o", tmp_path / "out")
    for name in ("rows_in", "rows_out", "bites", "cuts", "matches"):
        assert told[name] == done[name]
    assert told["cuts"] == [
        {"expression": "width", "fraction": 0.5, "over": "pool", "value": 500.0, "rank": 4,
         "scores": 9},
    ]  # fmt: skip
    assert [bite["recipe"] for bite in told["bites"]] == ["predicate", "--where", "--top"]


def test_json_of_verify(pool: Path, tmp_path: Path) -> None:
    coyo("filter", pool, "id < 9", "-o", tmp_path / "out")
    assert run_json("verify", tmp_path / "out") == {
        "rows": 9, "same_ids": True, "same_bytes": True, "problems": [], "remarks": [],
        "replays": True,
    }  # fmt: skip
    part = tmp_path / "out" / "part-00000.parquet"
    pl.read_parquet(part).write_parquet(part, compression="snappy")
    ran = coyo("verify", tmp_path / "out")
    assert ran.returncode == 1
    assert "part-00000.parquet has other bytes" in ran.stderr


def test_json_of_dedupe(pool: Path, tmp_path: Path) -> None:
    shown = run_json("dedupe", pool, "-o", tmp_path / "out", "--keep", "width DESC")
    assert (shown["rows_in"], shown["rows_out"], shown["without_key"]) == (10, 7, 1)
    assert shown["group_sizes"] == {"2": 1, "3": 1}
    assert read_ids(tmp_path / "out") == [1, 4, 5, 6, 7, 8, 9]


def test_json_of_info(pool: Path, tmp_path: Path) -> None:
    shown = run_json("info", pool)
    assert (shown["files"], shown["rows"], shown["manifest"]) == (1, 10, None)
    by_name = {column["name"]: column for column in shown["columns"]}
    assert by_name["width"] | {"meaning": ""} == {
        "name": "width", "type": "int32", "nulls": 1, "low": 100, "high": 1000, "meaning": "",
        "remark": "10.0% null", "nans": None,
    }  # fmt: skip
    assert by_name["watermark_score"]["remark"] == "all null"
    coyo("filter", pool, "id > 3", "-o", tmp_path / "out")
    assert run_json("info", tmp_path / "out")["manifest"]["sql"].endswith("id > 3")


def test_info_remarks_on_what_is_not_coyos(tmp_path: Path) -> None:
    pl.DataFrame(
        {"id": [1, 2], "clip_similarity_vitb32": [25.0, 31.0], "width": ["a", "b"]}
    ).write_parquet(tmp_path / "pool.parquet")
    columns = {
        c["name"]: c["remark"] for c in run_json("info", tmp_path / "pool.parquet")["columns"]
    }
    assert columns["id"] == ""
    assert columns["clip_similarity_vitb32"] == (
        "COYO has float; up to 31, COYO's is -1 to 1: another scale, or damaged rows"
    )
    assert columns["width"].startswith("is string, COYO has int32")


def test_json_of_recipes_and_the_text_of_one() -> None:
    assert [recipe["name"] for recipe in run_json("recipes")] == [r.name for r in shipped_recipes()]
    shown = coyo("recipes", "show", "coyo-clean")
    path = next(recipe.path for recipe in shipped_recipes() if recipe.name == "coyo-clean")
    assert shown.stdout == path.read_text(encoding="utf-8")
    assert shown.stderr == ""


def test_a_shown_recipe_can_be_changed_and_used(pool: Path, tmp_path: Path) -> None:
    text = coyo("recipes", "show", "laion-high-res").stdout.replace("1024", "100")
    (tmp_path / "mine.sql").write_text(text.replace("height", "width"))
    assert run_json("filter", pool, tmp_path / "mine.sql", "-o", tmp_path / "out")["rows_out"] == 9


def test_json_of_index(captions: Path, tmp_path: Path) -> None:
    shown = run_json(
        "index", captions, "-o", tmp_path / "out", "--image-column", "file", "--text-column",
        "caption", "--processes", "1",
    )  # fmt: skip
    assert (shown["rows_in"], shown["rows_out"]) == (3, 2)
    assert shown["refused"] == [
        {"file": "none.png", "reason": "missing file", "detail": "No such file or directory"}
    ]


def test_json_of_run(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "road.toml").write_text(
        '[inputs.pool]\n[[stages]]\nname = "big"\ndoes = "filter"\nsource = "pool"\n'
        'recipe = "width > 300"\n'
    )
    arguments = ("run", tmp_path / "road.toml", "-o", tmp_path / "out", "--input", f"pool={pool}")
    (shown,) = run_json(*arguments)
    assert (shown["name"], shown["skipped"]) == ("big", False)
    assert shown["manifest"]["rows_out"] == 6
    again = coyo(*arguments)
    assert "finished before" in again.stderr
    assert "report.html" in again.stderr
    assert "big" in again.stdout


def test_tables_go_to_stdout_and_talk_to_stderr(pool: Path, tmp_path: Path) -> None:
    ran = coyo("filter", pool, "width >= 300 AND id < 9", "-o", tmp_path / "out")
    assert ran.stdout.splitlines()[0].split() == [
        "rule", "alone", "in", "order", "only", "it", "left", "null", "NaN",
    ]  # fmt: skip
    assert ran.stdout.splitlines()[1].split() == (
        ["width", ">=", "300", "3", "3", "3", "7", "70.0%", "1", "0"]
    )
    assert len(ran.stdout.splitlines()) == 3
    assert "note: where a rule is NULL or a score NaN, it can't say" in ran.stderr
    assert f"10 rows in, 6 out (60.0%) -> {tmp_path / 'out'}" in ran.stderr


def test_markup_and_control_characters_of_strangers_are_shown_as_text(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    frame = pl.DataFrame({"file": ["0.png", "[red]x[/red]\x1b[31m.png"], "text": ["a", "b"]})
    frame.write_parquet(tmp_path / "captions.parquet")
    ran = coyo(
        "index", tmp_path / "captions.parquet", "-o", tmp_path / "out", "--image-column", "file",
        "--text-column", "text", "--processes", "1",
    )  # fmt: skip
    assert ran.returncode == 0
    assert "[red]x[/red]" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{COYO}' recipes show coyo-clean | head -1; true"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(ran.stdout.splitlines()) == 1
    assert "Traceback" not in ran.stderr


# --- bad input -----------------------------------------------------------------------------------

BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "missing file": (("filter", "none.parquet", "id > 1", "-o", "out"), "none.parquet does not"),
    "not parquet": (("filter", "text.parquet", "id > 1", "-o", "out"), "not a readable parquet"),
    "truncated": (("dedupe", "cut.parquet", "-o", "out"), "not a readable parquet"),
    "no match": (("info", "nothing*.parquet"), "No file matches nothing*.parquet"),
    "a mistyped column": (
        ("filter", "pool.parquet", "widht > 1", "-o", "out"), "Did you mean `width`?",
    ),
    "a mistyped column in by": (
        ("dedupe", "pool.parquet", "--by", "image_hash", "-o", "out"),
        "Did you mean `image_phash`?",
    ),
    "a mistyped column in keep": (
        ("dedupe", "pool.parquet", "--keep", "widht", "-o", "out"), "Did you mean `width`?",
    ),
    "a column of another type": (
        ("filter", "pool.parquet", "text > 3", "-o", "out"), "Cannot compare values",
    ),
    "a SQL error": (("filter", "pool.parquet", "id >", "-o", "out"), "The SQL does not parse"),
    "not a SELECT": (
        ("filter", "pool.parquet", "DROP TABLE pool", "-o", "out"), "not DROP",
    ),
    "another file": (
        ("filter", "pool.parquet", "SELECT * FROM 'pool.parquet'", "-o", "out"), "only the table",
    ),
    "an unknown recipe": (
        ("filter", "pool.parquet", "coyo-claen", "-o", "out"), "Did you mean coyo-clean?",
    ),
    "an empty result": (
        ("filter", "pool.parquet", "width > 9999", "-o", "out"), "width runs from 100 to 1000",
    ),
    "null scores": (
        ("filter", "pool.parquet", "watermark_score < 0.5", "-o", "out"), "NULL on all of them",
    ),
    "a directory that holds a result": (
        ("filter", "pool.parquet", "id > 1", "-o", "done"), "done already exists",
    ),
    "a stranger's directory": (
        ("dedupe", "pool.parquet", "-o", "folder", "--overwrite"), "was not made by coyo",
    ),
    "duplicate ids": (("dedupe", "twice.parquet", "-o", "out"), "Ids are not unique in"),
    "no ids": (("filter", "noid.parquet", "width > 1", "-o", "out"), "has no column `id`"),
    "no rows": (("info", "empty.parquet"), "has columns but no rows"),
    "no urls": (("download", "pool.parquet", "-o", "out"), "has no column `url`"),
    "missing captions": (
        ("index", "none.csv", "-o", "out", "--image-column", "f", "--text-column", "t"),
        "none.csv does not exist",
    ),
    "a mistyped captions column": (
        ("index", "captions.csv", "-o", "out", "--image-column", "fil", "--text-column", "caption"),
        "Did you mean `file`?",
    ),
    "no pictures": (
        ("index", "captions.csv", "-o", "out", "--image-column", "file", "--text-column",
         "caption", "--image-root", "folder", "--processes", "1"),
        "None of the 3 pictures",
    ),
    "no shards": (("train", "folder", "-o", "out", "--samples", "8"), "holds no .tar files"),
    "a subset for shards": (("train", "done", "-o", "out", "--samples", "8"), "not shards"),
    "no run": (("evaluate", "none", "--data", "folder"), "holds no .tar files"),
    "a missing pipeline": (("run", "openstx", "-o", "out"), "Did you mean openstax?"),
    "a missing study": (("study", "quikstart", "-o", "out"), "Did you mean quickstart?"),
    "a broken pipeline": (("run", "broken.toml", "-o", "out"), "is not TOML"),
    "a malformed input": (("run", "openstax", "-o", "out", "--input", "x"), "is not NAME=PATH"),
    "an unknown recipe to show": (("recipes", "show", "sd_v1"), "Did you mean sd-v1?"),
    "an unwritable place": (
        ("filter", "pool.parquet", "id > 1", "-o", "pool.parquet/out"), "Can't write to",
    ),
    "recipes that can't go together": (
        ("filter", "pool.parquet", "id > 1", "SELECT * FROM pool LIMIT 3", "-o", "out"),
        "can't be combined",
    ),
    "nothing to select by": (("filter", "pool.parquet", "-o", "out"), "There is no recipe"),
    "a fraction in percent": (
        ("filter", "pool.parquet", "--top", "width=30", "-o", "out"), "Percent? Write 0.3.",
    ),
    "a match without a pool": (
        ("explain", "pool.parquet", "--match", "width > 3"), "--match and --match-from go together",
    ),
    "no such sample": (
        ("filter", "pool.parquet", "--sample", "half", "-o", "out"), "neither a number of rows nor",
    ),
    "a folder to verify": (("verify", "folder"), "it has no manifest.json"),
    "a memory limit": (
        ("filter", "pool.parquet", "id > 1", "-o", "out", "--memory", "plenty"), "2GB or 500MB",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of things to trip over."""
    folder = tmp_path_factory.mktemp("bad")
    good = write_pool(
        folder / "pool.parquet",
        id=range(10),
        text=["a"] * 10,
        width=[100 * (i + 1) for i in range(10)],
        image_phash=["a"] * 10,
        watermark_score=[None] * 10,
    )
    (folder / "text.parquet").write_text("id,width\n1,2\n")
    (folder / "cut.parquet").write_bytes(good.read_bytes()[:-20])
    write_pool(folder / "twice.parquet", id=[1, 1], image_phash=["a", "b"])
    write_pool(folder / "noid.parquet", width=[1])
    write_pool(folder / "empty.parquet", id=[])
    (folder / "captions.csv").write_text("file,caption\n0.png,a\n1.png,b\n2.png,c\n")
    (folder / "broken.toml").write_text("[[stages]\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.txt").write_text("precious")
    assert coyo("filter", good, "id > 1", "-o", folder / "done").returncode == 0
    return folder


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_gives_one_message_and_exit_code_2_and_leaves_nothing(
    bad: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in bad.rglob("*")}
    ran = coyo(*arguments, cwd=bad)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert said in ran.stderr
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error:") == 1
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) <= 3
    assert {path: path.stat().st_mtime_ns for path in bad.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("filter", "pool.parquet", "id > 1"), "Missing option '--output' / '-o'"),
        (("filtre", "pool.parquet"), "No such command 'filtre'"),
        (("filter", "pool.parquet", "id > 1", "-o", "out", "--thraeds", "1"), "No such option"),
        (
            ("filter", "pool.parquet", "id > 1", "-o", "out", "--threads", "0"),
            "greater than or equal to 1",
        ),
        (("train", "shards", "-o", "run", "--samples", "many"), "valid integer"),
    ],
)
def test_a_mistyped_command_is_explained(bad: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = coyo(*arguments, cwd=bad)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    ran = coyo("info", tmp_path / "none.parquet", COYO_DEBUG="1")
    assert ran.returncode == 2
    assert "Traceback" in ran.stderr
    assert "in _find_files" in ran.stderr
    assert ran.stderr.rstrip().splitlines()[-2].startswith("error: ")


# --- interrupted ---------------------------------------------------------------------------------


def interrupted(process: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C; return what is said."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    return said


@needs_proc
def test_ctrl_c_in_an_index_leaves_nothing(captions: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hanging.png")
    (tmp_path / "captions.csv").write_text("file,caption\nhanging.png,x\n")
    before = names_in(tmp_path)
    process = subprocess.Popen(
        [COYO, "index", str(tmp_path / "captions.csv"), "-o", str(tmp_path / "out"),
         "--image-column", "file", "--text-column", "caption", "--processes", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    # Opening the pipe for writing waits for a worker that reads it.
    writer = os.open(tmp_path / "hanging.png", os.O_WRONLY)
    workers = descendants(process.pid)
    assert workers
    assert interrupted(process).strip() == "Interrupted; nothing half-written was left behind."
    os.close(writer)
    deadline = time.monotonic() + 10
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(workers) == set()
    assert names_in(tmp_path) == before


def test_ctrl_c_in_a_query_leaves_nothing(pool: Path, tmp_path: Path) -> None:
    endless = (
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 1000000000) "
        "SELECT * FROM pool WHERE id IN (SELECT n FROM t)"
    )
    process = subprocess.Popen(
        [COYO, "filter", str(pool), endless, "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out.partial/.spill-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # let it get into the query
    assert interrupted(process).strip() == "Interrupted; nothing half-written was left behind."
    assert names_in(tmp_path) == {"pool.parquet"}
