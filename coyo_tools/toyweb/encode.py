"""From a planned picture to the bytes a web server sends, with its copies.

One job draws one picture, encodes it and makes every copy that is planned of it, all from the
job's own seeds, so jobs run anywhere in any order. What the metadata says of a picture (width,
height, perceptual hash) is measured on the encoded bytes decoded again, as a crawler would.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from coyo_tools.phash import hamming, phash
from coyo_tools.toyweb import marks
from coyo_tools.toyweb.draw import draw, picture_size
from coyo_tools.toyweb.scenes import Scene
from coyo_tools.toyweb.seeds import generator

SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
CONTENT_TYPE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

NEAR = 4
_SMALLEST, _LARGEST = 200, 640
# COYO has no file under 5 KB.
_FEWEST_BYTES = 5000


@dataclass(frozen=True)
class Copy:
    """A near-duplicate to make: "reencoded" or "resized", of the ``source``-th file of a job."""

    kind: str
    source: int = 0


@dataclass(frozen=True)
class PictureJob:
    """A picture to draw: its scene, marks and file format, and the copies to make of it.

    ``stream`` and ``number`` name the picture among all that a toy web draws, and ``attempt``
    counts redraws of one that came out too like another.
    """

    seed: int
    stream: str
    number: int
    scene: Scene
    format: str = "JPEG"
    watermarked: bool = False
    copies: tuple[Copy, ...] = ()
    attempt: int = 0


@dataclass(frozen=True)
class Encoded:
    """One file: its bytes and what can be measured on them."""

    data: bytes
    format: str
    width: int
    height: int
    phash: str


def make_picture(job: PictureJob) -> list[Encoded]:
    """Draw a job's picture and return its files: the picture, then its copies as planned."""
    rng = generator(job.seed, f"picture/{job.stream}", job.number, job.attempt)
    image, middle = draw(job.scene, picture_size(rng), rng)
    if job.scene.faces:
        marks.faces(image, job.scene.faces, middle, rng)
    if job.watermarked:
        marks.watermark(image, rng)
    quality = int(rng.integers(82, 94))
    files = [encode(image, job.format, quality)]
    if len(files[0].data) < _FEWEST_BYTES:
        files = [encode(image, job.format, 98)]
    for copy in job.copies:
        files.append(_copy(files[copy.source], copy.kind, rng))
    return files


def encode(image: Image.Image, file_format: str, quality: int = 90) -> Encoded:
    """Encode an RGB picture as JPEG, PNG or WEBP and measure the result."""
    buffer = io.BytesIO()
    if file_format == "PNG":
        # Eight bits a pixel: grain in full colour would make the one PNG as big as ten JPEGs.
        image.quantize(96, Image.Quantize.FASTOCTREE).save(buffer, "PNG", compress_level=6)
    elif file_format == "WEBP":
        image.save(buffer, "WEBP", quality=quality, method=1)
    else:
        image.save(buffer, "JPEG", quality=quality)
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as decoded:
        return Encoded(data, file_format, decoded.width, decoded.height, phash(decoded))


def _copy(original: Encoded, kind: str, rng: np.random.Generator) -> Encoded:
    """Re-encode or resize a picture so that its hash moves by at most ``NEAR`` bits.

    Tries rough copies first and gentler ones after; the gentlest is a JPEG of quality 96.
    """
    with Image.open(io.BytesIO(original.data)) as opened:
        image = opened.convert("RGB")
    for attempt in range(8):
        quality = int(rng.integers(25, 60)) + 8 * attempt
        copy = encode(_resized(image, rng) if kind == "resized" else image, "JPEG", quality)
        if hamming(copy.phash, original.phash) <= NEAR and len(copy.data) >= _FEWEST_BYTES:
            return copy
    return encode(image, "JPEG", 96)


def _resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    lowest = _SMALLEST / min(image.size)
    highest = _LARGEST / max(image.size)
    scale = float(rng.uniform(lowest, 0.85)) if lowest < 0.7 else float(rng.uniform(1.2, highest))
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)
