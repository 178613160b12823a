"""Index: own pictures with captions become a pool with COYO's columns, and shards.

Computes what can be computed: id, width, height, image_phash (before any resizing), text_length,
word_count. Scores are left out, not guessed. Every caption has a row in the ledger, with the
reason if its picture was refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from coyo_tools.columns import ID, IMAGE_PHASH, TEXT, text_length, word_count
from coyo_tools.engine import available_cores
from coyo_tools.errors import ColumnError, EmptyResultError, SourceError
from coyo_tools.manifest import (
    IdDigest,
    Input,
    Manifest,
    Stopwatch,
    digest_of,
    new_artifact,
    write_manifest,
)
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import Picture, PictureSettings, Refusal
from coyo_tools.progress import Progress, no_progress
from coyo_tools.recipe import missing_column
from coyo_tools.shards import LEDGER, SHARDS_KIND, ShardWriter, shard_name

_COMPUTED = (ID, TEXT, "width", "height", IMAGE_PHASH, "text_length", "word_count")
_LEDGER_SCHEMA = {
    ID: pl.Int64,
    "file": pl.String,
    "outcome": pl.String,
    "detail": pl.String,
    "bytes": pl.Int64,
    "shard": pl.String,
}


@dataclass(frozen=True)
class RefusedPicture:
    """A caption whose picture did not make it, and why."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class IndexResult:
    """What an indexing did; ``rows_in`` counts captions, ``rows_out`` pictures kept."""

    output: Path
    rows_in: int
    rows_out: int
    refused: tuple[RefusedPicture, ...]
    renamed: dict[str, str]


def index_pictures(
    captions: Path,
    output: Path,
    *,
    image_column: str,
    text_column: str,
    image_root: Path | None = None,
    settings: PictureSettings | None = None,
    samples_per_shard: int = 10_000,
    processes: int | None = None,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> IndexResult:
    """Write ``output/pool`` and ``output/shards`` from a captions file and the pictures it names.

    Args:
        captions: .csv, .jsonl, .ndjson or .parquet; its other columns are carried along, renamed
            ``given_NAME`` where COYO has a column of that name.
        output: directory to make.
        image_column: column with picture files, relative to ``image_root``.
        text_column: column with the captions.
        image_root: folder of the pictures, by default that of the captions file. Files outside it
            are refused, since a captions file may be a stranger's.
        settings: how pictures are stored.
        samples_per_shard: samples in a tar.
        processes: decoding processes, by default one per core.
        overwrite: replace an earlier result.
        on_progress: called with captions done and captions in all.

    Raises:
        CoyoError: the captions can't be read, a column is missing, or no picture is usable.
    """
    watch = Stopwatch()
    root = (image_root or captions.parent).resolve()
    table = _read_captions(captions, image_column, text_column)
    table, renamed = _name_columns(table, text_column)
    image_column = renamed.get(image_column, image_column)
    fingerprint = digest_of([captions.read_bytes()])
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        PictureWorkers(settings or PictureSettings(), processes or available_cores()) as workers,
    ):
        (directory / "pool").mkdir()
        (directory / "shards").mkdir()
        ledger, kept = _pack(
            directory, table, root, image_column, workers, samples_per_shard, on_progress
        )
        refused = tuple(
            RefusedPicture(row["file"], row["outcome"], row["detail"])
            for row in ledger
            if row["outcome"] != "ok"
        )
        if not kept:
            raise EmptyResultError(
                f"None of the {table.height:,} pictures named in {captions} can be used.",
                f"The first: {refused[0].file}: {refused[0].reason} ({refused[0].detail}). "
                f"Pictures are looked for under {root}.",
            )
        pl.DataFrame(ledger, schema=_LEDGER_SCHEMA).write_parquet(directory / "shards" / LEDGER)
        pool = _pool_table(table, kept)
        pool.write_parquet(directory / "pool" / "part-00000.parquet", compression="zstd")
        digest = IdDigest()
        digest.update(pool[ID].to_numpy().astype(np.int64))
        lost: dict[str, int] = {}
        for picture in refused:
            lost[picture.reason] = lost.get(picture.reason, 0) + 1
        for kind, place in (
            ("pool", directory / "pool"),
            (SHARDS_KIND, directory / "shards"),
            ("index", directory),
        ):
            write_manifest(
                place,
                Manifest(
                    kind=kind,
                    parameters={
                        "stage": "index",
                        "image_column": image_column,
                        "text_column": text_column,
                    },
                    inputs=[Input("captions", str(captions), fingerprint)],
                    rows_in=table.height,
                    rows_out=pool.height,
                    lost=lost,
                    id_digest=digest.hexdigest(),
                    seconds=watch.seconds(),
                    details={"renamed_columns": renamed},
                ),
            )
    return IndexResult(output, table.height, pool.height, refused, renamed)


