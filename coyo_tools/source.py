"""Opens a pool or subset for reading: which files, which columns, how many rows.

Only parquet footers are read, so opening COYO's 128 parts takes milliseconds each. What can be
wrong with somebody's files (missing, truncated, not parquet, parts that differ) is said here, by
file name, before any stage starts.
"""

import glob
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.errors import ColumnError, EmptyResultError, SourceError
from coyo_tools.footers import ENGINE_TAIL_BYTES, column_ends, footer_of, parse_tail, read_tail
from coyo_tools.layouts import ColumnMap, map_columns
from coyo_tools.manifest import MANIFEST, Input, digest_of, read_manifest
from coyo_tools.remote import find_remote, is_remote

READABLE_KINDS = ("pool", "subset")
NOTES = "column_notes"  # where a subset's manifest keeps the notes of the pool it was made from
_GLOB_SIGNS = frozenset("*?[")
_WHOLE_IN_DOUBLE = 2**53
_AT_ONCE = 16


@dataclass(frozen=True)
class Source:
    """A pool or subset: the path as given, its parquet files in order, their common schema.

    ``files`` are paths or urls; ``file_rows`` and ``file_bytes`` have one number for each.
    ``schema`` is that of the view ``pool``: COYO's names, types as stored. ``notes`` says,
    by column, what is not quite as COYO has it.
    """

    path: str
    files: tuple[str, ...]
    file_rows: tuple[int, ...]
    file_bytes: tuple[int, ...]
    schema: pa.Schema
    column_map: ColumnMap
    fingerprint: str
    notes: Mapping[str, str] = field(default_factory=dict)
    unify_types: bool = False
    tails: tuple[bytes, ...] = field(default=(), repr=False)
    reads: tuple[Callable[[int, int], bytes], ...] = field(default=(), repr=False, compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of the view ``pool``, in order."""
        return tuple(self.schema.names)

    @property
    def remote(self) -> bool:
        """Whether the files lie behind urls."""
        return is_remote(self.files[0])

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.file_rows)

    def metadata(self) -> Iterator[pq.FileMetaData]:
        """Yield what each file's footer says, in order; nothing is read again."""
        return map(parse_tail, self.tails)

    def as_input(self, role: str) -> Input:
        """Describe this source for a manifest."""
        return Input(role, self.path, self.fingerprint)


@dataclass(frozen=True)
class _Found:
    """One file before it is opened: what it is called, its size, how to read it."""

    name: str
    size: int
    read: Callable[[int, int], bytes]
    tag: str = ""


def open_source(path: str | Path) -> Source:
    """Open a parquet file, a glob, a directory of parquet files, or a subset; here or behind a url.

    A pool with LAION's, DataComp's or COYO-Labeled's columns gets COYO's names. Integers, and
    floats, of different widths in different parts become the widest. The fingerprint covers file
    names, sizes and parquet footers: it changes with the schema, the row counts or the column
    statistics, and costs no scan.

    Raises:
        SourceError: nothing there, not parquet, damaged, or parts with different columns.
        ColumnError: no integer column ``id``, or two columns that differ in case alone.
        EmptyResultError: no rows at all.
    """
    text = str(path)
    found = _find_files(text)
    if not found:
        raise SourceError(f"{text} holds no parquet file.")
    opened = _read_footers(found)
    stored = _common_schema(found, [metadata for _, metadata in opened])
    column_map = map_columns(stored)
    schema = pa.schema([(column.name, column.type) for column in column_map.columns])
    _check_names(text, schema)
    _check_ids(text, schema, column_map, [metadata for _, metadata in opened])
    notes = {column.name: column.note for column in column_map.columns if column.note}
    prints: list[bytes | str] = []
    for file, (tail, _) in zip(found, opened, strict=True):
        prints += [_base_name(file.name), str(file.size), footer_of(tail)]
        prints += [file.tag] if file.tag else []
    source = Source(
        path=text,
        files=tuple(file.name for file in found),
        file_rows=tuple(metadata.num_rows for _, metadata in opened),
        file_bytes=tuple(file.size for file in found),
        schema=schema,
        column_map=column_map,
        fingerprint=digest_of(prints),
        notes=_inherited_notes(text) | notes,
        unify_types=any(
            not _plain_schema(metadata.schema.to_arrow_schema()).equals(stored)
            for _, metadata in opened
        ),
        tails=tuple(tail for tail, _ in opened),
        reads=tuple(file.read for file in found),
    )
    if source.rows == 0:
        raise EmptyResultError(f"{text} has columns but no rows.")
    return source


def _base_name(name: str) -> str:
    """Return a file's name without folders, and without a url's query, such as a signature."""
    path = urlsplit(name).path if is_remote(name) else name
    return path.rpartition("/")[2]


def _find_files(text: str) -> list[_Found]:
    if is_remote(text):
        return [_Found(file.url, file.size, file.read, file.tag) for file in find_remote(text)]
    return [_local(path) for path in _find_paths(text)]


def _local(path: Path) -> _Found:
    def read(start: int, end: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    return _Found(str(path), path.stat().st_size, read)


def _read_footers(found: list[_Found]) -> list[tuple[bytes, pq.FileMetaData]]:
    """Read every file's footer; those behind urls side by side, since it is waiting mostly."""
    if not is_remote(found[0].name):
        return [_read_footer(file) for file in found]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_read_footer, found))


def _find_paths(text: str) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_of_directory(path)
    if _GLOB_SIGNS & set(text):
        files = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207
        files = [file for file in files if file.is_file()]
        if files:
            return files
        raise SourceError(f"No file matches {text}.")
    raise SourceError(f"{text} does not exist.", "Check the path; relative ones start here.")


