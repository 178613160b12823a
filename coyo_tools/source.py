"""Opens a pool or subset for reading: which files, which columns, how many rows.

Only parquet footers are read, so opening COYO's 128 parts takes milliseconds each. What can be
wrong with somebody's files (missing, truncated, not parquet, parts that differ) is said here, by
file name, before any stage starts. Remote addresses are left out for now.
"""

import glob
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.errors import ColumnError, EmptyResultError, SourceError
from coyo_tools.manifest import MANIFEST, Input, digest_of, read_manifest

READABLE_KINDS = ("pool", "subset")
_GLOB_SIGNS = frozenset("*?[")


@dataclass(frozen=True)
class Source:
    """A pool or subset: the path as given, its parquet files in order, their common schema."""

    path: str
    files: tuple[Path, ...]
    schema: pa.Schema
    rows: int
    fingerprint: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names in file order."""
        return tuple(self.schema.names)

    def as_input(self, role: str) -> Input:
        """Describe this source for a manifest."""
        return Input(role, self.path, self.fingerprint)


def open_source(path: str | Path) -> Source:
    """Open a parquet file, a glob, a directory of parquet files, or a subset.

    The fingerprint covers file names, sizes and parquet footers: it changes with the schema, the
    row counts or the column statistics, and costs no scan.

    Raises:
        SourceError: nothing there, not parquet, damaged, or parts with different columns.
        ColumnError: no integer column ``id``.
        EmptyResultError: no rows at all.
    """
    text = str(path)
    files = _find_files(text)
    schema: pa.Schema | None = None
    rows = 0
    prints: list[bytes | str] = []
    for file in files:
        metadata, footer = _read_footer(file)
        part = _plain_schema(metadata.schema.to_arrow_schema())
        if schema is None:
            schema = part
        elif not part.equals(schema):
            raise SourceError(
                f"{file} has other columns than {files[0]}: {_schema_difference(schema, part)}.",
                "Give only files that belong together.",
            )
        rows += metadata.num_rows
        prints += [file.name, str(file.stat().st_size), footer]
    if schema is None:
        raise SourceError(f"{text} holds no parquet file.")
    if ID not in schema.names:
        raise ColumnError(
            f"{text} has no column `{ID}`; it has {', '.join(schema.names[:30])}.",
            "Every row needs a unique integer id; for pictures of your own, `coyo index` makes it.",
        )
    if not pa.types.is_integer(schema.field(ID).type):
        raise ColumnError(f"Column `{ID}` of {text} is {schema.field(ID).type}, not an integer.")
    if rows == 0:
        raise EmptyResultError(f"{text} has columns but no rows.")
    return Source(text, tuple(files), schema, rows, digest_of(prints))


def _find_files(text: str) -> list[Path]:
    if "://" in text:
        raise SourceError(f"{text} is a remote address; only local files can be opened so far.")
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


def _read_footer(file: Path) -> tuple[pq.FileMetaData, bytes]:
    """Return a parquet file's metadata and the raw bytes of its footer."""
    try:
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.metadata
        with file.open("rb") as raw:
            raw.seek(-8, 2)
            length = int.from_bytes(raw.read(4), "little")
            raw.seek(-8 - length, 2)
            return metadata, raw.read(length)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(
            f"{file} is not a readable parquet file: {reason}",
            "If it was downloaded, it may be cut short: fetch it again.",
        ) from error


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return names and types alone: libraries differ in large strings, nullability, metadata."""
    large = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return pa.schema([(field.name, large.get(field.type, field.type)) for field in schema])


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
