"""A data set's pixels in one file, decoded once, for all the runs to come.

In the cache's directory there is for each data set and picture size a directory with

- ``pixels.npy``: (samples, height, width, 3) bytes, a place for every usable sample of the tars;
- ``codes.npy``: for each whether its picture is good, or why not (``decode_worker``);
- ``samples.npy``: where in the tars they are, so that runs on some of them find theirs;
- ``cache.json``: what it was made of, and how long that took.

Its name holds a digest of all that the pixels depend on: the tars' names, sizes and times, the ids,
the geometry and the version of Pillow. So a cache of something else is not used, and not harmed
either; one of the same tars that holds more samples than are asked for is. It is written under
another name and renamed when whole; a lock keeps a second run waiting until it can use what the
first has built.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from coyo_align.errors import NO_ROOM, AlignError
from coyo_align.input.images import Geometry, Pixels
from coyo_align.input.index import Index
from coyo_align.input.pictures import decode_into, row_bytes

_FORMAT = 2

Found = tuple[Pixels, NDArray[np.int64], NDArray[np.uint8]]
"""Pixels, the place of each row in them, and its code."""


def cached_pixels(
    directory: Path,
    index: Index,
    geometry: Geometry,
    workers: int,
    on_done: Callable[[int], None],
) -> tuple[Pixels, NDArray[np.int64], NDArray[np.uint8], bool]:
    """A read-only map of pixels, each row's place in it and code, and whether it was built now.

    Raises:
        AlignError: the directory can't be written to, or has no room.
    """
    name = f"pixels-{_fingerprint(index, geometry)}"
    if (found := _find(directory, name, index, geometry)) is not None:
        return *found, False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory):
            if (found := _find(directory, name, index, geometry)) is not None:
                return *found, False
            _build(directory, name, index, geometry, workers, on_done)
    except OSError as error:
        raise AlignError(f"The cache {directory} can't be written: {error.strerror}.") from error
    found = _open(directory / name, index, geometry)
    if found is None:
        raise AlignError(f"The cache {directory / name} is not what was just written there.")
    return *found, True


def _fingerprint(index: Index, geometry: Geometry) -> str:
    """A digest of all that the pixels and their order depend on."""
    digest = hashlib.sha256(_origin(index, geometry).encode())
    for numbers in (index.tar, index.offset, index.size):  # which samples of the tars
        digest.update(numbers.tobytes())
    return digest.hexdigest()[:16]


def _origin(index: Index, geometry: Geometry) -> str:
    """A digest of all that pixels depend on, whichever samples of the tars they are."""
    said = {
        "format": _FORMAT,
        "pillow": PIL.__version__,
        "tars": [(tar.path.name, tar.size, tar.mtime_ns) for tar in index.tars],
        "geometry": asdict(geometry),
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _places(index: Index) -> NDArray[np.int64]:
    """Where in the tars the samples are, as one ascending number each: tar, then offset."""
    return (index.tar.astype(np.int64) << 44) + index.offset


def _find(directory: Path, name: str, index: Index, geometry: Geometry) -> Found | None:
    """The cache of these samples, else one of the same tars that has them among others."""
    if (found := _open(directory / name, index, geometry)) is not None:
        return found
    origin = _origin(index, geometry)
    for other in sorted(directory.glob("pixels-*")):
        try:
            about = json.loads((other / "cache.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if about.get("origin") == origin:
            found = _open(other, index, geometry)
            if found is not None:
                return found
    return None


def _open(path: Path, index: Index, geometry: Geometry) -> Found | None:
    """What is in a cache, None where there is none, a damaged one or one that lacks a sample."""
    try:
        pixels = np.load(path / "pixels.npy", mmap_mode="r")
        codes = np.load(path / "codes.npy")
        samples = np.load(path / "samples.npy")
    except (OSError, ValueError, EOFError):
        return None
    shape = (len(samples), geometry.height, geometry.width, 3)
    if pixels.shape != shape or pixels.dtype != np.uint8 or codes.shape != shape[:1]:
        return None
    wanted = _places(index)
    if not len(samples):
        return None
    rows = np.minimum(np.searchsorted(samples, wanted), len(samples) - 1)
    if not np.array_equal(samples[rows], wanted):
        return None
    return pixels, rows, codes[rows]


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Wait until nobody else builds here. Looks again and again, so that a Ctrl-C is noticed."""
    with (directory / ".lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield


def _build(
    directory: Path,
    name: str,
    index: Index,
    geometry: Geometry,
    workers: int,
    on_done: Callable[[int], None],
) -> None:
    started = time.perf_counter()
    for left in directory.glob(".pixels-*.partial"):  # by a run that was killed: we hold the lock
        shutil.rmtree(left)
    partial = directory / f".{name}.partial"
    partial.mkdir()
    try:
        shape = (len(index), geometry.height, geometry.width, 3)
        _reserve(partial / "pixels.npy", shape, len(index) * row_bytes(geometry))
        target = os.open(partial / "pixels.npy", os.O_RDWR)
        try:
            start = os.fstat(target).st_size - len(index) * row_bytes(geometry)
            rows = np.arange(len(index))
            codes = decode_into(target, start, index, rows, geometry, workers, on_done)
            os.fsync(target)
        finally:
            os.close(target)
        np.save(partial / "codes.npy", codes)
        np.save(partial / "samples.npy", _places(index))
        seconds = time.perf_counter() - started
        about = {
            "origin": _origin(index, geometry),
            "tars": [tar.path.name for tar in index.tars],
            "geometry": asdict(geometry),
            "pictures": len(index),
            "seconds": round(seconds, 3),
            "pillow": PIL.__version__,
        }
        (partial / "cache.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if (directory / name).exists():  # damaged, or it would have been opened
            shutil.rmtree(directory / name)
        partial.rename(directory / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _reserve(path: Path, shape: tuple[int, ...], size: int) -> None:
    """Write the header of an .npy file and take the room on the disk for what it promises.

    Raises:
        AlignError: there is not enough.
    """
    free = shutil.disk_usage(path.parent).free
    full = AlignError(
        f"The cache needs {size:,} bytes in {path.parent.parent}, where {free:,} are free. "
        "Make room, choose another directory, or go without a cache."
    )
    if size > free:
        raise full
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), file.tell(), size)
            else:
                os.ftruncate(file.fileno(), file.tell() + size)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise full from error
            raise
