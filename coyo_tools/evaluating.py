"""Evaluate: the stage that lets ``coyo_align`` score a run on shards and keeps the scores.

Beside the scores it keeps what became of every query (``outcomes.parquet``), so that two models
which were asked the same can be compared query by query, which needs far fewer of them.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.errors import SourceError, TrainingError
from coyo_tools.handover import align_errors, ids_path, inputs_of, lost_of, open_shards
from coyo_tools.manifest import (
    Input,
    Manifest,
    Stopwatch,
    new_artifact,
    refuse_existing,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import open_source

if TYPE_CHECKING:
    from coyo_align.embed import Ints
    from coyo_align.scoring.evaluate import ClassScores, OnOutcomes, RetrievalScores

    TaskScores = RetrievalScores | ClassScores

SCORES_KIND = "scores"
SCORES = "scores.json"
OUTCOMES = "outcomes.parquet"

_OPTIONS = {
    "retrieval": {"captions", "split"},
    "classification": {"labels", "label_field", "templates", "imagenet_templates"},
    "knn": {"gallery", "labels", "label_field"},
    "labels": {"label_field"},
}
_NEEDED = {
    "classification": ("labels", "the classes: a file with one a line, or names like cat,dog"),
    "knn": ("gallery", "a directory of shards with the labelled neighbours"),
}
TASKS = tuple(_OPTIONS)
_TASKS_OF = {"align": ("retrieval", "classification", "knn"), "vit": ("labels",)}
"""Of each kind of model, the first one being what is measured where nobody says what."""


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured and how; ``check`` knows which settings belong to which task.

    Without a ``task`` it is the model that decides: retrieval of an ALIGN, labels of a ViT.
    """

    task: str | None = None
    captions: Path | None = None
    split: str | None = None
    labels: str | None = None
    label_field: str | None = None
    templates: tuple[str, ...] = ()
    imagenet_templates: bool = False
    gallery: Path | None = None
    batch_size: int | None = None
    device: str | None = None
    threads: int | None = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that are set, as a manifest keeps them."""
        chosen = {name: value for name, value in asdict(self).items() if value}
        return {name: str(v) if isinstance(v, Path) else v for name, v in chosen.items()}

    def check(self) -> None:
        """Raise ``TrainingError`` if a setting is none of the task's, or one of its is missing."""
        if self.task is not None:
            self._check_task(self.task)
        if self.templates and self.imagenet_templates:
            raise TrainingError("Both `--template` and `--imagenet-templates` are given.")
        if self.split and not self.captions:
            raise TrainingError("`--split` chooses from `--captions`, which is not given.")

    def _check_task(self, task: str) -> None:
        if task not in _OPTIONS:
            raise TrainingError(f"There is no task {task!r}.", f"Tasks: {', '.join(TASKS)}.")
        chosen = self.chosen()
        every = set().union(*_OPTIONS.values())
        for name in sorted(every & set(chosen) - _OPTIONS[task]):
            tasks = " and ".join(known for known in TASKS if name in _OPTIONS[known])
            raise TrainingError(
                f"`{_option(name)}` says nothing about the task {task}.",
                f"It belongs to {tasks}: choose with --task.",
            )
        name, about = _NEEDED.get(task, ("task", ""))
        if name not in chosen:
            raise TrainingError(f"The task {task} needs `{_option(name)}`, {about}.")


def _of_kind(settings: EvaluateSettings, kind: str, run: str) -> EvaluateSettings:
    """Settings with a task, if a model of this kind can do it."""
    if kind not in _TASKS_OF:
        raise TrainingError(
            f"{run} holds a model of type {kind!r}.", "Give an ALIGN or a ViT with a classifier."
        )
    tasks = _TASKS_OF[kind]
    settings = replace(settings, task=settings.task or tasks[0])
    if settings.task not in tasks:
        raise TrainingError(
            f"{run} holds a model of type {kind!r}, which can't do the task {settings.task}.",
            f"Its tasks: {', '.join(tasks)}.",
        )
    settings.check()
    return settings


