"""A Vision Transformer that names classes: transformers' ViTForImageClassification, to be trained.

Left out: any weight of our own, and BatchNorm and dropout, which a ViT has not.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from coyo_align.config import Part, VitShape
from coyo_align.model import low_rank


class Vit(nn.Module):
    """A ViTForImageClassification whose classifier is computed in fp32, with a tower to freeze."""

    def __init__(self, hf: Any, freeze: tuple[Part, ...] = ()) -> None:
        super().__init__()
        self.hf = hf
        hf.config._attn_implementation = "sdpa"
        self.frozen = "image" in freeze
        if self.frozen:
            hf.vit.requires_grad_(False)
        self.lora: Any = None
        self.train()

    def train(self, mode: bool = True) -> "Vit":
        """Switch to training or evaluation, except a frozen tower, which stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.hf.vit.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (batch, classes) in fp32 of (batch, 3, height, width) pixel values."""
        first = self.hf.vit(pixels).last_hidden_state[:, 0]
        with torch.autocast(pixels.device.type, enabled=False):
            logits: Tensor = self.hf.classifier(first.float())
            return logits

    def add_lora(self, rank: int) -> None:
        """Train low-rank updates of attention and feed-forward, and the classifier."""
        names = r"vit\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)$"
        self.lora = [low_rank(self.hf, rank, names, self.hf.classifier)]

    def compile_towers(self) -> None:
        """Compile the tower at its first use; names of weights stay."""
        self.hf.vit.compile()

    def leave_compiled(self) -> None:
        """Call the tower as it is again."""
        self.hf.vit._compiled_call_impl = None

    def checkpoint_activations(self) -> None:
        """Keep only what goes into each block, and compute the block again going backwards."""
        for block in self.hf.vit.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def to_hf(self) -> Any:
        """The plain ViTForImageClassification, ready to be saved."""
        if self.lora:
            self.hf = self.lora.pop().merge_and_unload()
        return self.hf


def build_vit(shape: VitShape, image_size: int, classes: int) -> Any:
    """An untrained ViTForImageClassification; torch's random state decides its weights."""
    config = ViTConfig(
        image_size=image_size,
        patch_size=shape.patch,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        num_labels=classes,
    )
    return ViTForImageClassification(config)


def vit_processor(image_size: int) -> ViTImageProcessorPil:
    """The processor of a ViT trained from scratch: squashed to a square, values in [-1, 1]."""
    return ViTImageProcessorPil(size={"height": image_size, "width": image_size})


def names_of(hf: Any) -> list[str] | None:
    """The classes' names by number, None where they have none: transformers says LABEL_0 then."""
    names = [str(hf.config.id2label[number]) for number in range(hf.config.num_labels)]
    unnamed = all(name in (f"LABEL_{n}", str(n)) for n, name in enumerate(names))
    return None if unnamed else names


def name_classes(hf: Any, names: list[str]) -> None:
    """Write the classes' names into the model's config."""
    hf.config.id2label = dict(enumerate(names))
    hf.config.label2id = {name: number for number, name in enumerate(names)}
