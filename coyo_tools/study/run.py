"""Runs a study: arms out of one pool of pictures that are there, controls, trainings, scores.

Everything is a stage of a pipeline's kinds, so what is finished is known by what it was made from
and is not done again. The order: what the study prepares; the rows whose picture arrived; of those
the ones that are no evaluation picture, nor near one; the arms; for each a random draw of the same
size per seed; a training for each arm, budget and seed; its scores.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from coyo_tools.errors import EmptyResultError
from coyo_tools.handover import align_errors
from coyo_tools.manifest import Manifest, held_directory, saying_when_stopped
from coyo_tools.pairs import ReportStage
from coyo_tools.pipeline import input_places
from coyo_tools.stage_kinds import Stage
from coyo_tools.study.looks import Look, look_at
from coyo_tools.study.made import (
    Made,
    arrived_rows,
    made_rows,
    replay_command,
    what_was_made,
)
from coyo_tools.study.report import write_study_report
from coyo_tools.study.results import (
    Row,
    Trained,
    arm_rows,
    ids_of,
    overlap_rows,
    score_rows,
    write_results,
)
from coyo_tools.study.spec import EVERYTHING, RANDOM, Arm, Study, load_study
from coyo_tools.study.tables import write_tables
from coyo_tools.study.truth import planted_rows
from coyo_tools.walk import StageOutcome, Walk, Watch

CELLS = "cells"
_DRAW = 7919
"""Added to a training's seed for its control's draw, so that no recipe's sample is the same."""


@dataclass(frozen=True)
class StudyResult:
    """What a study found: its results as a table, and where all of it lies."""

    study: Study
    output: Path
    table: pl.DataFrame


@dataclass(frozen=True)
class _Rows:
    """Rows that a model is trained on: the stage that has them, and those that chose them."""

    stage: str
    count: int
    chosen_by: tuple[ReportStage, ...] = ()


