"""Tiny shards, made in the test: pictures of one coloured square each, and captions that say so."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
PLACES = {"left": 8, "right": 56}
GROUNDS = {"white": 240, "grey": 128, "black": 10}


def square(colour: str, place: str, ground: str, size: int = 24) -> Image.Image:
    """A 96 by 80 picture with one square."""
    picture = Image.new("RGB", (96, 80), (GROUNDS[ground],) * 3)
    x = PLACES[place]
    ImageDraw.Draw(picture).rectangle((x, 24, x + size, 24 + size), fill=COLOURS[colour])
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def sample(number: int, picture: bytes | None, caption: str | None) -> dict[str, bytes]:
    """The files of one sample as `coyo download` writes them."""
    files = {} if picture is None else {f"{number}.jpg": picture}
    if caption is not None:
        files[f"{number}.txt"] = caption.encode()
    files[f"{number}.json"] = json.dumps({"id": number, "url": "http://x.test/"}).encode()
    return files


def write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for files in samples:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def squares(copies: int = 2) -> list[dict[str, bytes]]:
    """18 compositions, each in some sizes; ids from 100 on."""
    made = []
    for size in range(20, 20 + 4 * copies, 4):
        for colour in COLOURS:
            for place in PLACES:
                for ground in GROUNDS:
                    data = encoded(square(colour, place, ground, size), quality=95)
                    text = f"a {colour} square of {size} on the {place}, {ground} ground"
                    made.append(sample(100 + len(made), data, text))
    return made
