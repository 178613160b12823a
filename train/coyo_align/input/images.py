"""A stranger's picture to the pixels the model was made for, the same that AlignProcessor gives.

The geometry (resize, crop) is done once per picture and kept as bytes; the arithmetic (rescale,
normalise) is one multiply and one add per channel, done on the batch. Both are taken from the
image processor that is saved with the model, so that training and later use can't drift apart. The
geometry is a few numbers, so that the processes that decode need neither torch nor transformers,
which this module imports only where a processor is made.

Hugging Face's defaults for this processor, [-2, 2] at 346 pixels, are not those of align-base,
which rescales by 1/127.5 - 1; a model from scratch gets align-base's range.

Left out: augmentation (``augment``), and any format but JPEG, PNG and WEBP: fewer decoders, fewer
surprises from pictures made to harm.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from coyo_align.errors import AlignError

if TYPE_CHECKING:
    from transformers import EfficientNetImageProcessorPil

Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_PIXELS = 64_000_000
"""Three times a 21-megapixel photograph. A small file can claim a picture that fills the memory."""

TOO_LARGE = "picture too large"
UNDECODABLE = "picture does not decode"


class BadPictureError(Exception):
    """A picture can't be used; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Geometry:
    """From any picture to (height, width, 3) bytes: resize, then cut out the middle.

    Attributes:
        resize: (height, width) that every picture is squashed to.
        resample: Pillow's number of the filter.
        crop: (height, width) of the middle, None for the whole. Beyond the edge it is black.
        fast: see ``pixels_of``.
        keep_ratio: nothing is squashed, the shorter side gets ``resize``'s length, which has to be
            a square's; needs ``crop``. CLIP's way.
    """

    resize: tuple[int, int]
    resample: int
    crop: tuple[int, int] | None = None
    fast: bool = False
    keep_ratio: bool = False

    @property
    def height(self) -> int:
        """Of the result, in pixels."""
        return (self.crop or self.resize)[0]

    @property
    def width(self) -> int:
        """Of the result, in pixels."""
        return (self.crop or self.resize)[1]

    def apply(self, picture: Image.Image) -> Pixels:
        """Resize and crop an RGB picture to (height, width, 3) bytes.

        Raises:
            BadPictureError: it is so narrow that its longer side would be too large.
        """
        height, width = self._resized(picture.height, picture.width)
        small = picture.resize((width, height), Image.Resampling(self.resample))
        return self._cut(np.asarray(small))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not self.keep_ratio:
            return self.resize
        side, short = self.resize[0], min(height, width)
        height, width = int(side * height / short), int(side * width / short)
        if height * width > _MAX_PIXELS:
            raise BadPictureError(TOO_LARGE)
        return height, width

    def _cut(self, pixels: Pixels) -> Pixels:
        if self.crop is None:
            return pixels
        top, left = ((a - b) // 2 for a, b in zip(pixels.shape, self.crop, strict=False))
        if top < 0 or left < 0:
            box = (left, top, left + self.crop[1], top + self.crop[0])
            return np.asarray(Image.fromarray(pixels).crop(box))
        return pixels[top : top + self.crop[0], left : left + self.crop[1]]


def image_processor(image_size: int) -> "EfficientNetImageProcessorPil":
    """The processor of a model trained from scratch: squashed to a square, values in [-1, 1]."""
    from transformers import EfficientNetImageProcessorPil

    return EfficientNetImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BILINEAR,
        do_center_crop=False,
        do_convert_rgb=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )


def pixels_of(data: bytes, geometry: Geometry) -> Pixels:
    """Decode an encoded picture to (height, width, 3) bytes.

    Exact unless ``geometry.fast``: the bytes that the image processor would give for
    ``open_picture``. Fast means for whole RGB or grey JPEGs: decoded by OpenCV at 1/2, 1/4 or 1/8
    of their size where that is still as large as wanted, and resized by plain bilinear
    interpolation without Pillow's smoothing; meant for training, not for evaluation. A geometry
    that keeps the ratio is always exact.
    docs/performance.md has speeds and differences.

    Raises:
        BadPictureError: as ``open_picture``.
    """
    with _one_reason():
        quick = geometry.fast and not geometry.keep_ratio
        if quick and (pixels := _fast(data, geometry.resize)) is not None:
            return geometry._cut(pixels)
        return geometry.apply(open_picture(data))


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture to upright RGB, transparency on white.

    White is what img2dataset puts behind transparent pictures. 16-bit grey is scaled to 8 bits,
    where Pillow's own conversion would clip it.

    Raises:
        BadPictureError: it is no JPEG, PNG or WEBP, is too large, or doesn't decode.
    """
    with _one_reason(), Image.open(BytesIO(data), formats=_FORMATS) as picture:
        _check_size(picture)
        return _rgb(ImageOps.exif_transpose(picture))


class _one_reason:  # noqa: N801  (a context manager, read like a function)
    """Whatever goes wrong with a picture is one of two reasons.

    A damaged file makes Pillow raise OSError, SyntaxError, ValueError, struct.error, EOFError,
    zlib.error, MemoryError and more: whatever it is, one bad picture must not end a run.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or not issubclass(kind, Exception) or issubclass(kind, BadPictureError):
            return
        too_large = issubclass(kind, Image.DecompressionBombError)
        raise BadPictureError(TOO_LARGE if too_large else UNDECODABLE) from None


