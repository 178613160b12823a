"""Embeddings on disk: parts of plain ``.npy`` arrays that are memory-mapped, with a row for each.

A directory holds ``manifest.json`` (kind ``embeddings``) and parts. Of a part
``part-00000.parquet`` has a row per embedding, ``part-00000.image.npy`` and ``part-00000.text.npy``
have the embeddings themselves, float32 in C order, (rows, width), as
``numpy.load(path, mmap_mode="r")`` reads them anywhere. Rows are numbered through all parts.

Parts are mapped when they are read and let go at once: memory does not grow with the number of
embeddings, nor does the number of open files. What is in a directory is a stranger's until it is
checked: headers, sizes and counts on opening, numbers as they are read. Left out: making
embeddings, and anything that looks for something in them.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.errors import SourceError
from coyo_tools.manifest import Input, Manifest, digest_of, read_manifest

VECTORS_KIND = "embeddings"
SIDES = ("image", "text")
PART_ROWS = 65_536
BLOCK_ROWS = 8_192
SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),  # null where the data has none
        pa.field("key", pa.string()),
        pa.field("text", pa.string()),
        # Where the picture lies: a file below the directory ``pictures`` of the manifest, and the
        # bytes of it.
        pa.field("tar", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
    ]
)

_DETAILS = "embeddings"  # of the manifest
_NOTE = b"coyo.note"  # of a part's parquet
_ROW_GROUP = 8_192  # what a look-up of one row reads
_NOT_FINITE = "is not finite (NaN, infinite or beyond 1e19); the model that made it is damaged"
LENGTH_SLACK = 1e-3  # of a unit vector, after a detour through float16

# What numpy's parser of headers raises for gibberish, besides a file that can't be read.
_NO_HEADER = (ValueError, SyntaxError, TokenError, RecursionError, MemoryError, OSError)

Matrix = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class About:
    """What embeddings are of.

    Attributes:
        model: the directory or hub id of the model.
        fingerprint: of its content; embeddings of different models can't be compared.
        widths: numbers in an embedding, by side; the sides that there are.
        normalised: whether all have length 1.
        hidden_states: whether they are the towers' own outputs, in which a picture and a text have
            nothing to do with each other.
        pictures: the directory that ``tar`` is below, "" where there is none.
    """

    model: str
    fingerprint: str
    widths: dict[str, int]
    normalised: bool
    hidden_states: bool = False
    pictures: str = ""

    def details(self) -> dict[str, Any]:
        """Return what belongs into ``Manifest.details`` for ``open_vectors`` to read."""
        return {_DETAILS: asdict(self)}


@dataclass(frozen=True)
class Part:
    """One part: its files' common name, its rows, and the number of its first row."""

    stem: str
    rows: int
    start: int


