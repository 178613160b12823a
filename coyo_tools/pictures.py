"""Turns a stranger's picture into a clean JPEG, or into its hash, in a process that can be killed.

A picture from the web may be cut short, claim a billion pixels, or be built to hang or crash its
decoder. So decoding happens in worker processes with a limit on time, memory and pixels; a
picture that breaks a limit is refused with a reason and the next one goes on. A picture that comes
out is always a fresh RGB JPEG: no metadata, no stranger's bytes.
"""

import io
import os
import resource
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as DecodingTimeout
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from pebble import ProcessExpired, ProcessFuture, ProcessPool
from PIL import Image, ImageOps, UnidentifiedImageError

from coyo_tools.phash import phash, turned_phashes

# What browsers show in <img>, and TIFF and BMP, which img2dataset's users also meet. Left out are
# formats whose decoders start other programs (EPS) or are rarely looked after.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")

# Pillow's own line between a large picture and a decompression bomb: a quarter of a gibibyte of
# RGB.
MAX_PIXELS = 89_478_485

_SECONDS = 30.0
_WORKER_MEMORY = 4 * 1024**3

Key = TypeVar("Key")
Made = TypeVar("Made")


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are stored: longest side in pixels (only ever shrunk), JPEG quality 1 to 95."""

    image_size: int = 256
    quality: int = 90


@dataclass(frozen=True)
class Picture:
    """A decoded picture: its JPEG, and what was measured before it was shrunk.

    ``width``, ``height`` and ``image_phash`` are those of the original as its file stores it, as
    COYO has them; the JPEG is turned upright if the file says so (EXIF), alpha laid on white.
    """

    jpeg: bytes
    width: int
    height: int
    image_phash: str
    bytes_served: int


@dataclass(frozen=True)
class Refusal:
    """Why there is no picture: a short reason to count by, and the details of this one."""

    reason: str
    detail: str


def decode_picture(data: bytes | Path, settings: PictureSettings) -> Picture | Refusal:
    """Decode, hash and shrink one picture, or say why not."""

    def make(image: Image.Image, raw: bytes) -> Picture:
        width, height = image.size
        hashed = phash(image)
        return Picture(_to_jpeg(image, settings), width, height, hashed, len(raw))

    return _decode(data, make)


def hash_picture(data: bytes | Path, *, turns: bool = False) -> tuple[str, ...] | Refusal:
    """Decode one picture and hash it as COYO does, or say why not.

    With ``turns`` the hashes of all of ``phash.TURNS`` come, in their order; else one.
    """
    return _decode(data, lambda image, _: turned_phashes(image) if turns else (phash(image),))


def _decode(data: bytes | Path, make: Callable[[Image.Image, bytes], Made]) -> Made | Refusal:
    """Return what ``make`` makes of a decoded picture and its file, or why there is no picture.

    Runs in a worker. Every exception of a decoder is a statement about the picture, because what
    Pillow raises on broken files has no common base.
    """
    try:
        raw = data.read_bytes() if isinstance(data, Path) else data
    except OSError as error:
        return Refusal("missing file", error.strerror or str(error))
    except MemoryError:
        return Refusal("undecodable", "needs more memory than a worker may have")
    if not raw:
        return Refusal("not an image", "the file is empty")
    try:
        with warnings.catch_warnings():
            # Between one and two times MAX_PIXELS Pillow only warns; the check below refuses.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return Refusal("too many pixels", f"{width} x {height}")
                image.load()
                return make(image, raw)
    except UnidentifiedImageError:
        return Refusal("not an image", _looks_like(raw))
    except Image.DecompressionBombError as error:
        return Refusal("too many pixels", str(error))
    except MemoryError:
        return Refusal("undecodable", "needs more memory than a worker may have")
    except Exception as error:
        return Refusal("undecodable", f"{type(error).__name__}: {error}"[:200])


def _to_jpeg(image: Image.Image, settings: PictureSettings) -> bytes:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255, which turns most of a picture white.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = upright.convert("RGB")
    rgb.info = {}  # a comment would be written into the JPEG
    rgb.thumbnail((settings.image_size, settings.image_size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=settings.quality)
    return buffer.getvalue()


def _looks_like(raw: bytes) -> str:
    start = raw[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<svg")):
        return "an SVG or XML file"
    return f"starts with {raw[:8]!r}"


def _limit_worker() -> None:
    """Cap a worker's address space, where the system can (macOS can't), and silence libtiff.

    libtiff writes to the process's stderr about every odd tag; what matters comes back as a
    ``Refusal``.
    """
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY, _WORKER_MEMORY))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


class PictureWorkers:
    """Worker processes that decode pictures; use as a context manager."""

    def __init__(self, settings: PictureSettings, processes: int, seconds: float = _SECONDS):
        self._settings = settings
        self._seconds = seconds
        self._processes = processes
        # One thread a worker: numpy's and scipy's own pools would only get in each other's way.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        self._pool = ProcessPool(
            max_workers=processes, initializer=_limit_worker, context=get_context("spawn")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._pool.close()  # type: ignore[no-untyped-call]
        else:
            self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def decode(
        self, items: Iterable[tuple[Key, bytes | Path | Refusal]]
    ) -> Iterator[tuple[Key, Picture | Refusal]]:
        """Decode pictures, in order, holding no more than a few per worker at a time.

        What was refused before anybody looked at its bytes keeps its place in the order.
        """
        return self._run(items, partial(decode_picture, settings=self._settings))

    def hash(
        self, items: Iterable[tuple[Key, bytes | Path | Refusal]], *, turns: bool = False
    ) -> Iterator[tuple[Key, tuple[str, ...] | Refusal]]:
        """Hash pictures, in order, as ``decode`` decodes them; see ``hash_picture``."""
        return self._run(items, partial(hash_picture, turns=turns))

    def _run(
        self,
        items: Iterable[tuple[Key, bytes | Path | Refusal]],
        work: Callable[[bytes | Path], Made | Refusal],
    ) -> Iterator[tuple[Key, Made | Refusal]]:
        waiting: deque[tuple[Key, ProcessFuture[Made | Refusal] | Refusal]] = deque()
        for key, data in items:
            waiting.append((key, data if isinstance(data, Refusal) else self._schedule(work, data)))
            if len(waiting) >= 8 * self._processes:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def _schedule(
        self, work: Callable[[bytes | Path], Made | Refusal], data: bytes | Path
    ) -> "ProcessFuture[Made | Refusal]":
        future: ProcessFuture[Made | Refusal] = self._pool.schedule(
            work, args=[data], timeout=self._seconds
        )
        return future

    def _result(
        self, key: Key, future: "ProcessFuture[Made | Refusal] | Refusal"
    ) -> tuple[Key, Made | Refusal]:
        if isinstance(future, Refusal):
            return key, future
        # Polars has system calls restarted after a Ctrl-C: an endless wait would not notice one.
        while not future.done():
            wait([future], timeout=0.2)
        try:
            return key, future.result()
        except DecodingTimeout:
            return key, Refusal("too slow", f"not decoded in {self._seconds:.0f} s")
        except ProcessExpired as error:
            return key, Refusal("undecodable", f"crashed its decoder (exit code {error.exitcode})")
