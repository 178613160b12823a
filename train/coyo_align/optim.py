"""AdamW with weight decay where it belongs, and the learning rate over the run.

The Trainer of transformers decays every parameter that is not a bias or in a LayerNorm, the
temperature and BatchNorm's gains among them. Here one-dimensional parameters and scalars are never
decayed. Left out: other optimisers.
"""

import math

import torch
from torch import nn

BETAS = (0.9, 0.98)
"""CLIP's second moment: a contrastive gradient is noisy, .999 remembers too long."""


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained, in two groups: decayed and not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def learning_rate_at(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to zero.

    Args:
        step: from 0; the first step already moves, the last one still does.
        steps: of the whole run.
        peak: the highest rate.
        warmup_share: of the steps, 0 to 1.

    >>> [round(learning_rate_at(s, 5, 1.0, 0.4), 3) for s in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup + 1) / (steps - warmup + 1)
    return peak * (1 + math.cos(math.pi * share)) / 2
