"""The report of a pipeline: one HTML page, offline, from what its stages left on disk.

Every figure is read from a manifest, a ledger or a metrics file; nothing is measured here. Texts
and pictures come from strangers: jinja escapes the first, the second were re-encoded by us.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from coyo_tools.columns import ID
from coyo_tools.dedupe import size_bins
from coyo_tools.pages import write_page
from coyo_tools.pairs import Pair, ReportStage, pair_of, why_removed
from coyo_tools.shards import LEDGER, SHARDS_KIND, read_samples

_PAIRS = 12  # pictures shown on either side
_CURVE_POINTS = 120


@dataclass(frozen=True)
class LossRange:
    """The lowest and highest training loss of all arms, the scale they are drawn on."""

    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """A trained model: its data, its loss curve as an SVG path, its scores if evaluated."""

    name: str
    subset: str
    training: dict[str, Any]
    settings: dict[str, Any]
    curve: str
    scores: dict[str, Any] | None


def write_report(
    path: Path,
    title: str,
    stages: list[ReportStage],
    settings: dict[str, dict[str, Any]],
) -> None:
    """Write the page of a pipeline whose stages are all finished.

    Args:
        path: the HTML file.
        title: of the pipeline.
        stages: in the order they ran.
        settings: the settings of each stage by its name, as the pipeline file has them.
    """
    subsets = [stage for stage in stages if stage.manifest.kind == "subset"]
    downloads = [stage for stage in stages if stage.does == "download"]
    arms, losses = _arms(stages, settings)
    kept: list[Pair] = []
    removed: list[Pair] = []
    if subsets and downloads:
        kept, removed = _pairs(subsets, downloads[-1])
    write_page(
        path,
        "report.html.j2",
        title=title,
        stages=stages,
        filters=[stage for stage in stages if stage.does == "filter"],
        dedupes=[
            (stage, size_bins(stage.manifest.details["group_sizes"]))
            for stage in stages
            if stage.does == "dedupe"
        ],
        decontaminated=[stage for stage in stages if stage.does == "decontaminate"],
        fetches=[(stage, _fates(stage)) for stage in stages if stage.manifest.kind == SHARDS_KIND],
        arms=arms,
        losses=losses,
        answer=_answer(arms),
        kept=kept,
        removed=removed,
    )


def _fates(stage: ReportStage) -> list[tuple[str, int, float]]:
    """Return outcome, rows and share of a download, what arrived first."""
    made = stage.manifest
    counts = {"ok": made.rows_out, **made.lost}
    return [(name, rows, rows / made.rows_in) for name, rows in counts.items()]


def _arms(
    stages: list[ReportStage], settings: dict[str, dict[str, Any]]
) -> tuple[list[Arm], LossRange]:
    scores = {
        settings[stage.name]["run"]: stage.manifest.details
        for stage in stages
        if stage.does == "evaluate" and "image_to_text" in stage.manifest.details
    }
    trained = [stage for stage in stages if stage.does == "train"]
    losses = {stage.name: _losses(stage.directory / "metrics.jsonl") for stage in trained}
    every = [loss for curve in losses.values() for _, loss in curve]
    span = LossRange(min(every, default=0.0), max(every, default=1.0))
    arms = [
        Arm(
            name=stage.name,
            subset=settings[stage.name].get("subset", "everything that arrived"),
            training=stage.manifest.details,
            settings=settings[stage.name],
            curve=_svg_path(losses[stage.name], span),
            scores=scores.get(stage.name),
        )
        for stage in trained
    ]
    return arms, span


def _losses(metrics: Path) -> list[tuple[int, float]]:
    """Return samples seen and loss, averaged over equal stretches of the run."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    points = [(line["samples_seen"], line["loss"]) for line in lines if "loss" in line]
    if len(points) <= 2:
        return points
    pieces = np.array_split(np.asarray(points, dtype=float), min(_CURVE_POINTS, len(points)))
    return [(int(piece[-1, 0]), float(piece[:, 1].mean())) for piece in pieces]


def _svg_path(curve: list[tuple[int, float]], span: LossRange) -> str:
    """Draw a curve into the plot of the template: x from 40 to 640, y from 160 up to 20."""
    if not curve:
        return ""
    last = curve[-1][0] or 1
    height = (span.high - span.low) or 1.0
    spots = [
        f"{40 + 600 * seen / last:.1f} {160 - 140 * (loss - span.low) / height:.1f}"
        for seen, loss in curve
    ]
    return "M" + " L".join(spots)


def _answer(arms: list[Arm]) -> str:
    """Say in one sentence what was measured: the arms by recall@10, averaged over directions."""
    measured = [(arm, _recall(arm, "recall")) for arm in arms if arm.scores]
    if not measured:
        return ""
    measured.sort(key=lambda pair: -pair[1])
    best, score = measured[0]
    chance = _recall(best, "chance_recall")
    budget = best.training["samples_seen"]
    if len(measured) == 1:
        return (
            f"{best.name} finds the right partner among the first ten for {score:.1%} of the "
            f"queries (chance {chance:.1%}) after {budget:,} samples."
        )
    others = ", ".join(f"{arm.name} for {recall:.1%}" for arm, recall in measured[1:])
    return (
        f"After {budget:,} samples each, {best.name} finds the right partner among the first ten "
        f"for {score:.1%} of the queries, {others}; chance is {chance:.1%}."
    )


def _recall(arm: Arm, which: str) -> float:
    if arm.scores is None:
        return 0.0
    ways = (arm.scores["image_to_text"], arm.scores["text_to_image"])
    return float(sum(way[which]["10"] for way in ways) / len(ways))


def _pairs(subsets: list[ReportStage], download: ReportStage) -> tuple[list[Pair], list[Pair]]:
    """Draw pairs at random from what the last subset kept and from what it removed."""
    ledger = pl.read_parquet(download.directory / LEDGER).filter(outcome="ok")
    chosen = pl.read_parquet(subsets[-1].directory / "part-*.parquet", columns=[ID])
    inside = ledger.join(chosen, on=ID, how="semi", maintain_order="left")
    outside = ledger.join(chosen, on=ID, how="anti", maintain_order="left")
    samples = []
    for rows in (inside, outside):
        # A fixed seed: the same road shows the same pairs.
        drawn = rows.sample(min(_PAIRS, rows.height), seed=0, shuffle=True)
        wanted = dict(zip(drawn[ID].to_list(), drawn["shard"].to_list(), strict=True))
        found = read_samples(download.directory, wanted)
        samples.append([found[id_] for id_ in wanted])
    whys = why_removed(subsets, [sample.id for sample in samples[1]])
    return (
        [pair_of(sample.jpeg, sample.text) for sample in samples[0]],
        [pair_of(sample.jpeg, sample.text, whys.get(sample.id, "")) for sample in samples[1]],
    )
