"""The training loop, top to bottom: samples in batches, a model, one loss, one saved run.

Read it from ``finetune`` on. What is learned, and from what, is the task's (``trainable``).
Deterministic on a CPU for a given number of threads: weights, order, crops and dropout come from
the seed and the number of the step, so that a run that was stopped goes on with the same bits. The
caller's random state is left alone. Left out: evaluation on the way; ``evaluate`` is for the end.
"""

import math
import shutil
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coyo_align.card import write_card
from coyo_align.checkpoint import save_checkpoint
from coyo_align.config import TrainConfig, check
from coyo_align.device import (
    device_name,
    free_memory,
    own_randomness,
    peak_memory,
    pick_device,
    ran_out_of_memory,
    seed_of,
    torch_threads,
)
from coyo_align.distributed import World, find_world, joined, share_of_batch, union_of_all
from coyo_align.errors import AlignError
from coyo_align.input.data import OnLoad, Pairs
from coyo_align.input.pictures import InTars, reasons_of
from coyo_align.metrics import MetricsLog, Standing, read_finished
from coyo_align.optim import AveragedWeights, build_optimizer, learning_rate_at
from coyo_align.prepare import begin
from coyo_align.state import CHECKPOINTS, Training, restore_state, save_state
from coyo_align.task import prepare_task
from coyo_align.trainable import Trainable

OnProgress = Callable[[Standing], None]
"""Called after every ``log_every`` steps and the last one."""

_CHECKPOINT_SECONDS = 600.0
_WEIGHTS, _DROPOUT = 101, 102
"""Streams of random numbers besides those of ``batch``."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. ``seconds`` are of the loop; decoding before it is ``load_seconds``.

    ``data_wait`` is the share of ``seconds`` spent waiting for a batch; ``peak_memory`` is in
    bytes, of the GPU where there is one. After a stop, figures of speed are of the last stretch.
    A model without a temperature, or without SigLIP's bias, has None there; ``pairs`` counts the
    samples of any task.
    """

    pairs: int
    samples_seen: int
    steps: int
    resumed_at: int
    epochs: float
    parameters: int
    final_loss: float
    temperature: float | None
    bias: float | None
    seconds: float
    load_seconds: float
    samples_per_second: float
    data_wait: float
    peak_memory: int
    skipped: dict[str, int]
    missing_ids: int
    remarks: list[str]
    device: str
    processes: int
    threads: int
    leads: bool
    """Whether this process wrote the run; the others of a ``torchrun`` only computed."""


