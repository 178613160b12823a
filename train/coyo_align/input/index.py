"""Which samples of a shards directory are to be used, and where their pictures lie.

The tars' headers are read once, by several processes where that pays; of a sample there remain 24
bytes of numbers, its caption and the json fields that were asked for: as they are, or packed a tar
at a time, since fifty numbers as Python objects take as much as a picture. Everything that is left
out is counted with a reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from subprocess import Popen
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coyo_align.input.children import end_child, start_child
from coyo_align.input.shards import (
    LACKS,
    LENGTH,
    NO_CAPTION,
    NO_PICTURE,
    USABLE,
    index_tar,
    tar_paths,
)

_WORTH_A_PROCESS = 200 * 2**20
"""Bytes of tars that a child has to have to read, before its start of half a second pays."""


Pack = Callable[[dict[str, list[Any]]], tuple[pa.Table, list[str | None]]]
"""From the json fields of a tar's samples to a table, a row a sample, and for each sample the
reason why it is left out, or None."""


@dataclass(frozen=True)
class Captions:
    """Captions that stand in place of the tars' own.

    Attributes:
        ids: of the samples, ascending and each once.
        texts: what is said of each, white space joined, empty or null where nothing is.
    """

    ids: NDArray[np.int64]
    texts: pa.Array


@dataclass(frozen=True)
class Tar:
    """A tar as it was when it was read: what is no longer so has been replaced."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Index:
    """The usable samples, row by row in the order of the tars.

    Attributes:
        tars: the tars.
        tar: which of them a sample is in.
        offset: where its picture begins in the tar, in bytes.
        size: of its encoded picture, in bytes.
        ids: the samples' ids, -1 where a sample has none.
        captions: the texts.
        fields: the values that were asked for, by name, None where a sample has none.
        skipped: samples left out, by reason; a damaged tar counts once, under its name.
        missing_ids: ids that were asked for and are not in the shards at all.
        packed: what ``pack`` made of the fields, which are not kept then; None without it.
    """

    tars: tuple[Tar, ...]
    tar: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    ids: NDArray[np.int64]
    captions: list[str]
    fields: dict[str, list[Any]]
    skipped: dict[str, int]
    missing_ids: int
    packed: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.captions)


def build_index(
    shards: Path,
    wanted: NDArray[np.int64] | None,
    fields: Sequence[str],
    need_caption: bool,
    workers: int,
    on_read: Callable[[float], None],
    pack: Pack | None = None,
    *,
    need_picture: bool = True,
    captions: Captions | None = None,
) -> Index:
    """Read the headers of all tars.

    Args:
        shards: directory of WebDataset tars.
        wanted: ids of the samples to use, ascending and each once, None for all.
        fields: names of json fields, "key" or "cls"; see ``index_tar``.
        need_caption: leave out samples without a caption.
        workers: processes at most.
        on_read: called with the share of the tars' bytes read, 0 to 1.
        pack: what to make of the fields of each tar, instead of keeping them.
        need_picture: leave out samples without a picture; else their ``size`` is -1.
        captions: stand in place of the tars' own; a sample that has none there has none at all.

    Raises:
        AlignError: there are no shards.
    """
    paths = tar_paths(shards)
    stats = [path.stat() for path in paths]
    tars = tuple(
        Tar(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)
    )
    whole = sum(tar.size for tar in tars) or 1
    seen = None if wanted is None else np.zeros(len(wanted), dtype=np.bool_)
    skipped: Counter[str] = Counter()
    kept: list[pa.Table] = []
    packed: list[pa.Table] = []
    read = 0
    tables = _tables(tars, fields, workers, whole)
    for number, (tar, table) in enumerate(zip(tars, tables, strict=True)):
        if (table.schema.metadata or {})[b"damaged"]:
            skipped[f"damaged tar, the rest of it is lost: {tar.path.name}"] += 1
        if wanted is not None and seen is not None:
            table = _only(table, wanted, seen)
        if captions is not None:
            table = _said(table, captions)
        lacks = table["lacks"]
        if not need_caption:
            lacks = pc.if_else(pc.less(table["size"], 0), NO_PICTURE, USABLE)
        if not need_picture:
            lacks = pc.if_else(pc.equal(lacks, NO_PICTURE), USABLE, lacks)
        for reason, words in LACKS.items():
            if count := pc.sum(pc.equal(lacks, reason)).as_py():
                skipped[words] += count
        table = table.filter(pc.equal(lacks, USABLE)).drop_columns(["lacks"])
        if pack is not None:
            made, lost = pack(_fields(table, fields))
            skipped.update(reason for reason in lost if reason is not None)
            usable = pa.array([reason is None for reason in lost], pa.bool_())
            packed.append(made.filter(usable))
            table = table.filter(usable).drop_columns(_columns(fields))
        kept.append(table.append_column("tar", pa.array(np.full(len(table), number, np.int32))))
        read += tar.size
        on_read(read / whole)
    table = pa.concat_tables([part.replace_schema_metadata() for part in kept])
    return Index(
        tars,
        tar=_numbers(table["tar"]),
        offset=_numbers(table["offset"]),
        size=_numbers(table["size"]),
        ids=_numbers(pc.fill_null(table["id"], -1)),
        captions=table["caption"].to_pylist(),
        fields=_fields(table, fields) if pack is None else {},
        skipped=dict(skipped),
        missing_ids=0 if seen is None else int((~seen).sum()),
        packed=pa.concat_tables(packed) if pack is not None else None,
    )


