"""Labelled squares: a class for each colour and place, as COYO-Labeled-300M gives them."""

import json
from pathlib import Path

from align.making import COLOURS, GROUNDS, PLACES, encoded, square, write_tar

CLASSES = [f"{colour} {place}" for colour in COLOURS for place in PLACES]


def soft(right: int, count: int = len(CLASSES)) -> dict[str, list[float]]:
    """The four likeliest classes of a teacher that is fairly sure; .12 of 1 is left open."""
    order = [(right + step) % count for step in range(4)]
    return {"labels": order, "label_probs": [0.7, 0.1, 0.05, 0.03]}


def labelled(number: int, look: tuple[str, str, str], size: int) -> dict[str, bytes]:
    colour, place, ground = look
    right = CLASSES.index(f"{colour} {place}")
    picture = encoded(square(colour, place, ground, size), quality=95)
    record = {"id": number, "url": f"http://x.test/{number}", "colour": colour} | soft(right)
    return {
        f"{number}.jpg": picture,
        f"{number}.json": json.dumps(record).encode(),
        f"{number}.cls": CLASSES[right].encode(),
    }


def write_labelled(folder: Path, copies: int = 2, first: int = 20) -> Path:
    """18 looks in some sizes, without a caption."""
    looks = [(c, p, g) for c in COLOURS for p in PLACES for g in GROUNDS]
    made = [
        labelled(100 * size + number, look, size)
        for size in range(first, first + 3 * copies, 3)
        for number, look in enumerate(looks)
    ]
    write_tar(folder / "00000.tar", made[: len(made) // 2])
    write_tar(folder / "00001.tar", made[len(made) // 2 :])
    return folder
