"""Hugging Face's AlignModel, wrapped so that it can be trained: two towers and a temperature.

The wrapper answers what the plain model leaves to its user:

- Embeddings come out normalised in fp32 with a guard. The plain model divides by the bare norm,
  and a fresh model in ``eval`` embeds pictures as zeros, so its logits are NaN.
- ``get_*_features`` of transformers 5 return an output object; the embedding is ``pooler_output``.
- The text mask is four-dimensional, and attention is torch's fused one: the plain eager path waits
  for the device to say whether any token is masked at all.
- Whole branches are dropped in training, not single values, see ``DropPath``.
- Both towers can compute their activations again, not the text tower alone.
- The temperature is learned as its logarithm, within bounds. The plain one is a raw divisor of 1.
- A frozen tower stays in ``eval``: ``requires_grad=False`` doesn't stop BatchNorm from counting.
- BatchNorm statistics are re-estimated rather than trusted, see ``reestimate_batchnorm``.

Left out: any weight of our own. What is trained is what AlignModel loads.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig

from coyo_align.config import Loss, Output, Part, Shape
from coyo_align.errors import AlignError

START_TEMPERATURE = 0.07
"""CLIP's. From scratch, 1.0 (Hugging Face's) does not learn within hundreds of steps."""
START_BIAS = -10.0
"""SigLIP's: nearly all pairs are wrong ones, and are called so from the start."""
_LOWEST, _HIGHEST = 0.01, 1.0
"""CLIP's bound on the logit scale, 100, and no temperature above where plain ALIGN starts."""
_EPS = 1e-6


Texts = Sequence[tuple[Tensor, Tensor]]
"""Captions of like length together: token ids and mask, both (rows, tokens), of each group."""


