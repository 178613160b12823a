"""What a run will cost before it starts: parameters, FLOPs, memory, bytes moved, hours.

One training step is played on fake tensors, which have shapes and types but no numbers, so that a
B7 at 289 pixels and any batch take the same seconds and no memory. Every operation passes by, the
backward pass included; what is counted there is what an uncompiled step does.

Left out of the memory: what libraries and the allocator take for themselves (the CUDA context,
convolution workspaces, fragmentation), batches that wait in a queue, and what compiling saves: a
compiled step holds less. ``batch_that_fits`` keeps a reserve for the first.
"""

import copy
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from coyo_align.config import Precision
from coyo_align.loss import contrastive_loss
from coyo_align.model import Align

Tower = Literal["image", "text"]
Step = Callable[[Any, int, torch.device], tuple[Sequence[Tensor], Callable[[], Tensor]]]
"""From a model on fake tensors and a batch size to what goes in, and what computes the loss of it.
"""

_RESERVE = 0.1
"""Share of the free memory that ``batch_that_fits`` leaves to workspaces and fragmentation."""
_ADAMW_MOVES = 9
"""Per trained weight and step, in fp32: AdamW reads weight, gradient and two averages and writes
all but the gradient; clipping reads the gradient and writes it."""

_aten = torch.ops.aten
# Work on single elements that torch does not tag as such, copies and padding among it: a compiler
# folds it into the neighbours' reading and writing.
_ELEMENTWISE = {
    _aten._to_copy, _aten.clone, _aten.copy_, _aten.constant_pad_nd, _aten.native_dropout,
    _aten.native_dropout_backward, _aten.fill_, _aten.zero_,
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """The cost of a training step of ``batch_size`` samples.

    Attributes:
        parameters: of each tower, and of neither ("other").
        trained: those of them that get a gradient.
        forward_flops: per sample; a multiplication and an addition are two.
        step_flops: per sample, forward and backward.
        weight_bytes: parameters and buffers.
        gradient_bytes: of the trained parameters.
        optimizer_bytes: AdamW's two averages.
        ema_bytes: the averaged weights, 0 without.
        activation_bytes: what the forward pass of the batch leaves for the backward pass.
        peak_bytes: the most that is held at once, all of the above included.
        bytes_per_sample: what one more sample adds to the peak.
        moved_bytes: per sample, read and written by the operations that can't be folded into
            others: convolutions, products, normalisations, sums. The least a step can move as long
            as these are kernels of their own.
        moved_bytes_eager: per sample, where every operation reads its inputs and writes its result.
        moved_bytes_step: by clipping and AdamW, once a step.
    """

    batch_size: int
    precision: Precision
    parameters: dict[str, int]
    trained: dict[str, int]
    forward_flops: float
    step_flops: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    peak_bytes: int
    bytes_per_sample: float
    moved_bytes: float
    moved_bytes_eager: float
    moved_bytes_step: int

    @property
    def fixed_bytes(self) -> float:
        """What the peak would be without any sample."""
        return self.peak_bytes - self.bytes_per_sample * self.batch_size

    def memory_bound(self, bytes_per_second: float) -> float:
        """Samples a second if nothing but ``moved_bytes`` took time, at this batch size."""
        moved = self.moved_bytes * self.batch_size + self.moved_bytes_step
        return self.batch_size * bytes_per_second / moved

    def batch_that_fits(self, free_bytes: float) -> int:
        """The largest batch, a multiple of 8 or below 8, that fits into so much memory.

        Args:
            free_bytes: before anything of the run is there, its weights included. A tenth is kept
                for what ``estimate`` doesn't see.

        Returns:
            0 where not even one sample fits.
        """
        room = free_bytes * (1 - _RESERVE) - self.fixed_bytes
        batch = max(0, math.floor(room / self.bytes_per_sample))
        return batch - batch % 8 if batch >= 8 else batch


def estimate(
    model: Align,
    image_size: int | tuple[int, int],
    text_length: int,
    batch_size: int,
    precision: Precision = "fp32",
    *,
    ema: bool = False,
    cached: Sequence[Tower] = (),
    device: torch.device | None = None,
) -> Estimate:
    """Play a training step of an ALIGN and count, see ``estimate_step``.

    A frozen tower has no gradients, and its activations don't outlive the operation that needs
    them. The model is neither changed nor copied.

    Args:
        model: with what is frozen frozen, on any device, compiled or not: it is the same here.
        image_size: side, or height and width, in pixels.
        text_length: tokens, padding included.
        batch_size: samples that go through the towers at once.
        precision: of the towers under autocast; weights and their gradients are fp32.
        ema: whether averaged weights are kept.
        cached: frozen towers whose embeddings are read rather than computed.
        device: whose rules of autocast are followed; the CPU's where this machine has no such
            device, which keep fewer values in fp32 than CUDA's.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size

    def step(fake: Any, batch: int, place: torch.device) -> tuple[list[Tensor], Any]:
        pixels = torch.empty(batch, 3, *size, device=place)
        pixels = pixels.to(memory_format=torch.channels_last)
        ids = torch.zeros(batch, text_length, dtype=torch.int64, device=place)
        mask = torch.ones(batch, text_length, dtype=torch.bool, device=place)
        ready = torch.empty(batch, model.hf.config.projection_dim, device=place)

        def loss() -> Tensor:
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                images = ready if "image" in cached else fake.embed_images(pixels)
                texts = ready if "text" in cached else fake.embed_texts(ids, mask)
            return contrastive_loss(images, texts, fake.temperature)

        return [pixels, ids, mask, ready], loss

    return estimate_step(model, step, _towers(model), batch_size, precision, ema=ema, device=device)


def estimate_step(
    model: nn.Module,
    step: Step,
    towers: Mapping[str, Sequence[nn.Parameter]],
    batch_size: int,
    precision: Precision = "fp32",
    *,
    ema: bool = False,
    device: torch.device | None = None,
) -> Estimate:
    """Play a training step and count; the model is neither changed nor copied.

    Args:
        model: with what is frozen frozen.
        step: the step to play, in this precision.
        towers: all parameters, by the name of the part they are told under.
        batch_size: samples that go through the model at once.
        precision: of the towers under autocast; weights and their gradients are fp32.
        ema: whether averaged weights are kept.
        device: as for ``estimate``.
    """
    if device is None or (device.type == "cuda" and not torch.cuda.is_available()):
        device = torch.device("cpu")
    # In a small batch it is the gradients that decide when most is held.
    second = batch_size // 2 if batch_size >= 64 else 4 * batch_size
    whole, other = (_play(model, step, n, device) for n in (batch_size, second))
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    weights = sum(map(_bytes, [*model.parameters(), *model.buffers()]))
    kept = weights + 2 * trained + (weights if ema else 0)
    slope = (whole.peak - other.peak) / (batch_size - second)
    return Estimate(
        batch_size=batch_size,
        precision=precision,
        parameters={name: sum(p.numel() for p in part) for name, part in towers.items()},
        trained={
            name: sum(p.numel() for p in part if p.requires_grad) for name, part in towers.items()
        },
        forward_flops=whole.forward_flops / batch_size,
        step_flops=whole.flops / batch_size,
        weight_bytes=weights,
        gradient_bytes=trained,
        optimizer_bytes=2 * trained,
        ema_bytes=weights if ema else 0,
        activation_bytes=whole.activations,
        peak_bytes=kept + max(whole.peak, trained),
        bytes_per_sample=slope,
        moved_bytes=whole.moved / batch_size,
        moved_bytes_eager=whole.moved_eager / batch_size,
        moved_bytes_step=_ADAMW_MOVES * trained,
    )


def seconds_per_step(step: Callable[[], object], device: torch.device, steps: int = 10) -> float:
    """The median time of a real step, after two that are not counted.

    Args:
        step: does one whole training step.
        device: is waited for after each.
        steps: how many are timed.
    """
    times = []
    for number in range(steps + 2):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def expected_hours(samples: int, batch_size: int, seconds: float) -> float:
    """Hours that a budget of samples takes at so many seconds a step.

    >>> expected_hours(1_000_000, 100, 0.36)
    1.0
    """
    return math.ceil(samples / batch_size) * seconds / 3600


@dataclass(frozen=True)
class _Played:
    """One step: bytes and operations of the whole batch."""

    forward_flops: int
    flops: int
    activations: int
    peak: int
    moved: int
    moved_eager: int


def _play(model: nn.Module, step: Step, batch: int, device: torch.device) -> _Played:
    with _faked(model, device) as fake, _Meter(fake) as meter:
        inputs, forwards = step(fake, batch, device)
        loss = forwards()
        forward = meter.flops
        activations = meter.live - sum(map(_bytes, inputs))
        torch.autograd.backward(loss)
    return _Played(forward, meter.flops, activations, meter.peak, meter.moved, meter.moved_eager)


@contextmanager
def _faked(model: nn.Module, device: torch.device) -> Iterator[Any]:
    """The same modules around tensors that have a shape only."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        stand_ins: dict[int, Any] = {}
        for real in [*model.parameters(), *model.buffers()]:
            empty = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device=device)
            stand_ins[id(real)] = (
                nn.Parameter(empty, real.requires_grad) if isinstance(real, nn.Parameter) else empty
            )
    fake = copy.deepcopy(model, stand_ins)  # deepcopy takes what stands in the memo as copied
    with mode:
        yield fake.train()


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive, and what operations compute, read and write."""

    def __init__(self, model: nn.Module) -> None:
        """Begin; the model's own tensors, and views of them, are not counted as alive."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = self.moved = self.moved_eager = 0
        own = [*model.parameters(), *model.buffers()]
        self._seen = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._born(tensor)
        if (formula := _FLOPS.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        if not func.is_view and read:
            moved = sum(map(_bytes, read)) + sum(map(_bytes, made))
            self.moved_eager += moved
            folded = torch.Tag.pointwise in func.tags or func.overloadpacket in _ELEMENTWISE
            self.moved += 0 if folded else moved
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _conv_backward_flops(grad: Tensor, _x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """As many as the forward pass for each of the two gradients that are asked for.

    torch's own formula forgets the groups: it counts a depthwise convolution's weight gradient
    as if every channel met every other.
    """
    asked = sum(map(bool, rest[-1][:2]))
    return asked * 2 * math.prod(grad.shape) * math.prod(weight.shape[1:])


# The formulas of torch's FlopCounterMode without its bookkeeping by module, whose hooks keep alive
# what a checkpointed block has done with.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry, _aten.convolution_backward: _conv_backward_flops,
}  # fmt: skip


def _towers(model: Align) -> dict[str, list[nn.Parameter]]:
    image = list(model.hf.vision_model.parameters())
    text = [*model.hf.text_model.parameters(), *model.hf.text_projection.parameters()]
    known = set(map(id, [*image, *text]))
    return {
        "image": image,
        "text": text,
        "other": [p for p in model.parameters() if id(p) not in known],
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
