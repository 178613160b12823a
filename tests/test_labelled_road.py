"""A labelled pool from end to end: filter, dedupe, download without captions, a ViT, its figures.

The toy web with COYO-Labeled-300M's columns: a class for each shape in each colour, and a teacher
that is sure of the right one to a different degree in each picture.
"""

import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from coyo_tools.cli import app
from coyo_tools.manifest import read_manifest
from coyo_tools.toyweb import LinkFaults, ToyWebConfig, make_toy_web, serve
from coyo_tools.toyweb.scenes import COLOURS, SHAPES

CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
CHANCE = 1 / len(CLASSES)
LISTED = 50


@dataclass(frozen=True)
class Road:
    """A pool, the shards the commands made of it, and the ids of pictures to learn from or not."""

    folder: Path
    shards: Path
    seen: Path
    heldout: Path


def coyo(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def taught(shape: str, colour: str, random: np.random.Generator) -> tuple[list[int], list[float]]:
    """The 50 likeliest classes and their probabilities, each an answer of its own as COYO's are."""
    scores = random.uniform(0, 0.004, len(CLASSES))
    for number, name in enumerate(CLASSES):
        alike = (name.split()[0] == colour) + (name.split()[1] == shape)
        scores[number] += (0, random.uniform(0.02, 0.06), random.uniform(0.4, 0.95))[alike]
    best = np.argsort(-scores)[:LISTED]
    return best.tolist(), scores[best].astype(np.float16).astype(float).tolist()


def label(web: Path, seed: int) -> pl.DataFrame:
    """The pool's rows with labels in place of texts and scores, and which picture each shows."""
    random = np.random.default_rng(seed)
    truth = pl.read_parquet(web / "truth.parquet").select("id", "picture", "shape", "colour")
    pool = pl.read_parquet(web / "pool" / "*.parquet").join(truth, on="id").sort("id")
    given = [taught(*row, random) for row in pool.select("shape", "colour").iter_rows()]
    return pool.select(
        "id", "url", pl.col("image_phash").alias("imagehash"),
        pl.Series("labels", [classes for classes, _ in given]),
        pl.Series("label_probs", [shares for _, shares in given]),
        "width", "height", "picture",
    )  # fmt: skip


def make(folder: Path, config: ToyWebConfig, monkeypatch: pytest.MonkeyPatch) -> Road:
    make_toy_web(folder / "web", config)
    rows = label(folder / "web", config.seed)
    rows.drop("picture").write_parquet(folder / "pool.parquet")
    out = pl.col("picture") % 5 == 0
    rows.filter(~out).select("id").write_parquet(folder / "seen.parquet")
    rows.filter(out).select("id").write_parquet(folder / "heldout.parquet")
    sure = "width >= 100 AND label_probs[1] >= 0.45"
    coyo("filter", folder / "pool.parquet", sure, "-o", folder / "sure")
    coyo("dedupe", folder / "sure", "--radius", 4, "-o", folder / "unique")
    with serve(folder / "web") as server:
        monkeypatch.setenv("http_proxy", server.proxy_url)
        monkeypatch.setenv("no_proxy", "")
        shards = folder / "shards"
        coyo("download", folder / "unique", "-o", shards, "--image-size", 64, "--attempts", 1)
    return Road(folder, shards, folder / "seen.parquet", folder / "heldout.parquet")


# Rot that is told at once: what keeps a client waiting is tested elsewhere.
LINKS = LinkFaults(timeouts=0, slow=0.0, dead_host=0.0, reset=0.0, truncated=0.0, short_body=0.0)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    config = ToyWebConfig(pictures=150, heldout=10, links=LINKS)
    with pytest.MonkeyPatch.context() as patch:
        return make(tmp_path_factory.mktemp("labelled"), config, patch)


def test_labels_reach_the_samples_and_no_caption_is_asked_for(road: Road) -> None:
    pool = {
        row["id"]: row
        for row in pl.read_parquet(road.folder / "pool.parquet").iter_rows(named=True)
    }
    suffixes = Counter[str]()
    with tarfile.open(road.shards / "00000.tar") as tar:
        for member in tar:
            suffixes[member.name.partition(".")[2]] += 1
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                record = json.loads(file.read())
                row = pool[record["id"]]
                assert record["labels"] == row["labels"]
                assert record["label_probs"] == row["label_probs"]
                assert record["image_phash"] == row["imagehash"]
    assert suffixes.keys() == {"jpg", "json"}
    outcomes = read_manifest(road.shards).details["outcomes"]
    assert outcomes["ok"] == suffixes["jpg"] == suffixes["json"] > 50
    assert outcomes["drifted"] > 0, "imagehash was not compared"
    assert "no_caption" not in outcomes


def test_the_rest_of_the_road_is_the_usual_one(road: Road) -> None:
    sure = read_manifest(road.folder / "sure")
    assert 0 < sure.rows_out < sure.rows_in
    unique = read_manifest(road.folder / "unique")
    assert 0 < unique.rows_out < unique.rows_in
    shown = json.loads(coyo("shards", "info", road.shards, "--json"))
    assert shown["samples"] == shown["whole"] > 50
    assert shown["faults"] == []


def test_a_few_steps_and_figures(road: Road, tmp_path: Path) -> None:
    train = [
        "train",
        road.shards,
        "--subset",
        road.seen,
        "--model",
        "vit-tiny",
        "--task",
        "labels",
        "--image-size",
        32,
    ]
    train += ["--samples", 96, "--batch-size", 32, "--threads", 1, "--classes", len(CLASSES)]
    planned = coyo(*train, "--dry-run")
    assert "classifier" in planned
    said = json.loads(coyo(*train, "-o", tmp_path / "run", "--json"))
    assert said["samples_seen"] == 96
    assert said["temperature"] is None
    manifest = read_manifest(tmp_path / "run")
    assert manifest.parameters["task"] == "labels"
    assert manifest.rows_out == said["pairs"]
    asked = ["evaluate", tmp_path / "run", "--data", road.shards, "--subset", road.heldout]
    asked += ["--threads", 1]
    scores = json.loads(coyo(*asked, "--json"))
    assert set(scores["figures"]) == {"top-1", "top-5", "mean per class"}
    assert scores["figures"]["top-1"]["chance"] == pytest.approx(CHANCE)
    low, high = scores["figures"]["top-1"]["ci"]
    assert low <= scores["figures"]["top-1"]["value"] <= high
    table = coyo(*asked)
    assert "top-5" in table and f"{CHANCE:.1%}" in table


@pytest.mark.slow
def test_a_vit_learns_the_toy_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToyWebConfig(seed=3, pictures=2000, heldout=10, links=LinkFaults(timeouts=0, slow=0.0))
    road = make(tmp_path, config, monkeypatch)
    given = ["--threads", 1]
    train = ["train", road.shards, "--subset", road.seen, "-o", tmp_path / "run", *given]
    train += ["--model", "vit-tiny", "--task", "labels", "--classes", len(CLASSES)]
    coyo(*train, "--samples", 16_000, "--batch-size", 32, "--smallest-crop", 0.8)
    asked = ["evaluate", tmp_path / "run", "--data", road.shards, "--subset", road.heldout, *given]
    top = json.loads(coyo(*asked, "--json"))["figures"]["top-1"]
    assert top["chance"] == pytest.approx(CHANCE)
    assert top["ci"][0] > 5 * CHANCE
