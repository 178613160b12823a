"""What every way of removing rows shares: results, removed.parquet, the rows that stay, examples.

A way of removing yields the rows that go in the pool's order, with their places. From that come
removed.parquet, in which each of them stands with its reason, and the bits of those that stay.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.engine import ROW_GROUP_ROWS, ZSTD_LEVEL, digest_ids
from coyo_tools.errors import ColumnError, RecipeError
from coyo_tools.hamming_search import MAX_RADIUS
from coyo_tools.manifest import IdDigest, Manifest
from coyo_tools.pages import write_page
from coyo_tools.progress import Progress
from coyo_tools.recipe import missing_column
from coyo_tools.row_hashes import holds_hashes
from coyo_tools.rows import KeptRows, write_kept
from coyo_tools.source import Source

REMOVED = "removed.parquet"
PAGE = "dedupe.html"
FLAT_RULES = ("exact", "near")
LARGEST_GROUPS = 20
MEMBERS_SHOWN = 6
_TEXT_SHOWN = 300  # characters of a caption or url

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A row of a group: how far it is from the row that stays, in bits or 1 - cosine; its text."""

    id: int
    distance: float
    text: str | None
    url: str | None


@dataclass(frozen=True)
class DuplicateGroup:
    """A row that stays, how many rows it stands for, itself included, and some of the others."""

    kept: Member
    rows: int
    removed: tuple[Member, ...]


@dataclass(frozen=True)
class SizeBin:
    """Groups of like size: how many there are, and how many rows went."""

    label: str
    groups: int
    removed: int


def size_bins(group_sizes: Mapping[Any, int]) -> list[SizeBin]:
    """Bin groups by size: 2, 3 and 4 rows, then up to each power of two.

    >>> [bin.label for bin in size_bins({2: 7, 6: 1, 8: 1, 9: 1})]
    ['2', '5 to 8', '9 to 16']
    """
    bins: dict[int, tuple[int, int]] = {}
    for key, groups in group_sizes.items():
        size = int(key)  # JSON makes strings of them
        top = size if size <= 4 else 1 << (size - 1).bit_length()
        before, removed = bins.get(top, (0, 0))
        bins[top] = (before + groups, removed + (size - 1) * groups)
    return [
        SizeBin(f"{top:,}" if top <= 4 else f"{top // 2 + 1:,} to {top:,}", groups, removed)
        for top, (groups, removed) in sorted(bins.items())
    ]


@dataclass(frozen=True)
class DedupeResult:
    """What a deduplication did.

    ``without_key`` rows have nothing to be compared by and stay. ``group_sizes`` maps a size above
    1 to its number of groups, ``by_distance`` a distance in bits to the number of rows removed at
    it. ``flat`` rows have a hash that says little of the picture, and were compared as ``--flat``
    says. ``chained`` rows are farther from the row that stays than the radius, the farthest by
    ``farthest`` bits; ``split`` components were too large. ``pairs`` of hashes are near.
    """

    output: Path
    rows_in: int
    rows_out: int
    without_key: int
    group_sizes: dict[int, int]
    by_distance: dict[int, int]
    largest: tuple[DuplicateGroup, ...] = ()
    distinct: int | None = None
    pairs: int = 0
    flat: int = 0
    chained: int = 0
    farthest: int = 0
    split: int = 0


@dataclass(frozen=True)
class SemanticResult:
    """What a deduplication by embeddings did.

    ``without_key`` rows have no embedding and stay. ``group_sizes`` is as in ``DedupeResult``;
    ``by_distance`` maps steps of 1 - cosine, by their upper ends, to rows removed. Of the
    embeddings ``not_in_pool`` have an id that no row has, ``without_id`` none at all, and
    ``repeated`` one that had come before.
    """

    output: Path
    rows_in: int
    rows_out: int
    without_key: int
    group_sizes: dict[int, int]
    by_distance: dict[str, int]
    largest: tuple[DuplicateGroup, ...]
    clusters: int
    largest_cluster: int
    not_in_pool: int
    without_id: int
    repeated: int


@dataclass(frozen=True)
class DecontaminateResult:
    """What was removed because it is too near an evaluation picture.

    ``found`` maps the name of an evaluation picture to the number of rows removed for it, the most
    first.
    """

    output: Path
    rows_in: int
    rows_out: int
    without_key: int
    evaluation_pictures: int
    evaluation_without_hash: int
    refused: tuple[tuple[str, str], ...]
    by_distance: dict[int, int]
    by_turn: dict[str, int]
    found: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Removed:
    """Some rows that go, in the pool's order: their places in it, and columns by name."""

    places: npt.NDArray[np.int64]
    columns: dict[str, Any]


