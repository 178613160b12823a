"""The stage ``dedupe``: of rows that are the same picture, text or link, the best one stays.

What was removed, in favour of which row and at what distance stands in ``removed.parquet``: rows
in are rows out and its rows. Rows with nothing to be compared by stay, and are counted.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from coyo_tools.columns import ID, IMAGE_PHASH
from coyo_tools.dedupe.exact import (
    candidates_sql,
    find_equal,
    group_sizes,
    largest_groups,
    removed_rows,
    rows_without_key,
)
from coyo_tools.dedupe.keep import KeepPolicy, keep_policy
from coyo_tools.dedupe.near import NearSettings, find_near
from coyo_tools.dedupe.removal import (
    REMOVED,
    DedupeResult,
    describe_groups,
    figures_of,
    refuse_settings,
    refuse_without_hashes,
    same_picture,
    write_page_of,
    write_removed,
    write_rest,
)
from coyo_tools.engine import (
    available_cores,
    memory_share,
    open_session,
    recipe_errors,
    refuse_pool_with_duplicate_ids,
)
from coyo_tools.errors import RecipeError
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.phash import ORDINARY_BITS
from coyo_tools.progress import Progress, no_progress
from coyo_tools.rows import KeptRows
from coyo_tools.source import NOTES, Source, open_source

LINKAGES = ("star", "components")

# Of the memory, DuckDB's part: it sorts and spills; the rest holds arrays.
_ENGINE_SHARE = 0.25

_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),
        pa.field("duplicate_of", pa.int64()),
        pa.field("distance", pa.uint8()),
    ]
)


@dataclass(frozen=True)
class _Done:
    """What a way of deduplicating found: the rows that stay, counts, the SQL that ran."""

    kept: KeptRows
    result: DedupeResult
    sql: str


def dedupe_pool(
    source: str | Path,
    output: Path,
    *,
    by: tuple[str, ...] = (IMAGE_PHASH,),
    keep: str = ID,
    radius: int = 0,
    linkage: str = "star",
    max_group: int | None = None,
    flat: str = "exact",
    normalize: bool = False,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    on_progress: Progress = no_progress,
) -> DedupeResult:
    """Write one row of every group of duplicates.

    Args:
        source: the pool or subset.
        output: the subset to write.
        by: columns that make two rows duplicates when all agree. ``image_phash`` alone compares
            hashes: 16 hex digits, anything else is no hash.
        keep: ORDER BY terms; the first row in that order stays. NULL and NaN come last, either
            way; ties end by id.
        radius: hashes that differ in up to so many bits are duplicates too, 0 to 12.
        linkage: ``star``: a row goes only if it is within the radius of one that stays.
            ``components``: whatever hangs together in chains is one group.
        max_group: components of more rows than this are left to ``star``.
        flat: ``exact``: pictures with a flat hash, of fewer than 24 or more than 40 bits set, are
            duplicates of equal ones only, because such a hash says little. ``near``: as any other.
        normalize: compare texts without case, punctuation, digits and extra white space.
        overwrite: replace an earlier result.
        memory: what DuckDB and the search may take together, such as ``"8GB"``.
        threads: how many threads.
        on_progress: told how far the search and the writing are.

    Raises:
        CoyoError: of the kind that says which of source, columns or output is at fault.
    """
    watch = Stopwatch()
    pool = open_source(source)
    check_dedupe(by, radius, linkage, max_group, flat, normalize)
    policy = keep_policy(pool, keep)
    candidates = candidates_sql(pool, by, policy, normalize)
    pictures = same_picture(by)
    if pictures:
        refuse_without_hashes(pool)
    settings = NearSettings(radius, linkage == "components", max_group, flat == "near")
    engine_memory, array_memory = memory_share(memory, _ENGINE_SHARE)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(
            pool,
            output=directory,
            memory=engine_memory if pictures else memory,
            threads=threads,
        ) as session,
        recipe_errors(pool),
    ):
        if pictures:
            done = _near(
                session, pool, policy, settings, output, directory, array_memory,
                threads or available_cores(), watch, on_progress,
            )  # fmt: skip
        else:
            done = _exact(session, pool, policy, candidates, output, directory)
        watch.finished("writing removed.parquet" if pictures else "finding equal rows")
        result = done.result
        removed = sum(result.by_distance.values())
        digest = write_rest(session, pool, done.kept, removed, directory, on_progress)
        watch.finished("writing the rows that stay")
        made = Manifest(
            kind="subset",
            parameters={
                "stage": "dedupe",
                "by": list(by),
                "keep": keep,
                "radius": radius,
                "linkage": linkage,
                "max_group": max_group,
                "flat": flat,
                "normalize": normalize,
            },
            inputs=[pool.as_input("pool")],
            rows_in=pool.rows,
            rows_out=digest.count,
            lost=_losses(result, by, radius, normalize),
            id_digest=digest.hexdigest(),
            seconds=watch.seconds(),
            details={
                **figures_of(result),
                "ordinary_bits": list(ORDINARY_BITS),
                "seconds_by_step": watch.steps,
                NOTES: dict(pool.notes),
            },
            sql=done.sql,
        )
        write_manifest(directory, made)
        write_page_of(directory, output.name, made)
    return result


def check_dedupe(
    by: tuple[str, ...] = (IMAGE_PHASH,),
    radius: int = 0,
    linkage: str = "star",
    max_group: int | None = None,
    flat: str = "exact",
    normalize: bool = False,
) -> None:
    """Raise ``RecipeError`` if settings of ``dedupe_pool`` are none, or contradict each other."""
    if linkage not in LINKAGES:
        raise RecipeError(f"--linkage {linkage!r} is not one of {', '.join(LINKAGES)}.")
    refuse_settings(radius, flat)
    if radius and not same_picture(by):
        raise RecipeError(
            f"--radius measures hashes, but rows are compared by {', '.join(by)}.",
            f"Say --by {IMAGE_PHASH}, or leave --radius out.",
        )
    if max_group is not None and linkage != "components":
        raise RecipeError(
            "--max-group splits chains, and star makes none.",
            "Add --linkage components, or leave --max-group out.",
        )
    if max_group is not None and max_group < 1:
        raise RecipeError(f"--max-group {max_group} is not a number of rows.")
    if normalize and same_picture(by):
        raise RecipeError("--normalize is for texts.", "For example: --by text --normalize")


def _exact(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    policy: KeepPolicy,
    candidates: str,
    output: Path,
    directory: Path,
) -> _Done:
    refuse_pool_with_duplicate_ids(session, pool.path)
    sql = find_equal(session, candidates, policy)
    kept = write_removed(removed_rows(session, pool), _SCHEMA, pool.rows, directory / REMOVED)
    removed = pool.rows - kept.count
    sizes = group_sizes(session)
    if sum((size - 1) * groups for size, groups in sizes.items()) != removed:
        raise RuntimeError(f"{removed} rows went but the groups explain another number: {sizes}")
    return _Done(
        kept,
        DedupeResult(
            output,
            pool.rows,
            kept.count,
            rows_without_key(session),
            sizes,
            {0: removed} if removed else {},
            largest_groups(session, pool),
        ),
        sql,
    )


def _near(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    policy: KeepPolicy,
    settings: NearSettings,
    output: Path,
    directory: Path,
    memory: int,
    threads: int,
    watch: Stopwatch,
    on_progress: Progress,
) -> _Done:
    scratch = directory / ".near"
    scratch.mkdir()
    found = find_near(
        session, pool, policy, settings, scratch,
        memory=memory, threads=threads, watch=watch, on_progress=on_progress,
    )  # fmt: skip
    duplicates = found.duplicates
    kept = write_removed(duplicates.removed(), _SCHEMA, pool.rows, directory / REMOVED)
    largest = duplicates.largest()
    shutil.rmtree(scratch)  # an array of ids may lie there until now
    chained, farthest = duplicates.chained()
    return _Done(
        kept,
        DedupeResult(
            output,
            pool.rows,
            kept.count,
            found.without_hash,
            duplicates.group_sizes(),
            {bits: int(rows) for bits, rows in enumerate(duplicates.by_distance) if rows},
            describe_groups(session, pool, largest),
            distinct=found.distinct,
            pairs=found.pairs,
            flat=found.flat,
            chained=chained,
            farthest=farthest,
            split=found.split,
        ),
        "",
    )


def _losses(
    result: DedupeResult, by: tuple[str, ...], radius: int, normalize: bool
) -> dict[str, int]:
    equal = result.by_distance.get(0, 0)
    alike = f"same {', '.join(by)}" + (" when normalized" if normalize else "")
    lost = {alike: equal}
    if radius:
        removed = sum(result.by_distance.values())
        lost[f"within {radius} bits of a better row"] = removed - equal - result.chained
        if result.chained:
            lost["joined to a better row by a chain"] = result.chained
    return lost
