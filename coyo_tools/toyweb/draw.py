"""Draw a scene: background, soft light, objects with outline and shadow, a little grain.

Objects are drawn three times too large and reduced, so their edges are smooth at little cost. The
soft light is different for every picture: without it, thousands of plain pictures would share a
handful of perceptual hashes, which no two photographs do. Marks on top of a finished picture
(watermarks, faces) are in `marks`.
"""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from coyo_tools.toyweb.backgrounds import Colour, mix, paint
from coyo_tools.toyweb.scenes import Scene, Thing
from coyo_tools.toyweb.seeds import chance, weighted
from coyo_tools.toyweb.shapes import DEFAULT_LEAN, LEAN, PARTS, turned

FULL: dict[str, Colour] = {
    "red": (218, 34, 40),
    "orange": (245, 128, 20),
    "yellow": (250, 205, 20),
    "green": (30, 150, 62),
    "blue": (30, 92, 214),
    "purple": (124, 48, 170),
    "pink": (245, 92, 158),
    "brown": (128, 76, 36),
    "black": (34, 34, 38),
}

_SUPER = 3
_WHITE: Colour = (255, 255, 255)
_INK: Colour = (12, 14, 24)

Spot = tuple[float, float]


def picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height: 200 to 420 pixels, at most 3 to 1 or 1 to 3, mostly 4 to 3."""
    ratio = weighted(rng, ((1.0, 0.3), (4 / 3, 0.35), (3 / 2, 0.2), (16 / 9, 0.1), (2.05, 0.05)))
    short = int(rng.integers(200, min(320, int(420 / ratio)) + 1))
    long = min(420, round(short * ratio))
    return (short, long) if chance(rng, 0.3) else (long, short)


def draw(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> tuple[Image.Image, Spot]:
    """Draw a scene without faces or marks; also return the middle of its objects.

    Returns:
        An RGB picture of ``size`` (width, height), and a point as shares of width and height.
    """
    image = paint(scene.background, size, rng)
    image = ImageChops.multiply(image, _light(size, rng))
    spots, diameter = _layout(scene, size, rng)
    lean, mirrored = _lean(scene.thing, rng), chance(rng, 0.5)
    tile = object_tile(scene.thing, round(diameter), lean, mirrored)
    for index, (x, y) in enumerate(spots):
        if index and scene.second is not None:
            lean, mirrored = _lean(scene.second, rng), chance(rng, 0.5)
            tile = object_tile(scene.second, round(diameter), lean, mirrored)
        _stamp(image, tile, round(x), round(y))
    middle_x = sum(x for x, _ in spots) / len(spots) / size[0]
    middle_y = sum(y for _, y in spots) / len(spots) / size[1]
    return _grained(image, rng), (middle_x, middle_y)


def _light(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cells = rng.uniform(214, 256, (6, 6)).astype(np.uint8)
    small = Image.fromarray(cells)
    return small.resize(size, Image.Resampling.BICUBIC).convert("RGB")


@cache
def _grain_sheet() -> Image.Image:
    noise = np.random.default_rng(7).normal(128, 4.0, (640, 640, 3))
    return Image.fromarray(noise.round().clip(0, 255).astype(np.uint8))


def _grained(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    sheet = _grain_sheet()
    x = int(rng.integers(0, sheet.width - image.width + 1))
    y = int(rng.integers(0, sheet.height - image.height + 1))
    grain = sheet.crop((x, y, x + image.width, y + image.height))
    return ImageChops.add(image, grain, 1.0, -128)


def _lean(thing: Thing, rng: np.random.Generator) -> float:
    reach = LEAN.get(thing.shape, DEFAULT_LEAN)
    return float(rng.uniform(-reach, reach))


_LARGE = {1: (0.52, 0.6), 2: (0.4, 0.44), 3: (0.36, 0.39), 4: (0.37, 0.4)}
_SMALL = (0.2, 0.24)
_PAIR = (0.34, 0.4)
_AT = {"centre": 0.5, "left": 0.2, "right": 0.8, "top": 0.2, "bottom": 0.8}


def _layout(
    scene: Scene, size: tuple[int, int], rng: np.random.Generator
) -> tuple[list[Spot], float]:
    """Return the objects' centres in pixels and their diameter."""
    width, height = size
    short = min(size)
    if scene.second is not None:
        diameter = float(rng.uniform(*_PAIR)) * short
        offsets = _pair_offsets(scene.relation, size, diameter)
        anchor = (0.5 * width, 0.5 * height)
    else:
        reach = _SMALL if scene.size == "small" else _LARGE[scene.count]
        diameter = float(rng.uniform(*reach)) * short
        words = scene.place.split()
        across = next((_AT[word] for word in words if word in ("left", "right")), 0.5)
        down = next((_AT[word] for word in words if word in ("top", "bottom")), 0.5)
        offsets = _group_offsets(scene, size, diameter, rng)
        anchor = (across * width, down * height)
    anchor = (
        anchor[0] + float(rng.normal(0, 0.035)) * short,
        anchor[1] + float(rng.normal(0, 0.035)) * short,
    )
    spots = [(anchor[0] + dx, anchor[1] + dy) for dx, dy in offsets]
    margin = diameter / 2 + 0.03 * short
    dx = _shift([x for x, _ in spots], margin, width)
    dy = _shift([y for _, y in spots], margin, height)
    jitter = rng.uniform(-0.03, 0.03, (len(spots), 2)) * diameter
    return [
        (x + dx + float(jx), y + dy + float(jy))
        for (x, y), (jx, jy) in zip(spots, jitter, strict=True)
    ], diameter


