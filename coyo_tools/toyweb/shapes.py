"""The twelve shapes as polygons in a unit square, from -1 to 1 with y downwards.

A shape is a list of parts painted in order. Tone "body" takes the object's colour, "shade" and
"light" a darker and a lighter version of it, "hole" shows the background again. Colours, sizes,
outlines and shadows belong to `draw`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One polygon of a shape and how it is painted: body, shade, light or hole."""

    tone: str
    points: tuple[Point, ...]


def ellipse(x: float, y: float, across: float, down: float, steps: int = 56) -> tuple[Point, ...]:
    """Return an ellipse around (x, y) with the two half axes, as a polygon."""
    turns = (2 * math.pi * step / steps for step in range(steps))
    return tuple((x + across * math.cos(turn), y + down * math.sin(turn)) for turn in turns)


def box(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    """Return an upright rectangle as a polygon."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _circle() -> tuple[Part, ...]:
    return (Part("body", ellipse(0, 0, 0.95, 0.95)),)


def _square() -> tuple[Part, ...]:
    return (Part("body", box(-0.84, -0.84, 0.84, 0.84)),)


def _triangle() -> tuple[Part, ...]:
    return (Part("body", ((0, -0.95), (1.0, 0.8), (-1.0, 0.8))),)


def _star() -> tuple[Part, ...]:
    turns = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
    radii = [1.0 if step % 2 == 0 else 0.42 for step in range(10)]
    return (
        Part(
            "body",
            tuple(
                (r * math.cos(t), 0.06 + r * math.sin(t)) for r, t in zip(radii, turns, strict=True)
            ),
        ),
    )


def _heart() -> tuple[Part, ...]:
    points = []
    for step in range(64):
        t = 2 * math.pi * step / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2.5) / 16.0))
    return (Part("body", tuple(points)),)


def _ring() -> tuple[Part, ...]:
    return (Part("body", ellipse(0, 0, 0.97, 0.97)), Part("hole", ellipse(0, 0, 0.55, 0.55)))


def _cross() -> tuple[Part, ...]:
    a, b = 0.32, 0.95
    corners = ((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a))
    return (Part("body", (*corners, *((-x, -y) for x, y in corners))),)


def _moon() -> tuple[Part, ...]:
    # Two arcs through the same two tips: a crescent without a hole outside the body.
    tip, inner = math.radians(38), 0.78
    start = 2 * math.pi - tip
    outer = [tip + (start - tip) * step / 40 for step in range(41)]
    arc = [(0.97 * math.cos(t), 0.97 * math.sin(t)) for t in outer]
    x, y = 0.97 * math.cos(tip), 0.97 * math.sin(tip)
    centre = x - math.sqrt(max(inner**2 - y**2, 0))
    half = math.asin(y / inner)
    back = [-half - (2 * math.pi - 2 * half) * step / 40 for step in range(41)]
    bite = [(centre + inner * math.cos(t), inner * math.sin(t)) for t in back]
    return (Part("body", tuple((px + 0.05, py) for px, py in (*arc, *bite))),)


def _arrow() -> tuple[Part, ...]:
    return (
        Part(
            "body",
            (
                (-0.95, -0.28),
                (0.1, -0.28),
                (0.1, -0.78),
                (1.0, 0.0),
                (0.1, 0.78),
                (0.1, 0.28),
                (-0.95, 0.28),
            ),
        ),
    )


def _house() -> tuple[Part, ...]:
    return (
        Part("body", box(-0.72, -0.15, 0.72, 0.9)),
        Part("shade", ((0, -0.98), (1.0, -0.1), (-1.0, -0.1))),
        Part("light", box(-0.5, 0.1, -0.12, 0.46)),
        Part("shade", box(0.12, 0.2, 0.5, 0.9)),
    )


def _fish() -> tuple[Part, ...]:
    return (
        Part("shade", ((0.42, 0.0), (1.0, -0.55), (0.86, 0.0), (1.0, 0.55))),
        Part("shade", ((-0.3, -0.4), (0.2, -0.72), (0.3, -0.3))),
        Part("body", ellipse(-0.22, 0, 0.76, 0.5)),
        Part("light", ellipse(-0.62, -0.12, 0.13, 0.13, 20)),
        Part("shade", ellipse(-0.63, -0.12, 0.06, 0.06, 14)),
    )


def _tree() -> tuple[Part, ...]:
    return (
        Part("shade", box(-0.14, 0.5, 0.14, 0.98)),
        Part("body", ((0, -0.1), (0.84, 0.66), (-0.84, 0.66))),
        Part("body", ((0, -0.56), (0.68, 0.22), (-0.68, 0.22))),
        Part("body", ((0, -0.98), (0.5, -0.24), (-0.5, -0.24))),
    )


_MAKERS: dict[str, Callable[[], tuple[Part, ...]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
    "arrow": _arrow,
    "house": _house,
    "fish": _fish,
    "tree": _tree,
}

PARTS: dict[str, tuple[Part, ...]] = {shape: make() for shape, make in _MAKERS.items()}

# How far a shape may lean before it looks like another: a square on its corner is a diamond.
LEAN: dict[str, float] = {"square": 10, "cross": 12, "house": 5, "tree": 5, "triangle": 10}
DEFAULT_LEAN = 16.0


def turned(points: tuple[Point, ...], degrees: float, mirrored: bool) -> list[Point]:
    """Return the points mirrored left to right if asked, then turned about the origin."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flip = -1 if mirrored else 1
    return [(flip * x * cos - y * sin, flip * x * sin + y * cos) for x, y in points]
