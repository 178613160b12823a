"""The shipped studies: found by name, planned, every arm chooses rows; slowly, run."""

import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from coyo_tools.bundled import bundled
from coyo_tools.cli import app
from coyo_tools.errors import PipelineError
from coyo_tools.pipeline import find_pipeline, load_pipeline
from coyo_tools.stage_kinds import Stage
from coyo_tools.study.plan import plan_study, time_study
from coyo_tools.study.run import run_study
from coyo_tools.study.spec import load_study
from coyo_tools.toyweb import LinkFaults, ToyWebConfig, make_toy_web, serve
from coyo_tools.walk import Walk

STUDIES = ("clip-threshold", "famous-recipes")
SMALL = ToyWebConfig(pictures=160, heldout=40, links=LinkFaults(timeouts=0, slow=0.0))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    make_toy_web(folder, SMALL)
    return folder


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_is_found_and_planned_by_its_name(name: str) -> None:
    study = load_study(find_pipeline(name))
    plan = plan_study(study)
    models = 1 + 2 * len(study.arms)
    assert plan.trainings == models * len(study.seeds) * len(study.budgets)
    text = find_pipeline(name).read_text(encoding="utf-8")
    said = re.search(r"measured: (\d+) trainings, (\d+) M samples", text)
    assert said is not None
    assert (plan.trainings, plan.samples) == (int(said[1]), int(said[2]) * 1_000_000)
    assert len(text.splitlines()) < 80
    assert set(study.inputs) == {"pool", "captions"}


@pytest.mark.parametrize("name", ["quickstart", "openstax-noise"])
def test_the_hours_of_a_small_study_are_told(name: str) -> None:
    timed = time_study(load_study(find_pipeline(name)))
    assert timed.unknown == ""
    assert timed.samples_per_second is not None and timed.samples_per_second > 1


def test_they_compare_what_they_say() -> None:
    cuts, famous = (load_study(find_pipeline(name)) for name in STUDIES)
    assert (len(cuts.arms), len(cuts.budgets), len(cuts.seeds)) == (5, 3, 3)
    assert [arm.name for arm in famous.arms] == ["laion", "datacomp", "align", "ours"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_chooses_some_rows_and_not_all(name: str, web: Path, tmp_path: Path) -> None:
    study = load_study(find_pipeline(name))
    walk = Walk({"pool": str(web / "pool")})
    every = pl.scan_parquet(web / "pool" / "*.parquet").select(pl.len()).collect().item()
    counts = []
    for arm in study.arms:
        select = {"source": "pool", **arm.select}
        done = walk.do(Stage(arm.name, "filter", select), tmp_path, "")
        if arm.dedupe is not None:
            unique = {"source": arm.name, **arm.dedupe}
            before = done.manifest.rows_out
            done = walk.do(Stage(f"{arm.name}-unique", "dedupe", unique), tmp_path, "")
            assert done.manifest.rows_out < before  # the toy web has copies
        counts.append(done.manifest.rows_out)
    assert all(0 < count < every for count in counts)
    if name == "clip-threshold":
        assert counts == sorted(counts, reverse=True)
        assert len(set(counts)) == 5


def test_run_and_study_send_each_other_their_files(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"Run it with: coyo study .*clip-threshold.toml -o"):
        load_pipeline(find_pipeline("clip-threshold"))
    with pytest.raises(PipelineError, match=r"Run it with: coyo run .*openstax.toml -o DIR"):
        load_study(find_pipeline("openstax"))
    run = CliRunner().invoke(app, ["run", "clip-threshold", "-o", str(tmp_path / "out")])
    assert "is a study, not a plain pipeline" in str(run.exception)
    study = CliRunner().invoke(app, ["study", "openstax", "--plan"])
    assert "is a plain pipeline, not a study" in str(study.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_runs_from_metadata_to_verdicts(
    name: str, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shipped but for the model and how long it is trained; the toy web stands for the web."""
    text = (bundled("pipelines") / f"{name}.toml").read_text(encoding="utf-8")
    text, budgets = re.subn(r"(?m)^budgets = .*$", "budgets = [16, 32]", text)
    text, models = re.subn(r"(?m)^model = .*$", 'model = "compact"\nimage_size = 32', text)
    text, batches = re.subn(r"(?m)^batch_size = .*$", "batch_size = 8\nthreads = 1", text)
    assert (budgets, models, batches) == (1, 1, 1)
    (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    with serve(web) as server:
        monkeypatch.setenv("http_proxy", server.proxy_url)
        monkeypatch.setenv("no_proxy", "")
        captions = str(web / "heldout" / "captions.csv")
        given = {"pool": str(web / "pool"), "captions": captions}
        done = run_study(tmp_path / f"{name}.toml", tmp_path / "out", given)
    verdicts = done.table.filter(pl.col("kind") == "verdict")
    assert verdicts["arm"].to_list() == [arm.name for arm in done.study.arms]
    assert verdicts["budget"].unique().to_list() == [32]
    assert (tmp_path / "out" / "report.html").is_file()
