"""Evaluation sets: the hashes of pictures that must not be in a training pool.

The hashes come from where they are: a pool or subset, a bare parquet file, shards, or a folder of
pictures, which are hashed here. A picture can also be hashed in the seven other ways it can lie,
since a flip moves all bits of its hash. What is compared with them, and at which distance, is
another's affair.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import ColumnExpression

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.engine import BATCH_ROWS, MISSING_ID, id_numbers, open_session, recipe_errors
from coyo_tools.errors import ColumnError, EmptyResultError, SourceError
from coyo_tools.footers import footer_of, read_tail
from coyo_tools.hashing import files_under, hash_files, name_of
from coyo_tools.manifest import MANIFEST, Input, digest_of
from coyo_tools.phash import PHASH_BITS
from coyo_tools.pictures import Refusal
from coyo_tools.progress import Progress, no_progress
from coyo_tools.remote import is_remote
from coyo_tools.row_hashes import holds_hashes, parse_hashes
from coyo_tools.shard_hashes import hash_tars, holds_tars, tars_fingerprint
from coyo_tools.source import open_source

EVALUATION_ROLE = "evaluation"

# COYO's name for it, COYO-Labeled's, and the one other people use; whatever their case.
_HASH_COLUMNS = (IMAGE_PHASH, "imagehash", "phash")
_HINT = (
    "An evaluation set is a folder of pictures, shards, a parquet file with a column "
    f"{IMAGE_PHASH}, or a pool or subset that has it."
)
_PICTURES_HINT = "If pictures beside it are meant, name their folder."
_MAGIC = b"PAR1"
_GLOB_SIGNS = frozenset("*?[")


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """An evaluation set's hashes, in the set's own order.

    ``hashes``, ``names`` and ``turns`` have one entry for each hash. A name is a file's, relative
    to the folder; a row's id; or its number from 0 where there is no id. A turn is an index of
    ``phash.TURNS``, 0 as the picture is. ``pictures`` counts the pictures that could be hashed, or
    all rows; ``without_hash`` those rows that have no hash. ``refused`` has names and reasons of
    what is in the folder and was not hashed.
    """

    path: str
    hashes: npt.NDArray[np.uint64]
    names: Sequence[str]
    turns: npt.NDArray[np.uint8]
    pictures: int
    without_hash: int
    input: Input
    refused: tuple[tuple[str, str], ...] = field(default=())


def read_evaluation(
    path: str | Path,
    *,
    augment: bool = False,
    processes: int | None = None,
    on_progress: Progress = no_progress,
) -> EvaluationSet:
    """Read an evaluation set's hashes; a row takes 17 bytes, twice that for a moment.

    Args:
        path: a pool, subset, parquet file, shards, folder of pictures, or one picture.
        augment: hash each picture's seven flips and rotations too; those that give a hash the
            picture has already, as flat ones do, are left out.
        processes: hashing processes, by default one per core.
        on_progress: called with pictures done and pictures in all.

    Raises:
        SourceError: nothing is there, it can't be read, or ``augment`` is asked of bare hashes.
        ColumnError: there is no column with hashes, or it holds something else.
        EmptyResultError: it has no hash at all.
    """
    text = str(path)
    if holds_tars(Path(text)):
        return _read_tars(text, augment, processes)
    if _holds_pictures(text):
        return _read_pictures(text, augment, processes, on_progress)
    if augment:
        raise SourceError(
            f"{text} has hashes only, and a hash can't be flipped or turned.",
            "For --augment give the folder of the pictures themselves.",
        )
    return _read_file(Path(text)) if Path(text).is_file() else _read_pool(text)


def evaluation_fingerprint(path: str | Path) -> str:
    """Return the fingerprint of an evaluation set without hashing its pictures again.

    That of parquet files covers names, sizes and footers, as any source's does. That of pictures
    covers names, sizes and the SHA-256 of every file looked at, so that it depends neither on a
    decoder's version nor on ``augment``.

    Raises:
        CoyoError: it can't be read, as in ``read_evaluation``.
    """
    text = str(path)
    if holds_tars(Path(text)):
        return tars_fingerprint(Path(text))
    if _holds_pictures(text):
        return _print_of_pictures(_files_of(Path(text)))
    return _print_of_file(Path(text)) if Path(text).is_file() else open_source(text).fingerprint


def _holds_pictures(text: str) -> bool:
    """Tell pictures from parquet files, by what is there.

    Raises:
        SourceError: nothing is.
    """
    path = Path(text)
    if is_remote(text):
        return False
    if path.is_dir():
        return not (path / MANIFEST).is_file() and not any(path.glob("*.parquet"))
    if path.is_file():
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) != _MAGIC and path.suffix != ".parquet"
    if _GLOB_SIGNS & set(text):
        return False
    raise SourceError(f"{text} does not exist or is no file.", _HINT)


# --- pictures ------------------------------------------------------------------------------------


def _files_of(path: Path) -> list[tuple[str, Path | Refusal]]:
    return files_under(path) if path.is_dir() else [(name_of(Path(path.name)), path)]


def _read_pictures(
    text: str, augment: bool, processes: int | None, on_progress: Progress
) -> EvaluationSet:
    files = _files_of(Path(text))

    def told() -> Iterator[tuple[str, tuple[str, ...] | Refusal]]:
        hashed = hash_files(files, turns=augment, processes=processes)
        for done, found in enumerate(hashed, 1):
            yield found
            on_progress(done, len(files))

    return _gather(text, told(), lambda: _print_of_pictures(files))


def _read_tars(text: str, augment: bool, processes: int | None) -> EvaluationSet:
    tars = Path(text)
    hashed = hash_tars(tars, turns=augment, processes=processes)
    return _gather(text, hashed, lambda: tars_fingerprint(tars))


def _gather(
    text: str,
    hashed: Iterator[tuple[str, tuple[str, ...] | Refusal]],
    fingerprint: Callable[[], str],
) -> EvaluationSet:
    hashes: list[int] = []
    names: list[str] = []
    turns: list[int] = []
    refused: list[tuple[str, str]] = []
    pictures = 0
    for name, result in hashed:
        if isinstance(result, Refusal):
            refused.append((name, f"{result.reason} ({result.detail})"))
            continue
        pictures += 1
        first_turns: dict[int, int] = {}
        for turn, digits in enumerate(result):
            first_turns.setdefault(int(digits, 16), turn)
        hashes += first_turns.keys()
        turns += first_turns.values()
        names += [name] * len(first_turns)
    if not hashes:
        seen = (
            f"{len(refused):,} refused; the first: {': '.join(refused[0])}" if refused else "none"
        )
        raise EmptyResultError(f"{text} has no picture that can be hashed. Files: {seen}.", _HINT)
    return EvaluationSet(
        path=text,
        hashes=np.array(hashes, np.uint64),
        names=names,
        turns=np.array(turns, np.uint8),
        pictures=pictures,
        without_hash=0,
        input=Input(EVALUATION_ROLE, text, fingerprint()),
        refused=tuple(refused),
    )


def _print_of_pictures(files: Sequence[tuple[str, Path | Refusal]]) -> str:
    parts: list[str] = []
    for name, file in files:
        if isinstance(file, Refusal):
            continue  # such as a desktop's hidden files, which come and go
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            parts += [name, str(file.stat().st_size), content]
        except OSError as error:
            parts += [name, error.strerror or "unreadable"]
    return digest_of(parts)


# --- hashes in parquet ---------------------------------------------------------------------------


class _Numbers(Sequence[str]):
    """Ids as names, made when they are looked at: a million texts would take 60 MB."""

    def __init__(self, ids: npt.NDArray[np.int64]):
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "_Numbers": ...
    def __getitem__(self, place: int | slice) -> "str | _Numbers":
        if isinstance(place, slice):
            return _Numbers(self._ids[place])
        number = int(self._ids[place])
        return "NULL" if number == MISSING_ID else str(number)


def _read_pool(text: str) -> EvaluationSet:
    try:
        source = open_source(text)
    except ColumnError as error:
        raise ColumnError(
            error.what, f"One parquet file needs no `{ID}`: name that. {_PICTURES_HINT}"
        ) from error
    column = _hash_column(text, source.schema)
    with open_session(source) as session, recipe_errors(source):
        rows = session.table("pool").select(ColumnExpression(column), ColumnExpression(ID))
        batches = (tuple(batch.columns) for batch in rows.to_arrow_reader(BATCH_ROWS))
        return _collect(text, column, batches, source.fingerprint)


def _read_file(path: Path) -> EvaluationSet:
    """Read one parquet file, which need not have an ``id``."""
    fingerprint = _print_of_file(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            column = _hash_column(str(path), schema)
            with_id = ID in schema.names and pa.types.is_integer(schema.field(ID).type)
            asked = [column, ID] if with_id else [column]
            batches = (
                tuple(batch.column(name) for name in asked)
                for batch in file.iter_batches(BATCH_ROWS, columns=asked)
            )
            return _collect(str(path), column, batches, fingerprint)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} can't be read: {error}.") from error


def _print_of_file(path: Path) -> str:
    """Return what ``open_source`` would, which asks for an id."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        size = path.stat().st_size
        try:
            return digest_of([path.name, str(size), footer_of(read_tail(size, read))])
        except ValueError as error:
            raise SourceError(f"{path} is not a readable parquet file: {error}.") from error


