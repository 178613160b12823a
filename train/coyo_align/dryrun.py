"""What a run will take, before it is begun: counted, played on paper, and timed for a moment.

No picture is decoded and nothing is written: the tars' headers tell how many pairs there are, and
steps are timed on noise. What is missing from the hours is what decoding may hold up, building a
cache, and the processes of ``torchrun``.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch

from coyo_align.batch import training_batches
from coyo_align.checkpoint import Checkpoint
from coyo_align.config import TrainConfig, check
from coyo_align.device import (
    device_name,
    free_memory,
    own_randomness,
    pick_device,
    seed_of,
    torch_threads,
)
from coyo_align.distributed import World
from coyo_align.estimate import Estimate, expected_hours, seconds_per_step
from coyo_align.finetune import backward, cost_of_step, ready_towers, saying_what_fits
from coyo_align.input.children import cores
from coyo_align.input.data import Pairs, read_ids
from coyo_align.input.index import build_index
from coyo_align.input.pictures import Decoded
from coyo_align.model import Align
from coyo_align.optim import build_optimizer
from coyo_align.prepare import feed_of, load_or_build, make_model, plan_batches, refuse_too_few

_STEPS = 5
_CAPTIONS = 20_000
"""Enough to know how long captions are."""
_CPU_STEP_FLOPS = 1e11
"""A step of some seconds; of larger batches a CPU is timed on a part, being as fast on it."""


@dataclass(frozen=True)
class DryRun:
    """What a run will take.

    Attributes:
        pairs: with a picture and a caption; pictures have not been looked at.
        epochs: how often each will be seen.
        cost: of a step.
        text_length: tokens at which the text tower was reckoned, the length of the average group.
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
    text_length: int
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
    wanted = None if config.ids is None else read_ids(config.ids)
    index = build_index(
        config.shards, wanted, (), True, config.workers or cores(), lambda _share: None
    )
    refuse_too_few(config, len(index), "pairs")
    with torch_threads(config.threads), own_randomness(device):
        torch.manual_seed(seed_of(config.seed))
        captions = index.captions[:_CAPTIONS]
        checkpoint = load_or_build(config, captions)
        model = make_model(config, checkpoint, World(), device)
        plan = plan_batches(config, checkpoint, slice(0, config.batch_size), device)
        free = free_memory(device)
        cost, tokens = cost_of_step(config, model, feed_of(checkpoint, captions, device), plan)
        timed = config.batch_size
        if device.type == "cpu":
            timed = min(timed, max(2, int(_CPU_STEP_FLOPS / cost.step_flops)))
        seconds = _timed(replace(config, batch_size=timed), model, checkpoint, captions, device)
    return DryRun(
        pairs=len(index),
        skipped=index.skipped,
        missing_ids=index.missing_ids,
        epochs=config.samples / len(index),
        steps=math.ceil(config.samples / config.batch_size),
        cost=cost,
        text_length=tokens,
        free_bytes=free,
        fitting_batch=cost.batch_that_fits(free + cost.weight_bytes) * plan.parts,
        timed_batch=timed,
        samples_per_second=timed / seconds,
        hours=expected_hours(config.samples, timed, seconds),
        device=device_name(device),
    )


def _timed(
    config: TrainConfig,
    model: Align,
    checkpoint: Checkpoint,
    captions: Sequence[str],
    device: torch.device,
) -> float:
    """Seconds of a step on noise for pictures, with captions as they are."""
    rows = np.arange(config.batch_size)
    texts = list(islice(cycle(captions), config.batch_size))
    feed = feed_of(checkpoint, texts, device)
    shape = (config.batch_size, feed.preprocess.height, feed.preprocess.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pairs = Pairs(Decoded(noise, rows), texts, rows, {}, 0)
    plan = plan_batches(replace(config, accumulate=1), checkpoint, slice(0, len(rows)), device)
    towers = ready_towers(config, model, pairs, feed, plan, World())
    optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
    with (
        closing(training_batches(pairs, feed, plan, 0)) as batches,
        saying_what_fits(config, model, feed, plan),
    ):

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            backward(config, towers, next(batches))
            optimizer.step()

        return seconds_per_step(step, device, _STEPS)
