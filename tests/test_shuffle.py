"""Shuffled texts: how many, whose, what is left out, and what the same seed gives."""

from pathlib import Path

import polars as pl
import pytest

from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, RecipeError
from coyo_tools.pipeline import run_pipeline
from coyo_tools.shuffle import shuffle_texts
from coyo_tools.verify import verify_subset


def pool(place: Path, texts: list[str | None]) -> Path:
    ids = [7 * number for number in range(len(texts))][::-1]
    scores = [number / 100 for number in range(len(texts))]
    table = {"id": ids, "text": texts, "clip_similarity_vitl14": scores, "watermark_score": scores}
    pl.DataFrame(table).with_columns(text_length=pl.col("text").str.len_chars()).write_parquet(
        place
    )
    return place


def rows(output: Path) -> pl.DataFrame:
    return pl.read_parquet(output / "part-*.parquet")


def test_that_share_of_the_texts_change_places_among_each_other(tmp_path: Path) -> None:
    source = pool(tmp_path / "p.parquet", [f"text {n}" for n in range(200)] + [None] * 10)
    result = shuffle_texts(source, tmp_path / "out", share=0.25, seed=3)
    before, after = pl.read_parquet(source).sort("id"), rows(tmp_path / "out")
    assert after["id"].to_list() == before["id"].to_list()
    other = before["text"].ne_missing(after["text"])
    assert (result.rows, result.shuffled, other.sum()) == (210, 50, 50)
    assert other.to_list() == after["shuffled"].to_list()
    assert sorted(before.filter(other)["text"]) == sorted(after.filter(other)["text"])
    assert after["text"].null_count() == 10


def test_what_was_measured_of_texts_is_left_out(tmp_path: Path) -> None:
    source = pool(tmp_path / "p.parquet", [f"text {n}" for n in range(9)])
    result = shuffle_texts(source, tmp_path / "out", share=1.0)
    assert result.left_out == ("text_length", "clip_similarity_vitl14")
    assert rows(tmp_path / "out").columns == ["id", "text", "watermark_score", "shuffled"]


def test_a_row_that_gets_the_same_words_is_not_counted(tmp_path: Path) -> None:
    source = pool(tmp_path / "p.parquet", ["a"] * 50 + ["b"] * 50)
    result = shuffle_texts(source, tmp_path / "out", share=1.0)
    before, after = pl.read_parquet(source).sort("id"), rows(tmp_path / "out")
    changed = (before["text"] != after["text"]).to_list()
    assert changed == after["shuffled"].to_list()
    assert 20 < sum(changed) == result.shuffled < 80
    assert sorted(before["text"]) == sorted(after["text"])


def test_the_seed_decides_and_verify_replays_it(tmp_path: Path) -> None:
    source = pool(tmp_path / "p.parquet", [f"text {n}" for n in range(100)])
    for name, seed, threads in (("one", 1, 1), ("same", 1, 2), ("other", 2, 1)):
        shuffle_texts(source, tmp_path / name, share=0.5, seed=seed, threads=threads)
    part = {n: (tmp_path / n / "part-00000.parquet").read_bytes() for n in ("one", "same", "other")}
    assert part["one"] == part["same"]
    assert not rows(tmp_path / "one").equals(rows(tmp_path / "other"))
    assert verify_subset(tmp_path / "one").replays


def test_a_pipeline_shuffles_and_checks_the_share_before_it_runs(tmp_path: Path) -> None:
    source = pool(tmp_path / "p.parquet", [f"text {n}" for n in range(20)])
    stage = 'name = "noisy"\ndoes = "shuffle"\nsource = "pool"\nshare = 0.4\n'
    text = "[inputs.pool]\n[[stages]]\n" + stage
    (tmp_path / "ok.toml").write_text(text)
    [done] = run_pipeline(tmp_path / "ok.toml", tmp_path / "out", {"pool": str(source)})
    assert done.manifest.details["shuffled"] == 8
    (tmp_path / "bad.toml").write_text(text.replace("0.4", "1.5"))
    with pytest.raises(RecipeError, match=r"1\.5 shuffles nothing"):
        run_pipeline(tmp_path / "bad.toml", tmp_path / "bad", {"pool": str(source)})
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"id": [1, 2]}, ColumnError, "no column text"),
        ({"id": [1, 2], "text": ["a", "b"], "shuffled": [0, 1]}, ColumnError, "already"),
        ({"id": [1, 2], "text": ["a", "a"]}, EmptyResultError, "got another's text"),
        ({"id": [1, 1], "text": ["a", "b"]}, CoyoError, "not unique"),
    ],
)
def test_what_can_not_be_shuffled_is_told(
    tmp_path: Path, table: dict[str, list[object]], error: type[CoyoError], message: str
) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(error, match=message):
        shuffle_texts(tmp_path / "p.parquet", tmp_path / "out", share=1.0)
    assert not (tmp_path / "out").exists()
