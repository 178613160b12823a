"""Hugging Face's AlignModel, wrapped so that it can be trained: two towers and a temperature.

The wrapper answers what the plain model leaves to its user:

- Embeddings come out normalised in fp32 with a guard. The plain model divides by the bare norm,
  and a fresh model in ``eval`` embeds pictures as zeros, so its logits are NaN.
- ``get_*_features`` of transformers 5 return an output object; the embedding is ``pooler_output``.
- The text mask is additive and four-dimensional: the plain eager path waits for the device to say
  whether any token is masked at all.
- The temperature is learned as its logarithm, within bounds. The plain one is a raw divisor of 1.
- A frozen tower stays in ``eval``: ``requires_grad=False`` doesn't stop BatchNorm from counting.
- BatchNorm statistics are re-estimated rather than trusted, see ``reestimate_batchnorm``.

Left out: any layer of our own. What is trained is what AlignModel loads.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig

from coyo_align.config import MAX_TOKENS, CompactShape, Tower
from coyo_align.errors import AlignError

START_TEMPERATURE = 0.07
"""CLIP's. From scratch, 1.0 (Hugging Face's) does not learn within hundreds of steps."""
_LOWEST, _HIGHEST = 0.01, 1.0
"""CLIP's bound on the logit scale, 100, and no temperature above where plain ALIGN starts."""
_EPS = 1e-6


class Align(nn.Module):
    """An AlignModel with guarded embeddings, a bounded temperature and freezable towers."""

    def __init__(
        self, hf: Any, temperature: float | None = None, freeze: tuple[Tower, ...] = ()
    ) -> None:
        super().__init__()
        self.hf = hf
        start = hf.temperature.item() if temperature is None else temperature
        if not start > 0:
            raise AlignError(f"A temperature must be positive, not {start}; try 0.07.")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start)))
        hf.temperature.requires_grad_(False)
        # The embedding is the first token's last state; the pooler behind it is computed by plain
        # ALIGN and used nowhere, so it never gets a gradient.
        hf.text_model.pooler.requires_grad_(False)
        self.frozen: list[nn.Module] = []
        if "image" in freeze:
            self.frozen += [hf.vision_model]
        if "text" in freeze:
            self.frozen += [hf.text_model, hf.text_projection]
        for module in self.frozen:
            module.requires_grad_(False)
        self.clamp_temperature()
        self.train()

    def train(self, mode: bool = True) -> "Align":
        """Switch to training or evaluation, except what is frozen, which stays in evaluation."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def temperature(self) -> Tensor:
        """The divisor of the cosine similarities, differentiable."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back within its bounds; call it after every step."""
        self.log_temperature.clamp_(math.log(_LOWEST), math.log(_HIGHEST))

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed (batch, 3, height, width) pixel values as (batch, width) fp32 unit vectors."""
        return unit(self.hf.get_image_features(pixels).pooler_output)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed (batch, tokens) ids as (batch, width) fp32 unit vectors.

        Args:
            ids: token ids.
            mask: true where a token stands.
        """
        additive = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        additive.masked_fill_(~mask, torch.finfo(torch.float32).min)
        features = self.hf.get_text_features(ids, attention_mask=additive[:, None, None, :])
        return unit(features.pooler_output)

    @torch.no_grad()
    def to_hf(self) -> Any:
        """The plain AlignModel with the learned temperature written back, ready to be saved."""
        self.hf.temperature.copy_(self.temperature)
        return self.hf


def unit(features: Tensor) -> Tensor:
    """Scale rows to length 1 in fp32 whatever the autocast, leaving zero rows zero."""
    with torch.autocast(features.device.type, enabled=False):
        return functional.normalize(features.float(), dim=-1, eps=_EPS)


def reestimate_batchnorm(model: Align, images: Iterable[Tensor]) -> int:
    """Replace BatchNorm's running statistics by the average over these batches.

    Hugging Face passes TensorFlow's momentum .99 to torch, where it means that only the last batch
    counts, and gives one layer in three torch's own .1; either way the statistics are those of
    weights that have moved on. Resetting them and averaging over a dozen batches with the weights
    as they are is what makes the model in ``eval`` the one that was trained.

    Args:
        model: its frozen towers keep the statistics they have.
        images: batches of pixel values, preprocessed as for use, without augmentation. Ten or more
            of the training batch size are enough.

    Returns:
        How many BatchNorm layers were re-estimated.
    """
    kept = {id(part) for module in model.frozen for part in module.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and id(m) not in kept]
    if not norms:
        return 0
    was_training = model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
        norm.train()
    with torch.no_grad():
        for batch in images:
            model.embed_images(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
    return len(norms)


def build_compact(shape: CompactShape, image_size: int, tokens: int, pad_id: int) -> Any:
    """An untrained AlignModel of this shape; torch's random state decides its weights.

    ALIGN has no projection behind the image tower, so ``projection_dim`` is the width of its last
    stage. Dropout is off in the image tower: Hugging Face's ``drop_connect_rate`` drops elements
    where EfficientNet drops whole branches.

    Args:
        shape: its dimensions.
        image_size: side of the pictures in pixels.
        tokens: entries of the tokenizer.
        pad_id: its padding token.
    """
    coefficient = shape.stem_width / 32  # the stem is 32 wide before this factor
    widths = [shape.stem_width, *(stage[0] for stage in shape.stages)]
    base = [round(width / coefficient) for width in widths]
    _, kernels, strides, expansions, blocks = zip(*shape.stages, strict=True)
    vision = AlignVisionConfig(
        image_size=image_size,
        width_coefficient=coefficient,
        depth_coefficient=1.0,
        in_channels=base[:-1],
        out_channels=base[1:],
        kernel_sizes=kernels,
        strides=strides,
        expand_ratios=expansions,
        num_block_repeats=blocks,
        hidden_dim=image_size,  # the window of the final average: anything as large as the map
        drop_connect_rate=0.0,
        batch_norm_momentum=0.01,  # TensorFlow's .99 in torch's words
    )
    text = AlignTextConfig(
        vocab_size=tokens,
        hidden_size=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        intermediate_size=shape.text_inner,
        max_position_embeddings=MAX_TOKENS,
        type_vocab_size=1,
        # BERT's .02 is for a width of 768. In a narrow tower it leaves all captions nearly alike at
        # the start, since what attention gathers vanishes beside the first token's own embedding.
        initializer_range=shape.text_width**-0.5,
        hidden_dropout_prob=shape.text_dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad_id,
    )
    config = AlignConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=widths[-1],
        temperature_init_value=START_TEMPERATURE,
    )
    return AlignModel(config)
