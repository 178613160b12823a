"""Train: the stage that hands shards to ``coyo_align`` and keeps the run it makes.

A run that is stopped stays under its temporary name with its checkpoints, and the same command goes
on with it. Under ``torchrun`` only the first process makes the artifact; the others compute.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_tools.handover import align_errors, ids_path, inputs_of, lost_of, open_shards
from coyo_tools.manifest import (
    Input,
    Manifest,
    Stopwatch,
    partial_path,
    put_back,
    refuse_existing,
    resumable_artifact,
    saying_when_stopped,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import Source, open_source

if TYPE_CHECKING:
    from coyo_align.config import TrainConfig
    from coyo_align.dryrun import DryRun, Pace
    from coyo_align.finetune import TrainResult
    from coyo_align.metrics import Standing

RUN_KIND = "run"
_CAPTIONS = 5_000
"""Enough to know how long captions are, and read in half a second."""


@dataclass(frozen=True)
class TrainSettings:
    """What the user chooses of a run; None leaves it to ``coyo_align``, whose config tells more."""

    samples: int
    model: str = "compact"
    task: str | None = None
    labels: str | None = None
    classes: int | None = None
    label_field: str | None = None
    seed: int = 0
    batch_size: int | None = None
    accumulate: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    warmup_share: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    loss: str | None = None
    label_smoothing: float | None = None
    temperature: float | None = None
    smallest_crop: float | None = None
    masked_tokens: float | None = None
    text_dropout: float | None = None
    drop_path: float | None = None
    freeze: tuple[str, ...] | None = None
    lora: int | None = None
    ema: float | None = None
    image_size: int | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    checkpoint_activations: bool | None = None
    fast_decode: bool | None = None
    cache: Path | None = None
    workers: int | None = None
    threads: int | None = None
    log_every: int | None = None
    checkpoint_every: int | None = None
    tensorboard: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def as_parameters(self) -> dict[str, Any]:
        """Return them as a manifest holds them."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in self.chosen().items()}


def train_model(
    shards: Path,
    output: Path,
    settings: TrainSettings,
    *,
    subset: str | Path | None = None,
    captions: str | Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_progress: "Callable[[Standing], None] | None" = None,
    on_load: Progress = no_progress,
) -> "TrainResult":
    """Train an ALIGN or a ViT on shards, on all their samples or those whose id is in ``subset``.

    Args:
        shards: directory of tars.
        output: the run.
        settings: of the training.
        subset: whose ids are used, None for all.
        captions: a pool or subset whose texts stand in place of the tars' captions, such as
            rewritten ones; samples without one there are left out and counted.
        overwrite: replace an earlier run.
        restart: discard what a stopped run of the same name has done.
        on_progress: called every few steps.
        on_load: called with percents done and 100 while pictures are read before training.

    Raises:
        CoyoError: shards or subset are at fault, the training extra is missing, or the loop stops.
    """
    watch = Stopwatch()
    data, chosen = _open(shards, subset)
    said = None if captions is None else open_source(captions)
    with align_errors("coyo train"):
        from coyo_align.config import PACE
        from coyo_align.distributed import find_world
        from coyo_align.finetune import finetune

        follows = not find_world().leads

    def train(directory: Path) -> "TrainResult":
        return finetune(
            _config(shards, directory, chosen, said, settings),
            on_progress,
            lambda _pairs, share: on_load(round(100 * share), 100),
        )

    if follows:
        with align_errors("coyo train"):
            return train(partial_path(output))
    put_back(output)
    refuse_existing(output, overwrite=overwrite)
    begun_for = {
        "shards": data.fingerprint,
        "subset": None if chosen is None else chosen.fingerprint,
        **({} if said is None else {"captions": said.fingerprint}),
        **{name: value for name, value in settings.as_parameters().items() if name not in PACE},
    }
    with (
        saying_when_stopped(
            f"Stopped. The same command goes on from the last checkpoint of {output}."
        ),
        resumable_artifact(output, begun_for, overwrite=overwrite, restart=restart) as directory,
        align_errors("coyo train"),
    ):
        result = train(directory)
        done = asdict(result)
        write_manifest(
            directory,
            Manifest(
                kind=RUN_KIND,
                parameters={"stage": "train", **settings.as_parameters()},
                inputs=inputs_of(data, chosen) + ([said.as_input("captions")] if said else []),
                rows_in=result.pairs + sum(lost_of(result).values()),
                rows_out=result.pairs,
                lost=lost_of(result),
                id_digest="",
                seconds=watch.seconds(),
                details={key: value for key, value in done.items() if key != "skipped"},
            ),
        )
    return result


def plan_training(
    shards: Path,
    settings: TrainSettings,
    *,
    subset: str | Path | None = None,
    captions: str | Path | None = None,
) -> "DryRun":
    """Say what a run of these settings will take; nothing is written.

    Raises:
        CoyoError: as ``train_model``.
    """
    _, chosen = _open(shards, subset)
    said = None if captions is None else open_source(captions)
    with align_errors("coyo train"):
        from coyo_align.dryrun import dry_run

        return dry_run(_config(shards, Path(), chosen, said, settings))


def time_training(settings: TrainSettings, command: str, *, shards: Path | None = None) -> "Pace":
    """Say in some seconds how fast a model is trained on this machine.

    Args:
        settings: of the training.
        command: that asks, for the message that the training extra is missing.
        shards: whose first captions say how long captions are; None for COYO's average.

    Raises:
        CoyoError: the extra is missing, or the settings can't be used here.
    """
    with align_errors(command):
        from coyo_align.config import make_config
        from coyo_align.dryrun import pace_of_model
        from coyo_align.input.index import first_captions

        nowhere = Path()
        config = make_config(shards=nowhere, output=nowhere, **settings.chosen())
        captions = [] if shards is None else first_captions(shards, _CAPTIONS)
        return pace_of_model(config, captions)


def _open(shards: Path, subset: str | Path | None) -> tuple[Input, Source | None]:
    return open_shards(shards), open_source(subset) if subset is not None else None


def _config(
    shards: Path,
    output: Path,
    chosen: Source | None,
    said: Source | None,
    settings: TrainSettings,
) -> "TrainConfig":
    from coyo_align.config import make_config

    ids, captions = ids_path(chosen), ids_path(said)
    given = settings.chosen() | ({} if captions is None else {"captions": captions})
    return make_config(shards=shards, output=output, ids=ids, **given)
