"""The whole road on a small toy web: every stage real, every loss accounted for."""

import dataclasses
import json
import re
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from coyo_tools.demo import TOY_WEB, run_demo, through_proxy
from coyo_tools.errors import OutputError
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import find_pipeline, load_pipeline, run_pipeline
from coyo_tools.progress import no_progress
from coyo_tools.study.run import StudyResult
from coyo_tools.toyweb import LinkFaults, ToyWebConfig, serve
from coyo_tools.walk import StageOutcome

SMALL = ToyWebConfig(pictures=160, heldout=40, links=LinkFaults(timeouts=0, slow=0.0))
ROAD = """
title = "Everything or the filtered slice?"

[inputs.pool]
[inputs.captions]

[[stages]]
name = "heldout"
does = "index"
captions = "captions"
image_column = "file"
text_column = "text"

[[stages]]
name = "clean"
does = "filter"
source = "pool"
recipe = "coyo-clean"

[[stages]]
name = "slice"
does = "dedupe"
source = "clean"
radius = 4
keep = "clip_similarity_vitl14 DESC"

[[stages]]
name = "shards"
does = "download"
source = "pool"
samples_per_shard = 500
timeout = 3
backoff = 0.5
attempts = 2

[[stages]]
name = "run-everything"
does = "train"
shards = "shards"
samples = 96
batch_size = 32
threads = 1

[[stages]]
name = "run-slice"
does = "train"
shards = "shards"
subset = "slice"
samples = 96
batch_size = 32
threads = 1

[[stages]]
name = "scores-everything"
does = "evaluate"
run = "run-everything"
data = "heldout/shards"

[[stages]]
name = "scores-slice"
does = "evaluate"
run = "run-slice"
data = "heldout/shards"
"""


def demo(output: Path, study: Path, config: ToyWebConfig = SMALL) -> StudyResult:
    return run_demo(
        output, config, study=study, watch=lambda _: nullcontext(no_progress), tell=lambda _: None
    )