def run_study(
    path: Path,
    output: Path,
    inputs: Mapping[str, str],
    *,
    redo: bool = False,
    watch: Watch | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> StudyResult:
    """Run what is not finished of a study, and write ``results.parquet`` and ``report.html``.

    Args:
        path: the study file.
        output: directory that gets an artifact per stage, trainings and scores under ``cells``.
        inputs: paths for the study's inputs, over its own defaults.
        redo: replace what was made with other settings or from other inputs, instead of stopping.
        watch: makes a progress callback for a stage.
        tell: called with a line about every stage.

    Raises:
        CoyoError: from the study file or the stage that failed, an arm is too small, or another
            process is at work in ``output``.
    """
    study = load_study(path)
    places = input_places(study.inputs, inputs, path)
    with (
        held_directory(output),
        saying_when_stopped("Stopped. The same command goes on; what is finished stays."),
    ):
        walk = Walk(places, redo=redo, watch=watch, tell=tell)
        command = replay_command(path, output, inputs)
        return _run(study, _Doing(study, walk, output, tell), output, places, command)


def _run(
    study: Study, doing: "_Doing", output: Path, places: Mapping[str, str], command: str
) -> StudyResult:
    for stage in study.stages:
        doing.stage(stage)
    everything = doing.base()
    arms = {EVERYTHING: everything}
    arms |= {arm.name: doing.arm(arm, everything.stage) for arm in study.arms}
    _refuse_small(study, arms)
    planted = doing.planted(arms)  # a slip is told before hours are spent
    controls = {arm.name: doing.controls(arms[arm.name], everything) for arm in study.arms}
    trained, figures = [], []
    for name, rows in arms.items():
        model, runs = doing.train(name, dict.fromkeys(study.seeds, rows))
        trained.append(model)
        lost = {k: v for run in runs for k, v in run.lost.items()}
        figures.append((name, rows, lost, runs[0].rows_out))
    random: dict[str, Trained] = {}
    for name, drawn in controls.items():  # arms of one size share theirs
        same = next((one for one in random if controls[one] == drawn), None)
        random[name] = doing.train(name, drawn)[0] if same is None else random[same]
    found: list[Row] = score_rows(study, trained, random)
    for name, chosen, lost, pairs in figures:
        manifests = [stage.manifest for stage in chosen.chosen_by]
        found += arm_rows(study, name, output / chosen.stage, manifests, lost, pairs)
    found += doing.removed
    found += planted
    found += overlap_rows({name: ids_of(output / arm.stage) for name, arm in arms.items()})
    looks = [doing.look(arm, arms[arm.name], everything) for arm in study.arms]
    found += looks[0].base_rows + [row for look in looks for row in look.rows]
    found += arrived_rows(Path(doing.place_of(study.shards)))
    made = doing.made(looks, places, command)
    found += made_rows(made)
    table = write_results(found, output)
    write_tables(table, study, output)
    write_study_report(table, study, output, looks=looks, made=made, command=command)
    return StudyResult(study, output, table)


def _refuse_small(study: Study, arms: Mapping[str, _Rows]) -> None:
    """Say before hours are spent that an arm does not fill a batch."""
    with align_errors("coyo study"):
        from coyo_align.config import TrainConfig

    batch = study.train.get("batch_size", TrainConfig.batch_size)
    for name, rows in arms.items():
        if rows.count < batch:
            raise EmptyResultError(
                f"The arm {name} has {rows.count:,} pairs, fewer than a batch of {batch}.",
                "Loosen its rules, or give a smaller batch_size under [study.train].",
            )


class _Doing:
    """A study under way: the walk, and what was noted for the results."""

    def __init__(self, study: Study, walk: Walk, output: Path, tell: Callable[[str], None]) -> None:
        self._study = study
        self._walk = walk
        self._output = output
        self._tell = tell
        self.removed: list[Row] = []

    def place_of(self, name: str) -> str:
        """Where an input or a finished stage lies."""
        return self._walk.place_of(name)

    def stage(self, stage: Stage, folder: str = "") -> StageOutcome:
        """Have a stage done."""
        return self._walk.do(stage, self._output / folder, f"[{folder or 'study'}]")

    def _do(self, name: str, does: str, settings: dict[str, Any], folder: str = "") -> StageOutcome:
        return self.stage(Stage(name, does, settings), folder)

    def base(self) -> _Rows:
        """The rows that arms choose from: whose picture is there, and no evaluation's."""
        study = self._study
        name = "arrived"
        done = self._do(name, "within", {"source": study.pool, "other": study.shards})
        self._note(done.manifest)
        for evaluation in study.evaluations:
            against = evaluation.settings.get("subset", evaluation.settings["data"])
            settings = {"source": name, "against": against, "radius": study.radius}
            name = f"{EVERYTHING}-but-{evaluation.name}"
            done = self._do(name, "decontaminate", settings)
            self._note(done.manifest)
        return _Rows(name, done.manifest.rows_out)

    def _note(self, manifest: Manifest) -> None:
        self.removed += [
            {"kind": "lost", "arm": EVERYTHING, "item": f"{manifest.parameters['stage']}: {reason}",
             "value": float(count)}
            for reason, count in manifest.lost.items()
        ]  # fmt: skip

    def arm(self, arm: Arm, base: str) -> _Rows:
        """Choose an arm's rows."""
        name, stages = f"arm-{arm.name}", []
        if arm.subset is not None:
            stages.append(self._choose(name, "within", {"source": base, "other": arm.subset}))
        if arm.select:
            stages.append(self._choose(name, "filter", {"source": base, **arm.select}))
        if arm.dedupe is not None:
            settings = {"source": name if stages else base, **arm.dedupe}
            name = f"{name}-unique"
            stages.append(self._choose(name, "dedupe", settings))
        return _Rows(name, stages[-1].manifest.rows_out, tuple(stages))

    def _choose(self, name: str, does: str, settings: dict[str, Any]) -> ReportStage:
        manifest = self._do(name, does, settings).manifest
        source = str(self._output / settings["source"])
        return ReportStage(name, does, self._output / name, manifest, source)

    def planted(self, arms: Mapping[str, _Rows]) -> list[Row]:
        """Count what is known of the arms' rows, if anything is."""
        if self._study.truth is None:
            return []
        chosen = {name: self._output / rows.stage for name, rows in arms.items()}
        return planted_rows(self.place_of(self._study.truth), self._study.truth_columns, chosen)

    def look(self, arm: Arm, rows: _Rows, base: _Rows) -> Look:
        """Compare an arm with what it was chosen from, and draw pairs."""
        captions = self._study.train.get("captions")
        look = look_at(
            arm.name,
            self._output / base.stage,
            rows.chosen_by,
            Path(self.place_of(self._study.shards)),
            captions=None if captions is None else self.place_of(captions),
            output=self._output,
        )
        self._tell(f"[study] looked at {arm.name}" + ("" if look.fresh else ", finished before"))
        return look

    def made(self, looks: Sequence[Look], inputs: Iterable[str], command: str) -> list[Made]:
        """All inputs, and all directories in the order they were made."""
        prints = {name: self._walk.fingerprint_of(name) for name in inputs}
        places = [Path(one) for name, one in self._walk.places.items() if name not in prints]
        directories = [*places, *(look.directory for look in looks)]
        return what_was_made(self._output, directories, prints, command)

    def controls(self, arm: _Rows, base: _Rows) -> dict[int, _Rows]:
        """For each seed as many rows as an arm has, drawn at random from the same ones."""
        if arm.count == base.count:
            return dict.fromkeys(self._study.seeds, base)
        drawn = {}
        for seed in self._study.seeds:
            name = f"{RANDOM}-{arm.count}-{seed}"
            settings = {"source": base.stage, "sample": str(arm.count), "seed": _DRAW + seed}
            drawn[seed] = _Rows(name, self._do(name, "filter", settings).manifest.rows_out)
        return drawn

    def train(self, arm: str, rows: Mapping[int, _Rows]) -> tuple[Trained, list[Manifest]]:
        """Train on an arm's or a control's rows at every budget under every seed, and measure."""
        study = self._study
        scores: dict[tuple[int, int, str], Path] = {}
        runs = []
        for budget in study.budgets:
            for seed in study.seeds:
                cell = f"{rows[seed].stage}-{budget}-{seed}"
                settings = {
                    "shards": study.shards, "subset": rows[seed].stage, "samples": budget,
                    "seed": seed, "cache": True, **study.train,
                }  # fmt: skip
                runs.append(self._do(f"run-{cell}", "train", settings, CELLS).manifest)
                for evaluation in study.evaluations:
                    name = f"scores-{cell}-{evaluation.name}"
                    asked = {"run": f"run-{cell}", **evaluation.settings}
                    self._do(name, "evaluate", asked, CELLS)
                    scores[budget, seed, evaluation.name] = self._output / CELLS / name
        return Trained(arm, scores), runs
