"""Alternative texts for scenes, worded as differently as people on the web word them.

A caption names most of what is to be seen, in varying order, with synonyms, titles, prefixes and
tails; some leave something out. Boilerplate says nothing about the picture. Grammar is English and
plain, because the point is what a model can learn from it, not style.
"""

import re

import numpy as np

from coyo_tools.toyweb.scenes import Background, Scene, Thing
from coyo_tools.toyweb.seeds import chance, pick, weighted

_Options = tuple[tuple[str, float], ...]

_SHAPES: dict[str, _Options] = {
    "circle": (("circle", 0.75), ("disc", 0.15), ("round dot", 0.1)),
    "square": (("square", 0.85), ("box", 0.15)),
    "triangle": (("triangle", 1.0),),
    "star": (("star", 0.9), ("five pointed star", 0.1)),
    "heart": (("heart", 0.9), ("love heart", 0.1)),
    "ring": (("ring", 0.8), ("hoop", 0.2)),
    "cross": (("cross", 0.75), ("plus sign", 0.25)),
    "moon": (("moon", 0.6), ("crescent", 0.2), ("crescent moon", 0.2)),
    "arrow": (("arrow", 1.0),),
    "house": (("house", 0.8), ("cottage", 0.2)),
    "fish": (("fish", 1.0),),
    "tree": (("tree", 0.7), ("fir tree", 0.3)),
}
_PLURALS = {"box": "boxes", "cross": "crosses", "fish": "fish"}

_COLOURS: dict[str, _Options] = {
    "red": (("red", 0.8), ("crimson", 0.1), ("scarlet", 0.1)),
    "orange": (("orange", 0.9), ("tangerine", 0.1)),
    "yellow": (("yellow", 0.85), ("golden", 0.15)),
    "green": (("green", 0.85), ("emerald", 0.15)),
    "blue": (("blue", 0.85), ("royal blue", 0.15)),
    "purple": (("purple", 0.8), ("violet", 0.2)),
    "pink": (("pink", 0.9), ("hot pink", 0.1)),
    "brown": (("brown", 0.85), ("chocolate brown", 0.15)),
    "black": (("black", 0.9), ("jet black", 0.1)),
}

_SIZES: dict[str, _Options] = {
    "small": (("small", 0.6), ("little", 0.2), ("tiny", 0.2)),
    "large": (("large", 0.6), ("big", 0.3), ("huge", 0.1)),
}

_COUNTS: dict[int, _Options] = {
    2: (("two", 0.65), ("2", 0.15), ("a pair of", 0.2)),
    3: (("three", 0.75), ("3", 0.15), ("a trio of", 0.1)),
    4: (("four", 0.75), ("4", 0.15), ("a group of four", 0.1)),
}

_SIDES: dict[str, _Options] = {
    "centre": (("in the middle", 0.5), ("in the center", 0.5)),
    "left": (("on the left", 0.7), ("on the left side", 0.3)),
    "right": (("on the right", 0.7), ("on the right side", 0.3)),
    "top": (("at the top", 1.0),),
    "bottom": (("at the bottom", 1.0),),
}

_RELATIONS: dict[str, _Options] = {
    "left of": (("to the left of", 0.6), ("left of", 0.4)),
    "right of": (("to the right of", 0.6), ("right of", 0.4)),
    "above": (("above", 0.7), ("on top of", 0.15), ("over", 0.15)),
    "below": (("below", 0.6), ("under", 0.4)),
}

_GROUNDS: dict[str, tuple[str, ...]] = {
    "plain": ("on a {c} background", "on plain {c}", "against a {c} wall", "isolated on {c}"),
    "gradient": ("on a {c} gradient background", "on a {c} gradient", "over a {c} colour fade"),
    "stripes": ("on {c} stripes", "on a {c} striped background", "with {c} stripes behind"),
    "dots": ("on {c} polka dots", "on a {c} dotted background", "on a {c} polka dot pattern"),
    "checks": ("on {c} checks", "on a {c} checkered background", "on a {c} chessboard pattern"),
    "hills": ("over green hills", "in a meadow with green hills", "in the hills on a sunny day"),
    "beach": ("at the beach", "on a sandy beach by the sea", "by the sea on a sunny day"),
    "night": ("in the night sky", "in a starry night", "on a dark sky at night"),
    "snow": ("in the snow", "in a snowy winter landscape", "on a snowy day"),
    "city": ("over a city skyline", "above the city at sunset", "in front of city buildings"),
}

_PREFIXES = (
    "Photo of",
    "Picture of",
    "Stock illustration of",
    "Image of",
    "Clip art of",
    "Vector drawing of",
    "Poster with",
    "Greeting card with",
)
_TAILS = (
    " - stock vector",
    " | free clip art",
    ", flat design",
    " stock photo",
    ", children's book illustration",
    " - royalty free image",
    " wallpaper for desktop and phone",
    ", cute cartoon style for nursery wall art and birthday invitation cards",
    " | print on canvas, framed or unframed, ready to hang, several sizes available",
)

