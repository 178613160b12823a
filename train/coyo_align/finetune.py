"""The training loop, top to bottom: pairs in memory, two towers, one loss, one saved run.

Read it from ``finetune`` on. Deterministic on a CPU for a given number of threads: weights, order
and crops come from the seed, and the caller's random state is left alone. Left out: resuming,
several GPUs, evaluation on the way; ``evaluate`` is for the end.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coyo_align.augment import mask_tokens, random_crop
from coyo_align.batch import Feed, cut
from coyo_align.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coyo_align.config import SHAPES, TrainConfig, check
from coyo_align.data import OnLoad, Pairs, load_pairs
from coyo_align.device import pick_device, seeded, torch_threads
from coyo_align.errors import AlignError
from coyo_align.images import Preprocess, image_processor, preprocess_of
from coyo_align.loss import contrastive_loss
from coyo_align.model import Align, build_compact, reestimate_batchnorm
from coyo_align.optim import build_optimizer, learning_rate_at
from coyo_align.tokenizer import encode, train_tokenizer

OnProgress = Callable[[int, int, float], None]
"""Called after every step with the samples seen, the samples of the whole run, and the loss."""

_NORM_BATCHES = 16
"""For the last BatchNorm statistics; ten are enough for the average to settle."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. ``seconds`` are of the loop; decoding before it is ``load_seconds``."""

    pairs: int
    samples_seen: int
    steps: int
    epochs: float
    parameters: int
    final_loss: float
    temperature: float
    seconds: float
    load_seconds: float
    samples_per_second: float
    data_wait: float
    skipped: dict[str, int]
    missing_ids: int
    device: str
    threads: int


def finetune(
    config: TrainConfig, on_progress: OnProgress | None = None, on_load: OnLoad | None = None
) -> TrainResult:
    """Train on the shards and write the run into ``config.output``, an empty directory.

    The run is a Hugging Face checkpoint with ``metrics.jsonl`` (a line every ``log_every`` steps,
    then one with the result) and ``train_config.json``.

    Raises:
        AlignError: the settings, the shards or the checkpoint can't be used, or the loss is no
            longer a number.
    """
    check(config)
    device = pick_device(config.device)
    config.output.mkdir(parents=True, exist_ok=True)
    if any(config.output.iterdir()):
        raise AlignError(f"{config.output} is not empty. Give a new directory for the run.")
    with torch_threads(config.threads), seeded(config.seed, device):
        started = time.perf_counter()
        checkpoint, pairs, feed = _prepare(config, device, on_load)
        load_seconds = time.perf_counter() - started

        model = Align(checkpoint.hf, config.temperature, config.freeze)
        model.to(device)
        model.hf.vision_model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, config.learning_rate, config.weight_decay)
        trained = [p for p in model.parameters() if p.requires_grad]
        chance = torch.Generator().manual_seed(config.seed)
        order = _order(len(pairs), config.batch_size, config.seed)
        mask_id = checkpoint.tokenizer.mask_token_id  # BERT's, which every ALIGN tokenizer has
        steps = math.ceil(config.samples / config.batch_size)
        budget = steps * config.batch_size
        losses: list[float] = []
        waited = 0.0

        with (config.output / "metrics.jsonl").open("w", encoding="utf-8", buffering=1) as log:
            started = last = time.perf_counter()
            waited_before = 0.0
            for step in range(steps):
                rate = learning_rate_at(step, steps, config.learning_rate, config.warmup_share)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                asked = time.perf_counter()
                rows = next(order)
                pixels, (ids, mask) = feed.pixels(rows), feed.texts(rows)
                waited += time.perf_counter() - asked

                pixels = random_crop(pixels, config.smallest_crop, chance)
                ids = mask_tokens(ids, mask, config.masked_tokens, mask_id, chance)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    images, texts = model.embed_images(pixels), model.embed_texts(ids, mask)
                loss = contrastive_loss(images, texts, model.temperature, config.label_smoothing)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise _not_a_number(step, rate, losses)

                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                optimizer.step()
                model.clamp_temperature()

                seen = (step + 1) * config.batch_size
                if (step + 1) % config.log_every == 0:
                    now = time.perf_counter()
                    line = {
                        "step": step + 1,
                        "samples_seen": seen,
                        "loss": float(np.mean(losses[-config.log_every :])),
                        "learning_rate": rate,
                        "temperature": model.temperature.item(),
                        "samples_per_second": config.log_every * config.batch_size / (now - last),
                        "data_wait": (waited - waited_before) / (now - last),
                    }
                    log.write(json.dumps(line) + "\n")
                    last, waited_before = now, waited
                if on_progress is not None:
                    on_progress(seen, budget, losses[-1])
            seconds = time.perf_counter() - started

            rows_again = _norm_rows(len(pairs), config.batch_size, config.seed)
            reestimate_batchnorm(model, (feed.pixels(rows) for rows in rows_again))
            model.to_hf()
            save_checkpoint(config.output, checkpoint)
            result = TrainResult(
                pairs=len(pairs),
                samples_seen=budget,
                steps=steps,
                epochs=budget / len(pairs),
                parameters=sum(p.numel() for p in checkpoint.hf.parameters()),
                final_loss=float(np.mean(losses[-config.log_every :])),
                temperature=model.temperature.item(),
                seconds=seconds,
                load_seconds=load_seconds,
                samples_per_second=budget / seconds,
                data_wait=waited / seconds,
                skipped=pairs.skipped,
                missing_ids=pairs.missing_ids,
                device=str(device),
                threads=torch.get_num_threads(),
            )
            log.write(json.dumps({"finished": asdict(result)}) + "\n")
        settings = json.dumps(config.as_json(), indent=2) + "\n"
        (config.output / "train_config.json").write_text(settings, encoding="utf-8")
    return result


