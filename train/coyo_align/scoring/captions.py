"""Captions from a file, several to a picture: Karpathy's splits of COCO and Flickr, or a table.

A picture is found in the shards by its file's name, its key or its id. One way is chosen for the
whole file, the one that finds most, because a number that means a COCO id in the file may be a mere
running number in the shards: mixing ways would join wrong pairs without a word. What isn't found is
counted. Left out: what is done with the pairs.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from coyo_align.errors import AlignError
from coyo_align.scoring.labels import Ints, label_text

FIELDS = ("key", "id", "file", "filename", "url")
"""What has to be known of the samples to find their pictures."""
_NAMES = ("file", "key", "id")
_COLUMNS = {*_NAMES, "caption", "split"}
_TEST = "test"
_SHAPE = (
    'Give Karpathy\'s JSON, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}, or a '
    "table (.parquet, .csv, .jsonl) with the columns caption and file, key or id."
)


class Picture(NamedTuple):
    """What a captions file calls a picture."""

    file: str | None
    key: str | None
    id: str | None


@dataclass(frozen=True)
class CaptionsFile:
    """The captions of one split by picture, and how many were left out, by reason."""

    captions: dict[Picture, list[str]]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Found:
    """The samples that have each picture's name, and which way they were found.

    ``by`` is file, file name, key or id.
    """

    rows: dict[Picture, list[int]]
    by: str


def read_captions(path: Path, split: str | None = None) -> CaptionsFile:
    """Read the captions of one split.

    Args:
        path: a .json as Karpathy's, or a .parquet, .csv or .jsonl table.
        split: None for ``test`` where the file has splits, else for all of it.

    Raises:
        AlignError: it can't be read, has another shape, or has no such split or no caption in it.
    """
    try:
        path.stat()  # whoever reads it, a missing file is told alike
        rows = _karpathy(path) if path.suffix == ".json" else _table(path)
    except OSError as error:
        raise AlignError(f"The captions {path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, AlignError):
            raise
        raise AlignError(f"The captions {path} can't be read: {error}\n{_SHAPE}") from error
    splits = Counter(part for *_, part in rows if part is not None)
    if split is None and splits:
        split = _TEST
    if split is not None and split not in splits:
        there = ", ".join(f"{name!r} ({count:,})" for name, count in splits.most_common(8))
        raise AlignError(
            f"{path} has no split {split!r}: its captions are in {there or 'no split at all'}."
        )
    skipped: Counter[str] = Counter()
    captions: defaultdict[Picture, list[str]] = defaultdict(list)
    for picture, caption, part in rows:
        text = " ".join(caption.split()) if isinstance(caption, str) else ""
        if split is not None and part != split:
            continue
        if not any(picture):
            skipped["no picture is named"] += 1
        elif not text:
            skipped["empty"] += 1
        else:
            captions[picture].append(text)
    if not captions:
        raise AlignError(f"{path} has no usable caption: {_listed(skipped)}.")
    return CaptionsFile(dict(captions), dict(skipped))


def find_pictures(file: CaptionsFile, fields: Mapping[str, Sequence[Any]], ids: Ints) -> Found:
    """Find the pictures of captions among the samples of the shards.

    Args:
        file: the captions.
        fields: ``FIELDS`` of each sample.
        ids: of each sample, -1 where it has none.

    Raises:
        AlignError: no picture of the file is in the shards.
    """
    files = [
        [str(fields[name][row]) for name in ("file", "filename", "url") if fields[name][row]]
        for row in range(len(ids))
    ]
    keys = [str(key) for key in fields["key"]]
    numbers = [label_text(number) for number in fields["id"]]
    wanted = list(file.captions)
    # Where ids are all there is, a sample's id may come from its key, as everywhere. Beside a name
    # it may be COCO's, and a key that is a running number would be taken for it.
    if not any(picture.file or picture.key for picture in wanted):
        numbers = [None if id_ < 0 else str(id_) for id_ in ids.tolist()]
    ways: list[tuple[str, Callable[[Picture], str | None], Iterable[Iterable[str | None]]]] = [
        ("file", lambda picture: picture.file, files),
        ("file name", lambda picture: _base(picture.file), (map(_base, some) for some in files)),
        ("key", lambda picture: picture.key or _stem(picture.file), ([k, _base(k)] for k in keys)),
        ("id", lambda picture: picture.id, ([number] for number in numbers)),
    ]
    best = Found({}, "")
    for way, name_of, names in ways:
        rows = _match([name_of(picture) for picture in wanted], names)
        if len(rows) > len(best.rows):
            best = Found({wanted[place]: samples for place, samples in rows.items()}, way)
    if not best.rows:
        raise AlignError(
            f"None of the {len(wanted):,} pictures that the captions are of is in the shards. The "
            f"captions name them like {_shown(wanted[0])}; the shards' first sample has the key "
            f"{keys[0]!r} and the file {(files[0] or ['none'])[0]!r}."
        )
    return best


def _match(
    wanted: Sequence[str | None], names: Iterable[Iterable[str | None]]
) -> dict[int, list[int]]:
    """The samples of each place in ``wanted`` whose name no other place has."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, of_sample in enumerate(names):
        for name in set(of_sample):
            if name:
                rows[name].append(row)
    asked = Counter(wanted)
    return {
        place: rows[name]
        for place, name in enumerate(wanted)
        if name and asked[name] == 1 and name in rows
    }


