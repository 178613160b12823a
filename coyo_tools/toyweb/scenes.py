"""What a toy picture may show: the few words in which every picture and caption is composed.

Twelve shapes, nine colours, thirty-odd backgrounds, counts, sizes and places make far more
compositions than a pool holds pictures, so a model that is to find a held-out caption must have
learned the parts. Which compositions are held out is decided here, by (shape, colour, background):
each of the three is common in the pool, the three together never occur there, not even in a
picture's second object. How a scene looks is for `draw`, how it is told for `wording`.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from coyo_tools.toyweb.seeds import chance, pick, weighted

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "moon",
    "arrow",
    "house",
    "fish",
    "tree",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "large")
SIDES = ("centre", "left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")

HELD_OUT_SHARE = 0.12


@dataclass(frozen=True)
class Background:
    """A kind of background and its colour; landscapes have no colour of their own."""

    kind: str
    colour: str = ""


@dataclass(frozen=True)
class Thing:
    """One kind of object: its shape and colour."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """One composition.

    Either ``count`` objects of one kind with a ``size`` and a ``place``, or one object and a
    ``second`` in a ``relation`` to it ("left of": the first is left of the second), and then size
    and place are empty. ``faces`` cartoon faces stand beside.
    """

    thing: Thing
    background: Background
    count: int = 1
    size: str = ""
    place: str = ""
    second: Thing | None = None
    relation: str = ""
    faces: int = 0


_WASHES = ("yellow", "pink", "blue", "green", "purple", "orange")
LANDSCAPES = ("hills", "beach", "night", "snow", "city")
BACKGROUNDS: tuple[Background, ...] = (
    *(Background("plain", colour) for colour in ("white", "grey", *_WASHES)),
    *(Background(kind, colour) for kind in ("gradient", "stripes", "dots") for colour in _WASHES),
    *(Background("checks", colour) for colour in ("grey", "pink", "blue", "green")),
    *(Background(kind) for kind in LANDSCAPES),
)

# An object must stand out at 64 pixels, so no colour is put on a landscape made of it.
_LOST_IN: dict[str, frozenset[str]] = {
    "hills": frozenset({"green", "blue"}),
    "beach": frozenset({"blue", "yellow"}),
    "night": frozenset({"black", "blue", "purple", "brown"}),
    "snow": frozenset({"blue"}),
    "city": frozenset({"orange", "pink", "black"}),
}


def stands_out(colour: str, background: Background) -> bool:
    """Say whether an object of this colour can be told from the background."""
    return colour != background.colour and colour not in _LOST_IN.get(background.kind, frozenset())


def held_out(seed: int, thing: Thing, background: Background) -> bool:
    """Say whether (shape, colour, background) is kept for the evaluation set under this seed."""
    key = f"{seed}/{thing.shape}/{thing.colour}/{background.kind}/{background.colour}"
    return zlib.crc32(key.encode()) % 10_000 < HELD_OUT_SHARE * 10_000


def compose(rng: np.random.Generator, seed: int, *, heldout: bool, faces: int = 0) -> Scene:
    """Compose a scene for the pool, or with ``heldout`` one for the evaluation set."""
    while True:
        background = pick(rng, BACKGROUNDS)
        thing = Thing(pick(rng, SHAPES), pick(rng, COLOURS))
        if stands_out(thing.colour, background) and held_out(seed, thing, background) == heldout:
            break
    if chance(rng, 0.22):
        second = _second(rng, seed, thing, background)
        relation = pick(rng, RELATIONS)
        return Scene(thing, background, second=second, relation=relation, faces=faces)
    count = weighted(rng, ((1, 0.4), (2, 0.25), (3, 0.2), (4, 0.15)))
    size = pick(rng, SIZES)
    if size == "small":
        place = pick(rng, SIDES) if chance(rng, 0.7) else pick(rng, CORNERS)
    else:
        place = pick(rng, SIDES) if count == 1 else "centre"
    return Scene(thing, background, count, size, place, faces=faces)


def _second(rng: np.random.Generator, seed: int, first: Thing, background: Background) -> Thing:
    while True:
        second = Thing(pick(rng, SHAPES), pick(rng, COLOURS))
        differs = second.shape != first.shape and second.colour != first.colour
        # What is held out must not slip into the pool as somebody's second object.
        common = not held_out(seed, second, background)
        if differs and common and stands_out(second.colour, background):
            return second


def likeness(one: Scene, other: Scene) -> float:
    """Return the share of six attributes in which two scenes agree, 0 to 1.

    A caption of another picture is a little less wrong where the two happen to agree, and its
    planted CLIP similarity follows this.
    """
    same = (
        one.thing.shape == other.thing.shape,
        one.thing.colour == other.thing.colour,
        one.count == other.count,
        one.size == other.size,
        one.place == other.place,
        one.background == other.background,
    )
    return sum(same) / len(same)
