"""The task of labels: a ViT that learns the classes of pictures, and how probable each is."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from coyo_align.batch import Batch, BatchPlan, Part, augmented, training_batches
from coyo_align.beside import Labels
from coyo_align.checkpoint import Classifier, load_classifier, load_vit_processor
from coyo_align.config import VIT_SHAPES, Precision, TrainConfig
from coyo_align.distributed import World, mean_of_all
from coyo_align.errors import AlignError
from coyo_align.estimate import Estimate, estimate_step
from coyo_align.input.data import OnLoad, Pairs
from coyo_align.input.images import Preprocess, preprocess_of
from coyo_align.loss import soft_cross_entropy
from coyo_align.prepare import batch_plan, count_samples, load, noise, ready_model, unseen
from coyo_align.scoring.labels import read_labels
from coyo_align.targets import Targets, fields_of, reader, targets_of
from coyo_align.trainable import Sketch, in_bf16
from coyo_align.vit import Vit, build_vit, name_classes, names_of, vit_processor

_ENTRIES = 50
"""Of a row, as far as memory is reckoned: COYO-Labeled's."""


@dataclass
class Labelled:
    """A ViT and its labelled pictures, see ``Trainable``; ``call`` is the model made ready."""

    config: TrainConfig
    checkpoint: Classifier
    model: Vit
    pairs: Pairs
    preprocess: Preprocess
    targets: Targets
    plan: BatchPlan
    world: World
    device: torch.device
    call: Any = None

    @property
    def text_length(self) -> None:
        """There are no captions."""
        return

    def digest(self) -> str:
        """A fingerprint of ids and labels."""
        digest = sha256(np.ascontiguousarray(self.pairs.ids).tobytes())
        digest.update(self.targets.digest())
        return digest.hexdigest()

    def ready(self) -> None:
        """Make the model ready to be called."""
        self.call = ready_model(self.config, self.model, self.world, self.device)

    def batches(self, first: int) -> Generator[Batch]:
        """The batches from a step on, without end."""
        return training_batches(self.pairs, Labels(self.targets), self.plan, first, self.device)

    def loss(self, part: Part) -> Tensor:
        """The mean loss of a part of a batch."""
        pixels = augmented(part, self.preprocess)
        bf16 = in_bf16(self.config.precision, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.call(pixels)
        classes, probabilities = (tensor.to(self.device) for tensor in part.beside[0])
        return soft_cross_entropy(logits, classes, probabilities, self.config.label_smoothing)

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of one batch; returns its loss, over all processes.

        Each row has a loss of its own, so that a batch in parts of one size is their mean.
        """
        total = torch.zeros((), device=self.device)
        for part in batch.parts:
            loss = self.loss(part) / len(batch.parts)
            torch.autograd.backward(loss)
            total += loss.detach()
        return mean_of_all(total, self.world)

    def stepped(self) -> None:
        """There is nothing to keep within bounds."""

    def figures(self) -> dict[str, float]:
        """There is nothing to tell besides the loss."""
        return {}

    def settle(self) -> None:
        """There are no statistics to average."""

    def cost(self) -> Estimate:
        """What a part of a batch costs."""
        precision: Precision = "bf16" if in_bf16(self.config.precision, self.device) else "fp32"
        size = (self.preprocess.height, self.preprocess.width)

        def step(fake: Any, batch: int, device: torch.device) -> tuple[list[Tensor], Any]:
            pixels = torch.empty(batch, 3, *size, device=device)
            pixels = pixels.to(memory_format=torch.channels_last)
            classes = torch.zeros(batch, _ENTRIES, dtype=torch.int64, device=device)
            probabilities = torch.zeros(batch, _ENTRIES, device=device)

            def loss() -> Tensor:
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = fake(pixels)
                smoothing = self.config.label_smoothing
                return soft_cross_entropy(logits, classes, probabilities, smoothing)

            return [pixels, classes, probabilities], loss

        tower = list(self.model.hf.vit.parameters())
        head = list(self.model.hf.classifier.parameters())
        return estimate_step(
            self.model,
            step,
            {"image": tower, "classifier": head},
            self.plan.batch_size // self.plan.parts,
            precision,
            ema=self.config.ema is not None,
            device=self.device,
        )

    def on_noise(self, rows: int) -> "Labelled":
        """The same model with noise for pictures, all of the first class."""
        config = replace(self.config, batch_size=rows, accumulate=1)
        targets = Targets(
            np.arange(rows + 1), np.zeros(rows, np.int32), np.ones(rows, np.float32),
            self.targets.count,
        )  # fmt: skip
        return replace(
            self,
            config=config,
            pairs=noise(rows, self.preprocess, [""] * rows),
            targets=targets,
            plan=batch_plan(config, self.world),
            call=None,
        )


def prepare(
    config: TrainConfig, world: World, device: torch.device, on_load: OnLoad | None
) -> Labelled:
    """The labelled pictures, and the model with as many classes as they have."""
    names = _names(config)
    preprocess = _preprocess(config)
    pairs = load(
        config,
        replace(preprocess, geometry=replace(preprocess.geometry, fast=config.fast_decode)),
        "labelled pictures",
        on_load,
        fields=fields_of(config.label_field),
        pack=reader(config.label_field, names, config.classes),
    )
    packed, pairs = pairs.packed, replace(pairs, packed=None)  # or it would be held twice
    return _assemble(config, pairs, packed, names, preprocess, world, device)


def sketch(config: TrainConfig, device: torch.device) -> Sketch:
    """The task as far as the tars' headers and the labels tell."""
    names = _names(config)
    index = count_samples(
        config,
        "labelled pictures",
        fields=fields_of(config.label_field),
        pack=reader(config.label_field, names, config.classes),
    )
    preprocess = _preprocess(config)
    pairs = unseen(index.captions)
    task = _assemble(config, pairs, index.packed, names, preprocess, World(), device)
    return Sketch(task, len(index), index.skipped, index.missing_ids)


def _names(config: TrainConfig) -> list[str] | None:
    return None if config.labels is None else read_labels(config.labels)


def _preprocess(config: TrainConfig) -> Preprocess:
    shape = VIT_SHAPES.get(config.model)
    if shape is None:
        return preprocess_of(load_vit_processor(config.model))
    side = config.image_size or shape.image_size
    if side % shape.patch:
        raise AlignError(
            f"image_size is {side}, but {config.model} cuts pictures into squares of "
            f"{shape.patch} pixels. Choose a multiple of {shape.patch}."
        )
    return preprocess_of(vit_processor(side))


def _assemble(
    config: TrainConfig,
    pairs: Pairs,
    packed: pa.Table,
    names: list[str] | None,
    preprocess: Preprocess,
    world: World,
    device: torch.device,
) -> Labelled:
    targets = targets_of(packed, config.classes if names is None else len(names))
    shape = VIT_SHAPES.get(config.model)
    if shape is None:
        checkpoint = load_classifier(config.model, targets.count)
    else:
        hf = build_vit(shape, preprocess.height, targets.count)
        checkpoint = Classifier(hf, vit_processor(preprocess.height))
    if names is not None or names_of(checkpoint.hf) is None:
        name_classes(checkpoint.hf, names or [str(number) for number in range(targets.count)])
    model = Vit(checkpoint.hf, config.freeze)
    if config.lora is not None:
        model.add_lora(config.lora)
    model.to(device).train()
    plan = batch_plan(config, world)
    return Labelled(config, checkpoint, model, pairs, preprocess, targets, plan, world, device)