def _check_size(picture: Image.Image) -> None:
    if picture.width * picture.height > _MAX_PIXELS:
        raise BadPictureError(TOO_LARGE)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, as I;16 or I depending on the decoder
        grey = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _fast(data: bytes, resize: tuple[int, int]) -> Pixels | None:
    """The picture squashed to (height, width), None where it is not one for the fast way."""
    import cv2

    # OpenCV fills what is missing of a cut JPEG with grey; Pillow refuses it.
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    with Image.open(BytesIO(data), formats=("JPEG",)) as picture:
        _check_size(picture)
        if picture.mode not in ("RGB", "L"):
            return None
        times = min(picture.size) // max(resize)  # whichever side is up
    flag = cv2.IMREAD_COLOR
    for least, reduced in _REDUCED:
        if times >= least:
            flag = getattr(cv2, reduced)
            break
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)  # upright, by its Exif
    if decoded is None:
        return None
    small = cv2.resize(decoded, resize[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), dtype=np.uint8)


_REDUCED = (
    (8, "IMREAD_REDUCED_COLOR_8"),
    (4, "IMREAD_REDUCED_COLOR_4"),
    (2, "IMREAD_REDUCED_COLOR_2"),
)


@dataclass(frozen=True)
class Preprocess:
    """What an image processor does, split into geometry on bytes and arithmetic on channels."""

    geometry: Geometry
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def height(self) -> int:
        """Of the model's pictures, in pixels."""
        return self.geometry.height

    @property
    def width(self) -> int:
        """Of the model's pictures, in pixels."""
        return self.geometry.width

    def resize(self, picture: Image.Image) -> Pixels:
        """Resize and crop an RGB picture to (height, width, 3) bytes, exactly."""
        return self.geometry.apply(picture)


def preprocess_of(processor: Any, *, fast: bool = False) -> Preprocess:
    """Split a processor into geometry and arithmetic.

    The arithmetic is affine per channel whatever mixture of rescaling, normalising and
    ``include_top`` the checkpoint asks for, so a black and a white picture determine it. That
    the geometry is understood is seen on a picture of noise.

    Args:
        processor: an ``EfficientNetImageProcessorPil``, or another that squashes, or resizes the
            shorter side and crops, as ``CLIPImageProcessorPil``.
        fast: see ``pixels_of``.

    Raises:
        AlignError: it does something to the geometry that ``Geometry`` can't say.
    """
    name = type(processor).__name__
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    cut = None
    if crop is not None and getattr(processor, "do_center_crop", False):
        cut = (crop.height, crop.width)
    shorter = getattr(size, "shortest_edge", None) if cut is not None else None
    resize, keep_ratio = None, False
    if size is not None and size.height and size.width:
        resize = (size.height, size.width)
    elif shorter:
        resize, keep_ratio = (shorter, shorter), True
    if resize is None or not getattr(processor, "do_resize", False):
        raise AlignError(
            f"The image processor {name} resizes to {size}, do_resize="
            f"{getattr(processor, 'do_resize', None)}. All pictures must come out in one size: "
            "save the checkpoint with do_resize and a size of height and width, or one of "
            "shortest_edge with do_center_crop."
        )
    geometry = Geometry(resize, int(processor.resample), cut, fast, keep_ratio)

    def run(picture: Image.Image) -> NDArray[np.float64]:
        values = processor(picture, return_tensors="np")["pixel_values"][0]
        return np.asarray(values, dtype=np.float64).transpose(1, 2, 0)

    black, white = (run(Image.new("RGB", (8, 8), (value,) * 3)) for value in (0, 255))
    middle = (geometry.height // 2, geometry.width // 2)
    offset = black[middle]
    scale = (white[middle] - offset) / 255
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8))
    seen, ours = run(noise), geometry.apply(noise) * scale + offset
    if seen.shape != ours.shape or np.abs(seen - ours).max() > np.abs(scale).max() / 2:
        raise AlignError(
            f"The image processor {name} does more to a picture than resize to {geometry.resize}, "
            f"crop to {cut}, rescale and normalise. Give a checkpoint with the kind of processor "
            "that the published ones have."
        )
    return Preprocess(geometry, tuple(scale.tolist()), tuple(offset.tolist()))