def _pair_offsets(relation: str, size: tuple[int, int], diameter: float) -> list[Spot]:
    if relation in ("left of", "right of"):
        half = max(diameter * 0.58, 0.23 * size[0])
        return [(-half, 0), (half, 0)] if relation == "left of" else [(half, 0), (-half, 0)]
    half = max(diameter * 0.58, 0.23 * size[1])
    return [(0, -half), (0, half)] if relation == "above" else [(0, half), (0, -half)]


def _group_offsets(
    scene: Scene, size: tuple[int, int], diameter: float, rng: np.random.Generator
) -> list[Spot]:
    gap = diameter * 1.14
    wide = size[0] >= size[1]
    in_row = scene.count == 2 or (scene.size == "small" and chance(rng, 0.35))
    if scene.count == 1:
        return [(0.0, 0.0)]
    if in_row:
        steps = [(index - (scene.count - 1) / 2) * gap for index in range(scene.count)]
        across = wide if scene.size == "large" else chance(rng, 0.7)
        return [(step, 0.0) if across else (0.0, step) for step in steps]
    if scene.count == 3:
        up = gap * math.sqrt(3) / 4
        tip = -1 if chance(rng, 0.5) else 1
        return [(0, tip * up), (-gap / 2, -tip * up), (gap / 2, -tip * up)]
    return [(x * gap / 2, y * gap / 2) for y in (-1, 1) for x in (-1, 1)]


def _shift(centres: list[float], margin: float, length: int) -> float:
    """Return how far to move a group so that it lies inside the picture."""
    low, high = min(centres) - margin, max(centres) + margin
    if low < 0:
        return -low
    return min(0.0, length - high)


Tile = tuple[Image.Image, Image.Image, Image.Image]


def object_tile(thing: Thing, diameter: int, lean: float, mirrored: bool) -> Tile:
    """Draw one object: its colours (RGB), its outline's mask and its shadow's mask (L)."""
    side = max(diameter, 8)
    pad = max(3, side // 12)
    full = (side + 2 * pad) * _SUPER
    line = max(2, round(side * _SUPER * 0.028))
    colour = FULL[thing.colour]
    tones = {
        "body": colour,
        "shade": mix(colour, _INK, 0.42),
        "light": mix(colour, _WHITE, 0.72),
    }
    edge = mix(colour, _INK, 0.5)
    paper, mask = Image.new("RGB", (full, full), edge), Image.new("L", (full, full))
    on_paper, on_mask = ImageDraw.Draw(paper), ImageDraw.Draw(mask)
    middle, scale = full / 2, side * _SUPER / 2
    for part in PARTS[thing.shape]:
        points = turned(part.points, lean, mirrored)
        at = [(middle + x * scale, middle + y * scale) for x, y in points]
        loop = [*at, at[0], at[1]]
        if part.tone == "hole":
            on_mask.polygon(at, fill=0)
            on_paper.line(loop, fill=edge, width=2 * line)
            continue
        on_mask.polygon(at, fill=255)
        on_mask.line(loop, fill=255, width=2 * line, joint="curve")
        on_paper.polygon(at, fill=tones[part.tone])
        if part.tone == "body":
            on_paper.line(loop, fill=edge, width=line // 2)
    paper, mask = paper.reduce(_SUPER), mask.reduce(_SUPER)
    shine = _shine(paper.size[0])
    paper = Image.composite(Image.new("RGB", paper.size, _WHITE), paper, shine)
    shadow = mask.filter(ImageFilter.BoxBlur(max(2, side // 22))).point(
        [v // 3 for v in range(256)]
    )
    return paper, mask, shadow


@cache
def _shine(side: int) -> Image.Image:
    """Return a mask (L) that fades from a weak gloss at the top to nothing."""
    fade = Image.linear_gradient("L").point([max(0, 62 - v // 2) for v in range(256)])
    return fade.resize((side, side))


def _stamp(image: Image.Image, tile: Tile, x: int, y: int) -> None:
    paper, mask, shadow = tile
    left, top = x - paper.width // 2, y - paper.height // 2
    drop = max(2, paper.width // 24)
    image.paste(_INK, (left + drop, top + drop), shadow)
    image.paste(paper, (left, top), mask)
