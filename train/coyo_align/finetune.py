"""The training loop, top to bottom: pairs in batches, two towers, one loss, one saved run.

Read it from ``finetune`` on. Deterministic on a CPU for a given number of threads: weights, order,
crops and dropout come from the seed and the number of the step, so that a run that was stopped goes
on with the same bits. The caller's random state is left alone. Left out: evaluation on the way;
``evaluate`` is for the end.
"""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
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
    Rows,
    augmented,
    rows_for_norms,
    training_batches,
)
from coyo_align.card import write_card
from coyo_align.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coyo_align.config import MAX_TOKENS, SHAPES, TrainConfig, check
from coyo_align.data import OnLoad, Pairs, load_pairs, stream
from coyo_align.device import (
    device_name,
    own_randomness,
    peak_memory,
    pick_device,
    seed_of,
    torch_threads,
)
from coyo_align.distributed import (
    World,
    find_world,
    gather_rows,
    joined,
    mean_of_all,
    share_batchnorm,
    share_of_batch,
)
from coyo_align.embed import embed_images, embed_texts
from coyo_align.errors import AlignError
from coyo_align.images import Preprocess, image_processor, preprocess_of
from coyo_align.loss import contrastive_loss, sigmoid_loss
from coyo_align.metrics import MetricsLog
from coyo_align.model import Align, build, random_parts, reestimate_batchnorm, set_dropout
from coyo_align.optim import AveragedWeights, build_optimizer, learning_rate_at
from coyo_align.state import CHECKPOINTS, Training, restore_state, save_state
from coyo_align.tokenizer import encode, train_tokenizer

OnProgress = Callable[[int, int, float], None]
"""Called after every ``log_every`` steps and the last one with the samples seen, the samples of
the whole run, and the mean loss since the last call."""

