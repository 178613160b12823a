"""WebDataset tars keyed by id: for every sample ``ID.jpg``, ``ID.txt`` and ``ID.json``.

A labelled pool has no texts, and its samples no ``.txt``: the labels are in the ``.json``.

Plain tars that webdataset, datasets and torch read without our code. The same samples give the
same bytes: fixed order, no times, no owners. The headers are written here, since tarfile takes
most of a sample's time to make them; they are those that tarfile would write.

Hugging Face's datasets takes the types of all columns from the first five samples of a tar, and
fails on a column that is null in these and has a value later. So the samples that show the types
come first in a tar, as far as they are among its first thousand.
"""

import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LEDGER = "ledger.parquet"
SHARDS_KIND = "shards"

_BLOCK = tarfile.BLOCKSIZE
_MOST_BYTES = 8 * 1024**3  # what eleven octal digits hold
_BUFFER = 2**20

# tarfile's header of a regular file without owner or time, but for name, size and checksum. The
# checksum adds up the header's bytes, with eight blanks in its own place.
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_AFTER_NAME, _AFTER_SIZE, _AFTER_SUM = _HEADER[100:124], _HEADER[135:148], _HEADER[154:]
_FIXED_SUM = sum(_AFTER_NAME + _AFTER_SIZE + _HEADER[156:]) + 8 * ord(" ")

_TYPES_FROM = 5  # datasets' NUM_EXAMPLES_FOR_FEATURES_INFERENCE
_HELD = 1000
_HELD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its picture, its caption or "", and all columns of its row."""

    id: int
    jpeg: bytes
    text: str
    row: dict[str, Any]


@dataclass(frozen=True)
class EncodedSample:
    """One sample as it lies in a tar: the bytes of its files; no text is no file."""

    id: int
    jpeg: bytes
    text: bytes | None
    row: bytes


def encode_sample(id_: int, jpeg: bytes, text: str | None, row: Mapping[str, Any]) -> EncodedSample:
    """Make a sample's files; ``row`` holds its columns and becomes the ``.json``."""
    return EncodedSample(id_, jpeg, None if text is None else text.encode(), _to_json(row))


def encoded_samples(tar: Path) -> Iterator[EncodedSample]:
    """Yield the samples of a tar of ours in the order of their ids."""
    with tarfile.open(tar) as opened:
        members = {member.name: member for member in opened}

        def read(name: str) -> bytes:
            file = opened.extractfile(members[name])
            return b"" if file is None else file.read()

        for id_ in sorted(int(name[:-4]) for name in members if name.endswith(".jpg")):
            text = read(f"{id_}.txt") if f"{id_}.txt" in members else None
            yield EncodedSample(id_, read(f"{id_}.jpg"), text, read(f"{id_}.json"))


def shard_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_name(12)
    '00012.tar'
    """
    return f"{number:05d}.tar"


class ShardWriter:
    """Writes one tar; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=_BUFFER)
        self._bytes = 0
        self._front: _Front | None = _Front()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._release()
                end = self._bytes + 2 * _BLOCK
                self._file.write(bytes(2 * _BLOCK + -end % tarfile.RECORDSIZE))

    def add(self, id_: int, jpeg: bytes, text: str, row: Mapping[str, Any]) -> None:
        """Append a sample; ``row`` holds its columns and becomes the ``.json``."""
        self.add_encoded(encode_sample(id_, jpeg, text, row))

    def add_encoded(self, sample: EncodedSample) -> None:
        """Append a sample whose files are ready."""
        named = {"jpg": sample.jpeg, "txt": sample.text, "json": sample.row}
        files = tuple(
            part
            for suffix, data in named.items()
            if data is not None
            for part in _member(f"{sample.id}.{suffix}", data)
        )
        if self._front is None:
            self._write(files)
        elif self._front.hold(files, json.loads(sample.row)):
            self._release()

    def _release(self) -> None:
        """Write what was held back; from here on samples are written as they come."""
        if self._front is not None:
            for files in self._front.in_order():
                self._write(files)
            self._front = None

    def _write(self, files: tuple[bytes, ...]) -> None:
        self._bytes += sum(map(len, files))
        self._file.writelines(files)


class _Front:
    """The first samples of a tar, held back until each column has shown its type."""

    def __init__(self) -> None:
        self._held: list[tuple[bytes, ...]] = []
        self._bytes = 0
        self._names: set[str] = set()
        self._shown: set[str] = set()
        self._showing: list[int] = []  # the samples that show a column not seen before

    def hold(self, files: tuple[bytes, ...], row: Mapping[str, Any]) -> bool:
        """Take a sample; say whether it is time to write all."""
        shows = {name for name, value in row.items() if _shows_type(value)}
        if shows - self._shown:
            self._showing.append(len(self._held))
        self._names.update(row)
        self._shown |= shows
        self._held.append(files)
        self._bytes += sum(map(len, files))
        return (
            (len(self._held) >= _TYPES_FROM and self._shown == self._names)
            or len(self._held) >= _HELD
            or self._bytes >= _HELD_BYTES
        )

    def in_order(self) -> list[tuple[bytes, ...]]:
        """Return the samples as they came, but for those that must come first."""
        if all(place < _TYPES_FROM for place in self._showing):
            return self._held
        first = set(self._showing)
        rest = (files for place, files in enumerate(self._held) if place not in first)
        return [*(self._held[place] for place in self._showing), *rest]


def _shows_type(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return any(map(_shows_type, value))
    if isinstance(value, dict):
        return bool(value) and all(map(_shows_type, value.values()))
    return value is not None


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a file of the tar: header, content, padding."""
    if len(data) >= _MOST_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes, more than a tar's header can say")
    label = name.encode()
    size = b"%011o" % len(data)
    total = _FIXED_SUM + sum(label) + sum(size)
    name_field = label.ljust(100, b"\0")
    header = b"".join((name_field, _AFTER_NAME, size, _AFTER_SIZE, b"%06o" % total, _AFTER_SUM))
    return header, data, bytes(-len(data) % _BLOCK)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def _to_json(row: Mapping[str, Any]) -> bytes:
    try:
        return _encode(dict(row)).encode()
    except (ValueError, TypeError):  # a NaN, or keys that are no strings
        return _encode({name: _plain(value) for name, value in row.items()}).encode()


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; NaN and infinity, which it can't, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def read_samples(shards: Path, wanted: Mapping[int, str]) -> dict[int, Sample]:
    """Read some samples back: ``wanted`` maps an id to the shard it is in, as the ledger says."""
    found: dict[int, Sample] = {}
    for name in sorted(set(wanted.values())):
        inside = {str(id_) for id_, shard in wanted.items() if shard == name}
        parts: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shards / name) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                file = tar.extractfile(member) if stem in inside else None
                if file is not None:
                    parts.setdefault(stem, {})[suffix] = file.read()
        for stem, files in parts.items():
            row = json.loads(files["json"])
            found[int(stem)] = Sample(int(stem), files["jpg"], files.get("txt", b"").decode(), row)
    return found
