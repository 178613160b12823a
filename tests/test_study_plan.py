"""What a study is said to cost and to find, before it runs."""

import json
from pathlib import Path

import polars as pl
import pytest
from align.making import squares, write_tar
from test_study import STUDY
from typer.testing import CliRunner, Result

from coyo_tools.cli import app
from coyo_tools.errors import MissingExtraError, SourceError
from coyo_tools.study import plan as planning
from coyo_tools.study.plan import Timed, parts_of_results, plan_study, shards_of, time_study
from coyo_tools.study.results import CONTROL, SCHEMA
from coyo_tools.study.spec import EVERYTHING, load_study
from coyo_tools.study.statistics import Parts

TWO_BUDGETS = STUDY.replace("budgets = [16]", "budgets = [16, 7_200]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(TWO_BUDGETS)
    return file


def coyo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_hours_are_samples_by_the_pace(path: Path) -> None:
    plan = plan_study(load_study(path), timed=Timed("some GPU", samples_per_second=20.0))
    small, large = plan.budgets
    assert (small.trainings, small.samples, small.hours) == (10, 160, 160 / 72_000)
    assert (large.trainings, large.samples, large.hours) == (10, 72_000, 1.0)
    assert plan.hours == pytest.approx(1 + 160 / 72_000)
    assert (plan.trainings, plan.samples) == (20, 72_160)
    assert plan_study(load_study(path)).hours is None


def test_the_pace_is_measured_here_with_the_captions_that_are_there(
    path: Path, tmp_path: Path
) -> None:
    study = load_study(path)
    usual = time_study(study)
    assert (usual.device, usual.batch, usual.unknown) == ("cpu", 8, "")
    assert usual.text_length == 18
    assert usual.samples_per_second is not None
    assert 5 < usual.samples_per_second < 50_000
    write_tar(tmp_path / "shards" / "0.tar", squares())
    shards = shards_of(study, {"shards": str(tmp_path / "shards")}, None)
    assert shards == tmp_path / "shards"
    own = time_study(study, shards)
    assert own.text_length is not None
    assert 9 < own.text_length < 18  # "a red square of 20 on the left, white ground"


def test_shards_are_found_where_they_are_or_were_made(path: Path, tmp_path: Path) -> None:
    made = TWO_BUDGETS.replace('shards = "shards"', 'shards = "figures/shards"').replace(
        "[study]\n",
        '[[stages]]\nname = "figures"\ndoes = "index"\ncaptions = "pool"\nimage_column = "a"\n'
        'text_column = "b"\n\n[study]\n',
    )
    path.write_text(made)
    study = load_study(path)
    assert shards_of(study, {}, tmp_path / "out") is None
    write_tar(tmp_path / "out" / "figures" / "shards" / "0.tar", squares())
    assert shards_of(study, {}, tmp_path / "out") == tmp_path / "out" / "figures" / "shards"
    assert shards_of(study, {}, None) is None


def test_without_the_training_extra_hours_are_unknown_and_it_says_how_to_get_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtraError("coyo study", "train", "torch")

    monkeypatch.setattr(planning, "time_training", missing)
    shown = coyo("study", path, "--plan")
    assert shown.exit_code == 0
    assert "detectable difference" in shown.output
    assert "hours are unknown: `coyo study` needs torch, which is not installed." in shown.output
    assert 'pip install "coyo-tools[train]"' in shown.output
    told = json.loads(coyo("study", path, "--plan", "--json").stdout)
    assert told["hours"] is told["timed"]["device"] is None


def test_a_model_that_cant_be_timed_is_no_failure(path: Path) -> None:
    path.write_text(TWO_BUDGETS.replace("threads = 1\n\n[[eval", 'device = "cuda:77"\n\n[[eval'))
    shown = coyo("study", path, "--plan")
    assert shown.exit_code == 0
    assert "hours are unknown: There is no" in shown.output


def test_the_plan_says_hours_and_on_which_device(path: Path) -> None:
    shown = coyo("study", path, "--plan")
    for words in (
        "hours of this machine's cpu", "  of 7,200 samples each", "timed on cpu: ",
        "Not counted: downloads, decoding pictures and evaluation.", "assumed: ",
    ):  # fmt: skip
        assert words in shown.output
    told = json.loads(coyo("study", path, "--plan", "--json").stdout)
    assert told["hours"] == pytest.approx(72_160 / told["timed"]["samples_per_second"] / 3600)
    assert told["timed"]["device"] == "cpu"


def results(path: Path, rows: list[dict[str, object]]) -> Path:
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(path)
    return path


def test_what_an_earlier_study_found_is_its_arms_median(path: Path, tmp_path: Path) -> None:
    at = {"evaluation": "heldout", "metric": "text_to_image R@5", "budget": 500}
    arms = {"a": (0.01, 0.1, 0.2), "b": (0.03, 0.2, 0.5), "c": (0.02, 0.5, 0.3)}
    rows: list[dict[str, object]] = []
    for arm, values in arms.items():
        rows.append({"kind": "verdict", "arm": arm, "control": CONTROL, "value": 0.1, **at})
        for item, value in zip(("seed", "picture", "rest"), values, strict=True):
            part = {"kind": "part", "arm": arm, "item": item, "value": value, **at}
            rows.append({**part, "control": CONTROL})
            others = {"budget": 16}, {"metric": "text_to_image R@1"}, {"control": EVERYTHING}
            rows += [{"control": CONTROL, **part, **other, "value": 9.0} for other in others]
    early = results(tmp_path / "results.parquet", rows)
    assert parts_of_results(early) == parts_of_results(tmp_path) == Parts(0.02, 0.2, 0.3)
    shown = coyo("study", path, "--plan", "--like", early)
    assert shown.exit_code == 0
    assert f"as in {early}: differences vary by 2.0% between seeds, 20%" in shown.output


def test_a_file_that_is_no_results_is_told(path: Path, tmp_path: Path) -> None:
    pl.DataFrame({"id": [1]}).write_parquet(tmp_path / "pool.parquet")
    words = pl.DataFrame({name: ["a"] for name in SCHEMA})
    words.write_parquet(tmp_path / "words.parquet")
    for name in ("pool.parquet", "study.toml", "absent.parquet", "words.parquet"):
        with pytest.raises(SourceError, match="is not the results of a study"):
            parts_of_results(tmp_path / name)
    with pytest.raises(SourceError, match="does not say what its differences varied by"):
        parts_of_results(results(tmp_path / "empty.parquet", []))
    shown = coyo("study", path, "--plan", "--like", tmp_path / "pool.parquet")
    assert isinstance(shown.exception, SourceError)
