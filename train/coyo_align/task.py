"""Which task a run's settings ask for."""

import torch

from coyo_align import contrast, labelled
from coyo_align.config import TrainConfig
from coyo_align.distributed import World
from coyo_align.input.data import OnLoad
from coyo_align.trainable import Sketch, Trainable


def prepare_task(
    config: TrainConfig, world: World, device: torch.device, on_load: OnLoad | None = None
) -> Trainable:
    """Read the data and build the model; torch's random state decides fresh weights.

    Raises:
        AlignError: the shards or the checkpoint can't be used, or settings don't go together.
    """
    if config.task == "labels":
        return labelled.prepare(config, world, device, on_load)
    return contrast.prepare(config, world, device, on_load)


def sketch_task(config: TrainConfig, device: torch.device) -> Sketch:
    """The same without looking at pictures, for a dry run."""
    if config.task == "labels":
        return labelled.sketch(config, device)
    return contrast.sketch(config, device)
