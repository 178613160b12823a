"""What a run will take, before it is begun: counted, played on paper, and timed for a moment.

No picture is decoded and nothing is written: the tars' headers tell how many pairs there are, and
steps are timed on noise. ``pace_of_model`` needs no pairs at all. What is missing from the hours is
what decoding may hold up, building a cache, and the processes of ``torchrun``.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from coyo_align.config import TrainConfig, check
from coyo_align.contrast import sketch_of_model
from coyo_align.device import (
    device_name,
    free_memory,
    own_randomness,
    pick_device,
    seed_of,
    torch_threads,
)
from coyo_align.errors import AlignError
from coyo_align.estimate import Estimate, expected_hours, seconds_per_step
from coyo_align.finetune import saying_what_fits
from coyo_align.optim import build_optimizer
from coyo_align.task import sketch_task
from coyo_align.trainable import Trainable

_STEPS = 5
_CPU_STEP_FLOPS = 1e11
"""A step of some seconds; of larger batches a CPU is timed on a part, being as fast on it."""
_QUICK_STEPS, _QUICK_FLOPS = 3, 1e10
"""Where a rough figure in some seconds is better than a good one later."""


@dataclass(frozen=True)
class Pace:
    """How fast a model is trained here.

    Attributes:
        samples_per_second: without waiting for data.
        timed_batch: samples of the steps that were timed.
        text_length: tokens of a caption in these; None without captions.
        device: what computed.
    """

    samples_per_second: float
    timed_batch: int
    text_length: int | None
    device: str


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
        timed = _batch_to_time(config, cost, device, _CPU_STEP_FLOPS)
        seconds = _timed(replace(config, batch_size=timed), sketch.task.on_noise(timed), device)
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


def pace_of_model(config: TrainConfig, captions: Sequence[str] = ()) -> Pace:
    """Say in some seconds how fast a model of these settings is trained here, without its data.

    Args:
        config: of a run whose shards nobody looks at.
        captions: some of the pairs'; without any all have COYO's average length, and the
            vocabulary is as large as it may become.

    Raises:
        AlignError: the settings or the checkpoint can't be used, the task is labels, or not even
            the timed batch fits into memory.
    """
    check(config)
    if config.task == "labels":
        raise AlignError("How many classes there are is not known without pictures.")
    device = pick_device(config.device)
    with torch_threads(config.threads), own_randomness(device):
        torch.manual_seed(seed_of(config.seed))
        task = sketch_of_model(config, device, captions)
        timed = _batch_to_time(config, task.cost(), device, _QUICK_FLOPS)
        noise = task.on_noise(timed)
        seconds = _timed(replace(config, batch_size=timed), noise, device, _QUICK_STEPS)
    return Pace(timed / seconds, timed, task.text_length, device_name(device))


def _batch_to_time(
    config: TrainConfig, cost: Estimate, device: torch.device, cpu_flops: float
) -> int:
    if device.type != "cpu":
        return config.batch_size
    return min(config.batch_size, max(2, int(cpu_flops / cost.step_flops)))


def _timed(
    config: TrainConfig, task: Trainable, device: torch.device, steps: int = _STEPS
) -> float:
    """Seconds of a step on noise for pictures, with captions as they are."""
    task.ready()
    optimizer = build_optimizer(task.model, config.learning_rate, config.weight_decay)
    with closing(task.batches(0)) as batches, saying_what_fits(config, task, device):

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            task.backward(next(batches))
            optimizer.step()

        return seconds_per_step(step, device, steps)
