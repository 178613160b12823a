"""docs/use.md does what it says: its Python runs in order, and so do its commands on tiny data.

What a line of the page makes is there for those below it. Where a snippet of plain transformers
leaves ``plain_something``, ours has to leave the same figures as ``something``.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import write_pool
from typer.testing import CliRunner

from align.conftest import Trained
from align.making import encoded, square, squares
from coyo_tools.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "use.md"
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HUB = ("kakaobrain/", "openai/", "google/", "google-bert/", "openai-community/")
# Commands that train are another test's, and so are models that are not made here.
_NOT_HERE = ("coyo train", "coyo evaluate", "vit-run")


@pytest.fixture
def folder(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page takes for granted."""
    shutil.copytree(trained.run, tmp_path / "run")
    shutil.copytree(trained.shards, tmp_path / "shards")
    photo = encoded(square("red", "left", "white"))
    for name in ("photo.jpg", "query.jpg", "photos/one.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo)
    made = [list(sample.items()) for sample in squares()]
    texts = [data.decode() for files in made for name, data in files if name.endswith(".txt")]
    ids = list(range(100, 100 + len(texts)))
    write_pool(tmp_path / "pool" / "part-00000.parquet", id=ids, text=texts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: str) -> list[str]:
    """The lines that start with ``coyo``, those that go on in the next line in one piece."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("coyo ")]


def can_run_here(line: str) -> bool:
    """Whether it needs neither the network nor a model that is not made here."""
    return not any(name in line for name in (*_HUB, *_NOT_HERE))


def test_the_page_runs_from_top_to_bottom(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    ran = 0
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  it is our own page
            ran += 1
            continue
        for line in commands(block):
            words = shlex.split(line, comments=True)[1:]
            result = CliRunner().invoke(app, words if can_run_here(line) else [words[0], "--help"])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
            ran += can_run_here(line)
    assert ran >= 6
    compared = [name for name in names if name.startswith("plain_")]
    assert compared
    for name in compared:
        ours = names[name.removeprefix("plain_")]
        assert np.allclose(names[name], ours, atol=1e-4), name


def test_every_option_on_the_page_exists() -> None:
    from typer.main import get_command

    known = get_command(app).commands  # type: ignore[attr-defined]
    for kind, block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for line in commands(block) if kind == "sh" else []:
            words = shlex.split(line, comments=True)[1:]
            options = {
                name for p in known[words[0]].params for name in (*p.opts, *p.secondary_opts)
            }
            used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert used <= options, line
