"""Rows of the pairs to tensors on the device: the only place where bytes become floats.

``training_batches`` gives the pictures of one step after the other and what stands beside them
(``beside``), decoded ahead and on their way to the device while it computes. All chance comes from
the run's seed and the number of the step, so that the sequence is the same from wherever it begins,
with any number of decoding processes, and shared out among any number of training processes.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coyo_align.augment import crop, draw_windows
from coyo_align.beside import Beside, Group
from coyo_align.device import seed_of
from coyo_align.input.data import Pairs
from coyo_align.input.images import Pixels, Preprocess
from coyo_align.input.pictures import Rows
from coyo_align.input.stream import stream
from coyo_align.tokenizer import TokenRows, pad

_ORDER, _CHANCE, _RESERVE, _NORMS = range(4)
"""Streams of random numbers that a run's seed is split into."""
_RESERVE_ROWS = 32


def to_floats(pixels: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
    """Rescale (rows, height, width, 3) bytes on the device as the model wants its pixel values.

    Returns:
        (rows, 3, height, width) fp32, channels last.
    """
    scale = torch.tensor(preprocess.scale, device=device).view(1, 3, 1, 1)
    offset = torch.tensor(preprocess.offset, device=device).view(1, 3, 1, 1)
    return torch.addcmul(offset, pixels.permute(0, 3, 1, 2).float(), scale)


def plain_pictures(
    pairs: Pairs,
    batches: Iterable[Rows],
    preprocess: Preprocess,
    device: torch.device,
    workers: int | None = None,
) -> Generator[tuple[Rows, Pixels, Tensor]]:
    """Pictures as they are used later: not cropped, and without what doesn't decode.

    Yields:
        Rows, their bytes as ``stream`` lends them, and their pixel values on the device.
    """
    asked = ((rows, None) for rows in batches)
    with closing(stream(pairs, asked, workers=workers)) as found:
        for rows, pixels in found:
            if len(rows):
                values = to_floats(torch.from_numpy(pixels).to(device), preprocess, device)
                yield rows, pixels, values


@dataclass(frozen=True)
class Feed:
    """Captions of a data set by row, and how bytes of its pictures become floats."""

    tokens: TokenRows
    preprocess: Preprocess
    pad_id: int
    device: torch.device

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Token ids and their mask, both (rows, the longest text of these rows)."""
        ids, mask = pad([self.tokens[row] for row in rows], self.pad_id)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def cut(order: Rows, size: int) -> list[Rows]:
    """Cut row numbers into batches of ``size``, the last one as long as what is left."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def order_of(pairs: int, batch_size: int, seed: int, step: int = 0) -> Iterator[tuple[Rows, Rows]]:
    """Rows of each batch without end, from that step on, and others to fall back on.

    Every epoch has a new order, no pair is twice in a batch. What doesn't fill a batch at the end
    of an epoch is left for another one, as its pairs would meet themselves in the next epoch's
    first batch.
    """
    whole = pairs // batch_size
    while True:
        epoch, place = divmod(step, whole)
        order = np.random.default_rng(seed_of(seed, _ORDER, epoch)).permutation(pairs)
        for number, rows in enumerate(cut(order, batch_size)[place:whole], place):
            others = np.random.default_rng(seed_of(seed, _RESERVE, epoch, number))
            spare = others.integers(pairs, size=min(pairs, _RESERVE_ROWS))
            yield rows, spare[~np.isin(spare, rows)]
            step += 1


def rows_for_norms(pairs: int, batch_size: int, seed: int, batches: int) -> list[Rows]:
    """The batches for the last BatchNorm statistics, as random as those of training."""
    order = order_of(pairs, batch_size, seed_of(seed, _NORMS))
    return [next(order)[0] for _ in range(batches)]


@dataclass(frozen=True)
class Part:
    """Rows that go through the model together, on the device.

    Attributes:
        rows: of the pairs.
        pixels: (rows, height, width, 3) bytes, None where their embeddings are known.
        windows: of ``draw_windows``.
        beside: captions in groups, none where their embeddings are known; or classes.
    """

    rows: Rows
    pixels: Tensor | None
    windows: Tensor | None
    beside: list[Group]


@dataclass(frozen=True)
class Batch:
    """A process's share of a batch, in the order of ``Beside.order``.

    ``ready`` is recorded when all of it has arrived on a GPU, None on a CPU.
    """

    parts: list[Part]
    ready: Any = None


@dataclass(frozen=True)
class BatchPlan:
    """What decides the batches of a run, and how they are prepared.

    Attributes:
        seed: of the run.
        batch_size: of all processes together.
        share: this process's rows.
        parts: how many parts they are taken in, of the same size.
        smallest_crop: of ``draw_windows``.
        with_images: whether pictures are needed.
        workers: decoding processes.
        usable: the rows of the pairs that are used, None for all.
    """

    seed: int
    batch_size: int
    share: slice
    parts: int
    smallest_crop: float
    with_images: bool = True
    workers: int | None = None
    usable: Rows | None = None


def training_batches(
    pairs: Pairs, beside: Beside, plan: BatchPlan, step: int, device: torch.device
) -> Generator[Batch]:
    """The batches from that step on, without end, the next one under way already."""
    return _on_device(_prepared(pairs, beside, plan, step), device)


def _prepared(pairs: Pairs, beside: Beside, plan: BatchPlan, first: int) -> Generator[Batch]:
    usable = np.arange(len(pairs)) if plan.usable is None else plan.usable

    # Slots of each whole batch in the order of its rows; filled ahead, in the stream's thread.
    slots: deque[Rows] = deque()

    def in_order() -> Iterator[tuple[Rows, Rows]]:
        for rows, spare in order_of(len(usable), plan.batch_size, plan.seed, first):
            own = usable[rows[plan.share]]
            slots.append(beside.order(own))
            yield own[slots[-1]], usable[spare]

    pictured: Generator[tuple[Rows, Pixels]] | Generator[tuple[Rows, None]]
    if plan.with_images:
        pictured = stream(pairs, in_order(), workers=plan.workers)
    else:
        pictured = ((rows, None) for rows, _ in in_order())
    try:
        for step, (rows, pixels) in enumerate(pictured, first):
            generator = torch.Generator().manual_seed(seed_of(plan.seed, _CHANCE, step))
            windows = draw_windows(plan.batch_size, plan.smallest_crop, generator)
            drawn = beside.draw(plan.batch_size, generator)
            mine = slots.popleft()
            known = (
                None if pixels is None else torch.from_numpy(pixels),
                None if windows is None else windows[plan.share][mine],
                None if drawn is None else drawn[plan.share][mine],
            )
            parts = []
            for place in cut(np.arange(len(rows)), len(rows) // plan.parts):
                own = [None if rest is None else rest[place] for rest in known]
                parts.append(Part(rows[place], own[0], own[1], beside.groups(rows[place], own[2])))
            yield Batch(parts)
    finally:
        pictured.close()


def _on_device(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """Copy each batch to the device while the one before it is worked on."""
    if device.type != "cuda":
        yield from batches  # which closes them too
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(batch: Batch) -> Batch:
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(copying):

            def send(tensor: Tensor) -> Tensor:
                there = tensor.pin_memory().to(device, non_blocking=True)
                there.record_stream(computing)  # its memory is not given away before it is used
                return there

            parts = [
                Part(
                    rows=part.rows,
                    pixels=None if part.pixels is None else send(part.pixels),
                    windows=None if part.windows is None else send(part.windows),
                    beside=[(send(one), send(other)) for one, other in part.beside],
                )
                for part in batch.parts
            ]
            return Batch(parts, copying.record_event())

    waiting: Batch | None = None
    try:
        for batch in batches:
            following = upload(batch)
            if waiting is not None:
                torch.cuda.current_stream(device).wait_event(waiting.ready)
                yield waiting
            waiting = following
    finally:
        batches.close()


def augmented(part: Part, preprocess: Preprocess) -> Tensor | None:
    """The pixel values of a part, cropped as was drawn, channels last; None without pictures."""
    if part.pixels is None:
        return None
    pixels = to_floats(part.pixels, preprocess, part.pixels.device)
    if part.windows is not None:
        pixels = crop(pixels, part.windows)
    return pixels.contiguous(memory_format=torch.channels_last)
