"""The whole road on a small toy web: every stage real, every loss accounted for."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from coyo_tools.bundled import bundled
from coyo_tools.demo import TOY_WEB, run_demo
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import load_pipeline
from coyo_tools.progress import no_progress
from coyo_tools.toyweb import LinkFaults, ToyWebConfig
from coyo_tools.walk import StageOutcome

SMALL = ToyWebConfig(pictures=160, heldout=40, links=LinkFaults(timeouts=0, slow=0.0))


def walk(output: Path, pipeline: Path) -> list[StageOutcome]:
    return run_demo(
        output,
        SMALL,
        pipeline=pipeline,
        watch=lambda _: nullcontext(no_progress),
        tell=lambda _: None,
    )


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walk the shipped quickstart, with a budget of a few steps."""
    folder = tmp_path_factory.mktemp("road")
    shipped = (bundled("pipelines") / "quickstart.toml").read_text(encoding="utf-8")
    small = shipped.replace("samples = 60_000", "samples = 96\nbatch_size = 32")
    assert small.count("samples = 96") == 2
    (folder / "small.toml").write_text(small, encoding="utf-8")
    walk(folder / "demo", folder / "small.toml")
    return folder


def test_every_stage_of_the_quickstart_leaves_a_whole_artifact(road: Path) -> None:
    stages = load_pipeline(road / "small.toml").stages
    assert [stage.does for stage in stages] == [
        "index", "filter", "dedupe", "download", "train", "train", "evaluate", "evaluate",
    ]  # fmt: skip
    for stage in stages:
        manifest = read_manifest(road / "demo" / stage.name)
        assert manifest.rows_in - manifest.rows_out == sum(manifest.lost.values()), stage.name


def test_the_ledger_has_every_id_of_the_pool_once(road: Path) -> None:
    pool = pl.read_parquet(road / "demo" / TOY_WEB / "pool" / "*.parquet")
    ledger = pl.read_parquet(road / "demo" / "shards" / "ledger.parquet")
    assert sorted(ledger["id"]) == sorted(pool["id"])
    assert ledger["outcome"].null_count() == 0


def test_the_ledger_tells_what_the_links_were_made_to_do(road: Path) -> None:
    truth = pl.read_parquet(road / "demo" / TOY_WEB / "truth.parquet")
    ledger = pl.read_parquet(road / "demo" / "shards" / "ledger.parquet")
    both = truth.join(ledger, on="id")
    arrived = both.filter(outcome="ok")
    assert arrived["intact"].all()
    assert arrived.height == both.filter("intact").height
    drifted = both.filter(pl.col("outcome").is_in(["drifted", "placeholder"]))
    assert set(drifted["link_fate"]) <= {"replaced", "placeholder"}


def test_the_slice_leaves_out_most_wrong_captions_and_keeps_most_right_ones(road: Path) -> None:
    truth = pl.read_parquet(road / "demo" / TOY_WEB / "truth.parquet")
    chosen = pl.read_parquet(road / "demo" / "clean" / "part-*.parquet", columns=["id"])
    kept = truth.join(chosen, on="id", how="semi")
    wrong = pl.col("caption_fault") != "none"
    assert kept.filter(wrong).height < 0.1 * truth.filter(wrong).height
    clean = ~wrong & ~pl.col("watermarked") & ~pl.col("nsfw")
    assert kept.filter(clean).height > 0.8 * truth.filter(clean).height


def test_the_slices_arm_is_trained_on_the_slice_alone(road: Path) -> None:
    ledger = pl.read_parquet(road / "demo" / "shards" / "ledger.parquet")
    chosen = pl.read_parquet(road / "demo" / "slice" / "part-*.parquet", columns=["id"])
    arrived = ledger.filter(outcome="ok").join(chosen, on="id", how="semi").height
    manifest = read_manifest(road / "demo" / "run-slice")
    assert manifest.rows_out == arrived
    assert manifest.lost["not in the shards"] == chosen.height - arrived
    everything = read_manifest(road / "demo" / "run-everything")
    assert everything.details["samples_seen"] == manifest.details["samples_seen"] == 96


def test_the_report_shows_the_figures_of_the_scores(road: Path) -> None:
    page = (road / "demo" / "report.html").read_text(encoding="utf-8")
    for name in ("scores-everything", "scores-slice"):
        scores = json.loads((road / "demo" / name / "scores.json").read_text(encoding="utf-8"))
        for way in ("image_to_text", "text_to_image"):
            for recall in scores[way]["recall"].values():
                assert f"{recall:.1%}" in page
    assert "<script" not in page


def test_a_second_walk_does_nothing_again(road: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (road / "demo").glob("*/manifest.json")}
    outcomes = walk(road / "demo", road / "small.toml")
    assert all(outcome.skipped for outcome in outcomes)
    after = {path: path.stat().st_mtime_ns for path in (road / "demo").glob("*/manifest.json")}
    assert after == before


def test_another_seed_needs_redo(road: Path) -> None:
    from coyo_tools.errors import OutputError

    with pytest.raises(OutputError, match="already exists"):
        run_demo(
            road / "demo",
            dataclasses.replace(SMALL, seed=1),
            pipeline=road / "small.toml",
            watch=lambda _: nullcontext(no_progress),
            tell=lambda _: None,
        )
