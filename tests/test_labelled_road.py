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
    """Shards to learn from and, of other pictures, to be asked about; each made by the commands."""

    folder: Path
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


def label(web: Path, seed: int) -> dict[str, pl.DataFrame]:
    """The pool's rows with labels in place of texts and scores; every fifth picture is held out."""
    random = np.random.default_rng(seed)
    truth = pl.read_parquet(web / "truth.parquet").select("id", "picture", "shape", "colour")
    pool = pl.read_parquet(web / "pool" / "*.parquet").join(truth, on="id").sort("id")
    given = [taught(*row, random) for row in pool.select("shape", "colour").iter_rows()]
    rows = pool.with_columns(
        imagehash="image_phash",
        labels=pl.Series([classes for classes, _ in given]),
        label_probs=pl.Series([shares for _, shares in given]),
    )
    columns = ["id", "url", "imagehash", "labels", "label_probs", "width", "height"]
    out = pl.col("picture") % 5 == 0
    return {
        "seen": rows.filter(~out).select(columns),
        "heldout": rows.filter(out).select(columns),
    }


def make(folder: Path, config: ToyWebConfig, monkeypatch: pytest.MonkeyPatch) -> Road:
    make_toy_web(folder / "web", config)
    made = {}
    with serve(folder / "web") as server:
        monkeypatch.setenv("http_proxy", server.proxy_url)
        monkeypatch.setenv("no_proxy", "")
        for name, rows in label(folder / "web", config.seed).items():
            at = folder / name
            at.mkdir()
            rows.write_parquet(at / "pool.parquet")
            coyo(
                "filter", at / "pool.parquet", "width >= 100 AND label_probs[1] >= 0.45",
                "-o", at / "sure",
            )  # fmt: skip
            coyo("dedupe", at / "sure", "--radius", 4, "-o", at / "unique")
            coyo(
                "download", at / "unique", "-o", at / "shards", "--image-size", 64, "--attempts", 1
            )
            made[name] = at / "shards"
    return Road(folder, **made)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    config = ToyWebConfig(pictures=150, heldout=10, links=LinkFaults(timeouts=0, slow=0.0))
    with pytest.MonkeyPatch.context() as patch:
        return make(tmp_path_factory.mktemp("labelled"), config, patch)


def test_labels_reach_the_samples_and_no_caption_is_asked_for(road: Road) -> None:
    pool = {
        row["id"]: row
        for row in pl.read_parquet(road.folder / "seen" / "pool.parquet").iter_rows(named=True)
    }
    suffixes = Counter[str]()
    with tarfile.open(road.seen / "00000.tar") as tar:
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
    outcomes = read_manifest(road.seen).details["outcomes"]
    assert outcomes["ok"] == suffixes["jpg"] == suffixes["json"] > 50
    assert outcomes["drifted"] > 0, "imagehash was not compared"
    assert "no_caption" not in outcomes


def test_the_rest_of_the_road_is_the_usual_one(road: Road) -> None:
    sure = read_manifest(road.folder / "seen" / "sure")
    assert 0 < sure.rows_out < sure.rows_in
    unique = read_manifest(road.folder / "seen" / "unique")
    assert 0 < unique.rows_out < unique.rows_in
    shown = json.loads(coyo("shards", "info", road.seen, "--json"))
    assert shown["samples"] == shown["whole"] > 50
    assert shown["faults"] == []


def test_a_few_steps_and_figures(road: Road, tmp_path: Path) -> None:
    train = ["train", road.seen, "--model", "vit-tiny", "--task", "labels", "--image-size", 32]
    train += ["--samples", 96, "--batch-size", 32, "--threads", 1, "--classes", len(CLASSES)]
    planned = coyo(*train, "--dry-run")
    assert "classifier" in planned
    said = json.loads(coyo(*train, "-o", tmp_path / "run", "--json"))
    assert said["samples_seen"] == 96
    assert said["temperature"] is None
    manifest = read_manifest(tmp_path / "run")
    assert manifest.parameters["task"] == "labels"
    assert manifest.rows_out == said["pairs"]
    scores = json.loads(
        coyo("evaluate", tmp_path / "run", "--data", road.heldout, "--threads", 1, "--json")
    )
    assert set(scores["figures"]) == {"top-1", "top-5", "mean per class"}
    assert scores["figures"]["top-1"]["chance"] == pytest.approx(CHANCE)
    low, high = scores["figures"]["top-1"]["ci"]
    assert low <= scores["figures"]["top-1"]["value"] <= high
    table = coyo("evaluate", tmp_path / "run", "--data", road.heldout, "--threads", 1)
    assert "top-5" in table and f"{CHANCE:.1%}" in table


@pytest.mark.slow
def test_a_vit_learns_the_toy_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToyWebConfig(seed=3, pictures=2000, heldout=10, links=LinkFaults(timeouts=0, slow=0.0))
    road = make(tmp_path, config, monkeypatch)
    coyo(
        "train", road.seen, "-o", tmp_path / "run", "--model", "vit-tiny", "--task", "labels",
        "--samples", 8000, "--batch-size", 64, "--threads", 1, "--classes", len(CLASSES),
    )  # fmt: skip
    scores = json.loads(
        coyo("evaluate", tmp_path / "run", "--data", road.heldout, "--threads", 1, "--json")
    )
    print(scores)
    top = scores["figures"]["top-1"]
    assert top["chance"] == pytest.approx(CHANCE)
    assert top["ci"][0] > 5 * CHANCE