_ARTICLE = re.compile(r"\ba(?= [aeiou])")
_LOWER = frozenset({"a", "an", "of", "on", "the", "in", "at", "to", "by", "with"})


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False) -> str:
    """Word one correct caption of a scene.

    With ``full`` nothing is left out, so that a picture can be found by its caption among
    hundreds; otherwise size, place and background are each left out now and then.
    """
    keep = 1.0 if full else 0.86
    size = scene.size if chance(rng, keep) else ""
    thing = _things(scene.thing, scene.count, size, rng)
    place = ""
    if scene.second is not None:
        other = _things(scene.second, 1, "", rng)
        thing = f"{thing} {weighted(rng, _RELATIONS[scene.relation])} {other}"
    elif chance(rng, keep - 0.06 if not full else 1.0):
        place = _place(scene.place, rng)
    ground = _ground(scene.background, rng) if chance(rng, keep) else ""
    people = _people(scene.faces, rng) if scene.faces and chance(rng, 0.7) else ""
    return _sentence(thing, place, ground, people, rng)


def _sentence(thing: str, place: str, ground: str, people: str, rng: np.random.Generator) -> str:
    form = weighted(rng, (("plain", 0.4), ("prefix", 0.25), ("title", 0.15), ("list", 0.2)))
    parts = [part for part in (thing, people, place, ground) if part]
    if chance(rng, 0.25):
        parts = [part for part in (thing, ground, place, people) if part]
    if form == "list":
        text = ", ".join(parts)
    elif form == "prefix":
        text = f"{pick(rng, _PREFIXES)} {' '.join(parts)}"
    else:
        text = " ".join(parts)
    text = _ARTICLE.sub("an", text)
    if form == "title":
        text = " ".join(word if word in _LOWER else word.capitalize() for word in text.split())
    if form == "title" or chance(rng, 0.7):
        text = text[0].upper() + text[1:]
    if chance(rng, 0.22):
        text += pick(rng, _TAILS)
    elif chance(rng, 0.15):
        text += "."
    return text if len(text.split()) > 2 else f"{text} illustration"


def _things(thing: Thing, count: int, size: str, rng: np.random.Generator) -> str:
    noun = weighted(rng, _SHAPES[thing.shape])
    colour = weighted(rng, _COLOURS[thing.colour])
    words = [weighted(rng, _SIZES[size]), colour] if size else [colour]
    if count == 1:
        phrase = " ".join([*words, noun])
        return f"a {phrase}" if chance(rng, 0.85) else phrase
    return " ".join([weighted(rng, _COUNTS[count]), *words, _plural(noun)])


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")


def _place(place: str, rng: np.random.Generator) -> str:
    if place in _SIDES:
        return weighted(rng, _SIDES[place])
    down, across = place.split()
    if chance(rng, 0.3):
        down = {"top": "upper", "bottom": "lower"}[down]
    return f"in the {down} {across} corner"


def _ground(background: Background, rng: np.random.Generator) -> str:
    return pick(rng, _GROUNDS[background.kind]).format(c=background.colour)


def _people(count: int, rng: np.random.Generator) -> str:
    one = ("with a smiling face", "with a happy person", "and a smiling person")
    if count == 1:
        return pick(rng, one)
    number = {2: "two", 3: "three"}[count]
    return pick(rng, (f"with {number} smiling faces", f"and {number} happy people"))


def boilerplate(rng: np.random.Generator) -> str:
    """Write a text that content systems and cameras write, and that fits every picture."""
    number = int(rng.integers(100, 99_999))
    year, shot = int(rng.integers(2008, 2021)), int(rng.integers(1, 9999))
    return pick(
        rng,
        (
            f"image for post {number}",
            f"image for item {number} in our shop",
            f"IMG_{shot:04d}.JPG original size",
            f"DSC {shot:05d} copy.jpg",
            f"photo {number} download free",
            f"click to enlarge picture {shot}",
            f"{year} gallery page {shot % 400 + 1}, thumbnail",
            f"Product main image, SKU {number}",
            f"screenshot {year}-{shot % 12 + 1:02d}-{number % 28 + 1:02d} ({shot % 40 + 1})",
            f"blog header image no. {number}",
            f"untitled design ({shot % 90 + 1}) {year}",
            f"view full size image {number}",
        ),
    )


def slug(scene: Scene) -> str:
    """Return the scene's main words joined by hyphens, as shops name their files."""
    words = [scene.size, scene.thing.colour, scene.thing.shape]
    return "-".join(word for word in words if word)