def _read_captions(captions: Path, image_column: str, text_column: str) -> pl.DataFrame:
    if not captions.is_file():
        raise SourceError(f"{captions} does not exist or is not a file.")
    readers = {
        ".parquet": lambda: pl.read_parquet(captions),
        # As text: a file called 007 or a caption 1e3 would otherwise be read as a number.
        ".csv": lambda: pl.read_csv(
            captions,
            infer_schema_length=None,
            schema_overrides={image_column: pl.String, text_column: pl.String},
        ),
        ".jsonl": lambda: pl.read_ndjson(captions, infer_schema_length=None),
        ".ndjson": lambda: pl.read_ndjson(captions, infer_schema_length=None),
    }
    reader = readers.get(captions.suffix.lower())
    if reader is None:
        raise SourceError(
            f"{captions} is neither {', '.join(readers)}.",
            "Captions are a table with one row a picture.",
        )
    try:
        table = reader()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{captions} can't be read as {captions.suffix}: {reason}") from error
    if image_column == text_column:
        raise ColumnError(f"Pictures and captions can't both be in the column `{text_column}`.")
    for name in (image_column, text_column):
        if name not in table.columns:
            raise missing_column(name, tuple(table.columns), where=str(captions))
        if table.schema[name].is_nested():
            raise ColumnError(f"Column `{name}` of {captions} is {table.schema[name]}, not text.")
    if table.height == 0:
        raise EmptyResultError(f"{captions} has no rows.")
    return table.with_columns(pl.col(image_column, text_column).cast(pl.String))


def _name_columns(table: pl.DataFrame, text_column: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """Give the table COYO's ``id`` and ``text``; what stands in their way is renamed, not lost."""
    own_ids = (
        ID in table.columns
        and table.schema[ID].is_integer()
        and table[ID].cast(pl.Int64, strict=False).null_count() == 0
        and table[ID].n_unique() == table.height
    )
    kept = {text_column} | ({ID} if own_ids else set())
    renamed: dict[str, str] = {}
    for name in table.columns:
        if name in _COMPUTED and name not in kept:
            renamed[name] = f"given_{name}"
            while renamed[name] in table.columns:
                renamed[name] = f"given_{renamed[name]}"
    named = table.rename(renamed).rename({text_column: TEXT})
    if own_ids:
        return named.with_columns(pl.col(ID).cast(pl.Int64)), renamed
    return named.with_row_index(ID).with_columns(pl.col(ID).cast(pl.Int64)), renamed


def _pack(
    directory: Path,
    table: pl.DataFrame,
    root: Path,
    image_column: str,
    workers: PictureWorkers,
    samples_per_shard: int,
    on_progress: Progress,
) -> tuple[list[dict[str, Any]], dict[int, Picture]]:
    """Write the shards; return the ledger's rows and, by id, what was measured of each picture."""
    ledger: list[dict[str, Any]] = []
    kept: dict[int, Picture] = {}
    done = 0
    for number, block in enumerate(table.iter_slices(samples_per_shard)):
        name = shard_name(number)
        with ShardWriter(directory / "shards" / name) as shard:
            for row, result in workers.decode(_files(block, root, image_column)):
                if isinstance(result, Picture) and not (row[TEXT] or "").strip():
                    result = Refusal("no caption", "the text is empty")
                fate = {ID: row[ID], "file": row[image_column], "shard": None}
                if isinstance(result, Picture):
                    shard.add(row[ID], result.jpeg, row[TEXT], row | _measured(row, result))
                    # The JPEG is on disk now; keeping it would hold every picture in memory.
                    kept[row[ID]] = replace(result, jpeg=b"")
                    fate |= {"outcome": "ok", "detail": "", "shard": name}
                    fate["bytes"] = result.bytes_served
                else:
                    fate |= {"outcome": result.reason, "detail": result.detail}
                ledger.append(fate)
                done += 1
                on_progress(done, table.height)
    return ledger, kept


def _files(
    block: pl.DataFrame, root: Path, image_column: str
) -> Iterator[tuple[dict[str, Any], Path | Refusal]]:
    for row in block.iter_rows(named=True):
        yield row, _resolve(row[image_column], root)


def _resolve(name: str | None, root: Path) -> Path | Refusal:
    """Return the file a caption names, or why it is not looked at."""
    if not name:
        return Refusal("missing file", "the row names none")
    try:
        path = (root / name).resolve()
    except (OSError, ValueError) as error:
        return Refusal("missing file", str(error))
    if not path.is_relative_to(root):
        return Refusal("outside the image root", f"only files under {root} are read")
    return path


def _measured(row: dict[str, Any], picture: Picture) -> dict[str, Any]:
    return {
        "width": picture.width,
        "height": picture.height,
        IMAGE_PHASH: picture.image_phash,
        "text_length": text_length(row[TEXT]),
        "word_count": word_count(row[TEXT]),
    }


def _pool_table(table: pl.DataFrame, kept: dict[int, Picture]) -> pl.DataFrame:
    """Join the captions that have a picture with what was measured, COYO's columns first."""
    measured = pl.DataFrame(
        {
            ID: list(kept),
            "width": [picture.width for picture in kept.values()],
            "height": [picture.height for picture in kept.values()],
            IMAGE_PHASH: [picture.image_phash for picture in kept.values()],
        },
        schema={ID: pl.Int64, "width": pl.Int32, "height": pl.Int32, IMAGE_PHASH: pl.String},
    )
    pool = table.join(measured, on=ID, how="inner", maintain_order="left").with_columns(
        pl.col(TEXT).map_elements(text_length, return_dtype=pl.Int32).alias("text_length"),
        pl.col(TEXT).map_elements(word_count, return_dtype=pl.Int32).alias("word_count"),
    )
    return pool.select(*_COMPUTED, pl.exclude(_COMPUTED))
