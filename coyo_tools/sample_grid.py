"""A picture of samples: each drawn as it is, with its key and its caption below.

Pictures are decoded in workers that can be killed, since shards may come from strangers. Captions
are drawn in the first font that has their letters: Pillow's own for Latin ones, else what the
system has; letters that no font has become boxes.
"""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from coyo_tools.engine import available_cores
from coyo_tools.errors import OutputError
from coyo_tools.manifest import new_file
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import Picture, PictureSettings, Refusal
from coyo_tools.shard_tally import DrawnSample
from coyo_tools.tar_samples import read_file

_SIDE = 224
_GAP = 16
_KEY_SIZE, _CAPTION_SIZE = 11, 14
_KEY_LINE, _CAPTION_LINE = 16, 19
_LINES = 2
_WORDS = 6 + _KEY_LINE + _LINES * _CAPTION_LINE
_INK, _FAINT, _PAPER, _HOLE = "#222222", "#777777", "#ffffff", "#eeeeee"
_HOLE_HEIGHT = 120
_LARGEST_FILE = 64 * 1024**2
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
# With many scripts, as systems have them under these names; Pillow looks in the systems' places.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf",
    "PingFang.ttc", "NotoNaskhArabic-Regular.ttf", "unifont.otf",
)  # fmt: skip
_NO_LETTER = "\U0010ffff"


def check_grid(path: Path) -> None:
    """Raise ``OutputError`` if a grid can't be written under this name."""
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"{path} is no name for a picture.", "Let it end in .png or .jpg.")
    if path.is_dir():
        raise OutputError(f"{path} is a directory.", "Give the name of a picture.")


def draw_grid(samples: Sequence[DrawnSample], path: Path) -> int:
    """Draw samples into a picture file, replacing one of that name; return how many were drawn.

    A sample whose picture can't be decoded has its place, with the reason in it.

    Raises:
        OutputError: the file can't be written.
    """
    columns = max(1, min(len(samples), math.ceil(math.sqrt(1.5 * len(samples)))))
    with PictureWorkers(PictureSettings(_SIDE, 95), min(available_cores(), columns)) as workers:
        results = list(workers.decode((sample, read_picture(sample)) for sample in samples))
    rows = [results[first : first + columns] for first in range(0, len(results), columns)]
    heights = [max(_height(result) for _, result in row) for row in rows]
    width = _GAP + columns * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _GAP + sum(heights) + len(rows) * (_WORDS + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for place, (sample, result) in enumerate(row):
            left = _GAP + place * (_SIDE + _GAP)
            _draw_picture(sheet, draw, (left, top + height), result)
            _draw_words(draw, (left, top + height), sample)
        top += height + _WORDS + _GAP
    with new_file(path, overwrite=True) as file:
        sheet.save(file, _FORMATS[path.suffix.lower()])
    return sum(isinstance(result, Picture) for _, result in results)


def read_picture(sample: DrawnSample) -> bytes | Refusal:
    """Return a sample's picture as it is stored, or why there is none."""
    if sample.tar is None:
        return Refusal("no picture", "")
    if sample.picture.size > _LARGEST_FILE:
        return Refusal("too large", f"{sample.picture.size:,} bytes")
    if not sample.tar.is_file():  # a pipe would be waited for
        return Refusal("file is gone", str(sample.tar))
    try:
        return read_file(sample.tar, sample.picture)
    except OSError as error:
        return Refusal("unreadable file", f"{sample.tar}: {error.strerror}")


def _height(result: Picture | Refusal) -> int:
    if isinstance(result, Refusal):
        return _HOLE_HEIGHT
    with Image.open(io.BytesIO(result.jpeg)) as image:
        return image.height


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    foot: tuple[int, int],
    result: Picture | Refusal,
) -> None:
    """Draw a picture, or why there is none, with its lower left corner at ``foot``."""
    left, bottom = foot
    if isinstance(result, Refusal):
        top = bottom - _HOLE_HEIGHT
        draw.rectangle((left, top, left + _SIDE - 1, bottom - 1), _HOLE)
        middle = left + _SIDE // 2, (top + bottom) // 2
        draw.text(middle, result.reason, _FAINT, _fonts(_CAPTION_SIZE)[0], anchor="mm")
        return
    with Image.open(io.BytesIO(result.jpeg)) as image:
        sheet.paste(image, (left, bottom - image.height))


def _draw_words(draw: ImageDraw.ImageDraw, foot: tuple[int, int], sample: DrawnSample) -> None:
    left, top = foot[0], foot[1] + 6
    for text, size, height, lines, ink in (
        (sample.key, _KEY_SIZE, _KEY_LINE, 1, _FAINT),
        (sample.caption, _CAPTION_SIZE, _CAPTION_LINE, _LINES, _INK),
    ):
        plain = _plain(text)
        font = _font_for(plain, size)
        for line in fold(plain, font, _SIDE, lines):
            draw.text((left, top), line, ink, font)
            top += height


def _plain(text: str) -> str:
    """Return a text on one line without what is not meant to be seen."""
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))


def fold(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int
) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; the last ends in … if text is left."""
    folded: list[str] = []
    rest = text
    while rest and len(folded) < lines:
        fits = _fitting(rest, font, width)
        if fits == len(rest):
            folded.append(rest)
            break
        if len(folded) == lines - 1:
            fits = _fitting(rest, font, width - font.getlength("…"))
            folded.append(rest[:fits].rstrip() + "…")
            break
        blank = rest.rfind(" ", 1, fits + 1)
        cut = blank if blank > 0 else max(fits, 1)
        folded.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return folded


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> int:
    """Return how many characters of a text, from the first on, are at most so many pixels wide."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


@functools.cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, ...]:
    found: list[ImageFont.FreeTypeFont | ImageFont.ImageFont] = [ImageFont.load_default(size)]
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # not on this system
            continue
    return tuple(found)


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that has the most of a text's letters, the first of equals."""
    letters = sorted(set(text) - {" "})
    return max(_fonts(size), key=lambda font: sum(_has(font, letter) for letter in letters))


def _has(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> bool:
    """Say whether a font has a letter, by whether it looks other than one that no font has."""
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
