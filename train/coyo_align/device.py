"""Where torch computes, with how many threads, and from which random state.

A library must not change its caller's torch for good: threads and random state are put back.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch

from coyo_align.errors import AlignError


def pick_device(name: str | None, local: int = 0) -> torch.device:
    """The device of that name; for None CUDA where there is one, else the CPU.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.
        local: of several processes on this machine the number of this one, which gets the GPU of
            that number where ``name`` has none.

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
    if device.type == "cuda":
        device = torch.device("cuda", local if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise AlignError(
                f"There is no GPU {device.index}: this machine has {torch.cuda.device_count()}. "
                "Start as many processes as there are GPUs."
            )
        torch.cuda.set_device(device)
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
def own_randomness(device: torch.device) -> Iterator[None]:
    """Put torch's random state on the CPU and this device back in the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, such as a run's seed and its step.

    So every step has its own random state, and a run that goes on after a stop needs none saved.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's, or Python's, way of saying so."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on a GPU, or in memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    process = psutil.Process()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    free = int(psutil.virtual_memory().available)
    return free if limit < 0 else max(0, min(free, limit - process.memory_info().vms))


def peak_memory(device: torch.device) -> int:
    """The most bytes that torch has held on a GPU, or this process in memory, until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """What computes: the GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
