"""Verify: make a subset again from what its manifest says, and compare ids and bytes.

A subset that replays is one that somebody else can make. What keeps it from replaying is named: an
input that has changed, rows that differ, files that were touched, other versions of the libraries
that write them. Embeddings are not made again, which would take the model as long as it took: what
can be told without it is whether they are whole.
"""

import filecmp
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coyo_tools.balance import ENTRIES_ROLE, balance_pool, read_entries
from coyo_tools.dedupe import (
    EMBEDDINGS_ROLE,
    SEMANTIC_STAGE,
    decontaminate_pool,
    dedupe_by_meaning,
    dedupe_pool,
)
from coyo_tools.errors import CoyoError, OutputError, SourceError
from coyo_tools.evaluation import EVALUATION_ROLE, evaluation_fingerprint
from coyo_tools.filter import filter_pool
from coyo_tools.manifest import IdDigest, Manifest, library_versions, read_manifest
from coyo_tools.score import score_pool
from coyo_tools.score_settings import SHARDS_ROLE, ScoreSettings, input_fingerprint, is_source
from coyo_tools.selection import Selection
from coyo_tools.shuffle import shuffle_texts
from coyo_tools.source import open_source
from coyo_tools.vectors import VECTORS_KIND, open_vectors
from coyo_tools.within import keep_within

