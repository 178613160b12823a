"""What is in WebDataset tars, from one pass over their headers: where each picture lies, its text.

Plain tars on a disk allow random access, so nothing but captions and json is read here, the
pictures are decoded later in any order, and shuffling is exact without a buffer.

The webdataset package is not used: it drops what it can't read without a count, and here every
sample that is lost needs a reason. What is given up with it are remote urls.

Run as a module it serves ``index``, which reads several tars at once.
"""

import json
import os
import struct
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from coyo_align.errors import AlignError

MAX_BYTES = 64 * 2**20
"""Per file in a tar: larger ones are left unread, and their sample counted as lacking them."""
PICTURES = ("jpg", "jpeg", "png", "webp")

USABLE, NO_CAPTION, NO_PICTURE = 0, 1, 2
LACKS = {NO_CAPTION: "no caption", NO_PICTURE: "no picture"}


@dataclass
class _Sample:
    """The files of one key, by extension in lower case: where their content lies, how long it is.

    The content is read of those that tell something now.
    """

    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


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


def index_tar(path: Path, fields: Sequence[str]) -> pa.Table:
    """The samples of one tar: consecutive files that share a name up to its first dot.

    Columns, a row a sample: ``lacks`` (USABLE, NO_CAPTION or NO_PICTURE), ``offset`` and ``size``
    of the picture in bytes, ``id`` (the json's, else the key where that is a number, else null),
    ``caption`` (white space joined, empty where there is none), and for each of ``fields`` the
    json's value as JSON text, null where there is none; "key" and "cls" are the sample's key and
    the text of its .cls file. The schema's metadata says under ``damaged`` whether the tar ends
    before its end mark or can't be read from some place on; what comes before that, up to the last
    whole sample, is there.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("lacks", "offset", "size", "id", "caption")}
    asked: list[list[str | None]] = [[] for _ in fields]
    damaged = b""
    try:
        for sample in _samples(path):
            caption = _text(sample, "txt")
            picture = next((sample.places[e] for e in PICTURES if e in sample.places), None)
            lacks = NO_CAPTION if not caption else NO_PICTURE if picture is None else USABLE
            record = _record(sample)
            rows["lacks"].append(lacks)
            rows["offset"].append(0 if picture is None else picture[0])
            rows["size"].append(-1 if picture is None else picture[1])
            rows["id"].append(_id(sample, record))
            rows["caption"].append(caption)
            for name, values in zip(fields, asked, strict=True):
                values.append(_value(name, sample, record))
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError):
        damaged = b"yes"
    types = {"lacks": pa.int8(), "size": pa.int32(), "caption": pa.string()}
    arrays = [pa.array(values, types.get(name, pa.int64())) for name, values in rows.items()]
    arrays += [pa.array(values, pa.string()) for values in asked]
    names = [*rows, *(f"field {number}" for number in range(len(fields)))]
    return pa.table(arrays, names, metadata={"damaged": damaged})


def _text(sample: _Sample, extension: str) -> str:
    content = sample.texts.get(extension, b"")
    return " ".join(content.decode("utf-8", errors="replace").split())


def _record(sample: _Sample) -> dict[str, Any]:
    """The json, empty where it is lost or is no object."""
    try:
        record = json.loads(sample.texts["json"])
    except (KeyError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _id(sample: _Sample, record: dict[str, Any]) -> int | None:
    try:
        number = int(record["id"])
    except (KeyError, TypeError, ValueError, OverflowError):
        name = sample.key.rpartition("/")[2]
        if not (name.isascii() and name.isdigit() and len(name) < 20):
            return None
        number = int(name)
    return number if -(2**63) <= number < 2**63 else None


def _value(name: str, sample: _Sample, record: dict[str, Any]) -> str | None:
    if name == "key":
        return json.dumps(sample.key.encode("utf-8", "replace").decode())
    if name == "cls":
        return json.dumps(_text(sample, "cls")) if "cls" in sample.texts else None
    return json.dumps(record[name]) if name in record else None


class _Member(tarfile.TarInfo):
    """A tar's header; a plain file's is read in half the time, any other is left to tarfile."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse the 512 bytes of a header."""
        plain = len(buf) == tarfile.BLOCKSIZE and buf[257:262] == b"ustar" and buf[156:157] == b"0"
        try:
            said = int(buf[148:156].rstrip(b" \0"), 8)
            size = int(buf[124:136].rstrip(b" \0"), 8)
        except ValueError:
            plain = False
        if not plain or said != 256 + sum(buf) - sum(buf[148:156]):
            return super().frombuf(buf, encoding, errors)
        member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        member.type, member.size, member.chksum = tarfile.REGTYPE, size, said
        if prefix := buf[345:500].partition(b"\0")[0]:
            member.name = f"{prefix.decode(encoding, errors)}/{member.name}"
        return member


def _samples(path: Path) -> Iterator[_Sample]:
    """Yield the samples of one tar.

    Raises:
        tarfile.TarError and others: after the last whole sample, if the tar is truncated or
            damaged. Without the check of the end mark, tarfile takes a tar that is cut between two
            files for whole.
    """
    sample: _Sample | None = None
    with path.open("rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as tar:
            before = -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.offset <= before or member.size < 0:
                    raise tarfile.ReadError("a size that leads nowhere")
                before = member.offset
                if not member.isreg():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = folder + slash + stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                if member.issparse() or member.size > MAX_BYTES:
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("cut within a file")
                extension = extension.lower()
                sample.places[extension] = (member.offset_data, member.size)
                if extension in ("txt", "json", "cls"):
                    stream.seek(member.offset_data)
                    sample.texts[extension] = stream.read(member.size)
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end mark")
    if sample is not None:
        yield sample


LENGTH = struct.Struct(">Q")
"""How long a table is, before it, in what ``_serve`` writes."""


def _serve() -> None:
    """Read a line of JSON, [path, fields], and write that tar's table as an Arrow stream."""
    for line in sys.stdin.buffer:
        path, fields = json.loads(line)
        table = index_tar(Path(path), fields)
        with pa.BufferOutputStream() as sink:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            content = sink.getvalue()
        sys.stdout.buffer.write(LENGTH.pack(content.size))
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
