"""Captions from elsewhere in place of the tars' own: whose they become, and who is left without."""

from pathlib import Path

import polars as pl
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.data import load_pairs, read_texts
from coyo_align.input.images import image_processor, preprocess_of

from align.making import encoded, sample, square, write_tar
from coyo_tools.errors import TrainingError
from coyo_tools.training import TrainSettings, plan_training, train_model

SMALL = preprocess_of(image_processor(32))
RED = encoded(square("red", "left", "white"))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Six samples: the fourth has no picture, the fifth no caption of its own, the sixth no id."""
    made = [sample(number, RED, f"own {number}") for number in (30, 10, 20)]
    made += [sample(40, None, "own 40"), sample(50, RED, None)]
    last = sample(60, RED, "own 60")
    made.append({name.replace("60.", "none."): content for name, content in last.items()})
    made[-1]["none.json"] = b"{}"
    return write_tar(tmp_path / "tars" / "0.tar", made).parent


def texts(place: Path, rows: dict[int, str | None]) -> Path:
    table = {"id": list(rows), "text": list(rows.values())}
    pl.DataFrame(table, schema={"id": pl.Int64, "text": pl.String}).write_parquet(place)
    return place


def test_they_are_joined_by_id_and_what_has_none_is_counted(tars: Path, tmp_path: Path) -> None:
    given = texts(
        tmp_path / "said.parquet",
        {20: "new\n twenty ", 10: "", 30: None, 40: "new 40", 50: "new 50", 70: "nobody's"},
    )
    pairs = load_pairs(tars, SMALL, captions=given)
    assert dict(zip(pairs.ids.tolist(), pairs.captions, strict=True)) == {
        20: "new twenty",
        50: "new 50",
    }
    assert pairs.skipped == {"no caption": 3, "no picture": 1}


def test_a_run_learns_from_them_and_says_whose_they_were(tars: Path, tmp_path: Path) -> None:
    given = texts(tmp_path / "said.parquet", {n: f"blue {n}" for n in (10, 20, 30, 50)})
    settings = TrainSettings(samples=4, batch_size=4, image_size=32, threads=1, workers=1)
    assert plan_training(tars, settings, captions=given).pairs == 4
    train_model(tars, tmp_path / "run", settings, captions=given)
    words = (tmp_path / "run" / "tokenizer.json").read_text(encoding="utf-8")
    assert '"blue"' in words
    assert '"own"' not in words
    manifest = pl.read_json(tmp_path / "run" / "manifest.json")
    named = [one["role"] for one in manifest["inputs"].item()]
    assert named == ["shards", "captions"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": [1], "said": ["a"]}, "no column text of texts to take captions from"),
        ({"id": [1], "text": [3]}, "no column text of texts"),
        ({"id": ["1"], "text": ["a"]}, "no integer column id to take captions from"),
        ({"id": [1, 2, 1], "text": ["a", "b", "c"]}, "the id 1 twice"),
    ],
)
def test_a_table_that_can_not_be_joined_is_told(
    tmp_path: Path, table: dict[str, list[object]], message: str
) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(AlignError, match=message):
        read_texts(tmp_path / "t.parquet")


def test_labels_have_no_captions(tars: Path, tmp_path: Path) -> None:
    given = texts(tmp_path / "said.parquet", {10: "a"})
    settings = TrainSettings(samples=4, model="vit-tiny", task="labels")
    with pytest.raises(TrainingError, match=r"captions is .*says nothing about labels"):
        plan_training(tars, settings, captions=given)
