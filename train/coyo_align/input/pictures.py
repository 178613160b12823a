"""Where the pixels of the pairs are: decoded already, in memory or a mapped file, or still in tars.

``stream`` reads any of them batch by batch; ``take`` is for a few rows here and there.
"""

import mmap
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coyo_align.errors import AlignError
from coyo_align.input.decode_pool import DecodePool, Job, shared_file
from coyo_align.input.decode_worker import GOOD, REASONS
from coyo_align.input.images import Geometry, Pixels
from coyo_align.input.index import Index

Rows = NDArray[np.int64]

_TOLD = 0.2  # seconds between two looks at whether somebody wants to stop


class Pictures(Protocol):
    """Pictures of one size, by row."""

    @property
    def height(self) -> int:
        """Of every picture, in pixels."""

    @property
    def width(self) -> int:
        """Of every picture, in pixels."""

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> Pixels:
        """The pictures in these rows, (rows, height, width, 3), a new array.

        Raises:
            AlignError: some of them don't decode, which can happen where they are not decoded yet.
        """


@dataclass(frozen=True)
class Decoded:
    """Pictures that have been decoded, all of which are good.

    Attributes:
        pixels: (places, height, width, 3), in memory or a map of a file.
        places: where in it each row's picture is.
    """

    pixels: Pixels
    places: Rows

    @property
    def height(self) -> int:
        """Of every picture, in pixels."""
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        """Of every picture, in pixels."""
        return int(self.pixels.shape[2])

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Rows) -> Pixels:
        """The pictures in these rows, (rows, height, width, 3), a new array."""
        return np.take(self.pixels, self.places[rows], axis=0)


@dataclass(frozen=True)
class InTars:
    """Pictures that are decoded when they are asked for, by ``workers`` processes.

    Attributes:
        bad: rows that turned out not to decode, with the reason's code; they are not tried again.
    """

    index: Index
    geometry: Geometry
    workers: int
    bad: dict[int, int] = field(default_factory=dict)

    @property
    def height(self) -> int:
        """Of every picture, in pixels."""
        return self.geometry.height

    @property
    def width(self) -> int:
        """Of every picture, in pixels."""
        return self.geometry.width

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Rows) -> Pixels:
        """The pictures in these rows, (rows, height, width, 3), a new array.

        Starts processes for them, which takes half a second: what reads many batches reads them
        through ``stream``.

        Raises:
            AlignError: some of them don't decode.
        """
        target = shared_file(len(rows) * row_bytes(self.geometry))
        try:
            codes = decode_into(target, 0, self.index, rows, self.geometry, self.workers)
            if bad := reasons_of(codes):
                raise AlignError(
                    f"{sum(bad.values())} of {len(rows)} pictures can't be used: {bad}. Read them "
                    "with stream, which leaves them out, or load the pairs with a cache."
                )
            return map_pixels(target, len(rows), self.geometry)
        finally:
            os.close(target)


def row_bytes(geometry: Geometry) -> int:
    """Bytes of one decoded picture."""
    return geometry.height * geometry.width * 3


def map_pixels(target: int, count: int, geometry: Geometry) -> Pixels:
    """The pixels in a shared file as an array; it keeps the memory alive after the file's close."""
    if count == 0:
        return np.empty((0, geometry.height, geometry.width, 3), dtype=np.uint8)
    memory = mmap.mmap(target, count * row_bytes(geometry))
    return np.frombuffer(memory, np.uint8).reshape(count, geometry.height, geometry.width, 3)


def job_of(index: Index, row: int, place: int) -> Job:
    """The decoding of one row's picture to a place in the shared file, in bytes."""
    return int(index.tar[row]), int(index.offset[row]), int(index.size[row]), place


def decode_into(
    target: int,
    start: int,
    index: Index,
    rows: Rows,
    geometry: Geometry,
    workers: int,
    on_done: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode these rows' pictures, one behind the other from byte ``start`` of a file on.

    Returns what became of each, as codes of ``decode_worker``. A bad picture's place keeps what
    was there. ``on_done`` is called now and then with the rows done so far.

    Raises:
        AlignError: the file's disk is full.
    """
    codes = np.full(len(rows), GOOD, dtype=np.uint8)
    size = row_bytes(geometry)
    workers = max(1, min(workers, len(rows) // 32))
    given = done = 0
    with DecodePool(index.tars, geometry, target, workers) as pool:
        while done < len(rows):
            more = rows[given : min(len(rows), done + 64 * workers + 64)]
            if len(more):
                jobs = (
                    job_of(index, row, start + size * (given + i)) for i, row in enumerate(more)
                )
                pool.submit(jobs)
                given += len(more)
            for place, code in pool.wait(_TOLD):
                codes[(place - start) // size] = code
                done += 1
            if on_done is not None:
                on_done(done)
    return codes


def reasons_of(codes: NDArray[np.uint8]) -> dict[str, int]:
    """How many pictures were bad, by reason, from codes of ``decode_worker``."""
    counts = Counter(codes[codes != GOOD].tolist())
    return {REASONS[code]: count for code, count in sorted(counts.items())}
