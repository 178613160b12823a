"""Where torch computes, with how many threads, and from which random state.

A library must not change its caller's torch for good: threads and random state are put back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from coyo_align.errors import AlignError


def pick_device(name: str | None) -> torch.device:
    """The device of that name; for None CUDA where there is one, else the CPU.

    Raises:
        AlignError: torch knows no such device, or it isn't there.
    """
    there = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError:
        raise AlignError(f"torch knows no device {name!r}; try cpu or cuda.") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not there):
        raise AlignError(f"There is no device {name!r} that this torch can use; try cpu.")
    return device


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch this many threads for a while; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state on the CPU and this device for a while."""
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
