"""A shards directory to pairs: an index of what is there, and the pictures in one of three places.

A compact model sees a picture many times and in far less time than it takes to decode it. So up to
a gigabyte of pixels is decoded at once and kept in memory, more than that in a cache's file where
one was named, and what is left stays in the tars and is decoded as it is asked for, by processes
that work ahead (``stream``). Decoding is done by child processes in any case: a picture that
crashes its decoder is one that is left out.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coyo_align.errors import AlignError
from coyo_align.input.cache import cached_pixels
from coyo_align.input.children import cores
from coyo_align.input.decode_pool import shared_file
from coyo_align.input.decode_worker import GOOD
from coyo_align.input.images import Geometry, Preprocess
from coyo_align.input.index import Captions, Index, Pack, build_index
from coyo_align.input.pictures import (
    Decoded,
    InTars,
    Pictures,
    decode_into,
    map_pixels,
    reasons_of,
    row_bytes,
)

OnLoad = Callable[[int, float], None]
"""Called with the pairs loaded so far and the share of the work that is done, 0 to 1."""

_IN_MEMORY = 2**30


@dataclass(frozen=True)
class Pairs:
    """Pictures and their captions, row by row.

    Attributes:
        images: the pictures.
        captions: the texts, white space joined.
        ids: the samples' ids, -1 where a sample has none.
        skipped: samples left out, by reason; a damaged tar counts once, under its name. Where
            pictures stay in the tars, ``stream`` adds those that turn out bad.
        missing_ids: ids that were asked for and are not in the shards at all.
        fields: the values that were asked for, by name, None where a sample has none.
        packed: what was made of them instead, see ``load_pairs``.
        index_seconds: what reading the tars' headers took.
        decode_seconds: what decoding took, 0 where pictures were found in a cache or stay in tars.
        cache_built: whether a cache was built, and not found ready.
    """

    images: Pictures
    captions: list[str]
    ids: NDArray[np.int64]
    skipped: dict[str, int]
    missing_ids: int
    fields: dict[str, list[Any]] = field(default_factory=dict)
    index_seconds: float = 0.0
    decode_seconds: float = 0.0
    cache_built: bool = False
    packed: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def load_seconds(self) -> float:
        """All of the time that loading took."""
        return self.index_seconds + self.decode_seconds

    @property
    def pictures_per_second(self) -> float:
        """Of decoding, 0 where nothing was decoded."""
        return len(self) / self.decode_seconds if self.decode_seconds else 0.0


def load_pairs(
    shards: Path,
    preprocess: Preprocess,
    ids: Path | None = None,
    *,
    captions: Path | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    fields: Sequence[str] = (),
    need_caption: bool = True,
    pack: Pack | None = None,
    need_picture: bool = True,
    in_memory: int | None = None,
    on_load: OnLoad | None = None,
) -> Pairs:
    """The pairs of a shards directory, in the order of the tars.

    Args:
        shards: directory of WebDataset tars.
        preprocess: gives the pixels their size.
        ids: a parquet file or directory of ``part-*.parquet`` with a column ``id``; only these
            samples are used. None for all.
        captions: a parquet file or directory of parts with the columns ``id`` and ``text``; these
            texts stand in place of the tars' captions. None for the tars' own.
        cache: directory that keeps the decoded pictures for other runs, see ``cache``.
        workers: decoding processes, None for ``threads``.
        threads: None for one per core.
        fields: names of json fields to keep; "key" is the sample's key, "cls" the text of its .cls.
        need_caption: leave out samples without a caption; else theirs is empty.
        pack: makes a table of the fields, tar by tar, and says what is left out; see ``Pack``.
        need_picture: leave out samples without a picture; else no picture can be read.
        in_memory: bytes of pixels up to which all are decoded at once where there is no cache,
            None for 1 GiB.
        on_load: progress.

    Raises:
        AlignError: there are no shards, ids can't be read, the cache has no room, or no usable
            pair is left.
    """
    workers = workers or threads or cores()
    geometry = preprocess.geometry
    tell = on_load or _silent
    wanted = None if ids is None else read_ids(ids)
    started = time.perf_counter()
    index = build_index(
        shards,
        wanted,
        fields,
        need_caption,
        workers,
        lambda share: tell(0, _INDEX_SHARE * share),
        pack,
        need_picture=need_picture,
        captions=None if captions is None else read_texts(captions),
    )
    indexed = time.perf_counter()
    need = needs(need_caption, pack)
    if not len(index):
        raise AlignError(nothing_left(shards, ids, index.skipped, index.missing_ids, need))

    def decoded(done: int) -> None:
        tell(done, _INDEX_SHARE + (1 - _INDEX_SHARE) * done / len(index))

    built = False
    decoded_now = True
    if cache is not None:
        pixels, places, codes, built = cached_pixels(cache, index, geometry, workers, decoded)
        decoded_now = built
        images: Pictures = Decoded(pixels, places[codes == GOOD])
    elif need_picture and len(index) * row_bytes(geometry) <= (
        _IN_MEMORY if in_memory is None else in_memory
    ):
        images, codes = _in_memory(index, geometry, workers, decoded)
    else:
        images, codes = InTars(index, geometry, workers), np.full(len(index), GOOD, np.uint8)
        decoded_now = False
    tell(len(images), 1.0)
    skipped = Counter(index.skipped) + Counter(reasons_of(codes))
    if not len(images):
        raise AlignError(nothing_left(shards, ids, skipped, index.missing_ids, need))
    good = np.flatnonzero(codes == GOOD)
    whole = len(good) == len(index)
    return Pairs(
        images,
        captions=index.captions if whole else [index.captions[row] for row in good],
        ids=index.ids[good],
        skipped=dict(skipped),
        missing_ids=index.missing_ids,
        fields={
            name: values if whole else [values[row] for row in good]
            for name, values in index.fields.items()
        },
        index_seconds=indexed - started,
        decode_seconds=time.perf_counter() - indexed if decoded_now else 0.0,
        cache_built=built,
        packed=index.packed if whole or index.packed is None else index.packed.take(good),
    )


_INDEX_SHARE = 0.1
"""Of the work of loading, as far as progress goes."""


def _silent(*_: object) -> None:
    pass


def _in_memory(
    index: Index, geometry: Geometry, workers: int, on_done: Callable[[int], None]
) -> tuple[Decoded, NDArray[np.uint8]]:
    target = shared_file(len(index) * row_bytes(geometry))
    try:
        rows = np.arange(len(index))
        codes = decode_into(target, 0, index, rows, geometry, workers, on_done)
        pixels = map_pixels(target, len(index), geometry)
    finally:
        os.close(target)
    pixels.flags.writeable = False
    return Decoded(pixels, np.flatnonzero(codes == GOOD)), codes


def needs(need_caption: bool, pack: Pack | None) -> str:
    """What a sample must have to be used."""
    return "a .jpg" + (" and a non-empty .txt" if need_caption else " and labels" if pack else "")


def nothing_left(
    shards: Path, ids: Path | None, skipped: dict[str, int], missing: int, need: str
) -> str:
    """Say that no sample can be used, why, and what each needs."""
    reasons = [f"{count} {reason}" for reason, count in skipped.items()]
    if missing:
        reasons.append(f"{missing} ids of {ids} that are not in the shards")
    seen = ", ".join(reasons) if reasons else "the tars are empty"
    return f"No usable sample in {shards}: {seen}. Each needs {need}."


def read_ids(source: Path) -> NDArray[np.int64]:
    """The ids in a parquet file or a directory of ``part-*.parquet``, ascending, each once.

    Raises:
        AlignError: nothing is there, it isn't parquet, or it has no integer column ``id``.
    """
    table = _read_columns(source, ["id"], "choose pairs by")
    return np.unique(table["id"].to_numpy())


def read_texts(source: Path) -> Captions:
    """The texts in a parquet file or a directory of ``part-*.parquet``, by id.

    Raises:
        AlignError: nothing is there, it isn't parquet, it lacks one of the columns ``id`` and
            ``text``, or an id is there twice with different texts.
    """
    table = _read_columns(source, ["id", "text"], "take captions from").sort_by("id")
    ids = table["id"].to_numpy()
    texts = table["text"].cast(pa.large_string()).combine_chunks()
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"\s+", " "))
    again = np.flatnonzero(ids[1:] == ids[:-1])
    if len(again):
        raise AlignError(f"{source} has the id {ids[again[0]]} twice: which caption is it to have?")
    return Captions(ids, texts)


def _read_columns(source: Path, columns: list[str], why: str) -> pa.Table:
    paths = sorted(source.glob("part-*.parquet")) if source.is_dir() else [source]
    if not paths or not paths[0].exists():
        raise AlignError(
            f"No ids at {source}: give a parquet file, or a directory that holds part-*.parquet."
        )
    parts = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                if "id" not in schema.names or not pa.types.is_integer(schema.field("id").type):
                    raise AlignError(f"{path} has no integer column id to {why}.")
                for name in columns[1:]:
                    if name not in schema.names or not _is_text(schema.field(name).type):
                        raise AlignError(f"{path} has no column {name} of texts to {why}.")
                table = file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise AlignError(f"{path} can't be read as parquet: {error}") from error
        table = table.filter(pc.is_valid(table["id"]))
        parts.append(table.set_column(0, "id", table["id"].cast(pa.int64())).select(columns))
    return pa.concat_tables(parts, promote_options="permissive")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