def _files_of_directory(path: Path) -> list[Path]:
    if path.name.startswith(".") and path.name.endswith(".partial"):
        raise SourceError(f"{path} is the rest of an interrupted run, not a result.")
    if (path / MANIFEST).is_file():
        kind = read_manifest(path).kind
        if kind == "index":
            raise SourceError(f"{path} holds a pool and shards.", f"Use {path / 'pool'}.")
        if kind not in READABLE_KINDS:
            raise SourceError(f"{path} is a {kind} directory, not a pool or subset.")
        return sorted(path.glob("part-*.parquet"))
    files = sorted(file for file in path.glob("*.parquet") if file.is_file())
    if not files:
        raise SourceError(f"{path} holds no *.parquet file.")
    return files


def _inherited_notes(text: str) -> dict[str, str]:
    """Return the notes of the pool that a subset was made from, as its manifest keeps them."""
    directory = Path(text)
    if is_remote(text) or not (directory / MANIFEST).is_file():
        return {}
    notes = read_manifest(directory).details.get(NOTES, {})
    if not isinstance(notes, dict):
        raise SourceError(f"{directory / MANIFEST} is damaged: its {NOTES} are no mapping.")
    return {str(name): str(note) for name, note in notes.items()}


def _read_footer(file: _Found) -> tuple[bytes, pq.FileMetaData]:
    """Return a parquet file's last bytes and what its footer says."""
    try:
        keep = ENGINE_TAIL_BYTES if is_remote(file.name) else 0
        tail = read_tail(file.size, file.read, keep=keep)
        return tail, parse_tail(tail)
    except (ValueError, OSError) as error:
        raise SourceError(
            f"{file.name} is not a readable parquet file: {error}.",
            "If it was downloaded, it may be cut short: fetch it again.",
        ) from error


def _common_schema(found: list[_Found], metadata: list[pq.FileMetaData]) -> pa.Schema:
    """Return the schema that holds every file's values.

    Raises:
        SourceError: a file has other columns, or types that none of them can hold.
    """
    first = common = _plain_schema(metadata[0].schema.to_arrow_schema())
    for file, part_metadata in zip(found[1:], metadata[1:], strict=True):
        part = _plain_schema(part_metadata.schema.to_arrow_schema())
        widened = _widest(common, part)
        if widened is None:
            raise SourceError(
                f"{file.name} has other columns than {found[0].name}: "
                f"{_schema_difference(first, part)}.",
                "Give only files that belong together.",
            )
        common = widened
    return common


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return names and types alone: libraries differ in large strings, nullability, metadata."""
    return pa.schema([(column.name, _plain_type(column.type)) for column in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _widest(one: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    """Return the schema that holds both, or ``None``: same names in the same order.

    Signed integers of different widths go together, and so do float and double: no value changes.
    """
    if one.names != other.names:
        return None
    kinds: list[pa.DataType] = []
    for name in one.names:
        pair = one.field(name).type, other.field(name).type
        alike = pair[0].equals(pair[1]) or any(
            all(test(kind) for kind in pair)
            for test in (pa.types.is_signed_integer, pa.types.is_floating)
        )
        if not alike:
            return None
        kinds.append(pair[0] if pair[0].equals(pair[1]) else max(pair, key=lambda k: k.bit_width))
    return pa.schema(list(zip(one.names, kinds, strict=True)))


def _schema_difference(one: pa.Schema, other: pa.Schema) -> str:
    missing = [name for name in one.names if name not in other.names]
    extra = [name for name in other.names if name not in one.names]
    retyped = [
        f"{name} is {other.field(name).type} instead of {one.field(name).type}"
        for name in one.names
        if name in other.names and other.field(name).type != one.field(name).type
    ]
    said = []
    if missing:
        said.append(f"missing {', '.join(missing)}")
    if extra:
        said.append(f"extra {', '.join(extra)}")
    return "; ".join([*said, *retyped]) or "the same columns in another order"


def _check_names(text: str, schema: pa.Schema) -> None:
    seen: dict[str, str] = {}
    for name in schema.names:
        if name.lower() in seen:
            raise ColumnError(
                f"{text} has two columns that SQL can't tell apart: "
                f"`{seen[name.lower()]}` and `{name}`.",
                "Rename or drop one of them.",
            )
        seen[name.lower()] = name


def _check_ids(
    text: str, schema: pa.Schema, column_map: ColumnMap, metadata: list[pq.FileMetaData]
) -> None:
    if ID not in schema.names:
        raise ColumnError(
            f"{text} has no column `{ID}`; it has {', '.join(schema.names[:30])}.",
            "Every row needs a unique integer id; for pictures of your own, `coyo index` makes it.",
        )
    shown = column_map.columns[schema.get_field_index(ID)]
    if not pa.types.is_integer(shown.type):
        named = f"Column `{shown.stored}`" + ("" if shown.stored == ID else f" (`{ID}` here)")
        raise ColumnError(f"{named} of {text} is {shown.type}, not an integer.")
    if shown.macro == "id_of_double":
        highest = max(
            (abs(end) for part in metadata for end in column_ends(part, shown.stored)), default=0.0
        )
        if highest > _WHOLE_IN_DOUBLE:
            raise ColumnError(
                f"Column `{shown.stored}` of {text} is stored as a floating-point number and "
                f"reaches {highest:.3g}; beyond 2**53 such numbers skip integers.",
                "Ids would collide. Get the files from where it is stored as an integer.",
            )
