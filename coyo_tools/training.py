"""Train and evaluate: the stages that hand shards to ``coyo_align`` and keep what it makes.

Curation and training meet on disk only. This module gives the training package its paths, wraps
its output in artifacts, and says in coyo's words what it refuses.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_tools.errors import MissingExtraError, SourceError, TrainingError
from coyo_tools.manifest import (
    MANIFEST,
    Input,
    Manifest,
    Stopwatch,
    digest_of,
    new_artifact,
    read_manifest,
    refuse_existing,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.shards import SHARDS_KIND
from coyo_tools.source import Source, open_source

if TYPE_CHECKING:
    from coyo_align.evaluate import RetrievalScores
    from coyo_align.finetune import TrainResult

RUN_KIND = "run"
SCORES_KIND = "scores"
SCORES = "scores.json"


@dataclass(frozen=True)
class TrainSettings:
    """What the user chooses of a run; the rest are ``coyo_align``'s defaults."""

    samples: int
    model: str = "compact"
    seed: int = 0
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    smallest_crop: float | None = None
    masked_tokens: float | None = None
    image_size: int | None = None
    device: str | None = None
    threads: int | None = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def train_model(
    shards: Path,
    output: Path,
    settings: TrainSettings,
    *,
    subset: str | Path | None = None,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> "TrainResult":
    """Train an ALIGN on shards, on all their samples or those whose id is in ``subset``.

    Raises:
        CoyoError: shards or subset are at fault, the training extra is missing, or the loop stops.
    """
    watch = Stopwatch()
    refuse_existing(output, overwrite=overwrite)
    data = _open_shards(shards)
    chosen = open_source(subset) if subset is not None else None
    with _align("coyo train"):
        from coyo_align.config import make_config
        from coyo_align.finetune import finetune
    with new_artifact(output, overwrite=overwrite) as directory, _align("coyo train"):
        result = finetune(
            make_config(
                shards=shards,
                output=directory,
                ids=_ids_path(chosen),
                **settings.chosen(),
            ),
            on_progress=lambda seen, total, _loss: on_progress(seen, total),
        )
        done = asdict(result)
        write_manifest(
            directory,
            Manifest(
                kind=RUN_KIND,
                parameters={"stage": "train", **settings.chosen()},
                inputs=_inputs(data, chosen),
                rows_in=result.pairs + sum(_lost(result).values()),
                rows_out=result.pairs,
                lost=_lost(result),
                id_digest="",
                seconds=watch.seconds(),
                details={key: value for key, value in done.items() if key != "skipped"},
            ),
        )
    return result


def evaluate_run(
    run: Path,
    shards: Path,
    *,
    subset: str | Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> "RetrievalScores":
    """Measure retrieval of a run, or of any ALIGN directory, on shards.

    With ``output`` the scores are also kept there as an artifact.

    Raises:
        CoyoError: run, shards or subset are at fault, or the training extra is missing.
    """
    watch = Stopwatch()
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    data = _open_shards(shards)
    chosen = open_source(subset) if subset is not None else None
    if not run.is_dir():
        raise SourceError(f"{run} does not exist or is not a directory.")
    with _align("coyo evaluate"):
        from coyo_align.evaluate import evaluate_retrieval

        scores = evaluate_retrieval(run, shards, ids=_ids_path(chosen), threads=threads)
    if output is None:
        return scores
    figures = asdict(scores)
    with new_artifact(output, overwrite=overwrite) as directory:
        text = json.dumps(figures, indent=2) + "\n"
        (directory / SCORES).write_text(text, encoding="utf-8")
        write_manifest(
            directory,
            Manifest(
                kind=SCORES_KIND,
                parameters={"stage": "evaluate"},
                inputs=[_run_input(run), *_inputs(data, chosen)],
                rows_in=scores.n_texts + sum(_lost(scores).values()),
                rows_out=scores.n_texts,
                lost=_lost(scores),
                id_digest="",
                seconds=watch.seconds(),
                details=figures,
            ),
        )
    return scores


@contextmanager
def _align(command: str) -> Iterator[None]:
    """Say in coyo's words that the training package is missing, or what it refuses."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(command, "train", str(error.name)) from error
    except ValueError as error:
        from coyo_align.errors import AlignError

        if not isinstance(error, AlignError):
            raise
        raise TrainingError(str(error)) from error


def _open_shards(shards: Path) -> Input:
    """Check that ``shards`` holds tars and describe it for a manifest."""
    if not shards.is_dir():
        raise SourceError(f"{shards} does not exist or is not a directory.")
    tars = sorted(shards.glob("*.tar"))
    if (shards / MANIFEST).is_file():
        manifest = read_manifest(shards)
        if manifest.kind == "index":
            raise SourceError(f"{shards} holds a pool and shards.", f"Use {shards / 'shards'}.")
        if manifest.kind != SHARDS_KIND:
            raise SourceError(f"{shards} is a {manifest.kind} directory, not shards.")
        return Input("shards", str(shards), manifest.id_digest)
    if not tars:
        raise SourceError(f"{shards} holds no .tar files.", "`coyo download` and `coyo index` do.")
    sizes = [f"{tar.name} {tar.stat().st_size}" for tar in tars]
    return Input("shards", str(shards), digest_of(sizes))


def _ids_path(subset: Source | None) -> Path | None:
    """Return what coyo_align reads ids from: a parquet file, or the folder of the parts."""
    if subset is None:
        return None
    if subset.remote:
        raise SourceError(f"{subset.path} is remote.", "Training reads ids from a local subset.")
    files = [Path(file) for file in subset.files]
    if len(files) == 1:
        return files[0]
    if not all(file.match("part-*.parquet") for file in files):
        raise SourceError(
            f"{subset.path} is several files.", "Give a subset directory or a single parquet file."
        )
    return files[0].parent


def _lost(result: "TrainResult | RetrievalScores") -> dict[str, int]:
    """Return what did not reach the model, by reason; ids without a picture are one."""
    lost = dict(result.skipped)
    if result.missing_ids:
        lost["not in the shards"] = result.missing_ids
    return lost


def _inputs(data: Input, subset: Source | None) -> list[Input]:
    return [data] if subset is None else [data, subset.as_input("subset")]


def _run_input(run: Path) -> Input:
    weights = run / "model.safetensors"
    size = str(weights.stat().st_size) if weights.is_file() else "none"
    config = run / "config.json"
    return Input(
        "run", str(run), digest_of([config.read_bytes() if config.is_file() else b"", size])
    )


@dataclass(frozen=True)
class ScoreRow:
    """One line of a table of scores: recalls at 1, 5 and 10 between 0 and 1, ranks from 1."""

    name: str
    recalls: tuple[float, ...]
    median_rank: int


def score_rows(scores: "RetrievalScores") -> list[ScoreRow]:
    """Lay out scores as lines, each direction followed by what chance would score."""
    rows = []
    for name, figures in (
        ("image to text", scores.image_to_text),
        ("text to image", scores.text_to_image),
    ):
        rows.append(ScoreRow(name, tuple(figures.recall.values()), figures.median_rank))
        chance = tuple(figures.chance_recall.values())
        rows.append(ScoreRow("  chance", chance, figures.chance_median_rank))
    return rows
