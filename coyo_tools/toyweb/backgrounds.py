"""Backgrounds: plain colours, gradients, patterns and five small landscapes.

Patterns and landscapes are drawn at twice the size and reduced, which smooths their edges. The
hues are pale, so that objects in full colours stand out on all of them.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from coyo_tools.toyweb.scenes import Background

Colour = tuple[int, int, int]

PALE: dict[str, Colour] = {
    "white": (248, 248, 246),
    "grey": (190, 193, 198),
    "yellow": (255, 236, 139),
    "pink": (255, 200, 215),
    "blue": (173, 211, 247),
    "green": (183, 228, 178),
    "purple": (213, 195, 242),
    "orange": (255, 207, 158),
}

_DEEP: dict[str, Colour] = {
    "yellow": (246, 206, 66),
    "pink": (246, 140, 176),
    "blue": (98, 160, 232),
    "green": (112, 190, 112),
    "purple": (166, 132, 222),
    "orange": (248, 160, 88),
}


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return ``one`` with ``share`` (0 to 1) of ``other`` mixed in."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(one, other, strict=True))
    return (r, g, b)


def ramp(size: tuple[int, int], start: Colour, end: Colour, degrees: float) -> Image.Image:
    """Return a smooth run from one colour to the other across the picture, at an angle."""
    y, x = np.mgrid[-1:1:9j, -1:1:9j]
    along = x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))
    along = (along - along.min()) / (along.max() - along.min())
    cells = np.array(start) + along[..., None] * (np.array(end) - np.array(start))
    small = Image.fromarray(cells.round().astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def paint(background: Background, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paint a background: an RGB picture of ``size`` (width, height)."""
    return _PAINTERS[background.kind](background.colour, size, rng)


