"""Class names, and which class a sample says it is of.

A sample's label is the text of its ``.cls`` file, webdataset's convention, or a field of its json:
a class name, or the place of the class in the list, from 0. Numbers are names where the list itself
has numbers in it. Whatever can't be resolved is counted with a reason, never guessed.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coyo_align.errors import AlignError

Ints = NDArray[np.int64]

CLS = "cls"
NO_LABEL, NO_CLASS = "no label", "label not among the classes"


def read_labels(given: str) -> list[str]:
    """Class names from a text file, one a line, or from a list like ``cat,dog,horse``.

    Raises:
        AlignError: there is no such file, it isn't text, or it doesn't name two or more classes.
    """
    path = Path(given)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise AlignError(f"{given} is not UTF-8 text. Give one class name a line.") from None
    elif "," in given:
        lines = given.split(",")
    else:
        raise AlignError(
            f"There is no file {given}. Give a text file with one class name a line, or the names "
            "like cat,dog,horse."
        )
    names = [name for line in lines if (name := " ".join(line.split()))]
    if len(names) < 2:
        raise AlignError(f"{given} names {len(names)} classes; 2 or more are needed.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AlignError(
            f"{given} names {twice[0]!r} {names.count(twice[0])} times: classes with the same name "
            "can't be told apart. Make each name its own."
        )
    return names


def label_text(value: Any) -> str | None:
    """A label as text, None where there is none; 3.0 is 3, as tables with gaps store it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return " ".join(str(value).split()) or None


def resolve_labels(
    values: Sequence[Any], names: Sequence[str] | int
) -> tuple[Ints, dict[str, int]]:
    """The class of each sample as its place in ``names``, -1 where there is none, and why not.

    Where classes have no names, ``names`` is how many there are.
    """
    known = names if isinstance(names, int) else len(names)
    named = () if isinstance(names, int) else names
    place = {name: number for number, name in enumerate(named)}
    numbered = not any(name.isdecimal() for name in named)
    classes = np.full(len(values), -1, dtype=np.int64)
    lost: Counter[str] = Counter()
    for row, value in enumerate(values):
        text = label_text(value)
        if text is None:
            lost[NO_LABEL] += 1
        elif text in place:
            classes[row] = place[text]
        elif (
            numbered
            and text.isascii()
            and text.isdecimal()
            and len(text) < 10
            and int(text) < known
        ):
            classes[row] = int(text)
        else:
            lost[NO_CLASS] += 1
    return classes, dict(lost)
