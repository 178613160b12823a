"""What is counted of shards' samples as they pass: sizes, parts, columns, faults, a few drawn.

Memory does not grow with the number of samples: numbers go into tallies, and names that strangers
may invent without end are counted together beyond a thousand.
"""

import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coyo_tools.bins import Bins
from coyo_tools.columns import ID
from coyo_tools.picture_sizes import picture_size
from coyo_tools.tallies import ColumnTally
from coyo_tools.tar_samples import TarFile, TarSample, TellFault

OTHERS = "(others)"
_NAMES = 1000
_EXAMPLES = 3  # of a fault
_DETAIL = 200  # characters of one
_BATCH = 8192
_CAPTION = 400  # characters, more than a grid shows
_NO_BINS = Bins((0, 1), open_end=True)  # quantiles are all that is asked of the tallies


@dataclass(frozen=True)
class Spread:
    """How some whole numbers lie; the median is exact up to 4096, else to 1 part in 4096."""

    count: int
    min: int | None
    median: int | None
    max: int | None


@dataclass(frozen=True)
class Fault:
    """Something wrong: a reason, how often, and a few cases."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ColumnUse:
    """A column of the ``.json``: in how many samples it is, and in how many of these null."""

    name: str
    samples: int
    nulls: int


@dataclass(frozen=True)
class DrawnSample:
    """A sample to be shown: where its picture lies, if it has one, and its caption's beginning."""

    key: str
    tar: Path | None
    picture: TarFile
    caption: str


class FaultCounter:
    """Counts faults by reason and keeps a few cases of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, detail: str, count: int = 1) -> None:
        """Count a fault, ``count`` times if it is known as a number only."""
        self._counts[reason] += count
        if len(self._examples[reason]) < _EXAMPLES:
            self._examples[reason].append(detail[:_DETAIL])

    def within(self, tar: Path) -> TellFault:
        """Return a function that counts faults of one tar."""
        return lambda reason, detail: self.add(reason, f"{tar.name}: {detail}")

    def all(self) -> tuple[Fault, ...]:
        """Return the faults, commonest first."""
        return tuple(
            Fault(reason, count, tuple(self._examples[reason]))
            for reason, count in self._counts.most_common()
        )


class NumberTally:
    """How whole numbers lie, taken in one by one."""

    def __init__(self) -> None:
        self._tally = ColumnTally(_NO_BINS, whole=True)
        self._waiting: list[int] = []

    def add(self, number: int) -> None:
        """Take in a number."""
        self._waiting.append(number)
        if len(self._waiting) >= _BATCH:
            self._flush()

    def spread(self) -> Spread:
        """Say how the numbers so far lie."""
        self._flush()
        figures = self._tally.figures()
        low, middle, high = (
            None if value is None else int(value)
            for value in (figures.min, figures.quantiles["50"], figures.max)
        )
        return Spread(figures.count, low, middle, high)

    def _flush(self) -> None:
        self._tally.add(np.array(self._waiting, dtype=np.int64))
        self._waiting = []


class ShardTally:
    """Counts samples.

    Args:
        parts: what each sample should have, by suffix; () takes what more than half of them have.
        draw: how many samples to draw by lot.
        seed: of the lot.
    """

    def __init__(self, parts: tuple[str, ...], draw: int, seed: int) -> None:
        self.faults = FaultCounter()
        self.samples = 0
        self.numbered = 0  # keys that are 64-bit integers
        self.without_id = 0  # samples whose .json has no ``id``
        self.empty_captions = 0
        self.width, self.height = NumberTally(), NumberTally()
        self.picture_bytes, self.caption_length = NumberTally(), NumberTally()
        self.drawn: list[DrawnSample] = []
        self._parts = frozenset(parts)
        self._kinds: Counter[frozenset[str]] = Counter()
        self._columns: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._draw = draw
        self._pictures = 0
        # Reproducible draws are wanted, not secret ones.
        self._random = random.Random(seed)  # noqa: S311

    def add(self, tar: Path, sample: TarSample) -> bool:
        """Count a sample; say whether it has all ``parts``."""
        tell = self.faults.within(tar)
        self.samples += 1
        self.numbered += sample.id is not None
        kind = frozenset(sample.files)
        self._kinds[kind if kind in self._kinds or len(self._kinds) < _NAMES else _ODD] += 1
        for part in sorted(self._parts - kind):
            tell(f"sample without .{part}", sample.key)
        caption = self._add_caption(sample, tell)
        self._add_row(sample, tell)
        self._add_picture(tar, sample, caption, tell)
        return self._parts <= kind

    def whole(self) -> int:
        """Count the samples that have all parts; parts that few lack are told as faults."""
        parts = self._parts
        if not parts:
            files = self.files()
            parts = frozenset(name for name, rows in files.items() if rows > self.samples / 2)
            for name in sorted(parts):
                if files[name] < self.samples:
                    most = "more than half have it"
                    self.faults.add(f"sample without .{name}", most, self.samples - files[name])
        return sum(rows for kind, rows in self._kinds.items() if parts <= kind)

    def files(self) -> dict[str, int]:
        """Count the samples that have a file of each kind, by suffix, commonest first."""
        counts: Counter[str] = Counter()
        for kind, rows in self._kinds.items():
            counts.update(dict.fromkeys(kind, rows))
        return dict(counts.most_common())

    def columns(self) -> tuple[ColumnUse, ...]:
        """Return the columns of the ``.json`` in the order they were met."""
        return tuple(
            ColumnUse(name, rows, self._nulls[name]) for name, rows in self._columns.items()
        )

    def _add_caption(self, sample: TarSample, tell: TellFault) -> str:
        file = sample.files.get("txt")
        if file is None:
            return ""
        if file.text is None:
            tell("caption too long to be one", f"{sample.key}, {file.size:,} bytes")
            return ""
        try:
            text = file.text.decode()
        except UnicodeDecodeError:
            tell("caption that is no UTF-8", sample.key)
            text = file.text.decode(errors="replace")
        self.caption_length.add(len(text))
        self.empty_captions += not text.strip()
        return text[:_CAPTION]

    def _add_row(self, sample: TarSample, tell: TellFault) -> None:
        file = sample.files.get("json")
        row: Any = None
        if file is not None:
            try:
                row = json.loads(file.text) if file.text is not None else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                tell(".json that holds no row", sample.key)
        if not isinstance(row, dict):
            self.without_id += 1
            return
        self.without_id += row.get(ID) is None
        if self._parts and row.get(ID) != sample.id:
            tell("id in the .json that is not the key", f"{sample.key}, id {row.get(ID)!r}")
        for name, value in row.items():
            known = name in self._columns or len(self._columns) < _NAMES
            counted = name if known else OTHERS
            self._columns[counted] += 1
            self._nulls[counted] += value is None

    def _add_picture(self, tar: Path, sample: TarSample, caption: str, tell: TellFault) -> None:
        file = sample.picture
        if file is None:
            return
        self._pictures += 1
        self.picture_bytes.add(file.size)
        size = picture_size(file.start)
        if size is None:
            tell("picture whose header gives no size", sample.key)
        else:
            self.width.add(size[0])
            self.height.add(size[1])
        # Algorithm R (Vitter 1985): every picture is drawn with the same odds.
        place = len(self.drawn)
        if place >= self._draw:
            place = self._random.randrange(self._pictures) if self._draw else 0
        if place < self._draw:
            bare = TarFile(file.offset, file.size, b"")
            self.drawn[place : place + 1] = [DrawnSample(sample.key, tar, bare, caption)]


_ODD = frozenset({OTHERS})
