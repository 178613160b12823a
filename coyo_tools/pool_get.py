"""Pool get: the first rows of a data set on the hub as a pool on disk, resumable.

Rows arrive in parts beside the output, each with the place behind it, so that a kill costs at most
one part. A part is finished when the state file names it. The command that goes on must be the one
that began; another is refused, never mixed.
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.engine import ids_of, open_session
from coyo_tools.errors import ColumnError, EmptyResultError, OutputError
from coyo_tools.hub_stream import Place, open_split, read_split, retelling
from coyo_tools.layouts import map_columns
from coyo_tools.manifest import (
    NO_ROOM,
    IdDigest,
    Input,
    Manifest,
    Stopwatch,
    new_artifact,
    refuse_existing,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.source import open_source

_STATE = "state.json"
# About 50 MB of COYO's rows: what a kill costs at most, beside the row group being read.
_PART_ROWS = 250_000


@dataclass(frozen=True)
class PoolGetResult:
    """What was fetched; ``resumed_rows`` of the rows were there from an interrupted run."""

    output: Path
    repo: str
    commit: str
    rows: int
    resumed_rows: int
    columns: tuple[str, ...]


@dataclass
class _State:
    """How far a fetch is: its settings, the commit it reads, rows of each part, where to go on."""

    settings: dict[str, object]
    commit: str
    parts: list[int]
    place: Place
    seconds: float = 0.0
    ended: bool = False

    @property
    def rows(self) -> int:
        return sum(self.parts)


def get_pool(
    repo: str,
    output: Path,
    *,
    rows: int | None = None,
    columns: Sequence[str] = (),
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = lambda _: None,
) -> PoolGetResult:
    """Fetch the first rows of a split as a pool.

    An interrupted fetch goes on where it stopped, at the commit it began with.

    Args:
        repo: OWNER/NAME on the hub.
        output: directory to make.
        rows: how many; default all.
        columns: which; default all. Others don't travel where the files are parquet.
        split: the split's name.
        revision: branch, tag or commit; default the newest.
        config: which of a data set's configurations, where it has several.
        token: the hub's; default HF_TOKEN or the login's.
        overwrite: replace an earlier result.
        progress: told of rows.
        tell: told of waits and retries.

    Raises:
        SourceError: no such data set, no access, no network.
        ColumnError: a column is not there, or none that can be an id.
        OutputError: the disk is full, or an interrupted fetch had other settings.
    """
    watch = Stopwatch()
    refuse_existing(output, overwrite=overwrite)
    settings: dict[str, object] = {
        "repo": repo, "rows": rows, "columns": sorted(set(columns)), "split": split,
        "revision": revision, "config": config,
    }  # fmt: skip
    with _work_directory(output) as work, retelling(tell):
        state = _read_state(work, settings, output)
        begun = state.rows if state is not None else 0
        if state is None:
            found = open_split(repo, split=split, revision=revision, config=config, token=token)
            state = _State(settings, found.commit, [], {})
        elif not state.ended:
            found = open_split(repo, split=split, revision=state.commit, config=config, token=token)
        if not state.ended:
            if begun:
                tell(f"going on after {begun:,} rows of an interrupted fetch")
            before = state.seconds
            tables = read_split(found, columns, state.place, _refuse_without_id)
            for table, place in _parts(tables, rows, state.rows):
                pq.write_table(
                    table, _part(work, len(state.parts)), compression="zstd",
                )  # fmt: skip
                state.parts.append(table.num_rows)
                state.place = place
                state.seconds = before + watch.seconds()
                _write_state(work, state)
                progress(state.rows, rows or state.rows)
            state.ended = True
            _write_state(work, state)
        if state.rows == 0:
            raise EmptyResultError(f"The split {split} of {repo} has no rows.")
        return _finish(work, state, output, begun, overwrite=overwrite)


def _parts(
    tables: Iterator[tuple[pa.Table, Place]], rows: int | None, done: int
) -> Iterator[tuple[pa.Table, Place]]:
    """Gather tables into parts of a sensible size and stop at the wanted number of rows."""
    waiting: list[pa.Table] = []
    place: Place = {}
    gathered = 0
    if rows is not None and done >= rows:
        return
    for table, behind in tables:
        if waiting and not table.schema.equals(waiting[0].schema):
            yield pa.concat_tables(waiting), place  # open_source decides whether they go together
            done, gathered, waiting = done + gathered, 0, []
        left = None if rows is None else rows - done - gathered
        waiting.append(table if left is None else table.slice(0, left))
        gathered += waiting[-1].num_rows
        place = behind
        full = rows is not None and done + gathered >= rows
        if gathered >= _PART_ROWS or full:
            yield pa.concat_tables(waiting), place
            done, gathered, waiting = done + gathered, 0, []
        if full:
            return
    if waiting:
        yield pa.concat_tables(waiting), place


def _refuse_without_id(names: Sequence[str]) -> None:
    # What stands for an id is known by the columns' names; their types don't matter here.
    mapped = map_columns(pa.schema([(name, pa.string()) for name in names]))
    if ID not in {column.name for column in mapped.columns}:
        raise ColumnError(
            f"No column `{ID}` would come, nor one that can stand for it, only {', '.join(names)}.",
            "Name the id's column in --columns too, if the data set has one.",
        )


@contextlib.contextmanager
def _work_directory(output: Path) -> Iterator[Path]:
    """Yield the directory that outlives a kill, held so that no other process writes there."""
    work = output.parent / f".{output.name}.fetch"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"Can't write to {output.parent}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"Another process is fetching {output}.") from error
        yield work
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutputError(
                f"The disk is full ({os.strerror(error.errno or 0)}); what {work} holds is kept.",
                "Free some space and run the same command: it goes on there.",
            ) from error
        raise
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):
            work.rmdir()  # only if nothing was fetched


def _read_state(work: Path, settings: dict[str, object], output: Path) -> _State | None:
    path = work / _STATE
    if not path.is_file():
        return None
    try:
        state = _State(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"{path} is damaged: {error}.", f"Delete {work} to begin anew."
        ) from error
    changed = [name for name, value in settings.items() if state.settings.get(name) != value]
    if changed:
        was = "; ".join(f"{name} was {state.settings.get(name)}" for name in changed)
        raise OutputError(
            f"An interrupted fetch of {output} had other settings: {was}.",
            f"Run that command again, or delete {work} to begin anew.",
        )
    for number, rows in enumerate(state.parts):
        if (
            not _part(work, number).is_file()
            or pq.read_metadata(_part(work, number)).num_rows != rows
        ):
            raise OutputError(
                f"{_part(work, number)} is not as the interrupted fetch left it.",
                f"Delete {work} to begin anew.",
            )
    return state


def _write_state(work: Path, state: _State) -> None:
    """Note a part as finished: its bytes reach the disk before the state that names it."""
    if state.parts:
        with _part(work, len(state.parts) - 1).open("rb") as part:
            os.fsync(part.fileno())
    fresh = work / f"{_STATE}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(work / _STATE)


def _part(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05d}.parquet"


def _link(part: Path, place: Path) -> None:
    try:
        place.hardlink_to(part)
    except OSError:  # the file system has no hard links
        shutil.copyfile(part, place)


def _finish(
    work: Path, state: _State, output: Path, begun: int, *, overwrite: bool
) -> PoolGetResult:
    with new_artifact(output, overwrite=overwrite) as directory:
        for number in range(len(state.parts)):
            _link(_part(work, number), _part(directory, number))
        pool = open_source(f"{glob.escape(str(directory))}/part-*.parquet")
        digest = IdDigest()
        with open_session(pool) as session:
            for ids in ids_of(session.view("pool").select(ID).filter(f"{ID} IS NOT NULL")):
                digest.update(ids)
        address = f"hf://datasets/{state.settings['repo']}@{state.commit}"
        write_manifest(
            directory,
            Manifest(
                kind="pool",
                parameters={"stage": "pool get", **state.settings, "commit": state.commit},
                inputs=[Input("hub", address, state.commit)],
                rows_in=state.rows,
                rows_out=state.rows,
                lost={},
                id_digest=digest.hexdigest(),
                seconds=round(state.seconds, 3),
                details={"columns": list(pool.columns)},
            ),
        )
    shutil.rmtree(work)
    return PoolGetResult(
        output, str(state.settings["repo"]), state.commit, state.rows, begun, pool.columns
    )
