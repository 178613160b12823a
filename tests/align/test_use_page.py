"""Every block of docs/use.md runs as it stands, and says of plain transformers what is true.

Blocks run in the page's order, in a folder that has what the page names: a run, shards, a pool, a
photo. Each Python block starts with nothing, as for somebody who copies it alone. Only budgets
of training are cut down, by ``SMALLER``.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from align.conftest import Trained
from align.labelling import write_labelled
from align.making import COLOURS, encoded, square
from align.making_clip import tiny_clip
from coyo_tools.cli import app
from coyo_tools.errors import TrainingError
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import load_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "use.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLER = (r"--samples \d+", "--samples 32 --batch-size 8")
IDS = range(100, 136)
"""Of the pictures in the shards."""
WITHOUT_PICTURE = (3, 5)


@dataclass
class Walked:
    """What running a page left: the figures of its Python blocks, and the commands it ran."""

    figures: dict[str, Any] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)


def walk(page: str) -> Walked:
    """Run every ``python`` block and every ``coyo`` line of the ``sh`` blocks, here, in order.

    Raises what a block or a command raises, and AssertionError for any other exit code than 0.
    """
    walked = Walked()
    for kind, text in BLOCK.findall(page):
        if kind == "python":
            names: dict[str, Any] = {"__name__": "page"}
            code = compile(text, f"<{PAGE.name}: {text.splitlines()[0]}…>", "exec")
            exec(code, names)  # noqa: S102 - our own page
            walked.figures |= {n: v for n, v in names.items() if not n.startswith("_")}
        elif kind == "sh":
            for line in re.sub(r"\\\n", " ", text).splitlines():
                if line.startswith("coyo "):
                    words = shlex.split(re.sub(*SMALLER, line), comments=True)
                    walked.commands.append(words)
                    walked.said[shlex.join(words)] = command(words)
    return walked


def command(words: list[str]) -> str:
    result = CliRunner().invoke(app, words[1:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
    return result.stdout


def furnish(folder: Path, trained: Trained) -> None:
    """Put there what the page takes for given."""
    shutil.copytree(trained.run, folder / "run")
    shutil.copytree(trained.shards, folder / "shards")
    (folder / "photos").mkdir()
    for colour in COLOURS:
        photo = encoded(square(colour, "left", "grey"), quality=95)
        (folder / "photos" / f"{colour}.jpg").write_bytes(photo)
    shutil.copy(folder / "photos" / "red.jpg", folder / "photo.jpg")
    (folder / "breeds.txt").write_text("poodle\ndachshund\n", encoding="utf-8")
    ids = [WITHOUT_PICTURE[0], *IDS, WITHOUT_PICTURE[1]]
    pool = {
        "id": pa.array(ids, pa.int64()),
        "text": [f"a {list(COLOURS)[number % 3]} square" for number in ids],
        "clip_similarity_vitl14": pa.array([number % 7 / 7 for number in ids], pa.float32()),
    }
    (folder / "pool").mkdir()
    pq.write_table(pa.table(pool), folder / "pool" / "part-00000.parquet")
    tiny_clip(folder / "openai" / "clip-vit-base-patch32")
    for name, first in (("labelled", 20), ("heldout", 30)):
        (folder / name).mkdir()
        write_labelled(folder / name, first=first)


@pytest.fixture(scope="module")
def place(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("page")
    furnish(folder, trained)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def walked(place: Path) -> Walked:
    return walk(PAGE.read_text(encoding="utf-8"))


def test_every_command_of_the_page_ran(walked: Walked) -> None:
    ran = [words[1] for words in walked.commands]
    assert {"classify", "score", "embed", "search", "dedupe", "train", "evaluate"} <= set(ran)
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(ran) == sum(line.startswith("coyo ") for line in lines)
    assert all(walked.said[shlex.join(words)] for words in walked.commands if words[1] != "filter")


@pytest.mark.parametrize(
    ("plain", "ours"),
    [
        ("plain_probabilities", "probabilities"),
        ("plain_cosines", "cosines"),
        ("plain_texts", "texts"),
        ("plain_images", "images"),
    ],
)
def test_what_stands_beside_plain_transformers_is_equal(
    walked: Walked, plain: str, ours: str
) -> None:
    wanted, got = (np.asarray(walked.figures[name]) for name in (plain, ours))
    assert wanted.shape == got.shape
    assert wanted.size
    assert np.isfinite(wanted).all()
    assert np.abs(wanted - got).max() < 1e-4


def test_scores_are_in_the_pools_order_with_null_where_no_picture_is(
    walked: Walked, place: Path
) -> None:
    pool = pl.read_parquet(place / "pool" / "*.parquet")
    for name in ("scored", "scored-2"):
        scored = pl.read_parquet(place / name / "part-*.parquet")
        assert scored["id"].to_list() == pool["id"].to_list()
        without = scored.filter(pl.col("align_similarity").is_null())["id"].to_list()
        assert without == list(WITHOUT_PICTURE)
        about = read_manifest(place / name).details["scores"]["align_similarity"]
        assert about["null"] == {"not in the shards": len(WITHOUT_PICTURE)}
        assert re.fullmatch(r"[0-9a-f]{16}", about["fingerprint"])


def test_the_stages_of_the_page_fit_into_one_pipeline(tmp_path: Path) -> None:
    stages = [text for kind, text in BLOCK.findall(PAGE.read_text("utf-8")) if kind == "toml"]
    inputs = "".join(f"[inputs.{name}]\n" for name in ("pool", "shards", "run", "emb"))
    (tmp_path / "road.toml").write_text("\n".join([inputs, *stages]), encoding="utf-8")
    pipeline = load_pipeline(tmp_path / "road.toml")
    assert [stage.does for stage in pipeline.stages] == ["score", "dedupe"]


@pytest.mark.parametrize(
    ("block", "error", "said"),
    [
        ("```python\nassert 1 + 1 == 3, 'so'\n```\n", AssertionError, "so"),
        ("```python\nimages = numpy.zeros(1)\n```\n", NameError, "numpy"),
        (
            "```sh\ncoyo classify run gone.jpg --labels a,b\n```\n",
            TrainingError,
            "gone.jpg is not there",
        ),
        ("```sh\ncoyo classify run photo.jpg --unheard-of\n```\n", AssertionError, "unheard-of"),
    ],
)
def test_a_block_that_fails_fails_the_walk(
    place: Path, block: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        walk(block)