def write_removed(
    batches: Iterable[Removed], schema: pa.Schema, pool_rows: int, path: Path
) -> KeptRows:
    """Write removed.parquet; return the rows of the pool that are left."""
    gone = KeptRows(pool_rows)
    # Ids hardly repeat; looking for those that do takes longer than writing them.
    few = [field.name for field in schema if field.type not in (pa.int64(), pa.uint64())]
    with pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=ZSTD_LEVEL, use_dictionary=few
    ) as writer:
        for batch in _regrouped(batches, schema, gone):
            writer.write_table(batch, row_group_size=ROW_GROUP_ROWS)
    return gone.complement()


def _regrouped(batches: Iterable[Removed], schema: pa.Schema, gone: KeptRows) -> Iterator[pa.Table]:
    """Yield tables of one size, so that the same rows give the same bytes."""
    waiting: list[pa.Table] = []
    rows = 0
    for batch in batches:
        gone.keep(batch.places)
        waiting.append(pa.table(batch.columns, schema=schema))
        rows += len(batch.places)
        while rows >= ROW_GROUP_ROWS:
            table = pa.concat_tables(waiting)
            yield table.slice(0, ROW_GROUP_ROWS).combine_chunks()
            waiting = [table.slice(ROW_GROUP_ROWS)]
            rows -= ROW_GROUP_ROWS
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def write_rest(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    kept: KeptRows,
    removed: int,
    directory: Path,
    on_progress: Progress,
) -> IdDigest:
    """Write the rows that stay; raise if they and the ``removed`` ones are not all of the pool."""
    digest = digest_ids(write_kept(session, pool, kept, directory, on_progress))
    if digest.count + removed != pool.rows:
        raise RuntimeError(
            f"{pool.rows} rows in, {digest.count} out, but {removed} removed with a reason"
        )
    return digest


def figures_of(result: DedupeResult | SemanticResult | DecontaminateResult) -> dict[str, Any]:
    """Return a result's figures as a manifest has them, without what has its own place there."""
    figures = asdict(result)
    for name in ("output", "rows_in", "rows_out"):
        del figures[name]
    return figures


def file_starts(pool: Source) -> npt.NDArray[np.int64]:
    """Return the place in the pool of each file's first row."""
    return np.array([0, *accumulate(pool.file_rows)][: len(pool.file_rows)], np.int64)


def describe_groups(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    groups: Sequence[tuple[int, int, Sequence[tuple[int, float]]]],
) -> tuple[DuplicateGroup, ...]:
    """Look up the texts and urls of some groups.

    Args:
        session: over the pool.
        pool: what it shows.
        groups: of each the id that stays, the rows, and ids and distances of some that go.
    """
    wanted = [kept for kept, _, _ in groups]
    wanted += [id_ for _, _, members in groups for id_, _ in members]
    if not wanted:
        return ()
    names = [name for name in ("text", "url") if name in pool.columns]
    rows = session.view("pool").filter(
        duckdb.ColumnExpression(ID).isin(*[duckdb.ConstantExpression(id_) for id_ in wanted])
    )
    shown: dict[int, dict[str, str | None]] = {
        row[0]: {
            name: None if value is None else _shortened(str(value))
            for name, value in zip(names, row[1:], strict=True)
        }
        for row in rows.select(ID, *names).fetchall()
    }

    def member(id_: int, distance: float) -> Member:
        known = shown[id_]
        return Member(id_, distance, known.get("text"), known.get("url"))

    return tuple(
        DuplicateGroup(member(kept, 0), rows, tuple(member(*one) for one in members))
        for kept, rows, members in groups
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"


def write_page_of(directory: Path, name: str, made: Manifest) -> None:
    """Write dedupe.html: what a manifest says was done, to be read."""
    write_page(
        directory / PAGE,
        "dedupe.html.j2",
        title=f"Duplicates: {name}" if "dedupe" in made.parameters["stage"] else name,
        made=made,
        sizes=size_bins(made.details.get("group_sizes", {})),
    )


def same_picture(by: tuple[str, ...]) -> bool:
    """Say whether rows are compared by their hash, and by nothing else."""
    return by == (IMAGE_PHASH,)


def refuse_settings(radius: int, flat: str) -> None:
    """Raise ``RecipeError`` if a radius or a rule for flat hashes is none."""
    if flat not in FLAT_RULES:
        raise RecipeError(f"--flat {flat!r} is not one of {', '.join(FLAT_RULES)}.")
    if not 0 <= radius <= MAX_RADIUS:
        raise RecipeError(
            f"--radius {radius} is not one of 0 to {MAX_RADIUS} bits.",
            "Beyond 6 bits hashes of different pictures meet; 2 to 4 are usual.",
        )


def refuse_without_hashes(pool: Source) -> None:
    """Raise ``ColumnError`` if a pool has no column of hashes."""
    if IMAGE_PHASH not in pool.columns:
        raise missing_column(IMAGE_PHASH, pool.columns)
    kind = pool.schema.field(IMAGE_PHASH).type
    if not holds_hashes(kind):
        raise ColumnError(
            f"Column `{IMAGE_PHASH}` is {kind}, which holds no hashes.",
            "A hash is a text of 16 hex digits, or an integer of 64 bits.",
        )
