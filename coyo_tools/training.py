"""Train: the stage that hands shards to ``coyo_align`` and keeps the run it makes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_tools.handover import align_errors, ids_path, inputs_of, lost_of, open_shards
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, refuse_existing, write_manifest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import open_source

if TYPE_CHECKING:
    from coyo_align.finetune import TrainResult

RUN_KIND = "run"


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
    data = open_shards(shards)
    chosen = open_source(subset) if subset is not None else None
    with align_errors("coyo train"):
        from coyo_align.config import make_config
        from coyo_align.finetune import finetune
    with new_artifact(output, overwrite=overwrite) as directory, align_errors("coyo train"):
        result = finetune(
            make_config(
                shards=shards,
                output=directory,
                ids=ids_path(chosen),
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
                inputs=inputs_of(data, chosen),
                rows_in=result.pairs + sum(lost_of(result).values()),
                rows_out=result.pairs,
                lost=lost_of(result),
                id_digest="",
                seconds=watch.seconds(),
                details={key: value for key, value in done.items() if key != "skipped"},
            ),
        )
    return result
