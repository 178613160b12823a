"""AdamW with weight decay where it belongs, the learning rate over the run, averaged weights.

The Trainer of transformers decays every parameter that is not a bias or in a LayerNorm, the
temperature and BatchNorm's gains among them. Here one-dimensional parameters and scalars are never
decayed. Left out: other optimisers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coyo_align.config import Schedule

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


def learning_rate_at(
    step: int, steps: int, peak: float, warmup_share: float, schedule: Schedule = "cosine"
) -> float:
    """Linear warm-up to ``peak``, then half a cosine, or a line, down to zero.

    Args:
        step: from 0; the first step already moves, the last one still does.
        steps: of the whole run.
        peak: the highest rate.
        warmup_share: of the steps, 0 to 1.
        schedule: the way down.

    >>> [round(learning_rate_at(s, 5, 1.0, 0.4), 3) for s in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    >>> [round(learning_rate_at(s, 5, 1.0, 0.4, "linear"), 3) for s in range(5)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup + 1) / (steps - warmup + 1)
    return peak * (1 - share if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2)


class AveragedWeights:
    """An exponential moving average of parameters, in fp32 beside them."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 0).

        Early averages forget faster, (1 + step) / (10 + step) as in TensorFlow's
        ExponentialMovingAverage, or a short run would end as a part of its random start.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [p.data for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Give the parameters their averages, at the end of training."""
        torch._foreach_copy_([p.data for p in self.parameters], self.averages)
