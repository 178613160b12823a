"""A stranger's picture to the pixels the model was made for, the same that AlignProcessor gives.

The geometry (resize, crop) is done once per picture and kept as bytes; the arithmetic (rescale,
normalise) is one multiply and one add per channel, done on the batch. Both are taken from the
image processor that is saved with the model, so that training and later use can't drift apart.

Hugging Face's defaults for this processor, [-2, 2] at 346 pixels, are not those of align-base,
which rescales by 1/127.5 - 1; a model from scratch gets align-base's range.

Left out: augmentation (``augment``), and any format but JPEG, PNG and WEBP: fewer decoders, fewer
surprises from pictures made to harm.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import EfficientNetImageProcessorPil

Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_PIXELS = 64_000_000
"""Three times a 21-megapixel photograph. A small file can claim a picture that fills the memory."""


class BadPictureError(Exception):
    """A picture can't be used; the message is the reason it is counted under."""


def image_processor(image_size: int) -> EfficientNetImageProcessorPil:
    """The processor of a model trained from scratch: squashed to a square, values in [-1, 1]."""
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


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture to upright RGB, transparency on white.

    White is what img2dataset puts behind transparent pictures. 16-bit grey is scaled to 8 bits,
    where Pillow's own conversion would clip it.

    Raises:
        BadPictureError: it is no JPEG, PNG or WEBP, is too large, or doesn't decode.
    """
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise BadPictureError("picture too large")
            return _rgb(ImageOps.exif_transpose(picture))
    except BadPictureError:
        raise
    except Image.DecompressionBombError:
        raise BadPictureError("picture too large") from None
    # A damaged file makes Pillow raise OSError, SyntaxError, ValueError, struct.error, EOFError,
    # zlib.error and more: whatever it is, one bad picture must not end a run.
    except Exception:
        raise BadPictureError("picture does not decode") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, as I;16 or I depending on the decoder
        grey = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """What an image processor does, split into geometry on bytes and arithmetic on channels."""

    processor: Any
    height: int
    width: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def resize(self, picture: Image.Image) -> Pixels:
        """Resize and crop to (height, width, 3) bytes."""
        batch = self.processor(
            picture, do_rescale=False, do_normalize=False, include_top=False, return_tensors="np"
        )
        pixels: Pixels = batch["pixel_values"][0].astype(np.uint8, copy=False)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def preprocess_of(processor: EfficientNetImageProcessorPil) -> Preprocess:
    """Split a processor into geometry and arithmetic.

    The arithmetic is affine per channel whatever mixture of rescaling, normalising and
    ``include_top`` the checkpoint asks for, so a black and a white picture determine it.
    """
    black, white = (
        processor(Image.new("RGB", (8, 8), (value, value, value)), return_tensors="np")[
            "pixel_values"
        ][0].astype(np.float64)
        for value in (0, 255)
    )
    offset = black[:, 0, 0]
    scale = (white[:, 0, 0] - offset) / 255
    _, height, width = black.shape
    return Preprocess(processor, height, width, tuple(scale.tolist()), tuple(offset.tolist()))
