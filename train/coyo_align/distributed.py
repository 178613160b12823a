"""Several processes, one batch: who is there, and what they share.

Started by ``torchrun``, each process takes its part of every batch. Embeddings are gathered with
their gradients and BatchNorm counts the whole batch, so that gradients are those of one process
with all of it. Left out: sharding of weights, which models of this size don't need.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from coyo_align.errors import AlignError


@dataclass(frozen=True)
class World:
    """The processes of a run, and which one this is; ``local`` counts on one machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0


def find_world() -> World:
    """The world that ``torchrun`` has described in the environment; alone without one.

    Raises:
        AlignError: it is described by something that is no number.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ.get(name, "0") for name in names}
    if not all(value.isdigit() for value in given.values()):
        raise AlignError(f"The environment describes no processes: {given}. Start with torchrun.")
    return World(*map(int, given.values()))


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes for a while: NCCL between GPUs, gloo between CPUs."""
    if world.size == 1:
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share_of_batch(batch_size: int, world: World) -> slice:
    """The rows of a batch that are this process's.

    Raises:
        AlignError: the batch can't be shared out evenly.
    """
    if batch_size % world.size:
        raise AlignError(
            f"A batch of {batch_size} can't be shared among {world.size} processes. Choose a "
            f"multiple of {world.size}."
        )
    rows = batch_size // world.size
    return slice(world.rank * rows, (world.rank + 1) * rows)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in their order, differentiable.

    Args:
        rows: (own rows, width), equally many in each process.
    """
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def mean_of_all(value: Tensor, world: World) -> Tensor:
    """The mean of a number over all processes."""
    if world.size > 1:
        distributed.all_reduce(value)
        value = value / world.size
    return value


def union_of_all(found: dict[int, int], world: World) -> dict[int, int]:
    """The entries that any process has found."""
    if world.size == 1:
        return found
    parts: list[dict[int, int]] = [{} for _ in range(world.size)]
    distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


class _Gather(torch.autograd.Function):
    """The gradient of a row is the sum of what all processes' losses ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # it is not ours to change
        distributed.all_reduce(total)
        return total[distributed.get_rank() * ctx.rows :][: ctx.rows]


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _total(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes; torch's own SyncBatchNorm refuses a CPU."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        x = features.float()
        count = x[:, 0].numel() * distributed.get_world_size()
        mean = _total(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        var = _total((centred * centred).sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None  # noqa: S101
            assert self.num_batches_tracked is not None  # noqa: S101
            self.num_batches_tracked += 1
            share = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * count / max(1, count - 1), share)
        scale = self.weight * torch.rsqrt(var + self.eps)
        normed: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normed.to(features.dtype)


def share_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm in a module count the batches of all processes."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = _SharedBatchNorm