class VectorWriter:
    """Writes parts one after the other, each whole or not there; goes on where another stopped.

    Use inside ``manifest.resumable_artifact``, and write the manifest with ``About.details`` at the
    end. The parquet of a part is the last of its files to get its name.

    Args:
        directory: where to write.
        sides: some of ``SIDES``; every part has all of them.

    Raises:
        SourceError: what is there already is damaged.
    """

    def __init__(self, directory: Path, sides: Sequence[str] = SIDES) -> None:
        if not sides or not set(sides) <= set(SIDES):
            raise ValueError(f"sides are some of {SIDES}, not {tuple(sides)}")
        self._directory = directory
        self._sides = tuple(side for side in SIDES if side in sides)
        self.parts = 0
        self.rows = 0
        self.widths: dict[str, int] = {}
        while (directory / f"{_stem(self.parts)}.parquet").is_file():
            part, widths = _read_part(directory, self.parts, self.rows, self._sides)
            self._agree(widths)
            self.parts += 1
            self.rows += part.rows
        for path in directory.glob(".part-*.partial"):
            path.unlink()

    def write_part(
        self, rows: pa.Table, vectors: Mapping[str, Matrix], note: Mapping[str, Any] | None = None
    ) -> None:
        """Write the next part.

        Args:
            rows: with the columns of ``SCHEMA``, of which what is not known is null.
            vectors: float32 (rows, width) for each side; finite.
            note: what to remember of the part, as JSON can hold it; see ``notes``.

        Raises:
            ValueError: these don't fit together, or a number is none.
        """
        table = rows.select(SCHEMA.names).cast(SCHEMA)
        if set(vectors) != set(self._sides):
            raise ValueError(f"a part has {', '.join(self._sides)}, not {', '.join(vectors)}")
        for side, matrix in vectors.items():
            if matrix.ndim != 2 or len(matrix) != len(table) or matrix.dtype != np.float32:
                raise ValueError(f"{side}: {matrix.dtype} {matrix.shape} for {len(table)} rows")
            if not np.isfinite(matrix).all():
                raise ValueError(f"an embedding of a {side} is not finite")
        self._agree({side: matrix.shape[1] for side, matrix in vectors.items()})
        stem = _stem(self.parts)
        for side in self._sides:
            with (
                _named_when_whole(self._directory / f"{stem}.{side}.npy") as path,
                path.open("wb") as file,
            ):
                _save(file, np.ascontiguousarray(vectors[side]))
        about = {_NOTE: json.dumps(dict(note or {}), ensure_ascii=False).encode()}
        with _named_when_whole(self._directory / f"{stem}.parquet") as path:
            pq.write_table(
                table.replace_schema_metadata(about), path, compression="zstd",
                row_group_size=_ROW_GROUP,
            )  # fmt: skip
        self.parts += 1
        self.rows += len(table)

    def notes(self) -> list[dict[str, Any]]:
        """Return what was noted with each part, those of an earlier process included."""
        return [_note(self._directory / f"{_stem(n)}.parquet") for n in range(self.parts)]

    def _agree(self, widths: dict[str, int]) -> None:
        if self.widths and widths != self.widths:
            raise ValueError(f"parts have widths {self.widths}, and now {widths}")
        self.widths = widths


def _save(file: BinaryIO, matrix: Matrix) -> None:
    """Write what ``numpy.save`` does, which does not say why when the disk is full."""
    header = np.lib.format.header_data_from_array_1_0(matrix)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(matrix.data)


@contextlib.contextmanager
def _named_when_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name, whose file reaches the disk before it gets its own."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


