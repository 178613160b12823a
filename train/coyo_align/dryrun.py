"""What a run will take, before it is begun: counted, played on paper, and timed for a moment.

No picture is decoded and nothing is written: the tars' headers tell how many pairs there are, and
steps are timed on noise. What is missing from the hours is what decoding may hold up, building a
cache, and the processes of ``torchrun``.
"""

import math
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from coyo_align.config import TrainConfig, check
from coyo_align.device import (
    device_name,
    free_memory,
    own_randomness,
    pick_device,
    seed_of,
    torch_threads,
)
from coyo_align.estimate import Estimate, expected_hours, seconds_per_step
from coyo_align.finetune import saying_what_fits
from coyo_align.optim import build_optimizer
from coyo_align.task import sketch_task
from coyo_align.trainable import Trainable

_STEPS = 5
_CPU_STEP_FLOPS = 1e11
"""A step of some seconds; of larger batches a CPU is timed on a part, being as fast on it."""


@dataclass(frozen=True)
class DryRun:
    """What a run will take.

    Attributes:
        pairs: with a picture and a caption, or labels; pictures have not been looked at.
        epochs: how often each will be seen.
        cost: of a step.
        text_length: tokens at which the text tower was reckoned, the length of the average group;
            None without one.
        free_bytes: of memory, before the run.
        timed_batch: samples of the steps that were timed.
        samples_per_second: of these, without waiting for data.
        hours: of the whole budget at this pace.
    """

    pairs: int
    skipped: dict[str, int]
    missing_ids: int
    epochs: float
    steps: int
    cost: Estimate
    text_length: int | None
    free_bytes: int
    fitting_batch: int
    timed_batch: int
    samples_per_second: float
    hours: float
    device: str


def dry_run(config: TrainConfig) -> DryRun:
    """Say what a run of these settings will take.

    Raises:
        AlignError: the settings, the shards or the checkpoint can't be used, or not even the timed
            batch fits into memory.
    """
    check(config)
    device = pick_device(config.device)
    with torch_threads(config.threads), own_randomness(device):
        torch.manual_seed(seed_of(config.seed))
        sketch = sketch_task(config, device)
        free = free_memory(device)
        cost = sketch.task.cost()
        timed = config.batch_size
        if device.type == "cpu":
            timed = min(timed, max(2, int(_CPU_STEP_FLOPS / cost.step_flops)))
        noise = sketch.task.on_noise(timed)
        seconds = _timed(replace(config, batch_size=timed), noise, device)
    return DryRun(
        pairs=sketch.samples,
        skipped=sketch.skipped,
        missing_ids=sketch.missing_ids,
        epochs=config.samples / sketch.samples,
        steps=math.ceil(config.samples / config.batch_size),
        cost=cost,
        text_length=sketch.task.text_length,
        free_bytes=free,
        fitting_batch=cost.batch_that_fits(free + cost.weight_bytes) * sketch.task.plan.parts,
        timed_batch=timed,
        samples_per_second=timed / seconds,
        hours=expected_hours(config.samples, timed, seconds),
        device=device_name(device),
    )


def _timed(config: TrainConfig, task: Trainable, device: torch.device) -> float:
    """Seconds of a step on noise for pictures, with captions as they are."""
    task.ready()
    optimizer = build_optimizer(task.model, config.learning_rate, config.weight_decay)
    with closing(task.batches(0)) as batches, saying_what_fits(config, task, device):

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            task.backward(next(batches))
            optimizer.step()

        return seconds_per_step(step, device, _STEPS)