def _said(table: pa.Table, captions: Captions) -> pa.Table:
    """The samples with other captions than their tar's."""
    ids = _numbers(pc.fill_null(table["id"], 0))
    place = np.minimum(np.searchsorted(captions.ids, ids), max(0, len(captions.ids) - 1))
    found = _numbers(pc.is_valid(table["id"]))
    found &= captions.ids[place] == ids if len(captions.ids) else False
    texts = captions.texts.take(pa.array(place, mask=~found))
    texts = pc.fill_null(texts, "")
    no_picture = pc.if_else(pc.less(table["size"], 0), NO_PICTURE, USABLE)
    lacks = pc.if_else(pc.equal(texts, ""), NO_CAPTION, no_picture).cast(pa.int8())
    for name, column in (("caption", texts), ("lacks", lacks)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def first_captions(shards: Path, least: int) -> list[str]:
    """The captions of as many tars as have so many usable samples together, or of all.

    Raises:
        AlignError: there are no shards.
    """
    found: list[str] = []
    for path in tar_paths(shards):
        table = index_tar(path, ())
        found += table.filter(pc.equal(table["lacks"], USABLE))["caption"].to_pylist()
        if len(found) >= least:
            break
    return found


def _columns(fields: Sequence[str]) -> list[str]:
    return [f"field {number}" for number in range(len(fields))]


def _fields(table: pa.Table, fields: Sequence[str]) -> dict[str, list[Any]]:
    return {
        name: [None if text is None else json.loads(text) for text in table[column].to_pylist()]
        for name, column in zip(fields, _columns(fields), strict=True)
    }


def _only(table: pa.Table, wanted: NDArray[np.int64], seen: NDArray[np.bool_]) -> pa.Table:
    """The samples with a wanted id, which is marked as seen."""
    ids = _numbers(pc.fill_null(table["id"], 0))
    place = np.searchsorted(wanted, ids)
    place[place == len(wanted)] = 0
    found = _numbers(pc.is_valid(table["id"]))
    found &= wanted[place] == ids if len(wanted) else False
    seen[place[found]] = True
    return table.filter(pa.array(found))


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False))


def _tables(
    tars: Sequence[Tar], fields: Sequence[str], workers: int, whole: int
) -> Iterator[pa.Table]:
    """``index_tar`` of each, in order."""
    workers = min(workers, len(tars), whole // _WORTH_A_PROCESS)
    if workers < 2:
        for tar in tars:
            yield index_tar(tar.path, fields)
        return
    idle: SimpleQueue[Popen[bytes]] = SimpleQueue()

    def ask(tar: Tar) -> pa.Table:
        child = idle.get()
        try:
            return _answer(child, tar.path, fields)
        finally:
            idle.put(child)

    with ExitStack() as stack:
        children = [start_child("coyo_align.input.shards") for _ in range(workers)]
        for child in children:
            stack.callback(end_child, child)
            idle.put(child)
        threads = ThreadPoolExecutor(workers)
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        for child in children:
            stack.callback(child.kill)  # first of all, so that no thread waits for an answer
        yield from threads.map(ask, tars)


def _answer(child: "Popen[bytes]", path: Path, fields: Sequence[str]) -> pa.Table:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101  they are pipes
    child.stdin.write(json.dumps([str(path), list(fields)]).encode() + b"\n")
    content = _read(child, LENGTH.unpack(_read(child, LENGTH.size))[0])
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()


def _read(child: "Popen[bytes]", size: int) -> bytes:
    parts = []
    while size:
        part = child.stdout.read(size) if child.stdout else b""
        if not part:
            raise RuntimeError(f"a process that reads tars ended (exit code {child.wait()})")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