def _hash_column(text: str, schema: pa.Schema) -> str:
    by_name = {name.lower(): name for name in reversed(schema.names)}
    for wanted in _HASH_COLUMNS:
        if wanted in by_name:
            break
    else:
        raise ColumnError(
            f"{text} has no column {' or '.join(_HASH_COLUMNS)}; it has "
            f"{', '.join(schema.names[:30])}.",
            _PICTURES_HINT,
        )
    kind = schema.field(by_name[wanted]).type
    if not holds_hashes(kind):
        raise ColumnError(
            f"Column `{by_name[wanted]}` of {text} is {kind}, not a text of 16 hex digits or a "
            f"{PHASH_BITS}-bit integer."
        )
    return str(by_name[wanted])


def _collect(
    text: str, column: str, batches: Iterator[tuple[pa.Array, ...]], fingerprint: str
) -> EvaluationSet:
    """Put the hashes of batches (hashes, and ids where there are any) together."""
    rows = malformed = 0
    example = ""
    hashes: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    ids: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    for found, *given in batches:
        numbers = id_numbers(given[0]) if given else np.arange(rows, rows + len(found))
        bits, read = parse_hashes(found)
        ids.append(numbers[read])
        hashes.append(bits[read])
        odd = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False) & ~read)
        malformed += len(odd)
        if len(odd) and not example:
            example = str(found[int(odd[0])].as_py())[:40]
        rows += len(found)
    if malformed:
        raise ColumnError(
            f"{malformed:,} of the {rows:,} rows of {text} have something in `{column}` that is no "
            f"hash of 16 hex digits, such as {example!r}.",
            "Mend them, or leave them out, before anything is compared with them.",
        )
    if rows == 0:
        raise EmptyResultError(f"{text} has columns but no rows.")
    every = np.concatenate(hashes)
    if len(every) == 0:
        raise EmptyResultError(f"None of the {rows:,} rows of {text} has a hash in `{column}`.")
    return EvaluationSet(
        path=text,
        hashes=every,
        names=_Numbers(np.concatenate(ids)),
        turns=np.zeros(len(every), np.uint8),
        pictures=rows,
        without_hash=rows - len(every),
        input=Input(EVALUATION_ROLE, text, fingerprint),
    )