class Align(nn.Module):
    """An AlignModel with guarded embeddings, a bounded temperature and freezable parts."""

    def __init__(
        self,
        hf: Any,
        temperature: float | None = None,
        freeze: tuple[Part, ...] = (),
        loss: Loss = "infonce",
    ) -> None:
        super().__init__()
        self.hf = hf
        start = hf.temperature.item() if temperature is None else temperature
        if not start > 0:
            raise AlignError(f"A temperature must be positive, not {start}; try 0.07.")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start)))
        self.bias = nn.Parameter(torch.tensor(START_BIAS)) if loss == "siglip" else None
        hf.temperature.requires_grad_(False)
        # The embedding is the first token's last state; the pooler behind it is computed by plain
        # ALIGN and used nowhere, so it never gets a gradient, and DDP would wait for one.
        hf.text_model.pooler.requires_grad_(False)
        # ALIGN declares eager attention only, but asks the interface that has torch's own too.
        hf.text_model.config._attn_implementation = "sdpa"
        self.frozen: list[nn.Module] = []
        if "image" in freeze:
            self.frozen += [hf.vision_model]
        if "text" in freeze:
            self.frozen += [hf.text_model, hf.text_projection]
        if "batchnorm" in freeze:
            self.frozen += [m for m in hf.modules() if isinstance(m, BatchNorm)]
        for module in self.frozen:
            module.requires_grad_(False)
        for block in hf.vision_model.encoder.blocks:
            block.projection.dropout = DropPath(block.projection.dropout.p)
        self.lora: Any = None
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

    def forward(
        self, pixels: Tensor | None, texts: Texts
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """Embed pictures and groups of captions, one after the other; None or () for neither.

        Returns:
            Both embeddings, the temperature and SigLIP's bias: all that a loss needs, so that
            every trained parameter is used in here, as DDP asks.
        """
        images = None if pixels is None else self.embed_images(pixels)
        captions = torch.cat([self.embed_texts(*group) for group in texts]) if texts else None
        return images, captions, self.temperature, self.bias

    def embed_images(self, pixels: Tensor, output: Output = "embeddings") -> Tensor:
        """Embed (batch, 3, height, width) pixel values as (batch, width) fp32 unit vectors.

        The other outputs are both the pooled output of the image tower: ALIGN has no projection
        behind it.
        """
        features = self.hf.get_image_features(pixels).pooler_output
        return unit(features) if output == "embeddings" else features.float()

    def embed_texts(self, ids: Tensor, mask: Tensor, output: Output = "embeddings") -> Tensor:
        """Embed (batch, tokens) ids as (batch, width) fp32 unit vectors.

        Args:
            ids: token ids.
            mask: true where a token stands.
            output: ``raw`` for the projection as it is, ``hidden`` for the last state of the first
                token, [CLS], before it.
        """
        features = self.hf.get_text_features(ids, attention_mask=mask[:, None, None, :])
        if output == "hidden":
            state: Tensor = features.last_hidden_state[:, 0]
            return state.float()
        return (
            unit(features.pooler_output)
            if output == "embeddings"
            else features.pooler_output.float()
        )

    def add_lora(self, rank: int) -> None:
        """Train low-rank updates of both towers instead of their weights (Hu et al. 2021).

        They stand beside the matrices of attention and feed-forward and beside the 1 x 1
        convolutions; depthwise ones have nothing of low rank. The projection, the temperature and
        what is frozen besides stay as they were. ``to_hf`` adds the updates to the weights.
        """
        towers = [tower for tower in ("vision_model", "text_model") if self._is_trained(tower)]
        names = r"(query|key|value|dense|expand_conv|project_conv)$"
        pattern = rf"({'|'.join(towers)})\.(?!pooler).*" + names
        self.lora = [low_rank(self.hf, rank, pattern, self.hf.text_projection)]

    def _is_trained(self, tower: str) -> bool:
        return any(p.requires_grad for p in getattr(self.hf, tower).parameters())

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile each tower by itself, at its first use; names of weights stay."""
        # Both towers are entered through the same wrapper of transformers, and torch counts what it
        # has compiled of that one: two towers and several text lengths are soon past its limit of
        # 8, behind which it goes on uncompiled without stopping.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for tower in (self.hf.vision_model, self.hf.text_model):
            tower.compile(backend=backend)

    def leave_compiled(self) -> None:
        """Call the towers as they are again; compiling for a few other batches is slow."""
        for tower in (self.hf.vision_model, self.hf.text_model):
            tower._compiled_call_impl = None

    def checkpoint_activations(self) -> None:
        """Keep only what goes into each block, and compute the block again going backwards.

        ``gradient_checkpointing_enable`` of plain ALIGN does so for the text tower alone, which is
        the small one.
        """
        for block in (*self.hf.vision_model.encoder.blocks, *self.hf.text_model.encoder.layer):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    @torch.no_grad()
    def to_hf(self) -> Any:
        """The plain AlignModel with the learned temperature written back, ready to be saved."""
        if self.lora:
            self.hf = self.lora.pop().merge_and_unload()
        self.hf.temperature.copy_(self.temperature)
        return self.hf


def low_rank(hf: Any, rank: int, pattern: str, beside: nn.Module) -> Any:
    """Put low-rank updates beside the layers whose name fits, and let only them be trained.

    Args:
        hf: the plain model, changed in place.
        rank: of the updates.
        pattern: a regular expression for whole names.
        beside: a part of the model that is trained, or not, as it was.

    Returns:
        What merges them in the end. It holds the model: a module keeps it in a list, or its
        weights would count twice.
    """
    from peft import LoraConfig, get_peft_model

    kept = {name for name, p in beside.named_parameters() if p.requires_grad}
    chosen = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=pattern)
    updated = get_peft_model(hf, chosen)
    for name, parameter in beside.named_parameters():
        parameter.requires_grad_(name in kept)
    return updated


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a sample's whole branch is left out, or none of it.

    Where EfficientNet has this, ALIGN of transformers has plain dropout of single values.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        """Scale each sample of (batch, ...) by 0 or 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return branch
        return branch * functional.dropout(branch.new_ones(len(branch), 1, 1, 1), self.p)


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
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and id(m) not in kept]
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


