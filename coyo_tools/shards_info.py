"""What lies in a folder of shards: counts, sizes, faults, and whether the ledger tells the truth.

One pass over the tars in memory that does not grow with them; what has to be compared by key goes
to a file and through DuckDB. Folders that others made (img2dataset's, with positions for keys and
no ledger) are looked at as well, and what they lack is said. No picture is decoded, but for the
few of the grid.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID
from coyo_tools.engine import open_session, read_sql, recipe_errors
from coyo_tools.errors import CoyoError, OutputError, SourceError
from coyo_tools.manifest import MANIFEST, IdDigest, Manifest, read_manifest
from coyo_tools.progress import Progress, no_progress
from coyo_tools.sample_grid import check_grid, draw_grid
from coyo_tools.shard_tally import ColumnUse, Fault, ShardTally, Spread
from coyo_tools.shards import LEDGER, SHARDS_KIND
from coyo_tools.source import open_source
from coyo_tools.tar_samples import TarSample, tar_samples

_PARTS = ("jpg", "txt", "json")
_ROWS = 65_536
_EXAMPLE_TARS = 3
_INSIDE = pa.schema(
    [
        (ID, pa.int64()),  # the sample's place, since keys may be anything
        ("key", pa.string()),
        ("number", pa.int64()),  # the key as an id, where it is one
        ("tar", pa.string()),
        ("whole", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class TarSize:
    """A tar and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class LedgerInfo:
    """A ledger's rows by outcome, and how many should lie in a tar: ``ok``.

    ``not_found`` of these don't, ``not_in_ledger`` samples lie in a tar that the ledger does not
    name for them.
    """

    rows: int
    outcomes: dict[str, int]
    ok: int
    not_found: int
    not_in_ledger: int


@dataclass(frozen=True)
class ShardsInfo:
    """All that ``coyo shards info`` finds out about a folder.

    ``whole`` samples have all parts: ``.jpg``, ``.txt`` (not those of a labelled pool) and
    ``.json`` in our own shards, in others'
    what more than half of the samples have; ``files`` counts samples by the suffixes they have.
    ``missing`` says what our own shards would have besides, which is no fault.
    """

    directory: str
    tars: int
    bytes: int
    smallest: TarSize
    largest: TarSize
    samples: int
    whole: int
    files: dict[str, int]
    width: Spread
    height: Spread
    picture_bytes: Spread
    caption_length: Spread
    empty_captions: int
    columns: tuple[ColumnUse, ...]
    ledger: LedgerInfo | None
    faults: tuple[Fault, ...]
    missing: tuple[str, ...]
    drawn: int


def shards_info(
    directory: Path,
    *,
    grid: Path | None = None,
    samples: int = 24,
    seed: int = 0,
    memory: str | None = None,
    on_progress: Progress = no_progress,
) -> ShardsInfo:
    """Look through all tars of a folder, and draw a grid of samples if asked.

    Args:
        directory: a folder of tars.
        grid: a .png or .jpg to write.
        samples: how many samples the grid shows.
        seed: which; the same shards and seed show the same.
        memory: DuckDB's memory limit, for the comparison by key.
        on_progress: is told of tars done and tars in all.

    Raises:
        SourceError: there is no such folder, or no tar in it.
        OutputError: the grid can't be written, or the memory limit is no good.
    """
    if grid is not None:
        check_grid(grid)
    paths, special = _tars_of(directory)
    manifest = _manifest_of(directory)
    ours = isinstance(manifest, Manifest) or (directory / LEDGER).exists()
    parts: tuple[str, ...] = _PARTS
    if isinstance(manifest, Manifest) and manifest.details.get("captions") is False:
        parts = ("jpg", "json")  # of a labelled pool
    tally = ShardTally(parts if ours else (), samples if grid is not None else 0, seed)
    for path in special:
        tally.faults.add("named like a tar, but no file", path.name)
    with tempfile.TemporaryDirectory(prefix="coyo-shards-") as scratch:
        with _Inside(Path(scratch) / "inside.parquet") as inside:
            for number, path in enumerate(paths):
                _look_through(path, tally, inside)
                on_progress(number + 1, len(paths))
        whole = tally.whole()
        ledger = _compare(directory, inside.path, manifest, tally, memory)
    drawn = draw_grid(tally.drawn, grid) if grid is not None else 0
    sizes = [TarSize(path.name, path.stat().st_size) for path in paths]
    return ShardsInfo(
        directory=str(directory),
        tars=len(paths),
        bytes=sum(size.bytes for size in sizes),
        smallest=min(sizes, key=lambda size: size.bytes),
        largest=max(sizes, key=lambda size: size.bytes),
        samples=tally.samples,
        whole=whole,
        files=tally.files(),
        width=tally.width.spread(),
        height=tally.height.spread(),
        picture_bytes=tally.picture_bytes.spread(),
        caption_length=tally.caption_length.spread(),
        empty_captions=tally.empty_captions,
        columns=tally.columns(),
        ledger=ledger,
        faults=tally.faults.all(),
        missing=tuple(_missing(directory, tally)),
        drawn=drawn,
    )