# Those that decide which rows there are and how they lie in a file.
_DECIDING = (
    "coyo-tools", "duckdb", "polars", "pyarrow", "sqlglot", "imagehash", "pillow", "torch",
    "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of a subset that was made again.

    ``same_ids`` and ``same_bytes`` compare it with the one on disk; both are None when it could not
    be made again. ``problems`` says what is wrong, ``remarks`` what may explain it.
    """

    rows: int
    same_ids: bool | None
    same_bytes: bool | None
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def replays(self) -> bool:
        """Say whether everything came out the same."""
        return bool(self.same_ids and self.same_bytes and not self.problems)


@dataclass(frozen=True)
class Check:
    """What became of embeddings that were read through: ``problems`` is empty if they are whole."""

    rows: int
    sides: tuple[str, ...]
    problems: tuple[str, ...]


def verify_embeddings(directory: Path) -> Check:
    """Read embeddings through, and compare them with their manifest.

    Files and their sizes, rows, widths, ids, and every number: finite, and of length 1 where the
    manifest says so. Whether the model gives them is not tried.

    Raises:
        SourceError: it is no directory of embeddings, or the first thing that is wrong with it.
    """
    found = open_vectors(directory)
    problems = []
    for side in found.sides:
        for _ in found.blocks(side, unit=found.about.normalised):
            pass
    digest = IdDigest()
    for _, ids, valid in found.ids():
        digest.update(ids[valid])
    if digest.hexdigest() != found.manifest.id_digest:
        problems.append(
            f"Its rows have other ids, {digest.hexdigest()}, than its manifest says, "
            f"{found.manifest.id_digest}."
        )
    left = found.manifest.rows_in - sum(found.manifest.lost.values())
    if left != found.rows:
        problems.append(f"Its manifest adds up to {left:,} rows, and there are {found.rows:,}.")
    return Check(found.rows, found.sides, tuple(problems))


def verify_subset(
    directory: Path,
    *,
    source: str | None = None,
    memory: str | None = None,
    threads: int | None = None,
) -> Verdict:
    """Make a subset again, beside it and only for a while, and compare.

    Args:
        directory: the subset.
        source: where its input is now, if no longer where the manifest says.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        SourceError: it is no subset, or made by a stage that can't be done again.
        OutputError: there is no room for a second one.
    """
    manifest = read_manifest(directory, kind="subset")
    stage = manifest.parameters.get("stage")
    if stage not in _REPLAYS:
        raise SourceError(
            f"{directory} was made by {stage!r}, which can't be done again.",
            f"Subsets of {', '.join(_REPLAYS)} can.",
        )
    pool = source or manifest.inputs[0].path
    problems, gone = _check_inputs(manifest, source)
    remarks: list[str] = []
    if problems and source is None:
        remarks.append("If the input lies elsewhere now, name it with --source.")
    remarks += _version_remarks(manifest)
    if gone:
        return Verdict(manifest.rows_out, None, None, tuple(problems), tuple(remarks))
    try:
        with tempfile.TemporaryDirectory(prefix=".verify-", dir=directory.absolute().parent) as own:
            again = Path(own) / "again"
            try:
                _REPLAYS[str(stage)](manifest, pool, again, memory, threads)
            except OutputError:
                raise
            except CoyoError as error:
                problems.append(f"It can't be made again: {error.what}")
                return Verdict(manifest.rows_out, None, None, tuple(problems), tuple(remarks))
            made = read_manifest(again)
            same_ids = made.id_digest == manifest.id_digest and made.rows_out == manifest.rows_out
            if not same_ids:
                problems.append(
                    f"Other rows come out now: {made.rows_out:,} instead of "
                    f"{manifest.rows_out:,}, ids {made.id_digest} instead of {manifest.id_digest}."
                )
            different = _different_files(directory, again)
            problems += [f"{name} {what}." for name, what in different.items()]
    except OSError as error:
        raise OutputError(f"Can't write beside {directory}: {error.strerror}.") from error
    return Verdict(manifest.rows_out, same_ids, not different, tuple(problems), tuple(remarks))


def can_verify(manifest: Manifest) -> bool:
    """Say whether ``coyo verify`` makes an artifact again, or reads it through."""
    replays = manifest.kind == "subset" and manifest.parameters.get("stage") in _REPLAYS
    return replays or manifest.kind == VECTORS_KIND


def _check_inputs(manifest: Manifest, source: str | None) -> tuple[list[str], bool]:
    """Say which inputs are not what they were, and whether one can't be read at all."""
    problems: list[str] = []
    gone = False
    for number, item in enumerate(manifest.inputs):
        path = source if source is not None and number == 0 else item.path
        try:
            now = _fingerprint(item.role, path)
        except CoyoError as error:
            problems.append(f"Its {item.role} {path} is gone or damaged: {error.what}")
            gone = True
            continue
        if now != item.fingerprint:
            problems.append(f"Its {item.role} {path} has changed since.")
    return problems, gone


def _fingerprint(role: str, path: str) -> str:
    if role == ENTRIES_ROLE:
        return read_entries(path).sha256
    if role == EVALUATION_ROLE:
        return evaluation_fingerprint(path)
    if role == EMBEDDINGS_ROLE:
        return open_vectors(Path(path)).as_input(role).fingerprint
    if is_source(role):
        return input_fingerprint(role, path)
    return open_source(path).fingerprint


def _version_remarks(manifest: Manifest) -> list[str]:
    now = library_versions()
    return [
        f"{name} was {manifest.versions[name]}, is {now.get(name, 'not installed')}."
        for name in _DECIDING
        if name in manifest.versions and manifest.versions[name] != now.get(name)
    ]


def _different_files(directory: Path, again: Path) -> dict[str, str]:
    """Say of each data file that is not the same in both what is different about it."""
    here = {path.name for path in directory.glob("*.parquet")}
    there = {path.name for path in again.glob("*.parquet")}
    found = dict.fromkeys(here - there, "is not made by this command")
    found |= dict.fromkeys(there - here, "is missing")
    for name in sorted(here & there):
        if not filecmp.cmp(directory / name, again / name, shallow=False):
            found[name] = "has other bytes than when it is made again"
    return dict(sorted(found.items()))


def _replay_filter(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked: dict[str, Any] = manifest.parameters
    selection = Selection(
        recipes=(asked["query"],),
        top_of=asked["top_of"],
        sample=asked["sample"],
        seed=asked["seed"],
        order_by=asked["order_by"],
        limit=asked["limit"],
    )
    filter_pool(pool, selection, output, memory=memory, threads=threads)


def _replay_dedupe(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked: dict[str, Any] = manifest.parameters
    dedupe_pool(
        pool,
        output,
        by=tuple(asked["by"]),
        keep=asked["keep"],
        radius=asked["radius"],
        linkage=asked["linkage"],
        max_group=asked["max_group"],
        flat=asked["flat"],
        normalize=asked["normalize"],
        memory=memory,
        threads=threads,
    )


def _replay_semantic(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked: dict[str, Any] = manifest.parameters
    dedupe_by_meaning(
        pool,
        output,
        embeddings=Path(asked["embeddings"]),
        epsilon=asked["epsilon"],
        clusters=asked["clusters"],
        keep=asked["keep"],
        seed=asked["seed"],
        memory=memory,
        threads=threads,
    )


def _replay_decontaminate(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked: dict[str, Any] = manifest.parameters
    decontaminate_pool(
        pool,
        output,
        against=asked["against"],
        radius=asked["radius"],
        augment=asked["augment"],
        flat=asked["flat"],
        memory=memory,
        threads=threads,
    )


def _replay_within(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    keep_within(pool, manifest.parameters["other"], output, memory=memory, threads=threads)


def _replay_shuffle(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked = manifest.parameters
    shuffle_texts(
        pool, output, share=asked["share"], seed=asked["seed"], memory=memory, threads=threads
    )


def _replay_balance(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked: dict[str, Any] = manifest.parameters
    entries = next(item.path for item in manifest.inputs if item.role == ENTRIES_ROLE)
    balance_pool(
        pool,
        entries,
        output,
        max_per_entry=asked["max_per_entry"],
        seed=asked["seed"],
        memory=memory,
        threads=threads,
    )


def _replay_score(
    manifest: Manifest, pool: str, output: Path, memory: str | None, threads: int | None
) -> None:
    asked = {name: value for name, value in manifest.parameters.items() if name != "stage"}
    shards = next((item.path for item in manifest.inputs if item.role == SHARDS_ROLE), None)
    settings = ScoreSettings(**asked | {"replace": tuple(asked["replace"])})
    score_pool(
        pool,
        output,
        settings,
        shards=None if shards is None else Path(shards),
        memory=memory,
        threads=threads,
    )


_Replay = Callable[[Manifest, str, Path, str | None, int | None], None]
_REPLAYS: dict[str, _Replay] = {
    "filter": _replay_filter,
    "dedupe": _replay_dedupe,
    SEMANTIC_STAGE: _replay_semantic,
    "decontaminate": _replay_decontaminate,
    "within": _replay_within,
    "shuffle": _replay_shuffle,
    "balance": _replay_balance,
    "score": _replay_score,
}