def _plain(colour: str, size: tuple[int, int], _rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", size, PALE[colour])


def _gradient(colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    light = mix(PALE[colour], (255, 255, 255), 0.7)
    return ramp(size, light, _DEEP[colour], float(rng.uniform(0, 360)))


def _doubled(size: tuple[int, int], colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size[0] * 2, size[1] * 2), colour)
    return image, ImageDraw.Draw(image)


def _stripes(colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _doubled(size, mix(PALE[colour], (255, 255, 255), 0.82))
    reach = math.hypot(*image.size) / 2
    band = min(image.size) * float(rng.uniform(0.06, 0.11))
    lean = float(rng.choice([0, 45, 90, 135])) + float(rng.uniform(-8, 8))
    cos, sin = math.cos(math.radians(lean)), math.sin(math.radians(lean))
    cx, cy = image.width / 2, image.height / 2
    at = -reach + float(rng.uniform(0, 2 * band))
    while at < reach:
        corners = [(at, -reach), (at + band, -reach), (at + band, reach), (at, reach)]
        points = [(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in corners]
        draw.polygon(points, fill=PALE[colour])
        at += 2 * band
    return image.reduce(2)


def _dots(colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _doubled(size, mix(PALE[colour], (255, 255, 255), 0.82))
    step = min(image.size) * float(rng.uniform(0.13, 0.18))
    radius = step * float(rng.uniform(0.24, 0.32))
    x0, y0 = rng.uniform(-step, 0, 2)
    for row in range(int(image.height / step) + 3):
        shift = step / 2 if row % 2 else 0
        for column in range(int(image.width / step) + 3):
            x, y = x0 + column * step - shift, y0 + row * step
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PALE[colour])
    return image.reduce(2)


def _checks(colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cell = min(size) * float(rng.uniform(0.1, 0.15))
    light = mix(PALE[colour], (255, 255, 255), 0.85)
    image = Image.new("RGB", size, light)
    draw = ImageDraw.Draw(image)
    x0, y0 = rng.uniform(-2 * cell, 0, 2)
    for row in range(int(size[1] / cell) + 3):
        for column in range(row % 2, int(size[0] / cell) + 4, 2):
            x, y = x0 + column * cell, y0 + row * cell
            draw.rectangle((x, y, x + cell, y + cell), fill=PALE[colour])
    return image


def _ridge(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    rng: np.random.Generator,
    level: float,
    colour: Colour,
) -> None:
    """Fill everything below a gently waved line at ``level`` (share of the height)."""
    width, height = size
    phase, waves = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.5)
    swing = height * rng.uniform(0.04, 0.08)
    top = [
        (x, level * height + swing * math.sin(phase + waves * 2 * math.pi * x / width))
        for x in range(0, width + 16, 16)
    ]
    draw.polygon([(0, height), *top, (width, height)], fill=colour)


def _sun(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: np.random.Generator) -> None:
    x, y = size[0] * rng.uniform(0.08, 0.92), size[1] * rng.uniform(0.06, 0.16)
    for grow, colour in ((1.5, (255, 246, 208)), (1.0, (255, 226, 120))):
        r = min(size) * 0.055 * grow
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _sky(
    size: tuple[int, int], top: Colour, low: Colour
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = ramp((size[0] * 2, size[1] * 2), top, low, 90)
    return image, ImageDraw.Draw(image)


def _hills(_colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _sky(size, (158, 208, 245), (232, 246, 252))
    _sun(draw, image.size, rng)
    _ridge(draw, image.size, rng, float(rng.uniform(0.5, 0.6)), (160, 207, 120))
    _ridge(draw, image.size, rng, float(rng.uniform(0.66, 0.78)), (118, 182, 88))
    return image.reduce(2)


def _beach(_colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _sky(size, (140, 205, 245), (225, 244, 252))
    _sun(draw, image.size, rng)
    width, height = image.size
    sea = float(rng.uniform(0.4, 0.5))
    draw.rectangle((0, sea * height, width, height), fill=(70, 165, 205))
    draw.rectangle((0, (sea + 0.07) * height, width, height), fill=(98, 188, 218))
    shore = float(rng.uniform(0.66, 0.74))
    _ridge(draw, image.size, rng, shore - 0.02, (236, 248, 248))
    _ridge(draw, image.size, rng, shore + 0.03, (240, 220, 170))
    return image.reduce(2)


def _night(_colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _sky(size, (18, 24, 62), (62, 66, 124))
    spots = rng.uniform(0, 1, (int(rng.integers(45, 80)), 3))
    for x, y, glow in spots:
        px, py, r = x * image.width, y * image.height, 1 + 1.8 * glow
        shade = int(170 + 80 * glow)
        draw.ellipse((px - r, py - r, px + r, py + r), fill=(shade, shade, 235))
    return image.reduce(2)


def _snow(_colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _sky(size, (168, 190, 212), (222, 232, 241))
    _ridge(draw, image.size, rng, float(rng.uniform(0.52, 0.62)), (228, 236, 244))
    _ridge(draw, image.size, rng, float(rng.uniform(0.7, 0.8)), (250, 252, 254))
    for x, y, share in rng.uniform(0, 1, (70, 3)):
        px, py, r = x * image.width, y * image.height, 2 + 4 * share
        draw.ellipse((px - r, py - r, px + r, py + r), fill=(255, 255, 255))
    return image.reduce(2)


def _city(_colour: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image, draw = _sky(size, (250, 178, 160), (255, 228, 186))
    width, height = image.size
    x = -0.02 * width
    while x < width:
        wide = width * rng.uniform(0.08, 0.15)
        top = height * rng.uniform(0.56, 0.82)
        tone = int(rng.integers(92, 124))
        draw.rectangle((x, top, x + wide, height), fill=(tone, tone + 4, tone + 24))
        pane = min(width, height) * 0.022
        for wy in np.arange(top + 1.5 * pane, height - pane, 2.6 * pane):
            for wx in np.arange(x + pane, x + wide - 1.6 * pane, 2.4 * pane):
                if rng.random() < 0.45:
                    draw.rectangle((wx, wy, wx + pane, wy + pane), fill=(255, 226, 150))
        x += wide
    return image.reduce(2)


_PAINTERS: dict[str, Callable[[str, tuple[int, int], np.random.Generator], Image.Image]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "hills": _hills,
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "city": _city,
}
