"""What a picture is to be recognised as: classes with probabilities, from the samples' json.

COYO-Labeled-300M gives each picture the 50 most likely of 21,841 classes (``labels``) with their
probabilities (``label_probs``). These are a multi-label teacher's, one answer per class: in its
published rows two classes alone add up to 1.1, and other rows to far less than 1. For a softmax
over classes they are made a distribution by two rules:

- Above 1 they are scaled down to 1: only their proportions are known.
- Below 1 the rest belongs to the other classes, nobody knows to which. It stays one lump, as it is
  in ``loss.soft_cross_entropy``: the model is told how much lies elsewhere, not where. Scaling
  up instead would make a teacher that gives "lamp" .05 and nothing else certain of a lamp; an even
  spread would say that all 21,791 others are equally likely.

A label that is one class, by name or number, is a distribution with one entry. Nothing is ever
rows times classes: 50 entries a picture are 400 bytes. Left out: where names come from, which is
``labels``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coyo_align.errors import AlignError
from coyo_align.input.index import Pack
from coyo_align.scoring.labels import NO_CLASS, NO_LABEL, label_text, resolve_labels

LABELS, PROBABILITIES = "labels", "label_probs"
"""COYO-Labeled-300M's columns."""
NO_NUMBER = "label that is no class number, and no names are given"
MISFIT = f"{LABELS} and {PROBABILITIES} do not fit each other"

_MAX_CLASSES = 2**20
"""Of a model; an index beyond is no class but a mistake, and would ask for a head of any size."""


@dataclass(frozen=True)
class Targets:
    """The classes of each row and their probabilities, which add up to 1 at most.

    Attributes:
        starts: (rows + 1,) where each row's entries begin.
        classes: (entries,) class numbers, each once in a row.
        probabilities: (entries,) in [0, 1].
        count: how many classes there are.
    """

    starts: NDArray[np.int64]
    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    count: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Classes and probabilities of these rows, both (rows, the most entries of one).

        Shorter rows are filled up with their own first class at probability 0.
        """
        first = self.starts[rows]
        lengths = self.starts[rows + 1] - first
        place = np.arange(lengths.max())
        inside = place < lengths[:, None]
        entries = first[:, None] + np.where(inside, place, 0)
        probabilities = np.where(inside, self.probabilities[entries], np.float32(0))
        return self.classes[entries].astype(np.int64), probabilities

    def likeliest(self) -> NDArray[np.int64]:
        """The most probable class of each row, the first of equals."""
        found = np.empty(len(self), dtype=np.int64)
        for start in range(0, len(self), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(self)))
            classes, probabilities = self.of(rows)
            found[rows] = classes[np.arange(len(rows)), probabilities.argmax(axis=1)]
        return found

    def digest(self) -> bytes:
        """A fingerprint of all of them."""
        digest = sha256(str(self.count).encode())
        for part in (self.starts, self.classes, self.probabilities):
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()


_BLOCK = 2**14


def fields_of(label_field: str) -> tuple[str, ...]:
    """The json fields that are read for the labels in this one."""
    return (label_field, PROBABILITIES) if label_field == LABELS else (label_field,)


def reader(label_field: str, names: Sequence[str] | None, count: int | None) -> Pack:
    """What turns the json fields of samples into their targets.

    Args:
        label_field: whose value is a list of class numbers, with ``label_probs`` beside it, or one
            class; "cls" is the text of the .cls file.
        names: of the classes, by which a label that is one class may be called.
        count: how many classes there are, None where no one knows yet.
    """
    known = len(names) if names is not None else count or _MAX_CLASSES

    def read(fields: dict[str, list[Any]]) -> tuple[pa.Table, list[str | None]]:
        values = fields[label_field]
        probabilities = fields.get(PROBABILITIES, [None] * len(values))
        single = _single(values, known if names is None else names)
        classes: list[Any] = []
        shares: list[Any] = []
        lost: list[str | None] = []
        for value, given, one in zip(values, probabilities, single, strict=True):
            found = _listed(value, given, known) if isinstance(value, list) else one
            lost.append(found if isinstance(found, str) else None)
            classes.append([] if isinstance(found, str) else found[0])
            shares.append([] if isinstance(found, str) else found[1])
        table = pa.table(
            {
                "classes": pa.array(classes, pa.large_list(pa.int32())),
                "probabilities": pa.array(shares, pa.large_list(pa.float32())),
            }
        )
        return table, lost

    return read


_Entry = tuple[Sequence[int], Sequence[float]]


def _single(values: Sequence[Any], names: Sequence[str] | int) -> list[_Entry | str]:
    """Each value as one class, or why it is none."""
    found, _ = resolve_labels(values, names)
    entries: list[_Entry | str] = []
    for number, value in zip(found.tolist(), values, strict=True):
        text = label_text(value)
        if number >= 0:
            entries.append(((number,), (1.0,)))
        elif text is None:
            entries.append(NO_LABEL)
        else:
            unnamed = isinstance(names, int) and not text.isdecimal()
            entries.append(NO_NUMBER if unnamed else NO_CLASS)
    return entries


def _listed(classes: list[Any], probabilities: Any, known: int) -> _Entry | str:
    """A list of classes with their probabilities, or why it can't be used."""
    if not classes:
        return NO_LABEL
    if not isinstance(probabilities, list) or len(probabilities) != len(classes):
        return MISFIT
    if not all(type(number) is int for number in classes):
        return NO_CLASS
    if not all(0 <= number < known for number in classes):
        return NO_CLASS
    if not all(type(share) in (int, float) for share in probabilities):
        return MISFIT
    if not all(0 <= share <= 1 for share in probabilities) or not sum(probabilities):
        return MISFIT
    if len(set(classes)) < len(classes):
        return MISFIT
    return classes, probabilities


def targets_of(packed: pa.Table, count: int | None) -> Targets:
    """The targets of all samples.

    Args:
        packed: what ``reader``'s function made.
        count: how many classes there are; None for one more than the highest number.

    Raises:
        AlignError: there is but one class.
    """
    lists = {name: packed[name].combine_chunks() for name in ("classes", "probabilities")}
    lengths = np.asarray(lists["classes"].value_lengths(), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    classes = np.asarray(lists["classes"].flatten(), dtype=np.int32)
    shares = np.array(lists["probabilities"].flatten(), dtype=np.float32)
    count = count or int(classes.max()) + 1
    if count < 2:
        raise AlignError(
            "All labels are class 0; 2 or more classes are needed. Name the field that has the "
            "labels, or say with --classes how many there are."
        )
    sums = np.add.reduceat(shares.astype(np.float64), starts[:-1])
    # Where all classes are listed there is none that a rest could belong to.
    scaled = (sums > 1) | (lengths == count)
    shares /= np.repeat(np.where(scaled, sums, 1), lengths).astype(np.float32)
    return Targets(starts, classes, shares, count)