def walk(folder: Path) -> list[StageOutcome]:
    web = folder / "study" / TOY_WEB
    inputs = {"pool": str(web / "pool"), "captions": str(web / "heldout" / "captions.csv")}
    with serve(web) as server, through_proxy(server.proxy_url):
        return run_pipeline(folder / "road.toml", folder / "demo", inputs)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped quickstart on a toy web, with budgets of a few steps."""
    folder = tmp_path_factory.mktemp("road")
    shipped = find_pipeline("quickstart").read_text(encoding="utf-8")
    small = shipped.replace("[1_000, 4_000]", "[96]").replace("seeds = 3", "seeds = 2")
    small = small.replace("batch_size = 64", "batch_size = 32\nthreads = 1")
    assert "[96]" in small and "seeds = 2" in small and "threads = 1" in small
    (folder / "small.toml").write_text(small, encoding="utf-8")
    demo(folder / "study", folder / "small.toml")
    return folder


@pytest.fixture(scope="module")
def road(study: Path) -> Path:
    """A plain pipeline on the same toy web."""
    (study / "road.toml").write_text(ROAD, encoding="utf-8")
    walk(study)
    return study


def test_the_demo_ends_in_a_study_with_a_report(study: Path) -> None:
    for name in ("report.html", "results.parquet", "results.csv", "table.md", "table.tex"):
        assert (study / "study" / name).stat().st_size > 100
    table = pl.read_parquet(study / "study" / "results.parquet")
    verdicts = table.filter(pl.col("kind") == "verdict")
    assert verdicts["arm"].to_list() == ["clip", "luck"]
    assert set(verdicts["budget"]) == {96}


def test_what_was_planted_is_counted_in_every_arm(study: Path) -> None:
    truth = pl.read_parquet(study / "study" / TOY_WEB / "truth.parquet")
    table = pl.read_parquet(study / "study" / "results.parquet").filter(kind="planted")
    told = {(row["arm"], row["item"]): row["value"] for row in table.iter_rows(named=True)}
    counted: dict[tuple[str, str], int] = {}
    for arm, place in (
        ("everything", "everything-but-retrieval"), ("clip", "arm-clip"), ("luck", "arm-luck"),
    ):  # fmt: skip
        chosen = set(pl.read_parquet(study / "study" / place / "part-*.parquet")["id"])
        for row in truth.filter(pl.col("id").is_in(chosen)).iter_rows(named=True):
            for column in ("caption_fault", "watermarked", "nsfw"):
                value = {True: "yes", False: "no"}.get(row[column], row[column])
                key = arm, f"{column}: {value}"
                counted[key] = counted.get(key, 0) + 1
    assert told == counted
    assert told["clip", "caption_fault: swapped"] < told["luck", "caption_fault: swapped"] / 3


def test_all_arms_are_half_of_what_can_be_trained_on(study: Path) -> None:
    table = pl.read_parquet(study / "study" / "results.parquet")
    sizes = dict(table.filter(kind="size", item="rows").select("arm", "value").iter_rows())
    half = sizes.pop("everything") / 2
    assert sizes.keys() == {"clip", "luck"}
    assert all(rows == pytest.approx(half, abs=1) for rows in sizes.values())


def test_a_second_demo_does_nothing_again(study: Path) -> None:
    before = manifests(study / "study")
    result = (study / "study" / "results.parquet").read_bytes()
    demo(study / "study", study / "small.toml")
    assert manifests(study / "study") == before
    assert (study / "study" / "results.parquet").read_bytes() == result


def test_another_seed_needs_redo(study: Path) -> None:
    with pytest.raises(OutputError, match="already exists"):
        demo(study / "study", study / "small.toml", dataclasses.replace(SMALL, seed=1))


def manifests(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.rglob("manifest.json")}


def test_every_stage_of_a_road_leaves_a_whole_artifact(road: Path) -> None:
    for stage in load_pipeline(road / "road.toml").stages:
        manifest = read_manifest(road / "demo" / stage.name)
        assert manifest.rows_in - manifest.rows_out == sum(manifest.lost.values()), stage.name


def test_the_ledger_has_every_id_of_the_pool_once(road: Path) -> None:
    pool = pl.read_parquet(road / "study" / TOY_WEB / "pool" / "*.parquet")
    ledger = pl.read_parquet(road / "demo" / "shards" / "ledger.parquet")
    assert sorted(ledger["id"]) == sorted(pool["id"])
    assert ledger["outcome"].null_count() == 0


def test_the_ledger_tells_what_the_links_were_made_to_do(road: Path) -> None:
    truth = pl.read_parquet(road / "study" / TOY_WEB / "truth.parquet")
    ledger = pl.read_parquet(road / "demo" / "shards" / "ledger.parquet")
    both = truth.join(ledger, on="id")
    arrived = both.filter(outcome="ok")
    assert arrived["intact"].all()
    assert arrived.height == both.filter("intact").height
    drifted = both.filter(pl.col("outcome").is_in(["drifted", "placeholder"]))
    assert set(drifted["link_fate"]) <= {"replaced", "placeholder"}


def test_the_slice_leaves_out_most_wrong_captions_and_keeps_most_right_ones(road: Path) -> None:
    truth = pl.read_parquet(road / "study" / TOY_WEB / "truth.parquet")
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


def test_the_report_shows_pairs_and_why_they_were_removed(road: Path) -> None:
    page = (road / "demo" / "report.html").read_text(encoding="utf-8")
    kept, removed = page.partition("Kept, at random")[2].split("Removed, at random")
    assert kept.count("data:image/jpeg") == removed.count("data:image/jpeg") == 12
    whys = re.findall(r"<small>([^<]*)</small>", removed)
    assert len(whys) == 12
    assert all(why.startswith(("not ", "duplicate of ")) for why in whys)


def test_a_second_walk_does_nothing_again(road: Path) -> None:
    before = manifests(road / "demo")
    assert all(outcome.skipped for outcome in walk(road))
    assert manifests(road / "demo") == before