def finetune(
    config: TrainConfig, on_progress: OnProgress | None = None, on_load: OnLoad | None = None
) -> TrainResult:
    """Train on the shards and write the run into ``config.output``.

    The run is a Hugging Face checkpoint with ``metrics.jsonl`` (a line every ``log_every`` steps,
    then one with the result), ``train_config.json`` and a model card. A run of the same settings
    that was stopped there is gone on with, a finished one left as it is. Under ``torchrun`` every
    process calls this, and the first one writes.

    Raises:
        AlignError: the settings, the shards or the checkpoint can't be used, the loss is no longer
            a number, or memory or disk run out.
    """
    check(config)
    world = find_world()
    share_of_batch(config.batch_size, world)  # refused before anything is written
    device = pick_device(config.device, world.local)
    with torch_threads(config.threads), own_randomness(device), joined(world, device):
        if world.leads:
            begin(config)
        if (finished := read_finished(config.output)) is not None:
            return TrainResult(**(finished | {"leads": world.leads}))
        started = time.perf_counter()
        torch.manual_seed(seed_of(config.seed, _WEIGHTS))
        task = prepare_task(config, world, device, on_load)
        model, pairs = task.model, task.pairs
        task.ready()
        load_seconds = time.perf_counter() - started

        optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
        trained = [p for p in model.parameters() if p.requires_grad]
        averages = AveragedWeights(trained, config.ema) if config.ema else None
        training = Training(model, optimizer, averages)
        same = {"settings": config.recipe(), "data": task.digest(), "processes": world.size}
        first, note, remarks = restore_state(config.output, training, same)

        steps = math.ceil(config.samples / config.batch_size)
        budget = steps * config.batch_size
        unread: list[Tensor] = []  # asking for a loss makes the CPU wait for the GPU
        losses: deque[float] = deque(note.get("losses", ()), maxlen=config.log_every)
        waited = 0.0
        batches = task.batches(first)
        with (
            closing(batches),
            MetricsLog(config, first if world.leads else None) as log,
            saying_what_fits(config, task, device),
        ):
            started = kept = time.perf_counter()
            for step in range(first, steps):
                rate = learning_rate_at(
                    step, steps, config.learning_rate, config.warmup_share, config.schedule
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate

                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked

                torch.manual_seed(seed_of(config.seed, _DROPOUT, step, world.rank))
                optimizer.zero_grad(set_to_none=True)
                unread.append(task.backward(batch))
                norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                optimizer.step()
                task.stepped()
                if averages is not None:
                    averages.update(step)

                done = step + 1
                now = time.perf_counter()
                log_now = done % config.log_every == 0 or done == steps
                if config.checkpoint_every is None:
                    keep_now = world.leads and now - kept > _CHECKPOINT_SECONDS
                else:
                    keep_now = world.leads and done % config.checkpoint_every == 0
                if log_now or keep_now:
                    fresh = torch.stack(unread).tolist()
                    unread.clear()
                    told = {"learning rate": rate} | task.figures()
                    _check_losses(fresh, [*losses, *fresh], done, told, norm.item())
                    losses.extend(fresh)
                if log_now:
                    standing = log.write(
                        done,
                        steps,
                        loss=float(np.mean(losses)),
                        learning_rate=rate,
                        grad_norm=norm.item(),
                        waited=waited,
                        **task.figures(),
                    )
                    if on_progress is not None and world.leads:
                        on_progress(standing)
                if keep_now and done < steps:
                    save_state(config.output, training, done, same | {"losses": list(losses)})
                    kept = time.perf_counter()
            seconds = time.perf_counter() - started

            if averages is not None:
                averages.put_in_place()
            model.leave_compiled()
            task.settle()
            figures = task.figures()
            result = TrainResult(
                pairs=len(pairs),
                samples_seen=budget,
                steps=steps,
                resumed_at=first,
                epochs=budget / len(pairs),
                parameters=sum(p.numel() for p in task.checkpoint.hf.parameters()),
                final_loss=float(np.mean(losses)),
                temperature=figures.get("temperature"),
                bias=figures.get("bias"),
                seconds=seconds,
                load_seconds=load_seconds,
                samples_per_second=(steps - first) * config.batch_size / seconds,
                data_wait=waited / seconds,
                peak_memory=peak_memory(device),
                skipped=_skipped_by_all(pairs, world),
                missing_ids=pairs.missing_ids,
                remarks=remarks,
                device=device_name(device),
                processes=world.size,
                threads=torch.get_num_threads(),
                leads=world.leads,
            )
            if world.leads:
                checkpoint = replace(task.checkpoint, hf=model.to_hf())
                save_checkpoint(config.output, checkpoint)
                write_card(config, result, checkpoint.hf.config)
                log.finish(asdict(result))
                shutil.rmtree(config.output / CHECKPOINTS, ignore_errors=True)
    return result


def _skipped_by_all(pairs: Pairs, world: World) -> dict[str, int]:
    """What was left out; of pictures in tars each process has met only those of its rows."""
    skipped = Counter(pairs.skipped)
    if isinstance(pairs.images, InTars):
        own = pairs.images.bad
        every = union_of_all(own, world)
        others = [code for row, code in every.items() if row not in own]
        skipped += Counter(reasons_of(np.asarray(others, dtype=np.uint8)))
    return dict(skipped)


def _check_losses(
    fresh: list[float], known: list[float], done: int, told: Mapping[str, float], norm: float
) -> None:
    """Stop at a loss that is no number, and say what led to it."""
    for place, loss in enumerate(fresh):
        if not math.isfinite(loss):
            step = done - len(fresh) + place + 1
            end = len(known) - len(fresh) + place
            before = ", ".join(f"{value:.4g}" for value in known[max(0, end - 5) : end]) or "none"
            raise AlignError(
                f"The loss is {loss} at step {step}, "
                f"{', '.join(f'{name} {value:.3g}' for name, value in told.items())}; the losses "
                f"before it were {before}; the last gradient's norm is {norm:.3g}. Try a lower "
                "learning rate, a longer warm-up or a smaller clip_norm."
            )


@contextmanager
def saying_what_fits(config: TrainConfig, task: Trainable, device: torch.device) -> Iterator[None]:
    """Turn what torch says when memory runs out into a batch size that would do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold the activations of the step
        cost = task.cost()
        room = free_memory(device)
        fits = cost.batch_that_fits(room + cost.fixed_bytes) * task.plan.parts * find_world().size
        advice = (
            f"Try batch_size {fits}" if 2 <= fits < config.batch_size else "Try a smaller model"
        )
        raise AlignError(
            f"Memory ran out with batches of {config.batch_size}: a sample takes about "
            f"{cost.bytes_per_sample / 1e6:.1f} MB beside the {cost.fixed_bytes / 1e6:,.0f} MB of "
            f"the model, and {room / 1e6:,.0f} MB are free for samples. {advice}, or "
            "checkpoint_activations."
        ) from error
