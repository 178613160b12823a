"""WebDataset tars to samples, one after the other, with the standard library's tarfile.

The webdataset package is not used: it drops what it can't read without a count, and here every
sample that is lost needs a reason. What is given up with it are remote urls and shuffling
buffers; the pairs are decoded once and shuffled exactly, in ``data``.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from coyo_align.errors import AlignError

_MAX_BYTES = 64 * 2**20
"""Per file in a tar: larger ones are left unread, and their sample counted as lacking them."""
_PICTURES = ("jpg", "jpeg", "png", "webp")


@dataclass
class Sample:
    """The files of one key, by extension in lower case."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def id(self) -> int | None:
        """The ``id`` of the json, else the key where that is a number, else None."""
        try:
            return int(json.loads(self.files["json"])["id"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            name = self.key.rpartition("/")[2]
            return int(name) if name.isascii() and name.isdigit() else None

    @property
    def picture(self) -> bytes | None:
        """The encoded picture, None where there is none."""
        return next((self.files[e] for e in _PICTURES if e in self.files), None)

    @property
    def caption(self) -> str:
        """The text with its white space joined, empty where there is none."""
        return " ".join(self.files.get("txt", b"").decode("utf-8", errors="replace").split())

    def field(self, name: str) -> Any:
        """A value of the json, the key as ``key``, or the text of the .cls file as ``cls``."""
        if name == "key":
            return self.key
        if name == "cls":
            text = self.files.get("cls")
            return None if text is None else text.decode("utf-8", errors="replace").strip()
        try:
            return json.loads(self.files["json"]).get(name)
        except (KeyError, AttributeError, ValueError, RecursionError):
            return None


def tar_paths(shards: Path) -> list[Path]:
    """The tars of a shards directory in the order of their names.

    Raises:
        AlignError: there is no such directory, or no tar in it.
    """
    if not shards.is_dir():
        raise AlignError(f"{shards} is not a directory. Give a directory that holds .tar shards.")
    paths = sorted(path for path in shards.glob("*.tar") if path.is_file())
    if not paths:
        raise AlignError(f"{shards} holds no .tar file. Give a directory of WebDataset shards.")
    return paths


class CutShortError(Exception):
    """A tar ends before its end mark, or can't be read from some place on."""


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of one tar: consecutive files that share a name up to its first dot.

    Raises:
        CutShortError: after the last whole sample, if the tar is truncated or damaged. Without the
            check of the end mark, tarfile takes a tar that is cut between two files for whole.
    """
    sample: Sample | None = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = folder + slash + stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                if member.size <= _MAX_BYTES and (stream := tar.extractfile(member)) is not None:
                    sample.files[extension.lower()] = stream.read()
            if not _ends_here(path, tar.offset):
                raise CutShortError(path.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CutShortError(path.name) from error
    if sample is not None:
        yield sample


def _ends_here(path: Path, offset: int) -> bool:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
