"""The facts of a dataset card, from manifests, parquet footers and a ledger; nothing is guessed.

Whether the rows are COYO-700M's decides what may be said of licence, language and the collection's
own limits. Manifests know it where the road began on the hub; else the columns tell, and the card
says that it was they.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from coyo_tools.columns import PUBLISHED
from coyo_tools.describe import ColumnFacts, describe_pool
from coyo_tools.engine import digest_ids
from coyo_tools.errors import SourceError
from coyo_tools.manifest import MANIFEST, Manifest, read_manifest
from coyo_tools.publish.chain import COYO_REPOS, Road, read_road
from coyo_tools.publish.fates import Fates, count_fates
from coyo_tools.source import Source, open_source

PARTS = "part-*.parquet"
COYO_LICENSE = "cc-by-4.0"
UNKNOWN_LICENSE = "unknown"
# COYO's own models; a pool that has them all and says nothing else is taken for COYO's.
_COYOS_OWN = ("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score", "num_tokens_gpt")
# What to do with a directory of ours that is no subset.
_ELSEWHERE = {
    "pool": "`coyo filter POOL … -o SUBSET` makes one of a pool.",
    "index": "Its pool/ holds the rows: `coyo filter INDEX/pool … -o SUBSET` makes a subset.",
    "shards": "Pictures are not published; `coyo card SUBSET --shards SHARDS` tells their fates.",
    "run": "A model goes to the hub as it is: `hf upload OWNER/NAME RUN`.",
}


@dataclass(frozen=True)
class Part:
    """One parquet file: its name, size and SHA-256."""

    name: str
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class CardSettings:
    """What nobody but the user can say; None leaves it to the facts.

    Args:
        title: of the card; default the directory's name.
        repo: where it will be, as OWNER/NAME.
        coyo: whether the rows are COYO-700M's.
        license: a licence as the hub names it.
        language: of the texts, as ISO 639-1 has it.
    """

    title: str | None = None
    repo: str | None = None
    coyo: bool | None = None
    license: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Card:
    """All that a card says.

    ``uncompressed`` are the bytes of all columns before compression. ``coyo`` says whether the rows
    are COYO-700M's, ``coyo_by`` on what ground. ``license`` is ``unknown`` and ``language`` None
    where neither facts nor the user tell.
    """

    title: str
    repo: str | None
    directory: str
    manifest: Manifest
    road: Road
    rows: int
    parts: tuple[Part, ...]
    uncompressed: int
    schema: pa.Schema
    columns: tuple[ColumnFacts, ...]
    absent: tuple[str, ...]
    coyo: bool
    coyo_by: str
    license: str
    language: str | None
    fates: Fates | None

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def rows_at_start(self) -> int:
        """Rows that the first known step read."""
        return self.road.steps[0].manifest.rows_in


def read_card(
    directory: Path,
    settings: CardSettings | None = None,
    *,
    shards: Path | None = None,
    memory: str | None = None,
) -> Card:
    """Gather the facts on a subset; its ids and the bytes of its parts are read once.

    Args:
        directory: the subset.
        settings: what the user says.
        shards: what was downloaded for it, if anything.
        memory: DuckDB's memory limit, for the ledger.

    Raises:
        SourceError: it is no subset, its files are not those that were written, or the shards
            are no help.
    """
    wanted = settings or CardSettings()
    manifest = read_subset(directory)
    subset = open_source(directory)
    parts = read_parts(directory, subset, manifest)
    road = read_road(directory)
    coyo, coyo_by = _is_coyo(wanted, road, subset)
    return Card(
        title=wanted.title or directory.resolve().name,
        repo=wanted.repo,
        directory=directory.resolve().name,
        manifest=manifest,
        road=road,
        rows=subset.rows,
        parts=parts,
        uncompressed=sum(
            part.row_group(group).total_byte_size
            for part in subset.metadata()
            for group in range(part.num_row_groups)
        ),
        schema=subset.schema,
        columns=describe_pool(directory).columns,
        absent=tuple(name for name in PUBLISHED if name not in subset.columns),
        coyo=coyo,
        coyo_by=coyo_by,
        license=wanted.license or (COYO_LICENSE if coyo else UNKNOWN_LICENSE),
        language=wanted.language or ("en" if coyo else None),
        fates=None if shards is None else count_fates(subset, shards, memory=memory),
    )


def read_subset(directory: Path) -> Manifest:
    """Read a subset's manifest.

    Raises:
        SourceError: it is none; what it is instead, and which command is for that.
    """
    if not (directory / MANIFEST).is_file():
        return read_manifest(directory, kind="subset")
    manifest = read_manifest(directory)
    if manifest.kind != "subset":
        raise SourceError(
            f"{directory} is a {manifest.kind} directory, not a subset.",
            _ELSEWHERE.get(manifest.kind, "`coyo filter`, `dedupe` and `balance` make subsets."),
        )
    return manifest


def read_parts(directory: Path, subset: Source, manifest: Manifest) -> tuple[Part, ...]:
    """Describe a subset's files, and make sure that they are those that its manifest is of.

    Raises:
        SourceError: other rows, or other ids.
    """
    paths = [Path(file) for file in subset.files]
    digest = digest_ids(paths)
    if digest.count != manifest.rows_out or digest.hexdigest() != manifest.id_digest:
        raise SourceError(
            f"{directory} was touched since it was written: it has {digest.count:,} rows with ids "
            f"{digest.hexdigest()}, its {MANIFEST} says {manifest.rows_out:,} with "
            f"{manifest.id_digest}.",
            "`coyo verify` says what differs; the command that made it makes it again.",
        )
    return tuple(
        Part(path.name, size, rows, sha256_of(path))
        for path, size, rows in zip(paths, subset.file_bytes, subset.file_rows, strict=True)
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_coyo(wanted: CardSettings, road: Road, subset: Source) -> tuple[bool, str]:
    if wanted.coyo is not None:
        return wanted.coyo, "whoever wrote this card says so"
    if road.repo is not None:
        return road.repo in COYO_REPOS, f"it was read from {road.repo}"
    if road.origin is not None:
        return False, f"its pool is made by {road.made_by}"
    has_all = all(name in subset.columns for name in _COYOS_OWN)
    own = has_all and not any(name in subset.notes for name in _COYOS_OWN)
    return own, f"it {'has' if own else 'lacks'} COYO's own columns"
