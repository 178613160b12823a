"""Batches of pictures, ready when they are asked for: a thread and processes work ahead.

The order is the caller's, the result the same for any number of processes: a picture that turns
out bad is replaced by the next one of the batch's reserve that decodes, in the order of the rows.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from coyo_align.errors import AlignError
from coyo_align.input.data import Pairs
from coyo_align.input.decode_pool import DecodePool, Job, shared_file
from coyo_align.input.decode_worker import GOOD, REASONS
from coyo_align.input.images import Pixels
from coyo_align.input.pictures import Decoded, InTars, Rows, job_of, map_pixels, row_bytes

Batch = tuple[Rows, Rows | None]
"""Row numbers, and those to replace bad ones by: None to leave bad ones out."""

_LOOK_UP = 0.2
_PAUSE = 0.01
"""Seconds after which a thread looks whether it should stop, or there is room for a batch."""


def stream(
    pairs: Pairs,
    batches: Iterable[Batch],
    workers: int | None = None,
    ahead: int = 2,
    *,
    longest: int | None = None,
) -> Generator[tuple[Rows, Pixels]]:
    """Yield the rows of each batch and their pictures, (rows, height, width, 3) bytes.

    A picture's array is reused: it holds until the next batch but one is asked for. So while one
    batch is copied to a device the one before it may still be read. ``batches`` is iterated in
    another thread, up to ``ahead`` + 2 batches before they are yielded, so its state is not that
    of the consumer. Work begins with the first batch that is asked for, and ends with the iterator:
    ``contextlib.closing`` ends it early.

    Each bad picture is counted in ``pairs.skipped`` once, when its batch is yielded. With a
    reserve the batch keeps its size; a row may be in the reserves of many batches. With None bad
    rows are left out of the batch, which is what evaluation wants. Pictures that are decoded
    already are never bad.

    Args:
        pairs: what the rows are of.
        batches: rows and reserves; no batch may be longer than the first, or than ``longest``.
        workers: decoding processes, None for those ``load_pairs`` was given.
        ahead: batches that are prepared while one is used.
        longest: rows of a batch at most, None for those of the first.

    Raises:
        AlignError: a batch's reserve is used up.
    """
    longest = longest and min(longest, len(pairs))
    hand = _Hand(ahead + 2)
    images = pairs.images
    if isinstance(images, Decoded):
        made = _gathered(images, iter(batches), hand, longest)
    elif isinstance(images, InTars):
        made = _decoded(images, iter(batches), hand, workers or images.workers, longest)
    else:
        raise TypeError(f"pictures of a {type(images).__name__} can't be streamed")
    thread = threading.Thread(target=hand.run, args=(made,), name="pictures", daemon=True)
    thread.start()
    held: deque[int] = deque()
    try:
        while True:
            if len(held) == 2:
                hand.free.put(held.popleft())
            if (ready := hand.next()) is None:
                return
            for row, code in ready.bad.items():
                if isinstance(images, InTars) and row not in images.bad:
                    images.bad[row] = code
                    pairs.skipped[REASONS[code]] = pairs.skipped.get(REASONS[code], 0) + 1
            held.append(ready.buffer)
            yield ready.rows, ready.pixels
    finally:
        hand.stop.set()
        thread.join()


@dataclass(frozen=True)
class _Ready:
    """A batch to be yielded; ``bad`` are the rows found bad in it, with their codes."""

    rows: Rows
    pixels: Pixels
    buffer: int
    bad: dict[int, int] = field(default_factory=dict)


class _Hand:
    """What passes between the thread that makes batches and the one that uses them."""

    def __init__(self, buffers: int) -> None:
        self.buffers = buffers
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for buffer in range(buffers):
            self.free.put(buffer)
        self.stop = threading.Event()
        self._made: queue.SimpleQueue[_Ready | BaseException | None] = queue.SimpleQueue()

    def run(self, made: Generator[_Ready]) -> None:
        """Make batches until there are no more, one fails, or somebody says stop."""
        try:
            with closing(made):
                for ready in made:
                    self._made.put(ready)
            self._made.put(None)
        except BaseException as error:  # it is raised where the batch would have been used
            self._made.put(error)

    def room(self, seconds: float) -> int | None:
        """A buffer that nobody uses, None where there is none for so many seconds."""
        try:
            return self.free.get(timeout=seconds) if seconds else self.free.get_nowait()
        except queue.Empty:
            return None

    def next(self) -> _Ready | None:
        """The next batch, None after the last."""
        while True:
            try:  # looking up now and then, so that a Ctrl-C is noticed
                ready = self._made.get(timeout=_LOOK_UP)
            except queue.Empty:
                continue
            if isinstance(ready, BaseException):
                raise ready
            return ready


def _gathered(
    images: Decoded, batches: Iterator[Batch], hand: _Hand, longest: int | None
) -> Generator[_Ready]:
    ring: Pixels | None = None
    while not hand.stop.is_set():
        if (buffer := hand.room(_LOOK_UP)) is None:
            continue
        if (batch := next(batches, None)) is None:
            return
        rows, _ = batch
        if ring is None:
            ring = np.empty(
                (hand.buffers, longest or len(rows), *images.pixels.shape[1:]), dtype=np.uint8
            )
        _check_length(len(rows), ring.shape[1])
        pixels = ring[buffer, : len(rows)]
        # Any other mode than "clip" makes a copy first; a row too high fails in ``places``.
        np.take(images.pixels, images.places[rows], axis=0, out=pixels, mode="clip")
        yield _Ready(rows, pixels, buffer)


def _check_length(length: int, longest: int) -> None:
    if length > longest:
        raise ValueError(f"a batch of {length} rows after a first one of {longest}")


@dataclass(eq=False)
class _UnderWay:
    """A batch some of whose pictures are still to come."""

    rows: Rows
    reserve: Iterator[int] | None
    asked: int
    buffer: int
    pending: int = 0
    lost: list[int] = field(default_factory=list)
    bad: dict[int, int] = field(default_factory=dict)


def _decoded(
    images: InTars, batches: Iterator[Batch], hand: _Hand, workers: int, longest: int | None
) -> Generator[_Ready]:
    while (buffer := hand.room(_LOOK_UP)) is None:
        if hand.stop.is_set():
            return
    if (batch := next(batches, None)) is None:
        return
    longest = max(1, longest or len(batch[0]))
    target = shared_file(hand.buffers * longest * row_bytes(images.geometry))
    try:
        ring = map_pixels(target, hand.buffers * longest, images.geometry)
        with DecodePool(images.index.tars, images.geometry, target, workers) as pool:
            work = _Work(images, pool, longest)
            work.start(batch, buffer)
            ended = False
            broken: Exception | None = None
            while not hand.stop.is_set() and not (ended and not work.under_way):
                while not ended:
                    room = hand.room(0 if work.under_way else _PAUSE)
                    if room is None:
                        break
                    try:
                        batch = next(batches, None)
                        if batch is not None:
                            work.start(batch, room)
                    except Exception as error:
                        batch, broken = None, error
                    ended = batch is None
                if work.under_way:
                    work.hear()
                while (done := work.finished()) is not None:
                    first = done.buffer * longest
                    pixels = ring[first : first + len(done.rows)]
                    rows = done.rows
                    if done.lost:
                        good = np.setdiff1d(np.arange(len(rows)), done.lost)
                        rows, pixels = rows[good], pixels[good]
                    yield _Ready(rows, pixels, done.buffer, done.bad)
            if broken is not None:  # only now, when what was asked for before it is done
                raise broken
    finally:
        os.close(target)


class _Work:
    """The batches under way, in order, and the pool that decodes their pictures."""

    def __init__(self, images: InTars, pool: DecodePool, longest: int) -> None:
        self.under_way: deque[_UnderWay] = deque()
        self._images = images
        self._known = dict(images.bad)
        self._pool = pool
        self._longest = longest
        self._size = row_bytes(images.geometry)

    def start(self, batch: Batch, buffer: int) -> None:
        """Have a batch decoded into a buffer."""
        rows, reserve = batch
        _check_length(len(rows), self._longest)
        asked = len(rows) + (0 if reserve is None else len(reserve))
        rest = None if reserve is None else iter(reserve.tolist())
        started = _UnderWay(rows.copy(), rest, asked, buffer)
        self.under_way.append(started)
        self._give(started, range(len(rows)))

    def hear(self) -> None:
        """Take in what was decoded since, or wait a moment for it."""
        for place, code in self._pool.wait(_PAUSE):
            buffer, position = divmod(place // self._size, self._longest)
            batch = next(b for b in self.under_way if b.buffer == buffer)
            batch.pending -= 1
            if code != GOOD:
                row = int(batch.rows[position])
                self._known[row] = batch.bad[row] = code
                batch.lost.append(position)
        for batch in self.under_way:
            self._replace(batch)

    def finished(self) -> _UnderWay | None:
        """The first batch, if all of its pictures are there.

        Raises:
            AlignError: its reserve is used up.
        """
        if not self.under_way or self.under_way[0].pending:
            return None
        batch = self.under_way.popleft()
        if batch.lost and batch.reserve is not None:
            reasons = ", ".join(sorted({REASONS[code] for code in batch.bad.values()}))
            raise AlignError(
                f"{len(batch.bad)} of {batch.asked} pictures for one batch can't be used "
                f"({reasons}), more than its reserve replaces. Look at the shards, or give a cache."
            )
        return batch

    def _replace(self, batch: _UnderWay) -> None:
        """Give the places of bad pictures to the rows of the reserve, in rounds.

        In each round all places that were lost get the next rows, in order, and only when all of
        these are decoded comes the next round: the outcome hangs on which pictures are bad, not on
        when that was found out.
        """
        while batch.lost and not batch.pending and batch.reserve is not None:
            lost = sorted(batch.lost)
            rows = list(islice(batch.reserve, len(lost)))
            if len(rows) < len(lost):
                return  # used up: ``finished`` says so when it is this batch's turn
            batch.lost.clear()
            batch.rows[lost] = rows
            self._give(batch, lost)

    def _give(self, batch: _UnderWay, positions: Iterable[int]) -> None:
        jobs: list[Job] = []
        for position in positions:
            row = int(batch.rows[position])
            if (code := self._known.get(row)) is not None:
                batch.bad[row] = code
                batch.lost.append(position)
                continue
            place = (batch.buffer * self._longest + position) * self._size
            jobs.append(job_of(self._images.index, row, place))
        batch.pending += len(jobs)
        self._pool.submit(jobs, first=batch is self.under_way[0])
