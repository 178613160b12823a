"""The training loop, top to bottom: pairs in batches, two towers, one loss, one saved run.

Read it from ``finetune`` on. Deterministic on a CPU for a given number of threads: weights, order,
crops and dropout come from the seed and the number of the step, so that a run that was stopped goes
on with the same bits. The caller's random state is left alone. Left out: evaluation on the way;
``evaluate`` is for the end.
"""

import math
import shutil
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from coyo_align.batch import (
    Batch,
    BatchPlan,
    Feed,
    Part,
    augmented,
    cut,
    rows_for_norms,
    training_batches,
)
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
from coyo_align.distributed import (
    World,
    find_world,
    gather_rows,
    joined,
    mean_of_all,
    share_of_batch,
    union_of_all,
)
from coyo_align.embed import embed_texts
from coyo_align.errors import AlignError
from coyo_align.estimate import Estimate, estimate
from coyo_align.input.data import OnLoad, Pairs
from coyo_align.input.pictures import InTars, Rows, reasons_of
from coyo_align.input.stream import stream
from coyo_align.loss import contrastive_loss, sigmoid_loss
from coyo_align.metrics import MetricsLog, Standing, read_finished
from coyo_align.model import Align, reestimate_batchnorm
from coyo_align.optim import AveragedWeights, build_optimizer, learning_rate_at
from coyo_align.prepare import (
    begin,
    digest_of,
    known_towers,
    make_model,
    plan_batches,
    prepare,
)
from coyo_align.state import CHECKPOINTS, Training, restore_state, save_state

OnProgress = Callable[[Standing], None]
"""Called after every ``log_every`` steps and the last one."""