def _tars_of(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return a folder's tars, and what is named like one but is no file."""
    if not directory.is_dir():
        state = "is not a directory" if directory.exists() else "does not exist"
        raise SourceError(f"{directory} {state}.", "Give the folder that holds the .tar files.")
    named = sorted(directory.glob("*.tar"))
    paths = [path for path in named if path.is_file()]
    if not paths:
        inner = directory / "shards"
        raise SourceError(
            f"{directory} holds no .tar files.",
            f"Use {inner}." if inner.is_dir() else "`coyo download` and `coyo index` make them.",
        )
    return paths, [path for path in named if not path.is_file()]


def _manifest_of(directory: Path) -> Manifest | str | None:
    """Return a folder's manifest, None if there is none, or what is wrong with it."""
    if not (directory / MANIFEST).exists():
        return None
    try:
        return read_manifest(directory, SHARDS_KIND)
    except SourceError as error:
        return error.what


def _missing(directory: Path, tally: ShardTally) -> list[str]:
    missing = []
    for name, use in ((LEDGER, "what became of each row"), (MANIFEST, "how they were made")):
        if not (directory / name).exists():
            missing.append(f"no {name}, so nothing says {use}")
    if tally.numbered < tally.samples:
        missing.append(f"{tally.samples - tally.numbered:,} keys are no 64-bit ids")
    if tally.without_id:
        missing.append(f"{tally.without_id:,} samples have no id in a .json: keys may be positions")
    return missing


class _Inside:
    """Writes down which samples lie in which tar, to be compared by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = pq.ParquetWriter(path, _INSIDE)
        self._rows: list[tuple[Any, ...]] = []
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._writer.close()

    def add(self, tar: Path, sample: TarSample, whole: bool) -> None:
        place = self._written + len(self._rows)
        self._rows.append((place, sample.key, sample.id, tar.name, whole))
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(values, field.type) for values, field in zip(columns, _INSIDE, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_INSIDE))
            self._written += len(self._rows)
            self._rows = []


def _look_through(path: Path, tally: ShardTally, inside: _Inside) -> None:
    before = tally.samples
    for sample in tar_samples(path, tally.faults.within(path)):
        inside.add(path, sample, tally.add(path, sample))
    if tally.samples == before:
        # datasets fails on a folder whose first tar is empty.
        tally.faults.add("tar without a sample", path.name)


def _compare(
    directory: Path,
    inside: Path,
    manifest: Manifest | str | None,
    tally: ShardTally,
    memory: str | None,
) -> LedgerInfo | None:
    """Compare what lies in the tars with itself, with the ledger and with the manifest."""
    if isinstance(manifest, str):
        tally.faults.add(f"unreadable {MANIFEST}", manifest)
    ledger = directory / LEDGER
    info = None
    if ledger.exists():
        try:
            info = _compare_ledger(ledger, inside, manifest, tally, memory)
        except OutputError:  # too little memory, which says nothing of the ledger
            raise
        except CoyoError as error:
            tally.faults.add(f"unreadable {LEDGER}", error.what)
    if tally.samples:
        with open_session(open_source(inside), output=inside.parent, memory=memory) as session:
            session.sql("FROM pool").create_view("inside")
            _tell_repeated(session, tally)
    return info


def _tell_repeated(session: duckdb.DuckDBPyConnection, tally: ShardTally) -> None:
    repeated = session.execute(read_sql("shards/repeated.sql"))
    while rows := repeated.fetchmany(_ROWS):
        for key, samples, tars in rows:
            where = ", ".join(tars[:_EXAMPLE_TARS])
            tally.faults.add("key that several samples have", f"{key}: {samples} in {where}")


def _compare_ledger(
    ledger: Path,
    inside: Path,
    manifest: Manifest | str | None,
    tally: ShardTally,
    memory: str | None,
) -> LedgerInfo:
    source = open_source(ledger)
    for name in ("outcome", "shard"):
        if name not in source.columns:
            raise SourceError(f"{ledger} has no column `{name}`.")
    with (
        open_session(source, output=inside.parent, memory=memory) as session,
        recipe_errors(source),
    ):
        session.read_parquet(str(inside)).create_view("inside")
        found = session.sql(read_sql("shards/agreement.sql"))
        (row,) = found.fetchall()
        counts = dict(zip(found.columns, row, strict=True))
        outcomes = dict(session.sql(read_sql("shards/outcomes.sql")).fetchall())
        digest = IdDigest()
        for batch in session.sql("SELECT id FROM pool WHERE outcome = 'ok'").to_arrow_reader():
            digest.update(batch.column(0).drop_null().to_numpy(zero_copy_only=False))
    for name, reason in _DISAGREEMENTS.items():
        if counts[name]:
            tally.faults.add(reason, f"{LEDGER} against the tars", counts[name])
    if isinstance(manifest, Manifest):
        made = {
            "rows asked for": (manifest.rows_in, counts["rows"]),
            "rows that are ok": (manifest.rows_out, counts["ok"]),
            "digest of their ids": (manifest.id_digest, digest.hexdigest()),
        }
        for what, (said, seen) in made.items():
            if said != seen:
                detail = f"{what}: {said} in {MANIFEST}, {seen} in {LEDGER}"
                tally.faults.add(f"{MANIFEST} that is not true", detail)
    return LedgerInfo(
        rows=counts["rows"],
        outcomes=outcomes,
        ok=counts["ok"],
        not_found=counts["without_shard"] + counts["not_in_tar"] + counts["incomplete_in_tar"],
        not_in_ledger=counts["not_in_ledger"],
    )


_DISAGREEMENTS = {
    "repeated": "id twice in the ledger",
    "without_shard": "ok in the ledger, but no shard named",
    "not_in_tar": "in the ledger, but not in the tar it names",
    "incomplete_in_tar": "in the ledger, but not whole in the tar it names",
    "not_in_ledger": "in a tar, but not by the ledger",
}
