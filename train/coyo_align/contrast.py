"""The task of pairs: two towers, and one loss over all pictures and captions of a batch."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coyo_align.batch import (
    Batch,
    BatchPlan,
    Feed,
    Part,
    augmented,
    cut,
    plain_pictures,
    rows_for_norms,
    training_batches,
)
from coyo_align.beside import Captions
from coyo_align.checkpoint import Checkpoint, load_checkpoint
from coyo_align.config import MAX_TOKENS, SHAPES, TrainConfig
from coyo_align.distributed import World, gather_rows, mean_of_all, share_batchnorm
from coyo_align.embed import embed_texts
from coyo_align.errors import AlignError
from coyo_align.estimate import Estimate, Tower, estimate
from coyo_align.input.data import OnLoad, Pairs
from coyo_align.input.images import image_processor, preprocess_of
from coyo_align.loss import contrastive_loss, sigmoid_loss
from coyo_align.model import Align, build, random_parts, reestimate_batchnorm, set_dropout
from coyo_align.prepare import (
    batch_plan,
    count_samples,
    load,
    noise,
    ready_model,
    unseen,
)
from coyo_align.tokenizer import encode, train_tokenizer
from coyo_align.trainable import Sketch, in_bf16

_NORM_BATCHES = 16
"""For the last BatchNorm statistics; ten are enough for the average to settle."""
_EMBED_ROWS = 256
_CAPTIONS = 20_000
"""Enough to know how long captions are."""
_USUAL = " ".join(["a"] * 16)
"""As long as COYO's captions: 15.8 tokens of BERT's on average, and the two around them."""


@dataclass
class Contrast:
    """An ALIGN and its pairs, see ``Trainable``.

    Attributes:
        call: the model as it is called in a step, once it is ready.
        images: embeddings of all pictures, (rows, width), if the image tower always gives the same.
        texts: embeddings of all captions, likewise.
    """

    config: TrainConfig
    checkpoint: Checkpoint
    model: Align
    pairs: Pairs
    feed: Feed
    captions: Captions
    plan: BatchPlan
    world: World
    call: Any = None
    images: Tensor | None = None
    texts: Tensor | None = None

    @property
    def text_length(self) -> int:
        """Tokens of the average group of captions."""
        group, multiple = self.captions.group, self.captions.multiple
        lengths = np.sort(self.feed.tokens.lengths)
        longest = lengths[group - 1 :: group] if len(lengths) >= group else lengths
        return math.ceil(float(longest.mean()) / multiple) * multiple

    def digest(self) -> str:
        """A fingerprint of ids and captions."""
        digest = sha256(np.ascontiguousarray(self.pairs.ids).tobytes())
        for caption in self.pairs.captions:
            digest.update(caption.encode(errors="surrogatepass") + b"\0")
        return digest.hexdigest()

    def ready(self) -> None:
        """Embed what a frozen tower will always give, and make the model ready to be called."""
        device = self.feed.device
        if not self.plan.with_images:
            self.images = self._embed_pictures().to(device)
            self.plan = self._without_bad_pictures(self.images)
        if not self.captions.needed:
            rows = np.arange(len(self.pairs))
            texts = embed_texts(self.model, self.feed, rows, _EMBED_ROWS, lambda _: None)
            self.texts = torch.from_numpy(texts).to(device)
        self.call = ready_model(self.config, self.model, self.world, device)

    def batches(self, first: int) -> Generator[Batch]:
        """The batches from a step on, without end."""
        return training_batches(self.pairs, self.captions, self.plan, first, self.feed.device)

    def embed(self, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of a part of a batch, the temperature, and SigLIP's bias or None."""
        pixels = augmented(part, self.feed.preprocess)
        device = self.feed.device
        bf16 = in_bf16(self.config.precision, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            images, texts, temperature, bias = self.call(pixels, part.beside)
        return (
            images if self.images is None else self.images[part.rows],
            texts if self.texts is None else self.texts[part.rows],
            temperature,
            bias,
        )

    def loss(self, images: Tensor, texts: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        """The loss of this process's rows among all."""
        everyone = None
        if self.world.size > 1:
            everyone = gather_rows(images), gather_rows(texts), self.plan.share.start
        if self.config.loss == "siglip":
            return sigmoid_loss(images, texts, temperature, bias, everyone)
        smoothing = self.config.label_smoothing
        return contrastive_loss(images, texts, temperature, smoothing, everyone)

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of one batch; returns its loss, over all processes.

        A batch in parts is embedded twice: first without gradients, for the loss of all its pairs
        and what each embedding is asked to change; then part by part, to hand that on to the
        weights (Gao et al. 2021). It is the same as at once only if both times give the same
        embeddings, which ``make_model`` has made sure of.
        """
        if len(batch.parts) == 1:
            loss = self.loss(*self.embed(batch.parts[0]))
            torch.autograd.backward(loss)
        else:
            with torch.no_grad():
                found = [self.embed(part)[:2] for part in batch.parts]
            whole = [torch.cat(embedded).requires_grad_() for embedded in zip(*found, strict=True)]
            _, _, temperature, bias = self.call(None, ())
            loss = self.loss(whole[0], whole[1], temperature, bias)
            torch.autograd.backward(loss)
            size = len(whole[0]) // len(batch.parts)
            for number, part in enumerate(batch.parts):
                for embedded, rows in zip(self.embed(part)[:2], whole, strict=True):
                    if embedded.requires_grad and rows.grad is not None:
                        asked = rows.grad[number * size :][:size]
                        torch.autograd.backward(embedded, asked)
        return mean_of_all(loss.detach(), self.world)

    def stepped(self) -> None:
        """Bring the temperature back within its bounds."""
        self.model.clamp_temperature()

    def figures(self) -> dict[str, float]:
        """The temperature, and SigLIP's bias."""
        bias = self.model.bias
        return {"temperature": self.model.temperature.item()} | (
            {} if bias is None else {"bias": bias.item()}
        )

    def settle(self) -> None:
        """Average BatchNorm's statistics with the weights as they are now."""
        if self.plan.with_images:
            config = self.config
            rows = rows_for_norms(len(self.pairs), config.batch_size, config.seed, _NORM_BATCHES)
            pictures = self._plain_pictures(rows)
            reestimate_batchnorm(self.model, (values for _, _, values in pictures))

    def cost(self) -> Estimate:
        """What a part of a batch costs."""
        preprocess, device = self.feed.preprocess, self.feed.device
        known: list[Tower] = [] if self.plan.with_images else ["image"]
        return estimate(
            self.model,
            (preprocess.height, preprocess.width),
            self.text_length,
            self.plan.batch_size // self.plan.parts,
            "bf16" if in_bf16(self.config.precision, device) else "fp32",
            ema=self.config.ema is not None,
            cached=known if self.captions.needed else [*known, "text"],
            device=device,
        )

    def on_noise(self, rows: int) -> "Contrast":
        """The same model with noise for pictures, and captions as they are."""
        texts = list(islice(cycle(self.pairs.captions), rows))
        config = replace(self.config, batch_size=rows, accumulate=1)
        pairs = noise(rows, self.feed.preprocess, texts)
        return _assemble(config, self.checkpoint, self.model, pairs, self.world, self.feed.device)

    def _plain_pictures(self, batches: Sequence[Any]) -> Any:
        return plain_pictures(
            self.pairs, batches, self.feed.preprocess, self.feed.device, self.plan.workers
        )

    def _embed_pictures(self) -> Tensor:
        """Embeddings of all pictures by row, on the CPU; NaN for those that don't decode."""
        known = torch.full((len(self.pairs), self.model.hf.projection_dim), math.nan)
        self.model.eval()
        with torch.no_grad():
            for rows, _, values in self._plain_pictures(
                cut(np.arange(len(self.pairs)), _EMBED_ROWS)
            ):
                known[torch.from_numpy(rows)] = self.model.embed_images(values).cpu()
        return known

    def _without_bad_pictures(self, images: Tensor) -> BatchPlan:
        """Leave out the pictures that turned out bad when all were embedded."""
        good = np.flatnonzero(images[:, 0].isfinite().cpu().numpy())
        if len(good) < self.plan.batch_size:
            raise AlignError(
                f"Only {len(good)} pictures decode to something finite, fewer than a batch of "
                f"{self.plan.batch_size}. Choose a smaller batch size."
            )
        return replace(self.plan, usable=good)


def prepare(
    config: TrainConfig, world: World, device: torch.device, on_load: OnLoad | None
) -> Contrast:
    """The pairs, and the model with its processor and tokenizer."""
    shape = SHAPES.get(config.model)
    if shape is None:
        checkpoint = load_checkpoint(config.model)
        processor = checkpoint.image_processor
    else:
        processor = image_processor(config.image_size or shape.image_size)
    preprocess = preprocess_of(processor, fast=config.fast_decode)
    pairs = load(config, preprocess, "usable pairs", on_load)
    if shape is not None:
        checkpoint = _load_or_build(config, pairs.captions)
    model = make_model(config, checkpoint, world, device)
    return _assemble(config, checkpoint, model, pairs, world, device)


def sketch(config: TrainConfig, device: torch.device) -> Sketch:
    """The task as far as the tars' headers and some of the captions tell."""
    index = count_samples(config, "pairs")
    captions = index.captions[:_CAPTIONS]
    task = _on_captions(config, _load_or_build(config, captions), captions, device)
    return Sketch(task, len(index), index.skipped, index.missing_ids)


def sketch_of_model(
    config: TrainConfig, device: torch.device, captions: Sequence[str] = ()
) -> Contrast:
    """The task without its data: with some captions, or without any as if all had one length."""
    if captions:
        some = list(captions[:_CAPTIONS])
        return _on_captions(config, _load_or_build(config, some), some, device)
    shape = SHAPES.get(config.model)
    usual = [_USUAL] * 2  # what stands in one caption only is no part of a vocabulary
    checkpoint = _load_or_build(config, usual, None if shape is None else shape.vocabulary)
    return _on_captions(config, checkpoint, usual, device)


def _on_captions(
    config: TrainConfig, checkpoint: Checkpoint, captions: list[str], device: torch.device
) -> Contrast:
    world = World()
    model = make_model(config, checkpoint, world, device)
    return _assemble(config, checkpoint, model, unseen(captions), world, device)


def _load_or_build(
    config: TrainConfig, captions: Sequence[str], entries: int | None = None
) -> Checkpoint:
    """The checkpoint that is fine-tuned, or an untrained one with a tokenizer of the captions.

    Args:
        config: names the model.
        captions: what the tokenizer is trained on.
        entries: of the vocabulary the model has room for, where that is more than these have.
    """
    shape = SHAPES.get(config.model)
    if shape is None:
        return load_checkpoint(config.model)
    side = config.image_size or shape.image_size
    tokenizer = train_tokenizer(captions, shape.vocabulary)
    hf = build(shape, side, entries or len(tokenizer), tokenizer.pad_token_id)
    return Checkpoint(hf, image_processor(side), tokenizer)


def make_model(
    config: TrainConfig, checkpoint: Checkpoint, world: World, device: torch.device
) -> Align:
    """The model on its device, all of it made ready that decides what is learned."""
    if world.size > 1:
        share_batchnorm(checkpoint.hf, device)
    set_dropout(checkpoint.hf, config.text_dropout, config.drop_path)
    model = Align(checkpoint.hf, config.temperature, config.freeze, config.loss)
    if config.lora is not None:
        model.add_lora(config.lora)
    model.to(device)
    model.hf.vision_model.to(memory_format=torch.channels_last)
    model.train()
    if config.accumulate > 1 and (parts := random_parts(model)):
        raise AlignError(
            f"Taking a batch in {config.accumulate} parts would not give the gradients of the "
            f"whole, because of {', '.join(parts)}. Without accumulate, a smaller batch or "
            "checkpoint_activations saves memory."
        )
    return model


def _assemble(
    config: TrainConfig,
    checkpoint: Checkpoint,
    model: Align,
    pairs: Pairs,
    world: World,
    device: torch.device,
) -> Contrast:
    """Join model and pairs; what a frozen tower makes the same of every time is not asked for."""
    on_gpu = device.type == "cuda"
    tokenizer = checkpoint.tokenizer
    feed = Feed(
        tokens=encode(tokenizer, pairs.captions),
        preprocess=preprocess_of(checkpoint.image_processor),
        pad_id=tokenizer.pad_token_id,
        device=device,
    )
    captions = Captions(
        tokens=feed.tokens,
        pad_id=feed.pad_id,
        mask_id=tokenizer.mask_token_id,  # BERT's, which every ALIGN tokenizer has
        masked_tokens=config.masked_tokens,
        group=256 if on_gpu else 32,
        # A compiled tower is compiled anew for every length, and positions end at 64 or later.
        multiple=16 if on_gpu and tokenizer.model_max_length == MAX_TOKENS else 1,
        needed=not ("text" in config.freeze and config.masked_tokens == 0),
    )
    still = "image" in config.freeze and config.smallest_crop == 1
    plan = batch_plan(config, world, with_images=not still)
    return Contrast(config, checkpoint, model, pairs, feed, captions, plan, world)
