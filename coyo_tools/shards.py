"""WebDataset tars keyed by id: for every sample ``ID.jpg``, ``ID.txt`` and ``ID.json``.

Plain tars that webdataset, datasets and torch read without our code. The same samples give the
same bytes: fixed order, no times, no owners.
"""

import io
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


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its picture, its caption, and all columns of its row."""

    id: int
    jpeg: bytes
    text: str
    row: dict[str, Any]


@dataclass(frozen=True)
class EncodedSample:
    """One sample as it lies in a tar: the bytes of its three files."""

    id: int
    jpeg: bytes
    text: bytes
    row: bytes


def encode_sample(id_: int, jpeg: bytes, text: str, row: Mapping[str, Any]) -> EncodedSample:
    """Make a sample's files; ``row`` holds its columns and becomes the ``.json``."""
    columns = {name: _plain(value) for name, value in row.items()}
    encoded = json.dumps(columns, ensure_ascii=False, allow_nan=False)
    return EncodedSample(id_, jpeg, text.encode(), encoded.encode())


def encoded_samples(tar: Path) -> Iterator[EncodedSample]:
    """Yield the samples of a tar of ours, whose files lie together, in its order."""
    with tarfile.open(tar) as opened:
        files: dict[str, bytes] = {}
        for member in opened:
            stem, _, suffix = member.name.partition(".")
            file = opened.extractfile(member)
            files[suffix] = file.read() if file is not None else b""
            if len(files) == 3:
                yield EncodedSample(int(stem), files["jpg"], files["txt"], files["json"])
                files = {}


def shard_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_name(12)
    '00012.tar'
    """
    return f"{number:05d}.tar"


class ShardWriter:
    """Writes one tar; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()

    def add(self, id_: int, jpeg: bytes, text: str, row: Mapping[str, Any]) -> None:
        """Append a sample; ``row`` holds its columns and becomes the ``.json``."""
        self.add_encoded(encode_sample(id_, jpeg, text, row))

    def add_encoded(self, sample: EncodedSample) -> None:
        """Append a sample whose files are ready."""
        self._append(f"{sample.id}.jpg", sample.jpeg)
        self._append(f"{sample.id}.txt", sample.text)
        self._append(f"{sample.id}.json", sample.row)

    def _append(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


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
            found[int(stem)] = Sample(int(stem), files["jpg"], files["txt"].decode(), row)
    return found
