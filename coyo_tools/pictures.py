"""What becomes of a stranger's picture: a clean JPEG with its measures, or a refusal with a reason.

These are the words that everybody shares. ``decoding`` does the work, in the child process that
``decoder`` starts; ``picture_workers`` runs several of them.
"""

from dataclasses import dataclass

from coyo_tools.errors import CoyoError

# What browsers show in <img>, and TIFF and BMP, which img2dataset's users also meet. Left out are
# formats whose decoders start other programs (EPS) or are rarely looked after.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")

# Pillow's own line between a large picture and a decompression bomb: a quarter of a gibibyte of
# RGB.
MAX_PIXELS = 89_478_485

# img2dataset's names and meanings.
RESIZES = ("keep_ratio_largest", "keep_ratio", "center_crop", "border", "no")


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are stored: the size in pixels, JPEG quality 1 to 95, and what the size bounds.

    ``resize`` is one of ``RESIZES``. With keep_ratio_largest the longer side becomes
    ``image_size``; border then pads with white to a square. With keep_ratio the shorter side does;
    center_crop then cuts to a square. With no the size has no say. Nothing is ever enlarged: a
    picture whose side is no longer than ``image_size`` keeps its size and shape, neither padded nor
    cut, as with img2dataset's resize_only_if_bigger.
    """

    image_size: int = 256
    quality: int = 90
    resize: str = "keep_ratio_largest"


@dataclass(frozen=True)
class Picture:
    """A decoded picture: its JPEG, and what was measured before it was shrunk.

    ``width``, ``height`` and ``image_phash`` are those of the original as its file stores it, as
    COYO has them; the JPEG is turned upright if the file says so (EXIF), alpha laid on white, and
    ``stored_width`` and ``stored_height`` are its own.
    """

    jpeg: bytes
    width: int
    height: int
    image_phash: str
    bytes_served: int
    stored_width: int
    stored_height: int


@dataclass(frozen=True)
class Measures:
    """What is to be seen of a picture without storing it anew; None is what was not asked for.

    ``width``, ``height`` and ``image_phash`` are those of the file as it is, ``num_faces`` is
    counted in the picture turned upright.
    """

    width: int
    height: int
    image_phash: str | None = None
    num_faces: int | None = None


@dataclass(frozen=True)
class Refusal:
    """Why there is no picture: a short reason to count by, and the details of this one."""

    reason: str
    detail: str


def check_picture_settings(settings: PictureSettings) -> None:
    """Refuse settings that no picture could be stored by.

    Raises:
        CoyoError: the size is below 16, the quality outside 1 to 95, or the resize mode unknown.
    """
    if settings.image_size < 16:
        raise CoyoError(f"An image size of {settings.image_size} pixels is below 16.")
    if not 1 <= settings.quality <= 95:
        raise CoyoError(f"A JPEG quality of {settings.quality} is not one of 1 to 95.")
    if settings.resize not in RESIZES:
        raise CoyoError(
            f"{settings.resize!r} is no way to resize a picture.", f"Ways: {', '.join(RESIZES)}."
        )