_NORMS = (
    ("convolution", "batchnorm"),
    ("expand_conv", "expand_bn"),
    ("depthwise_conv", "depthwise_norm"),
    ("project_conv", "project_bn"),
)
"""Convolutions of the image tower and the BatchNorm behind each."""


def fold_batchnorm(model: Align) -> int:
    """Put BatchNorm's running statistics into the weights of the convolutions before it, for good.

    In ``eval`` it is a multiplication and an addition per channel, which the convolution can do
    on the way; embeddings differ by about 1e-7. The activation behind, whose input nobody else
    reads, then takes no memory of its own. The model can't be trained or saved afterwards.

    Returns:
        How many BatchNorm layers are gone.
    """
    model.eval()
    folded = 0
    for layer in list(model.hf.vision_model.modules()):
        for convolution, norm in _NORMS:
            before, after = getattr(layer, convolution, None), getattr(layer, norm, None)
            if isinstance(before, nn.Conv2d) and isinstance(after, BatchNorm):
                setattr(layer, convolution, fuse_conv_bn_eval(before, after))
                setattr(layer, norm, nn.Identity())
                folded += 1
        if folded and isinstance(layer, nn.SiLU):
            layer.inplace = True
    return folded


def random_parts(model: Align) -> list[str]:
    """What makes two forward passes of the same rows differ, or depend on the other rows."""
    found = []
    training = [m for m in model.modules() if m.training]
    if any(isinstance(m, BatchNorm) for m in training):
        found.append("BatchNorm (freeze it: --freeze batchnorm)")
    if any(isinstance(m, DropPath) and m.p > 0 for m in training):
        found.append("stochastic depth (--drop-path 0)")
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in training):
        found.append("dropout (--text-dropout 0)")
    return found


def set_dropout(hf: Any, text_dropout: float | None, drop_path: float | None) -> None:
    """Change how much a model drops in training, from before its config is used; None leaves it."""
    text, vision = hf.config.text_config, hf.config.vision_config
    if text_dropout is not None:
        text.hidden_dropout_prob = text.attention_probs_dropout_prob = text_dropout
        for module in hf.text_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = text_dropout
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = text_dropout
    if drop_path is not None:
        vision.drop_connect_rate = drop_path
        blocks = hf.vision_model.encoder.blocks
        for number, block in enumerate(blocks):
            block.projection.dropout.p = drop_path * number / len(blocks)


def build(shape: Shape, image_size: int, tokens: int, pad_id: int) -> Any:
    """An untrained AlignModel of this shape; torch's random state decides its weights.

    ALIGN has no projection behind the image tower, so ``projection_dim`` is the width of its last
    stage: 320 for B0, 384 for B3, 640 for B7.

    Args:
        shape: its dimensions.
        image_size: side of the pictures in pixels.
        tokens: entries of the tokenizer.
        pad_id: its padding token.
    """
    channels, kernels, strides, expansions, blocks = zip(*shape.stages, strict=True)
    vision = AlignVisionConfig(
        image_size=image_size,
        width_coefficient=shape.width,
        depth_coefficient=shape.depth,
        in_channels=(32, *channels[:-1]),
        out_channels=channels,
        kernel_sizes=kernels,
        strides=strides,
        expand_ratios=expansions,
        num_block_repeats=blocks,
        drop_connect_rate=shape.drop_path,
        batch_norm_momentum=0.01,  # TensorFlow's .99 in torch's words
    )
    text = AlignTextConfig(
        vocab_size=tokens,
        hidden_size=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        intermediate_size=shape.text_inner,
        max_position_embeddings=shape.positions,
        type_vocab_size=1,
        # BERT's .02 is for a width of 768. In a narrow tower it leaves all captions nearly alike at
        # the start, since what attention gathers vanishes beside the first token's own embedding.
        initializer_range=shape.text_width**-0.5,
        hidden_dropout_prob=shape.text_dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad_id,
    )
    width = max(8, int(channels[-1] * shape.width + 4) // 8 * 8)  # as ALIGN rounds it
    config = AlignConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=width,
        temperature_init_value=START_TEMPERATURE,
    )
    return AlignModel(config)