def _prepare(
    config: TrainConfig, device: torch.device, on_load: OnLoad | None
) -> tuple[Checkpoint, Pairs, Feed]:
    """The model with its processor and tokenizer, the decoded pairs, and both joined."""
    if (shape := SHAPES.get(config.model)) is None:
        checkpoint = load_checkpoint(Path(config.model))
        pairs = _load(config, preprocess_of(checkpoint.image_processor), on_load)
    else:
        side = config.image_size or shape.image_size
        processor = image_processor(side)
        pairs = _load(config, preprocess_of(processor), on_load)
        tokenizer = train_tokenizer(pairs.captions, shape.vocabulary)
        hf = build_compact(shape, side, len(tokenizer), tokenizer.pad_token_id)
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
        config.shards, preprocess, config.ids, threads=config.threads, on_load=on_load
    )
    if len(pairs) < config.batch_size:
        raise AlignError(
            f"The batch size {config.batch_size} is larger than the {len(pairs)} usable pairs in "
            f"{config.shards}. Choose a batch size of at most {len(pairs)}."
        )
    return pairs


def _order(pairs: int, batch_size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches without end: a new order every epoch, no pair twice in a batch.

    What doesn't fill a batch at the end of an epoch is left for another one, as its pairs would
    meet themselves in the next epoch's first batch.
    """
    random = np.random.default_rng(seed)
    while True:
        yield from cut(random.permutation(pairs), batch_size)[: pairs // batch_size]


def _norm_rows(pairs: int, batch_size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The batches for the last BatchNorm statistics, as random as those of training."""
    return islice(_order(pairs, batch_size, seed + 1), _NORM_BATCHES)


def _not_a_number(step: int, rate: float, losses: list[float]) -> AlignError:
    before = ", ".join(f"{loss:.4g}" for loss in losses[-6:-1]) or "none"
    return AlignError(
        f"The loss is {losses[-1]} at step {step + 1}, learning rate {rate:.3g}; the losses before "
        f"it were {before}. Try a lower learning rate or a smaller clip_norm."
    )
