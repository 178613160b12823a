"""What the training loop asks of a task, so that one loop trains an ALIGN and a ViT.

A task has read its data and built its model; the loop has the steps, the optimizer, checkpoints,
metrics and the run. ``contrast`` is the one of pictures and captions, ``labelled`` the one of
pictures and classes, ``task`` chooses.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coyo_align.batch import Batch, BatchPlan
from coyo_align.checkpoint import Checkpoint, Classifier
from coyo_align.estimate import Estimate
from coyo_align.input.data import Pairs
from coyo_align.model import Align
from coyo_align.vit import Vit


class Trainable(Protocol):
    """A model, its data, and how the one learns from the other."""

    @property
    def model(self) -> Align | Vit:
        """What is trained, on the device."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | Classifier:
        """The plain model with what is saved beside it."""
        ...

    @property
    def pairs(self) -> Pairs:
        """The samples."""
        ...

    @property
    def plan(self) -> BatchPlan:
        """What a batch is made of."""
        ...

    @property
    def text_length(self) -> int | None:
        """Tokens of the average group of captions, None without captions."""
        ...

    def digest(self) -> str:
        """A fingerprint of the samples in their order; a run goes on with what it was begun with.

        Pictures are not in it, being named by their ids.
        """
        ...

    def ready(self) -> None:
        """Make the model ready for steps; whatever is computed once, is computed now."""
        ...

    def batches(self, first: int) -> Generator[Batch]:
        """The batches from a step on, without end."""
        ...

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of one batch; returns its loss, over all processes."""
        ...

    def stepped(self) -> None:
        """Called after the optimizer's every step."""
        ...

    def figures(self) -> dict[str, float]:
        """What there is to tell besides the loss, by name."""
        ...

    def settle(self) -> None:
        """Called after the last step, before the model is saved."""
        ...

    def cost(self) -> Estimate:
        """What a part of a batch costs."""
        ...

    def on_noise(self, rows: int) -> "Trainable":
        """The same model with batches of so many rows of noise, to be timed."""
        ...


@dataclass(frozen=True)
class Sketch:
    """A task that is only to be reckoned with: no picture has been decoded.

    ``samples`` can be used as far as the tars' headers tell; the task may know a part of them.
    """

    task: Trainable
    samples: int
    skipped: dict[str, int]
    missing_ids: int


def in_bf16(precision: str | None, device: torch.device) -> bool:
    """Whether the towers compute in bf16: as asked for, else on CUDA."""
    return (precision or ("bf16" if device.type == "cuda" else "fp32")) == "bf16"
