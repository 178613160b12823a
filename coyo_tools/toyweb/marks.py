"""What lies on top of a picture, or stands in for it: watermarks, cartoon faces, a placeholder.

Each is really drawn, so a reader of the report sees what a filter threw out, and so the perceptual
hash of a marked picture is that of the marked picture.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from coyo_tools.toyweb.backgrounds import Colour, mix
from coyo_tools.toyweb.seeds import pick

_AGENCIES = ("toystock", "PixelBarn", "snapmart", "(c) image-bank")
_SKINS: tuple[Colour, ...] = ((255, 219, 182), (240, 190, 148), (198, 140, 96), (134, 88, 60))
_HAIRS: tuple[Colour, ...] = ((40, 30, 26), (98, 58, 28), (222, 178, 92), (178, 72, 36))
_SUPER = 3


@cache
def _watermark_sheet(agency: str) -> Image.Image:
    """Return a sheet (RGBA) tiled with an agency's name on a slant."""
    font = ImageFont.load_default(size=25)
    sheet = Image.new("RGBA", (1000, 1000), (255, 255, 255, 0))
    pen = ImageDraw.Draw(sheet)
    wide = round(pen.textlength(agency, font=font)) + 42
    for row, y in enumerate(range(0, 1000, 66)):
        for x in range(-(row % 2) * wide // 2, 1000, wide):
            pen.text((x + 1, y + 2), agency, font=font, fill=(20, 20, 30, 105))
            pen.text((x, y), agency, font=font, fill=(255, 255, 255, 165))
            pen.line((x - 30, y + 16, x - 12, y + 16), fill=(255, 255, 255, 140), width=2)
    return sheet.rotate(28, Image.Resampling.BICUBIC).crop((200, 200, 800, 800))


def watermark(image: Image.Image, rng: np.random.Generator) -> None:
    """Print a stock agency's half-transparent name all over a picture, in place."""
    sheet = _watermark_sheet(pick(rng, _AGENCIES))
    x = int(rng.integers(0, sheet.width - image.width + 1))
    y = int(rng.integers(0, sheet.height - image.height + 1))
    mark = sheet.crop((x, y, x + image.width, y + image.height))
    image.paste(mark, (0, 0), mark)


def faces(
    image: Image.Image, count: int, middle: tuple[float, float], rng: np.random.Generator
) -> None:
    """Put smiling faces side by side into the corner farthest from ``middle``, in place.

    Args:
        image: an RGB picture.
        count: how many faces, 1 to 3.
        middle: the middle of the picture's objects, as shares of width and height.
        rng: decides on size, hair and skin.
    """
    side = round(min(image.size) * float(rng.uniform(0.27, 0.33)) * (1 if count < 3 else 0.85))
    step = round(side * 0.92)
    span = side + (count - 1) * step
    left = 6 if middle[0] >= 0.5 else image.width - span - 6
    top = 6 if middle[1] > 0.5 else image.height - side - 4
    for index in range(count):
        tile, mask = _face(side, rng)
        image.paste(tile, (left + index * step, top), mask)


def _face(side: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    full = side * _SUPER
    skin, hair = pick(rng, _SKINS), pick(rng, _HAIRS)
    dark = mix(skin, (60, 20, 20), 0.6)
    paper, mask = Image.new("RGB", (full, full), hair), Image.new("L", (full, full))
    pen, stencil = ImageDraw.Draw(paper), ImageDraw.Draw(mask)

    def box(x: float, y: float, across: float, down: float) -> tuple[float, float, float, float]:
        return ((x - across) * full, (y - down) * full, (x + across) * full, (y + down) * full)

    long_hair = bool(rng.random() < 0.5)
    for drawing, fill in ((pen, hair), (stencil, 255)):
        drawing.ellipse(box(0.5, 0.42, 0.4, 0.4), fill=fill)
        if long_hair:
            drawing.rounded_rectangle(box(0.5, 0.66, 0.4, 0.26), 0.1 * full, fill=fill)
        drawing.ellipse(box(0.5, 0.54, 0.335, 0.42), fill=skin if drawing is pen else 255)
    pen.pieslice(box(0.5, 0.4, 0.345, 0.3), 185, 355, fill=hair)
    for x in (0.37, 0.63):
        pen.ellipse(box(x, 0.52, 0.062, 0.05), fill=(255, 255, 255))
        pen.ellipse(box(x, 0.525, 0.033, 0.04), fill=(40, 30, 30))
        pen.ellipse(
            box(x + (x - 0.5) * 0.55, 0.67, 0.05, 0.035), fill=mix(skin, (240, 90, 90), 0.4)
        )
    pen.line((0.5 * full, 0.56 * full, 0.48 * full, 0.65 * full), fill=dark, width=full // 45)
    pen.chord(box(0.5, 0.7, 0.15, 0.12), 15, 165, fill=(168, 40, 48))
    return paper.reduce(_SUPER), mask.reduce(_SUPER)


def placeholder() -> Image.Image:
    """Draw the picture that one host shows in place of every picture it has lost."""
    image = Image.new("RGB", (320, 240), (233, 234, 237))
    pen = ImageDraw.Draw(image)
    pen.rectangle((10, 10, 309, 229), outline=(205, 207, 212), width=2)
    ink = (168, 172, 180)
    pen.rounded_rectangle((112, 62, 208, 132), 10, fill=ink)
    pen.rounded_rectangle((140, 50, 180, 70), 6, fill=ink)
    pen.ellipse((137, 73, 183, 119), fill=(233, 234, 237))
    pen.ellipse((146, 82, 174, 110), fill=ink)
    pen.line((96, 142, 224, 44), fill=(233, 234, 237), width=12)
    pen.line((96, 142, 224, 44), fill=(196, 84, 84), width=5)
    for y, size, text in ((152, 21, "Image no longer available"), (184, 14, "old-albums.example")):
        font = ImageFont.load_default(size=size)
        pen.text((160, y), text, font=font, fill=(120, 124, 132), anchor="ma")
    return image
