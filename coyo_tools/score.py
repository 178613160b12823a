"""Score: the stage that adds columns to a pool, computed from its texts and its pictures.

``align_similarity`` by a model of one's own closes the loop: trained on one slice, it scores the
pool for the next (Data Filtering Networks, Fang et al. 2023). The others are COYO's columns, for
data that doesn't have them. Every row stays; one whose picture is not in the shards, or doesn't
decode, has NULL, and the reasons are counted. Left out: dropping anything, which is ``filter``'s.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coyo_tools.columns import (
    ALIGN_SIMILARITY,
    BY_NAME,
    IMAGE_PHASH,
    TEXT,
    text_length,
    word_count,
)
from coyo_tools.engine import (
    ROW_GROUP_ROWS,
    digest_ids,
    open_session,
    recipe_errors,
    refuse_duplicate_ids,
    write_batches,
)
from coyo_tools.errors import ColumnError
from coyo_tools.faces import load_detector
from coyo_tools.handover import align_errors, open_shards
from coyo_tools.manifest import (
    MANIFEST,
    Input,
    Manifest,
    Stopwatch,
    read_manifest,
    refuse_existing,
    resumable_artifact,
    saying_when_stopped,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.score_parts import Column, Records, schema_with, with_columns
from coyo_tools.score_passes import Pass, make_passes, match_pictures
from coyo_tools.score_settings import ScoreSettings, input_fingerprint
from coyo_tools.source import NOTES, Source, open_source

if TYPE_CHECKING:
    from coyo_align.using.tokens import TokenCounter

_PASSES = ".passes"
_NOTES = {
    "width": "of the picture in the shards, not of the original",
    "height": "of the picture in the shards, not of the original",
    IMAGE_PHASH: "of the picture in the shards; the original's may differ by a few bits",
    "num_faces": "by OpenCV's detector, where COYO has SCRFD's count",
}


@dataclass(frozen=True)
class ScoreResult:
    """What was added.

    ``columns`` has for each column the rows with a value, the others by reason, mean and ends.
    ``in_shards`` is None where no picture was needed.
    """

    output: Path
    rows: int
    in_shards: int | None
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """What is to be done: all that decides the result, opened and checked."""

    pool: Source
    settings: ScoreSettings
    inputs: list[Input]
    shards: Path | None
    models: dict[str, Path]
    counters: "dict[str, TokenCounter]"


def score_pool(
    source: str | Path,
    output: Path,
    settings: ScoreSettings,
    *,
    shards: Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> ScoreResult:
    """Write a pool with further columns as a subset, in the pool's order.

    A stopped run goes on where it was, and gives the same bytes. In memory are 32 bytes for each
    picture of the shards and 16 for each row that has one, beside the model.

    Args:
        source: the pool.
        output: the subset to make.
        settings: which columns, and how.
        shards: where the pictures are, by the pool's ids.
        overwrite: replace an earlier result.
        restart: discard what a stopped run has done.
        memory: DuckDB's memory limit.
        threads: of DuckDB and torch.
        on_progress: called with pictures done and pictures in all, once through for each model.

    Raises:
        CoyoError: pool, shards, models or settings are at fault, or the disk is full.
    """
    settings.check(with_shards=shards is not None)
    refuse_existing(output, overwrite=overwrite)
    pool = open_source(source)
    _check_columns(pool, settings)
    if settings.faces:
        load_detector(settings.faces)
    inputs = [pool.as_input("pool")]
    inputs += [open_shards(shards)] if shards is not None else []
    with align_errors("coyo score"):
        counters = _counters(settings)
        models = _locate(settings)
    inputs += [
        Input(column, path, input_fingerprint(column, path))
        for column, path in settings.sources.items()
    ]
    chosen = {k: v for k, v in asdict(settings).items() if k not in ("processes", "replace")}
    begun_for = chosen | {item.role: item.fingerprint for item in inputs}
    stopped = f"Stopped. The same command goes on with what {output} has so far."
    with (
        saying_when_stopped(stopped),
        resumable_artifact(output, begun_for, overwrite=overwrite, restart=restart) as directory,
        align_errors("coyo score"),
    ):
        if not (directory / MANIFEST).is_file():
            job = _Job(pool, settings, inputs, shards, models, counters)
            _make(directory, job, memory, threads, on_progress)
        shutil.rmtree(directory / _PASSES, ignore_errors=True)
        done = read_manifest(directory)
    return ScoreResult(output, done.rows_out, done.details["in_shards"], done.details["scores"])


def _make(
    directory: Path,
    job: _Job,
    memory: str | None,
    threads: int | None,
    on_progress: Progress,
) -> None:
    watch = Stopwatch()
    pool, settings = job.pool, job.settings
    with open_session(pool, output=directory, memory=memory, threads=threads) as session:
        with recipe_errors(pool):
            refuse_duplicate_ids(session, session.table("pool"), pool.path)
        watch.finished("check")
        columns = _text_columns(settings, job.counters)
        places = np.empty(0, dtype=np.int64)
        if job.shards is not None and (job.models or settings.wish.columns):
            index, places, rows = match_pictures(session, pool, job.shards, settings.processes)
            watch.finished("index")
            passes = make_passes(pool, settings, job.models, index, places, rows, threads)
            columns += _run(directory, session, passes, len(places), on_progress)
            watch.finished("score")
        columns.sort(key=lambda column: settings.columns.index(column.name))
        parts = _write(directory, session, pool, columns, places)
        watch.finished("write")
    digest = digest_ids(parts)
    prints = {item.role: item.fingerprint for item in job.inputs}
    scores = {column.name: column.summary() for column in columns}
    for name in scores.keys() & prints.keys():
        scores[name]["fingerprint"] = prints[name]
    notes = {name: note for name, note in pool.notes.items() if name not in settings.columns}
    notes |= {name: _NOTES[name] for name in settings.columns if name in _NOTES}
    write_manifest(
        directory,
        Manifest(
            kind="subset",
            parameters={"stage": "score", **asdict(settings)},
            inputs=job.inputs,
            rows_in=pool.rows,
            rows_out=digest.count,
            lost={},
            id_digest=digest.hexdigest(),
            seconds=watch.seconds(),
            details={
                "in_shards": len(places) if job.shards is not None else None,
                "scores": scores,
                "seconds": watch.steps,
                NOTES: notes,
            },
        ),
    )


def _check_columns(pool: Source, settings: ScoreSettings) -> None:
    there = [name for name in settings.columns if name in pool.columns]
    kept = [name for name in there if name not in settings.replace]
    if kept:
        raise ColumnError(
            f"{pool.path} has {', '.join(kept)} already, and nothing is overwritten unasked.",
            "Add " + " ".join(f"--replace {name}" for name in kept) + ", or don't ask for it.",
        )
    for name in settings.replace:
        if name not in pool.columns:
            raise ColumnError(f"--replace {name}: {pool.path} has no such column.")
    by_text = {*settings.models, *settings.tokenizers} or settings.text
    if by_text and (TEXT not in pool.columns or not _is_text(pool.schema.field(TEXT).type)):
        have = f"is {pool.schema.field(TEXT).type}" if TEXT in pool.columns else "is not there"
        raise ColumnError(
            f"{pool.path} has no texts to score: column `{TEXT}` {have}; it has "
            f"{', '.join(pool.columns[:30])}.",
            f"Rename the column with the texts to `{TEXT}`.",
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _locate(settings: ScoreSettings) -> dict[str, Path]:
    """The directories of the models, by column; each is of the kind it has to be."""
    from coyo_align.checkpoint import ALIGN, CLIP, expect_kind, locate

    found = {}
    for column, name in settings.models.items():
        found[column] = locate(name)
        expect_kind(found[column], ALIGN if column == ALIGN_SIMILARITY else CLIP)
    return found


def _counters(settings: ScoreSettings) -> "dict[str, TokenCounter]":
    if not settings.tokenizers:
        return {}
    from coyo_align.using.tokens import TokenCounter

    return {column: TokenCounter(name) for column, name in settings.tokenizers.items()}


def _text_columns(settings: ScoreSettings, counters: "dict[str, TokenCounter]") -> list[Column]:
    def by_text(name: str, count: Callable[[Sequence[str]], Any]) -> Column:
        def values(texts: Sequence[str | None]) -> pa.Array:
            missing = np.array([text is None for text in texts], dtype=np.bool_)
            counted = np.asarray(count([text or "" for text in texts]), dtype=np.int32)
            return pa.array(counted, BY_NAME[name].type, mask=missing)

        return Column(name, BY_NAME[name].type, of_texts=values)

    made = []
    if settings.text:
        made.append(by_text("text_length", lambda texts: [text_length(t) for t in texts]))
        made.append(by_text("word_count", lambda texts: [word_count(t) for t in texts]))
    return made + [by_text(column, counter.count) for column, counter in counters.items()]


def _run(
    directory: Path,
    session: duckdb.DuckDBPyConnection,
    passes: Sequence[Pass],
    rows: int,
    on_progress: Progress,
) -> list[Column]:
    """Walk over the pictures as often as needed; what was done before is not done again."""
    kept = directory / _PASSES
    kept.mkdir(exist_ok=True)
    columns = []
    total = rows * len(passes)
    for number, one in enumerate(passes):
        records = Records(kept, one.name, one.dtype)
        before = number * rows

        def tell(done: int, before: int = before) -> None:
            on_progress(before + done, total)

        tell(records.done)
        if records.done < rows:
            records.append(one.run(session, records.done), tell)
        if records.done != rows:
            raise RuntimeError(f"{records.done} records for {rows} pictures")
        columns += [
            Column(name, _type_of(name), records, reasons=one.reasons) for name in one.columns
        ]
    return columns


def _type_of(name: str) -> pa.DataType:
    return pa.float32() if name == ALIGN_SIMILARITY else BY_NAME[name].type


def _write(
    directory: Path,
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    columns: Sequence[Column],
    places: npt.NDArray[np.int64],
) -> list[Path]:
    for part in directory.glob("part-*.parquet"):
        part.unlink()  # of a run that was stopped while it wrote
    with recipe_errors(pool):
        reader = session.table("pool").to_arrow_reader(ROW_GROUP_ROWS // 8)
        schema = schema_with(reader.schema, columns)
        text = TEXT if any(column.of_texts for column in columns) else None
        rows = with_columns(iter(reader), schema, columns, places, text)
        return write_batches(schema, rows, directory)