_NORM_BATCHES = 16
"""For the last BatchNorm statistics; ten are enough for the average to settle."""
_EMBED_ROWS = 256
_CHECKPOINT_SECONDS = 600.0
_WEIGHTS, _DROPOUT = 101, 102
"""Streams of random numbers besides those of ``batch``."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. ``seconds`` are of the loop; decoding before it is ``load_seconds``.

    ``data_wait`` is the share of ``seconds`` spent waiting for a batch; ``peak_memory`` is in
    bytes, of the GPU where there is one. After a stop, figures of speed are of the last stretch.
    """

    pairs: int
    samples_seen: int
    steps: int
    resumed_at: int
    epochs: float
    parameters: int
    final_loss: float
    temperature: float
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
    share = share_of_batch(config.batch_size, world)
    device = pick_device(config.device, world.local)
    with torch_threads(config.threads), own_randomness(device), joined(world, device):
        if world.leads:
            begin(config)
        if (finished := read_finished(config.output)) is not None:
            return TrainResult(**(finished | {"leads": world.leads}))
        started = time.perf_counter()
        torch.manual_seed(seed_of(config.seed, _WEIGHTS))
        checkpoint, pairs, feed = prepare(config, device, on_load)
        model = make_model(config, checkpoint, world, device)
        plan = plan_batches(config, checkpoint, share, device)
        towers = ready_towers(config, model, pairs, feed, plan, world)
        plan = _without_bad_pictures(plan, towers)
        load_seconds = time.perf_counter() - started

        optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
        trained = [p for p in model.parameters() if p.requires_grad]
        averages = AveragedWeights(trained, config.ema) if config.ema else None
        training = Training(model, optimizer, averages)
        same = {"settings": config.recipe(), "data": digest_of(pairs), "processes": world.size}
        first, note, remarks = restore_state(config.output, training, same)

        steps = math.ceil(config.samples / config.batch_size)
        budget = steps * config.batch_size
        unread: list[Tensor] = []  # asking for a loss makes the CPU wait for the GPU
        losses: deque[float] = deque(note.get("losses", ()), maxlen=config.log_every)
        waited = 0.0
        batches = training_batches(pairs, feed, plan, first)
        with (
            closing(batches),
            MetricsLog(config, first if world.leads else None) as log,
            saying_what_fits(config, model, feed, plan),
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
                unread.append(backward(config, towers, batch))
                norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                optimizer.step()
                model.clamp_temperature()
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
                    _check_losses(fresh, [*losses, *fresh], done, rate, model, norm.item())
                    losses.extend(fresh)
                if log_now:
                    standing = log.write(
                        done,
                        steps,
                        loss=float(np.mean(losses)),
                        learning_rate=rate,
                        temperature=model.temperature.item(),
                        grad_norm=norm.item(),
                        waited=waited,
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
            if plan.with_images:
                rows = rows_for_norms(len(pairs), config.batch_size, config.seed, _NORM_BATCHES)
                pictures = _plain_pictures(pairs, feed, rows, plan)
                reestimate_batchnorm(model, (floats for _, floats in pictures))
            result = TrainResult(
                pairs=len(pairs),
                samples_seen=budget,
                steps=steps,
                resumed_at=first,
                epochs=budget / len(pairs),
                parameters=sum(p.numel() for p in checkpoint.hf.parameters()),
                final_loss=float(np.mean(losses)),
                temperature=model.temperature.item(),
                bias=None if model.bias is None else model.bias.item(),
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
                model.to_hf()
                save_checkpoint(config.output, replace(checkpoint, hf=model.hf))
                write_card(config, result, checkpoint.hf.config)
                log.finish(asdict(result))
                shutil.rmtree(config.output / CHECKPOINTS, ignore_errors=True)
    return result


@dataclass(frozen=True)
class Towers:
    """The model as it is called in a step, and what is known of a frozen tower beforehand."""

    call: Any
    feed: Feed
    world: World
    share: slice
    bf16: bool
    images: Tensor | None
    texts: Tensor | None

    def embed(self, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of a part of a batch, the temperature, and SigLIP's bias or None."""
        pixels = augmented(self.feed, part)
        with torch.autocast(self.feed.device.type, torch.bfloat16, enabled=self.bf16):
            images, texts, temperature, bias = self.call(pixels, part.texts)
        return (
            images if self.images is None else self.images[part.rows],
            texts if self.texts is None else self.texts[part.rows],
            temperature,
            bias,
        )

    def loss(
        self, config: TrainConfig, images: Tensor, texts: Tensor, temperature: Tensor, bias: Tensor
    ) -> Tensor:
        """The loss of this process's rows among all."""
        everyone = None
        if self.world.size > 1:
            everyone = gather_rows(images), gather_rows(texts), self.share.start
        if config.loss == "siglip":
            return sigmoid_loss(images, texts, temperature, bias, everyone)
        return contrastive_loss(images, texts, temperature, config.label_smoothing, everyone)


def backward(config: TrainConfig, towers: Towers, batch: Batch) -> Tensor:
    """Gradients of one batch; returns its loss, over all processes.

    A batch in parts is embedded twice: first without gradients, for the loss of all its pairs and
    what each embedding is asked to change; then part by part, to hand that on to the weights (Gao
    et al. 2021). It is the same as at once only if both times give the same embeddings, which
    ``make_model`` has made sure of.
    """
    if len(batch.parts) == 1:
        loss = towers.loss(config, *towers.embed(batch.parts[0]))
        torch.autograd.backward(loss)
    else:
        with torch.no_grad():
            found = [towers.embed(part)[:2] for part in batch.parts]
        whole = [torch.cat(embedded).requires_grad_() for embedded in zip(*found, strict=True)]
        _, _, temperature, bias = towers.call(None, ())
        loss = towers.loss(config, whole[0], whole[1], temperature, bias)
        torch.autograd.backward(loss)
        size = len(whole[0]) // len(batch.parts)
        for number, part in enumerate(batch.parts):
            for embedded, rows in zip(towers.embed(part)[:2], whole, strict=True):
                if embedded.requires_grad and rows.grad is not None:
                    asked = rows.grad[number * size :][:size]
                    torch.autograd.backward(embedded, asked)
    return mean_of_all(loss.detach(), towers.world)


def ready_towers(
    config: TrainConfig, model: Align, pairs: Pairs, feed: Feed, plan: BatchPlan, world: World
) -> Towers:
    """The model made ready to be called; embeds what a frozen tower will always give."""
    on_gpu = feed.device.type == "cuda"
    images = None if plan.with_images else _embed_pictures(model, pairs, feed, plan)
    texts = None
    if not plan.with_texts:
        rows = np.arange(len(pairs))
        texts = torch.from_numpy(embed_texts(model, feed, rows, _EMBED_ROWS, lambda _: None))
    model.train()
    if config.checkpoint_activations:
        model.checkpoint_activations()
    if on_gpu if config.compile is None else config.compile:
        model.compile_towers()
    call: Any = model
    if world.size > 1:
        with warnings.catch_warnings():  # the argument has another name from torch 2.13 on
            warnings.simplefilter("ignore", FutureWarning)
            device_ids = [feed.device.index] if on_gpu else None
            call = DistributedDataParallel(model, device_ids, broadcast_buffers=False)
    images, texts = (None if known is None else known.to(feed.device) for known in (images, texts))
    return Towers(call, feed, world, plan.share, in_bf16(config, feed.device), images, texts)


def _without_bad_pictures(plan: BatchPlan, towers: Towers) -> BatchPlan:
    """Leave out the pictures that turned out bad when all were embedded."""
    if towers.images is None:
        return plan
    good = np.flatnonzero(towers.images[:, 0].isfinite().cpu().numpy())
    if len(good) < plan.batch_size:
        raise AlignError(
            f"Only {len(good)} pictures decode to something finite, fewer than a batch of "
            f"{plan.batch_size}. Choose a smaller batch size."
        )
    return replace(plan, usable=good)


def _embed_pictures(model: Align, pairs: Pairs, feed: Feed, plan: BatchPlan) -> Tensor:
    """Embeddings of all pictures by row, on the CPU; NaN for those that don't decode."""
    known = torch.full((len(pairs), model.hf.projection_dim), math.nan)
    model.eval()
    with torch.no_grad():
        for rows, floats in _plain_pictures(
            pairs, feed, cut(np.arange(len(pairs)), _EMBED_ROWS), plan
        ):
            known[torch.from_numpy(rows)] = model.embed_images(floats).cpu()
    return known


def _plain_pictures(
    pairs: Pairs, feed: Feed, batches: Sequence[Rows], plan: BatchPlan
) -> Iterator[tuple[Rows, Tensor]]:
    """Rows and pixel values as they are used later: not cropped, without what doesn't decode."""
    asked = ((rows, None) for rows in batches)
    with closing(stream(pairs, asked, workers=plan.workers)) as found:
        for rows, pixels in found:
            yield rows, feed.to_floats(torch.from_numpy(pixels).to(feed.device))


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
    fresh: list[float], known: list[float], done: int, rate: float, model: Align, norm: float
) -> None:
    """Stop at a loss that is no number, and say what led to it."""
    for place, loss in enumerate(fresh):
        if not math.isfinite(loss):
            step = done - len(fresh) + place + 1
            end = len(known) - len(fresh) + place
            before = ", ".join(f"{value:.4g}" for value in known[max(0, end - 5) : end]) or "none"
            raise AlignError(
                f"The loss is {loss} at step {step}, learning rate {rate:.3g}, temperature "
                f"{model.temperature.item():.3g}; the losses before it were {before}; the last "
                f"gradient's norm is {norm:.3g}. Try a lower learning rate, a longer warm-up or a "
                "smaller clip_norm."
            )


@contextmanager
def saying_what_fits(
    config: TrainConfig, model: Align, feed: Feed, plan: BatchPlan
) -> Iterator[None]:
    """Turn what torch says when memory runs out into a batch size that would do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold the activations of the step
        cost, _ = cost_of_step(config, model, feed, plan)
        room = free_memory(feed.device)
        fits = cost.batch_that_fits(room + cost.fixed_bytes) * plan.parts * find_world().size
        advice = (
            f"Try batch_size {fits}" if 2 <= fits < config.batch_size else "Try a smaller model"
        )
        raise AlignError(
            f"Memory ran out with batches of {config.batch_size}: a sample takes about "
            f"{cost.bytes_per_sample / 1e6:.1f} MB beside the {cost.fixed_bytes / 1e6:,.0f} MB of "
            f"the model, and {room / 1e6:,.0f} MB are free for samples. {advice}, or "
            "checkpoint_activations."
        ) from error


def cost_of_step(
    config: TrainConfig, model: Align, feed: Feed, plan: BatchPlan
) -> tuple[Estimate, int]:
    """What a part of a batch costs, and the tokens of the average group of captions."""
    lengths = np.sort(feed.tokens.lengths)
    longest = lengths[plan.group - 1 :: plan.group] if len(lengths) >= plan.group else lengths
    tokens = math.ceil(longest.mean() / plan.multiple) * plan.multiple
    cost = estimate(
        model,
        (feed.preprocess.height, feed.preprocess.width),
        tokens,
        config.batch_size // plan.parts,
        "bf16" if in_bf16(config, feed.device) else "fp32",
        ema=config.ema is not None,
        cached=known_towers(plan),
        device=feed.device,
    )
    return cost, tokens


def in_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the towers compute in bf16."""
    return (config.precision or ("bf16" if device.type == "cuda" else "fp32")) == "bf16"