def evaluate_run(
    run: str | Path,
    shards: Path,
    settings: EvaluateSettings | None = None,
    *,
    subset: str | Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> "TaskScores":
    """Measure what a run, or any ALIGN or ViT directory, can do on shards.

    With ``output`` the scores are also kept there as an artifact.

    Raises:
        CoyoError: settings, run, shards, subset or files are at fault, or the training extra is
            missing.
    """
    watch = Stopwatch()
    settings = settings or EvaluateSettings()
    settings.check()
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    data = open_shards(shards)
    chosen = open_source(subset) if subset is not None else None
    with align_errors("coyo evaluate"):
        from coyo_align.checkpoint import kind_of, locate

        directory = locate(run)
    if not directory.is_dir():
        raise SourceError(
            f"{run} does not exist or is not a directory.",
            "Give a run, an ALIGN or ViT directory, or a name on the hub such as "
            "kakaobrain/align-base.",
        )
    with align_errors("coyo evaluate"):
        settings = _of_kind(settings, kind_of(directory), str(run))
        model = _run_input(str(run), directory)
    inputs = [model, *inputs_of(data, chosen)]
    if settings.gallery is not None:
        gallery = open_shards(settings.gallery).fingerprint
        inputs.append(Input("gallery", str(settings.gallery), gallery))
    with align_errors("coyo evaluate"):
        outcomes = _Outcomes()
        ids = ids_path(chosen)
        scores = _scores(directory, shards, ids, settings, on_progress, outcomes.add)
    if output is None:
        return scores
    figures = asdict(scores)
    lost = getattr(scores, "lost_captions", None) or lost_of(scores)
    used = getattr(scores, "n_texts", scores.n_images)
    with new_artifact(output, overwrite=overwrite) as directory:
        text = json.dumps(figures, indent=2) + "\n"
        (directory / SCORES).write_text(text, encoding="utf-8")
        outcomes.write(directory / OUTCOMES)
        write_manifest(
            directory,
            Manifest(
                kind=SCORES_KIND,
                parameters={"stage": "evaluate", **settings.chosen()},
                inputs=inputs,
                rows_in=used + sum(lost.values()),
                rows_out=used,
                lost=lost,
                id_digest="",
                seconds=watch.seconds(),
                details=figures,
            ),
        )
    return scores


class _Outcomes:
    """Collects what became of the queries; a row for each, by figure and in the order asked."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []

    def add(self, figure: str, ranks: "Ints", pictures: "Ints") -> None:
        """Take the ranks of one figure's queries and the numbers of their pictures."""
        columns = {
            "figure": pa.array([figure] * len(ranks), pa.string()),
            "query": pa.array(range(len(ranks)), pa.int32()),
            "picture": pa.array(pictures, pa.int32()),
            "rank": pa.array(ranks, pa.int32()),
        }
        self._tables.append(pa.table(columns))

    def write(self, path: Path) -> None:
        """Write them as parquet."""
        pq.write_table(pa.concat_tables(self._tables), path, compression="zstd")


def _scores(
    run: Path,
    shards: Path,
    ids: Path | None,
    settings: EvaluateSettings,
    on_progress: Progress,
    on_outcomes: "OnOutcomes",
) -> "TaskScores":
    from coyo_align.embed import Embedder
    from coyo_align.scoring.classifier import evaluate_classifier
    from coyo_align.scoring.evaluate import (
        evaluate_classification,
        evaluate_knn,
        evaluate_retrieval,
    )
    from coyo_align.scoring.labels import CLS
    from coyo_align.scoring.templates import DEFAULT_TEMPLATE, IMAGENET_TEMPLATES

    threads, label_field = settings.threads, settings.label_field or CLS
    batch_size = settings.batch_size or 256
    if settings.task == "labels":
        return evaluate_classifier(
            run,
            shards,
            ids,
            label_field=settings.label_field,
            batch_size=batch_size,
            threads=threads,
            device=settings.device,
            on_progress=on_progress,
            on_outcomes=on_outcomes,
        )
    embedder = Embedder(run, batch_size, threads, settings.device, on_progress=on_progress)
    if settings.task == "classification":
        shipped = IMAGENET_TEMPLATES if settings.imagenet_templates else (DEFAULT_TEMPLATE,)
        return evaluate_classification(
            embedder,
            shards,
            settings.labels or "",
            ids,
            templates=settings.templates or shipped,
            label_field=label_field,
            threads=threads,
            on_outcomes=on_outcomes,
        )
    if settings.gallery is not None:
        return evaluate_knn(
            embedder,
            shards,
            settings.gallery,
            ids,
            labels=settings.labels,
            label_field=label_field,
            threads=threads,
            on_outcomes=on_outcomes,
        )
    return evaluate_retrieval(
        embedder,
        shards,
        ids,
        captions=settings.captions,
        split=settings.split,
        threads=threads,
        on_outcomes=on_outcomes,
    )


def _option(setting: str) -> str:
    return "--template" if setting == "templates" else "--" + setting.replace("_", "-")


def _run_input(name: str, run: Path) -> Input:
    from coyo_align.using.fingerprint import fingerprint_of

    return Input("run", name, fingerprint_of(run))