@dataclass(frozen=True)
class Vectors:
    """A directory of embeddings, opened; nothing is read of the embeddings themselves yet.

    Attributes:
        directory: it.
        about: what they are of.
        parts: in order.
        manifest: all that the manifest says.
    """

    directory: Path
    about: About
    parts: tuple[Part, ...]
    manifest: Manifest

    @property
    def rows(self) -> int:
        """How many embeddings of each side there are."""
        return self.parts[-1].start + self.parts[-1].rows if self.parts else 0

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of ``SIDES`` there are."""
        return tuple(self.about.widths)

    def as_input(self, role: str) -> Input:
        """Describe these embeddings for a manifest: model, ids and rows, not the numbers."""
        about = [self.about.fingerprint, json.dumps(self.about.widths), str(self.about.normalised)]
        parts = [f"{part.stem} {part.rows}" for part in self.parts]
        print_ = digest_of([*about, self.manifest.id_digest, *parts])
        return Input(role, str(self.directory), print_)

    def width(self, side: str) -> int:
        """Return how many numbers an embedding of this side has.

        Raises:
            SourceError: the side is not there.
        """
        if side not in self.about.widths:
            there = " and ".join(f"{name}s" for name in self.sides)
            raise SourceError(
                f"{self.directory} has no {side} embeddings, only those of {there}.",
                f"Choose another side, or embed the {side}s as well.",
            )
        return self.about.widths[side]

    def mapped(self, side: str) -> Iterator[tuple[Part, Matrix]]:
        """Yield each part with its embeddings as they lie on the disk, unchecked.

        Raises:
            SourceError: the side is not there.
        """
        self.width(side)
        for part in self.parts:
            yield part, _load(self.directory / f"{part.stem}.{side}.npy")

    def blocks(
        self, side: str, rows_per_block: int = BLOCK_ROWS, *, unit: bool = False
    ) -> Iterator[tuple[int, Matrix]]:
        """Yield the number of a block's first row, and the block, (rows, width).

        Args:
            side: one of ``sides``.
            rows_per_block: the most; a block ends with its part.
            unit: have them of length 1: normalised here where they are stored raw.

        Raises:
            SourceError: the side is not there; an embedding is not finite, or with ``unit`` zero or
                not of length 1 though the manifest says so.
        """
        for part, matrix in self.mapped(side):
            for first in range(0, part.rows, rows_per_block):
                block = matrix[first : first + rows_per_block]
                yield part.start + first, self.checked(side, part.start + first, block, unit=unit)

    def checked(self, side: str, first: int | Ints, block: Matrix, *, unit: bool) -> Matrix:
        """Check some embeddings as ``blocks`` does; ``first`` is the first row, or all of them."""
        if unit:
            lengths = self.lengths(side, first, block)
            return block if self.about.normalised else block / lengths[:, None]
        finite: npt.NDArray[np.bool_] = np.all(np.isfinite(block), axis=1)
        self._refuse(side, first, ~finite, _NOT_FINITE)
        return block

    def lengths(self, side: str, first: int | Ints, block: Matrix) -> Matrix:
        """Return the length of each embedding, (rows,); checks as ``blocks`` with ``unit``."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares: Matrix = np.einsum("ij,ij->i", block, block)
        self._refuse(side, first, ~np.isfinite(squares), _NOT_FINITE)
        self._refuse(side, first, squares == 0, "is zero and has no direction")
        if self.about.normalised:
            off = np.abs(squares - 1) > 2 * LENGTH_SLACK
            self._refuse(side, first, off, "does not have length 1, as the manifest says")
        return np.asarray(np.sqrt(squares), np.float32)

    def _refuse(self, side: str, first: int | Ints, bad: npt.NDArray[np.bool_], what: str) -> None:
        """Raise ``SourceError`` with the place of the first bad embedding, if there is one."""
        if not bad.any():
            return
        place = int(np.argmax(bad))
        row = first + place if isinstance(first, int) else int(first[place])
        part = next(part for part in reversed(self.parts) if part.start <= row)
        raise SourceError(
            f"{self.directory / part.stem}.{side}.npy: the embedding of row {row - part.start} "
            f"{what}.",
            "Embed the data again, with another model if need be.",
        )

    def take(self, side: str, rows: Ints, *, unit: bool = False) -> Matrix:
        """Read some embeddings, (rows, width), in the order asked for; checked as ``blocks``."""
        found = np.empty((len(rows), self.width(side)), np.float32)
        for part, places in self._by_part(rows):
            matrix = _load(self.directory / f"{part.stem}.{side}.npy")
            found[places] = matrix[rows[places] - part.start]
        return self.checked(side, rows, found, unit=unit)

    def table(self, rows: Ints, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
        """Look up the metadata of some rows, in the order asked for; reads little besides."""
        tables, order = [], []
        for part, places in self._by_part(rows):
            with pq.ParquetFile(self.directory / f"{part.stem}.parquet") as file:
                sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
                ends = np.cumsum(sizes)
                inside = rows[places] - part.start
                groups = np.unique(np.searchsorted(ends, inside, side="right"))
                starts = (ends - sizes)[groups]
                table = file.read_row_groups(groups.tolist(), columns=list(columns))
                before = np.cumsum([0, *(sizes[group] for group in groups)])
                at = np.searchsorted(starts, inside, side="right") - 1
                tables.append(table.take(pa.array(before[at] + inside - starts[at])))
            order.append(places)
        if not tables:
            return pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(tables).take(pa.array(back)).select(list(columns))

    def ids(self) -> Iterator[tuple[Part, Ints, npt.NDArray[np.bool_]]]:
        """Yield of each part the ids, and which rows have one; the id of the others is 0."""
        for part in self.parts:
            path = self.directory / f"{part.stem}.parquet"
            column = pq.read_table(path, columns=[ID]).column(0).combine_chunks()
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            yield part, column.fill_null(0).to_numpy(zero_copy_only=False), valid

    def _by_part(self, rows: Ints) -> Iterator[tuple[Part, Ints]]:
        """Yield the parts that have some of the rows, and the places of these among them."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise ValueError(f"rows {rows.min()} to {rows.max()} of {self.rows}")
        starts = np.array([part.start for part in self.parts])
        of = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(of):
            yield self.parts[number], np.flatnonzero(of == number)


def open_vectors(directory: Path) -> Vectors:
    """Open a directory of embeddings: reads the manifest, and of each file the header.

    Raises:
        SourceError: it is none, or a part is missing, cut short, of another width or number type,
            or has another number of rows than its parquet.
    """
    manifest = read_manifest(directory, kind=VECTORS_KIND)
    about = _about(directory, manifest)
    parts: list[Part] = []
    rows = 0
    while (directory / f"{_stem(len(parts))}.parquet").is_file():
        part, widths = _read_part(directory, len(parts), rows, tuple(about.widths))
        for side, width in widths.items():
            if width != about.widths[side]:
                raise SourceError(
                    f"{directory / part.stem}.{side}.npy has embeddings of {width} numbers; the "
                    f"manifest says {about.widths[side]}.",
                    "Parts of two models don't go together: embed the data again.",
                )
        parts.append(part)
        rows += part.rows
    if rows != manifest.rows_out:
        raise SourceError(
            f"{directory} has {rows:,} rows in {len(parts):,} parts; its manifest says "
            f"{manifest.rows_out:,}.",
            f"Is {_stem(len(parts))}.parquet missing? Copy the directory again.",
        )
    if rows == 0:
        raise SourceError(f"{directory} holds no embeddings.")
    return Vectors(directory, about, tuple(parts), manifest)


def _about(directory: Path, manifest: Manifest) -> About:
    try:
        about = About(**manifest.details[_DETAILS])
        widths = {side: int(about.widths[side]) for side in SIDES if side in about.widths}
        right = set(about.widths) <= set(SIDES) and widths and min(widths.values()) > 0
        if not right or not isinstance(about.normalised, bool):
            raise ValueError(f"widths {about.widths!r}, normalised {about.normalised!r}")
        return About(**{**asdict(about), "widths": widths})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{directory / 'manifest.json'} does not say what its embeddings are of: {error}."
        ) from error


def _stem(number: int) -> str:
    return f"part-{number:05d}"


def _read_part(
    directory: Path, number: int, start: int, sides: Sequence[str]
) -> tuple[Part, dict[str, int]]:
    """Read the headers of a part's files; return it and the widths of its sides."""
    stem = _stem(number)
    path = directory / f"{stem}.parquet"
    try:
        schema = pq.read_schema(path)
        rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} is damaged or cut short: {error}.") from error
    if missing := [name for name in SCHEMA.names if name not in schema.names]:
        raise SourceError(f"{path} has no column `{missing[0]}`.")
    for field in SCHEMA:
        kind = schema.field(field.name).type
        if kind != field.type:
            raise SourceError(f"{path}: column `{field.name}` is {kind}, not {field.type}.")
    widths = {}
    for side in sides:
        array = directory / f"{stem}.{side}.npy"
        shape = _shape(array)
        if shape[0] != rows:
            raise SourceError(
                f"{array} has {shape[0]:,} embeddings for the {rows:,} rows of {path.name}."
            )
        widths[side] = shape[1]
    return Part(stem, rows, start), widths


def _shape(path: Path) -> tuple[int, int]:
    """Return the shape of a float32 matrix, read from its file's header."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, kind = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {version}")
            wanted = file.tell() + int(np.prod(shape, dtype=object)) * kind.itemsize
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise SourceError(f"{path} is missing.", "Copy the directory again.") from error
    except _NO_HEADER as error:
        raise SourceError(f"{path} is no .npy file that can be read: {error}.") from error
    if kind != np.dtype("<f4") or fortran or len(shape) != 2:
        order = " in Fortran order" if fortran else ""
        raise SourceError(
            f"{path} is {kind} {tuple(shape)}{order}, not float32 (rows, width) in C order."
        )
    if size != wanted:
        what = "is cut short" if size < wanted else "is too long"
        raise SourceError(
            f"{path} {what}: {size:,} bytes instead of {wanted:,}.", "Copy the directory again."
        )
    return int(shape[0]), int(shape[1])


def _load(path: Path) -> Matrix:
    matrix: Matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    return matrix.view(np.ndarray)  # every slice of a memmap costs microseconds


def _note(path: Path) -> dict[str, Any]:
    raw = (pq.read_schema(path).metadata or {}).get(_NOTE, b"{}")
    note: dict[str, Any] = json.loads(raw)
    return note