def _karpathy(path: Path) -> list[tuple[Picture, Any, str | None]]:
    data = json.loads(path.read_text(encoding="utf-8"))
    try:
        rows = []
        for image in data["images"]:
            number = label_text(image.get("cocoid", image.get("imgid")))
            picture = Picture(label_text(image.get("filename")), None, number)
            split = label_text(image.get("split"))
            rows += [(picture, sentence["raw"], split) for sentence in image["sentences"]]
    except (KeyError, TypeError, AttributeError):
        raise AlignError(f"{path} is not a captions file. {_SHAPE}") from None
    return rows


def _table(path: Path) -> list[tuple[Picture, Any, str | None]]:
    table: Any
    if path.suffix == ".parquet":
        names = [name for name in pq.read_schema(path).names if name in _COLUMNS]
        table = pq.read_table(path, columns=names).to_pydict()
    elif path.suffix == ".csv":
        with path.open("rb") as stream:
            names = pa.csv.open_csv(stream).schema.names
        as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        newlines = pa.csv.ParseOptions(newlines_in_values=True)
        table = pa.csv.read_csv(path, None, newlines, as_text).to_pydict()
    elif path.suffix in (".jsonl", ".ndjson"):
        lines = path.read_text(encoding="utf-8").split("\n")
        objects = [json.loads(line) for line in lines if line.strip()]
        if not all(isinstance(one, dict) for one in objects):
            raise AlignError(f"{path} is not a captions file: a line is no object. {_SHAPE}")
        columns = {name for one in objects for name in one}
        table = {name: [one.get(name) for one in objects] for name in columns}
    else:
        raise AlignError(f"{path} is none of .json, .parquet, .csv and .jsonl. {_SHAPE}")
    if "caption" not in table or not any(name in table for name in _NAMES):
        seen = ", ".join(sorted(set(table) & _COLUMNS)) or "none"
        raise AlignError(
            f"{path} is not a captions file: of its columns, known are {seen}. {_SHAPE}"
        )
    none = [None] * len(table["caption"])
    names_of = (map(label_text, table.get(name, none)) for name in _NAMES)
    splits = map(label_text, table.get("split", none))
    pictures = (Picture(*row) for row in zip(*names_of, strict=True))
    return list(zip(pictures, table["caption"], splits, strict=True))


def _base(name: str | None) -> str | None:
    return name.partition("?")[0].rpartition("/")[2] if name else None


def _stem(name: str | None) -> str | None:
    base = _base(name)
    return base.partition(".")[0] if base else None


def _shown(picture: Picture) -> str:
    named = zip(Picture._fields, picture, strict=True)
    return ", ".join(f"{name} {value!r}" for name, value in named if value)


def _listed(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()) or "it is empty"