_NORM_BATCHES = 16
"""For the last BatchNorm statistics; ten are enough for the average to settle."""
_CHECKPOINT_SECONDS = 600.0
_SETTINGS = "train_config.json"
_WEIGHTS, _DROPOUT = 101, 102
"""Streams of random numbers besides those of ``batch``."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. ``seconds`` are of the loop; decoding before it is ``load_seconds``.

    ``data_wait`` is the share of ``seconds`` spent waiting for a batch, ``peak_memory`` in bytes, of
    the GPU where there is one. After a stop, figures of speed are those of the last stretch.
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


def finetune(
    config: TrainConfig, on_progress: OnProgress | None = None, on_load: OnLoad | None = None
) -> TrainResult:
    """Train on the shards and write the run into ``config.output``.

    The run is a Hugging Face checkpoint with ``metrics.jsonl`` (a line every ``log_every`` steps,
    then one with the result), ``train_config.json`` and a model card. A directory in which a run
    of the same settings was stopped is gone on with. Under ``torchrun`` every process calls this,
    and the first one writes.

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
            _begin(config)
        started = time.perf_counter()
        torch.manual_seed(seed_of(config.seed, _WEIGHTS))
        checkpoint, pairs, feed = _prepare(config, device, on_load)
        model = _align(config, checkpoint).to(device)
        plan = _plan(config, checkpoint, model, share, device)
        towers = _towers(config, model, feed, plan, world)
        load_seconds = time.perf_counter() - started

        optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
        trained = [p for p in model.parameters() if p.requires_grad]
        averages = AveragedWeights(trained, config.ema) if config.ema else None
        training = Training(model, optimizer, averages)
        same = {"settings": config.recipe(), "data": _digest(pairs), "processes": world.size}
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
            _saying_what_fits(config, model, feed, world),
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
                unread.append(_backward(config, towers, batch))
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
                    log.write(
                        done,
                        loss=float(np.mean(losses)),
                        learning_rate=rate,
                        temperature=model.temperature.item(),
                        grad_norm=norm.item(),
                        waited=waited,
                    )
                    if on_progress is not None:
                        on_progress(done * config.batch_size, budget, float(np.mean(losses)))
                if keep_now and done < steps:
                    save_state(config.output, training, done, same | {"losses": list(losses)})
                    kept = time.perf_counter()
            seconds = time.perf_counter() - started

            if averages is not None:
                averages.put_in_place()
            rows = rows_for_norms(len(pairs), config.batch_size, config.seed, _NORM_BATCHES)
            reestimate_batchnorm(model, _norm_pixels(pairs, feed, rows, plan))
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
                skipped=dict(pairs.skipped),
                missing_ids=pairs.missing_ids,
                remarks=remarks,
                device=device_name(device),
                processes=world.size,
                threads=torch.get_num_threads(),
            )
            if world.leads:
                model.to_hf()
                save_checkpoint(config.output, replace(checkpoint, hf=model.hf))
                write_card(config, result, checkpoint.hf.config)
                log.finish(asdict(result))
                shutil.rmtree(config.output / CHECKPOINTS, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Towers:
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


def _backward(config: TrainConfig, towers: _Towers, batch: Batch) -> Tensor:
    """Gradients of one batch; returns its loss, over all processes.

    A batch in parts is embedded twice: first without gradients, for the loss of all its pairs and
    what each embedding is asked to change; then part by part, to hand that on to the weights (Gao
    et al. 2021). It is the same as at once only if both times give the same embeddings, which
    ``_plan`` has made sure of.
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


def _begin(config: TrainConfig) -> None:
    """Write down what is begun, unless it was begun before."""
    config.output.mkdir(parents=True, exist_ok=True)
    settings = config.output / _SETTINGS
    if (config.output / "config.json").exists():
        raise AlignError(f"{config.output} holds a model already. Give a new directory.")
    if settings.exists():
        before, now = json.loads(settings.read_text(encoding="utf-8")), config.recipe()
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise AlignError(
                f"{config.output} holds an unfinished run with another {', '.join(changed)}. Give "
                "the settings as they were to go on with it, or a new directory."
            )
    half = settings.with_suffix(".half")
    half.write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
    half.replace(settings)


def _prepare(
    config: TrainConfig, device: torch.device, on_load: OnLoad | None
) -> tuple[Checkpoint, Pairs, Feed]:
    """The model with its processor and tokenizer, the pairs, and both joined."""
    if (shape := SHAPES.get(config.model)) is None:
        checkpoint = load_checkpoint(config.model)
        pairs = _load(config, preprocess_of(checkpoint.image_processor), on_load)
    else:
        side = config.image_size or shape.image_size
        processor = image_processor(side)
        pairs = _load(config, preprocess_of(processor), on_load)
        tokenizer = train_tokenizer(pairs.captions, shape.vocabulary)
        hf = build(shape, side, len(tokenizer), tokenizer.pad_token_id)
        checkpoint = Checkpoint(hf, processor, tokenizer)
    feed = Feed(
        images=pairs.images,
        tokens=encode(checkpoint.tokenizer, pairs.captions),
        preprocess=preprocess_of(checkpoint.image_processor),
        pad_id=checkpoint.tokenizer.pad_token_id,
        device=device,
    )
    return checkpoint, pairs, feed


def _load(config: TrainConfig, preprocess: Preprocess, on_load: OnLoad | None) -> Pairs:
    pairs = load_pairs(
        config.shards,
        preprocess,
        config.ids,
        cache=config.cache,
        workers=config.workers,
        threads=config.threads,
        on_load=on_load,
    )
    if len(pairs) < config.batch_size:
        raise AlignError(
            f"The batch size {config.batch_size} is larger than the {len(pairs)} usable pairs in "
            f"{config.shards}. Choose a batch size of at most {len(pairs)}."
        )
    return pairs


def _align(config: TrainConfig, checkpoint: Checkpoint) -> Align:
    set_dropout(checkpoint.hf, config.text_dropout, config.drop_path)
    model = Align(checkpoint.hf, config.temperature, config.freeze, config.loss)
    if config.lora is not None:
        model.add_lora(config.lora)
    model.hf.vision_model.to(memory_format=torch.channels_last)
    model.train()
    if config.accumulate > 1 and (parts := random_parts(model)):
        raise AlignError(
            f"Taking a batch in {config.accumulate} parts would not give the gradients of the "
            f"whole, because of {', '.join(parts)}. Without accumulate, a smaller batch or "
            "checkpoint_activations saves memory."
        )
    return model


def _plan(
    config: TrainConfig, checkpoint: Checkpoint, model: Align, share: slice, device: torch.device
) -> BatchPlan:
    """What a batch is made of. Frozen towers are left out if they would give the same every time."""
    on_gpu = device.type == "cuda"
    if config.accumulate > 1 and share.stop - share.start < config.batch_size:
        raise AlignError("accumulate works in one process; with several, each takes its share.")
    return BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        share=share,
        parts=config.accumulate,
        smallest_crop=config.smallest_crop,
        masked_tokens=config.masked_tokens,
        mask_id=checkpoint.tokenizer.mask_token_id,  # BERT's, which every ALIGN tokenizer has
        group=256 if on_gpu else 32,
        # A compiled tower is compiled anew for every length, and positions end at 64 or later.
        multiple=16 if on_gpu and checkpoint.tokenizer.model_max_length == MAX_TOKENS else 1,
        with_images=not ("image" in config.freeze and config.smallest_crop == 1),
        with_texts=not ("text" in config.freeze and config.masked_tokens == 0),
        workers=config.workers,
    )


def _towers(
    config: TrainConfig, model: Align, feed: Feed, plan: BatchPlan, world: World
) -> _Towers:
    """The model made ready to be called; embeds what a frozen tower will always give."""
    on_gpu = feed.device.type == "cuda"
    rows = np.arange(len(feed.tokens))
    known = [
        None if needed else torch.from_numpy(embed(model, feed, rows, 256, lambda _: None))
        for needed, embed in ((plan.with_images, embed_images), (plan.with_texts, embed_texts))
    ]
    model.train()
    if config.checkpoint_activations:
        model.checkpoint_activations()
    if on_gpu if config.compile is None else config.compile:
        model.compile_towers()
    call: Any = model
    if world.size > 1:
        share_batchnorm(model, feed.device)
        call = DistributedDataParallel(
            model, [feed.device.index] if on_gpu else None, broadcast_buffers=False
        )
    bf16 = on_gpu if config.precision is None else config.precision == "bf16"
    images, texts = (None if rows is None else rows.to(feed.device) for rows in known)
    return _Towers(call, feed, world, plan.share, bf16, images, texts)


def _norm_pixels(
    pairs: Pairs, feed: Feed, rows: Sequence[Rows], plan: BatchPlan
) -> Iterator[Tensor]:
    """Pictures for BatchNorm's last statistics, as they are used later: not cropped."""
    if not plan.with_images:
        return
    with closing(
        stream(pairs, ((batch, batch[:0]) for batch in rows), workers=plan.workers)
    ) as found:
        for _, pixels in found:
            yield feed.to_floats(torch.from_numpy(pixels).to(feed.device))


def _digest(pairs: Pairs) -> str:
    """A fingerprint of the pairs in their order; a run must go on with the data it was begun with."""
    digest = sha256(np.ascontiguousarray(pairs.ids).tobytes())
    for caption in pairs.captions:
        digest.update(caption.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


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
def _saying_what_fits(
    config: TrainConfig, model: Align, feed: Feed, world: World
) -> Iterator[None]:
    """Turn what torch says when memory runs out into a batch size that would do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "DefaultCPUAllocator" not in str(error):
                raise
        raise AlignError(out_of_memory(config, model, feed, world)) from error


def out_of_memory(config: TrainConfig, model: Align, feed: Feed, world: World) -> str:
    return "memory"
