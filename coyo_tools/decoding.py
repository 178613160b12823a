"""Turns a stranger's picture into a clean JPEG, or into its hash: what the decoder's child does.

A picture from the web may be cut short, claim a billion pixels, or be built to hang or crash its
decoder. Here it is refused with a reason where that can be told; that it can't do harm beyond its
process is ``decoder``'s affair. What comes out is always a fresh RGB JPEG: no metadata, no
stranger's bytes; or measures of the picture. Strangers' bytes meet no library but Pillow.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coyo_tools.faces import count_faces
from coyo_tools.phash import phash, turned_phashes
from coyo_tools.pictures import (
    FORMATS,
    MAX_PIXELS,
    Measures,
    Picture,
    PictureSettings,
    Refusal,
)
from coyo_tools.resample import shrink

# What a JPEG's header can say, and libjpeg writes.
_LONGEST_SIDE = 65_500

Made = TypeVar("Made")


def decode_picture(data: bytes | Path, settings: PictureSettings) -> Picture | Refusal:
    """Decode, hash and shrink one picture, or say why not."""

    def make(image: Image.Image, raw: bytes) -> Picture | Refusal:
        width, height = image.size
        hashed = phash(image)
        stored = _stored(image, settings)
        if max(stored.size) > _LONGEST_SIDE:
            return Refusal(
                "too many pixels",
                f"{stored.width} x {stored.height}, but a JPEG's sides end at {_LONGEST_SIDE}",
            )
        buffer = io.BytesIO()
        stored.save(buffer, "JPEG", quality=settings.quality)
        return Picture(buffer.getvalue(), width, height, hashed, len(raw), *stored.size)

    return _decode(data, make)


def hash_picture(data: bytes | Path, *, turns: bool = False) -> tuple[str, ...] | Refusal:
    """Decode one picture and hash it as COYO does, or say why not.

    With ``turns`` the hashes of all of ``phash.TURNS`` come, in their order; else one.
    """
    return _decode(data, lambda image, _: turned_phashes(image) if turns else (phash(image),))


def measure_picture(
    data: bytes | Path, *, phash_too: bool = False, faces: str | None = None
) -> Measures | Refusal:
    """Decode one picture and measure it, or say why not.

    Args:
        data: the file or its bytes.
        phash_too: hash it as COYO does.
        faces: the detector that counts faces, see ``faces``; None for no count.
    """

    def make(image: Image.Image, _: bytes) -> Measures:
        width, height = image.size
        hashed = phash(image) if phash_too else None
        found = count_faces(ImageOps.exif_transpose(image), faces) if faces else None
        return Measures(width, height, hashed, found)

    return _decode(data, make)


def _decode(
    data: bytes | Path, make: Callable[[Image.Image, bytes], Made | Refusal]
) -> Made | Refusal:
    """Return what ``make`` makes of a decoded picture and its file, or why there is no picture.

    Every exception of a decoder is a statement about the picture, because what Pillow raises on
    broken files has no common base.
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


def _stored(image: Image.Image, settings: PictureSettings) -> Image.Image:
    """Return the picture as it is to be stored: RGB, upright, in its size, with nothing attached.

    ``image`` itself may be turned.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255, which turns most of a picture white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    side = _bounded_side(image.size, settings.resize)
    if side <= settings.image_size:
        rgb = image.convert("RGB")
        rgb.info = {}  # a comment would be written into the JPEG
        return rgb
    factor = settings.image_size / side
    width, height = (max(1, round(length * factor)) for length in image.size)
    small = shrink(image if image.mode == "RGB" else image.convert("RGB"), (width, height))
    squared = settings.resize in ("center_crop", "border")
    return _squared(small, settings.image_size) if squared else small


def _bounded_side(size: tuple[int, int], resize: str) -> int:
    """Return the side that a resize mode bounds; none, 0, if the mode bounds none."""
    if resize == "no":
        return 0
    return min(size) if resize in ("keep_ratio", "center_crop") else max(size)


def _squared(image: Image.Image, side: int) -> Image.Image:
    """Lay a picture on the middle of a white square; what is longer is cut at both ends."""
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _looks_like(raw: bytes) -> str:
    start = raw[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<svg")):
        return "an SVG or XML file"
    return f"starts with {raw[:8]!r}"
