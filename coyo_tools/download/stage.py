"""The road of a download: plan, fetch, pack as batches are done, then ledger, report, manifest.

Everything lies in the output's ``.NAME.partial`` until it is whole, and stays there when the stage
is stopped: the same command goes on from it. What it was begun for stands beside it, so that other
rows or settings are never mixed in.
"""

import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from coyo_tools.columns import ID, IMAGE_PHASH, LABELS, TEXT, URL
from coyo_tools.download.fetch import check_policy, fetch
from coyo_tools.download.forecast import Forecast, forecast_from
from coyo_tools.download.ledger import OK
from coyo_tools.download.packing import is_packed, pack_shard
from coyo_tools.download.pilot import forecast_of, run_pilot, use_pilots
from coyo_tools.download.plan import (
    FATES,
    Plan,
    keep_plan,
    number_urls,
    read_plan,
    view_hashes,
    write_plan,
)
from coyo_tools.download.report import write_download_report
from coyo_tools.download.settings import DownloadResult, DownloadSettings, check_settings
from coyo_tools.engine import (
    available_cores,
    ids_of,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
)
from coyo_tools.errors import (
    ColumnError,
    EmptyResultError,
    OutputError,
    SourceError,
)
from coyo_tools.manifest import (
    MANIFEST,
    IdDigest,
    Manifest,
    Stopwatch,
    begun_artifact,
    put_back,
    read_manifest,
    refuse_existing,
    resumable_artifact,
    saying_when_stopped,
    settings_digest,
    write_manifest,
)
from coyo_tools.progress import Progress, no_progress
from coyo_tools.shards import LEDGER, SHARDS_KIND, shard_name
from coyo_tools.source import Source, open_source

_STAGE = "download"
_PACKING_SECONDS = 1.0


def download_pictures(
    source: str | Path,
    output: Path,
    settings: DownloadSettings | None = None,
    *,
    overwrite: bool = False,
    retry: bool = False,
    restart: bool = False,
    on_progress: Progress = no_progress,
) -> DownloadResult:
    """Fetch the pictures of a pool or subset into shards with a ledger.

    A finished download of the same rows with the same settings is left as it is, without a request.
    One that was stopped goes on.

    Args:
        source: the pool or subset; with columns ``url``, and ``text`` or ``labels``.
        output: directory to make.
        settings: how.
        overwrite: replace a finished result, whatever it is of.
        retry: ask again, in a finished result, for what could come at another time.
        restart: discard what a stopped download has fetched.
        on_progress: called with urls that were asked for and urls in all.

    Raises:
        CoyoError: the source is at fault, the output is something else, img2dataset failed, or not
            one picture arrived.
    """
    watch = Stopwatch()
    chosen = settings or DownloadSettings()
    check_settings(chosen)
    check_policy(chosen)
    pool = _open_pool(source)
    put_back(output)
    earlier: Manifest | None = None
    if _is_there(output) and not overwrite:
        earlier = _same_download(output, pool, chosen)
        if not retry or not earlier.details["retryable"]:
            return _finished_before(output, earlier)
    elif retry:
        raise SourceError(
            f"--retry tries again what a finished download lacks, and there is none in {output}.",
            "Leave --retry out. A download that was stopped goes on by itself.",
        )
    begun_for = _begun_for(pool, chosen, earlier)
    with (
        saying_when_stopped(_kept(output)),
        resumable_artifact(
            output, begun_for, overwrite=overwrite or retry, restart=restart
        ) as directory,
    ):
        fetched = 0
        if not (directory / MANIFEST).is_file():  # it is there if all but the last move was done
            fetched = _make(
                pool, directory, chosen, output if earlier else None, watch, on_progress
            )
        made = read_manifest(directory)
        shutil.rmtree(directory / "work", ignore_errors=True)
    return replace(_result(output, made), fetched=fetched, seconds=watch.seconds())


def _make(
    pool: Source,
    directory: Path,
    settings: DownloadSettings,
    earlier: Path | None,
    watch: Stopwatch,
    on_progress: Progress,
) -> int:
    """Make all of an artifact, the manifest last; return how many urls were asked for."""
    for left in directory.glob(".spill-*"):
        shutil.rmtree(left)
    work = directory / "work"
    resumed = read_plan(work) is not None
    plan = _plan(pool, directory, settings, earlier)
    asked = _fetch_and_pack(directory, work, plan, settings, earlier, on_progress)
    if earlier is not None:
        _take_over(earlier, directory)
    with open_session(pool, output=directory) as session, recipe_errors(pool):
        made = _conclude(session, pool, directory, plan, settings, earlier)
    if not made.rows_out:
        said = ", ".join(f"{outcome} {rows:,}" for outcome, rows in made.lost.items())
        shutil.rmtree(work)  # or a second try would find everything done
        (directory / LEDGER).unlink()  # and nothing may look whole
        for tar in directory.glob("*.tar"):
            tar.unlink()
        raise EmptyResultError(
            f"None of {pool.rows:,} pictures arrived: {said}.",
            "Check the network, and the proxy settings (http_proxy, https_proxy).",
        )
    foretold = made.details["forecast"]
    write_download_report(
        directory,
        pool,
        max_drift=settings.max_drift,
        forecast=None if foretold is None else forecast_from(foretold),
        seconds=None if resumed or earlier is not None else watch.seconds(),
    )
    write_manifest(directory, replace(made, seconds=watch.seconds()))
    return asked


def pilot_download(
    source: str | Path,
    output: Path,
    settings: DownloadSettings,
    wanted: int,
    *,
    overwrite: bool = False,
    restart: bool = False,
    on_progress: Progress = no_progress,
) -> Forecast:
    """Fetch a sample of the urls, and forecast what downloading all will come to.

    ``download_pictures`` with the same source, output and settings goes on from there.

    Args:
        source: the pool or subset.
        output: of the download.
        settings: of the download.
        wanted: about how many urls to fetch.
        overwrite: there may be a finished result already.
        restart: discard what a stopped download has fetched.
        on_progress: called with urls that were asked for and urls in all.

    Raises:
        CoyoError: as ``download_pictures``; or the download itself has begun.
    """
    check_settings(settings)
    check_policy(settings)
    pool = _open_pool(source)
    begun_for = _begun_for(pool, settings, None)
    with (
        saying_when_stopped(_kept(output)),
        begun_artifact(output, begun_for, overwrite=overwrite, restart=restart) as directory,
    ):
        if read_plan(directory / "work") is not None:
            raise OutputError(
                f"The download to {output} has begun; a pilot comes before it.",
                "Leave --pilot out to go on, or discard what was fetched with --restart.",
            )
        return run_pilot(pool, directory, settings, wanted, on_progress)


def _begun_for(
    pool: Source, settings: DownloadSettings, earlier: Manifest | None
) -> dict[str, Any]:
    return {
        "subset": pool.fingerprint,
        **settings.as_parameters(),
        "retry_of": settings_digest(asdict(earlier)) if earlier else None,
    }


def _open_pool(source: str | Path) -> Source:
    pool = open_source(source)
    if URL not in pool.columns:
        raise ColumnError(f"{source} has no column `{URL}`, so there is nothing to download.")
    if TEXT not in pool.columns and LABELS not in pool.columns:
        raise ColumnError(
            f"{source} has no column `{TEXT}`, so there is nothing to download.",
            f"A pool without captions needs `{LABELS}`, as COYO-Labeled-300M has them.",
        )
    for name in (URL, TEXT, IMAGE_PHASH):
        if name in pool.columns and not pa.types.is_string(pool.schema.field(name).type):
            kind = pool.schema.field(name).type
            raise ColumnError(f"Column `{name}` of {source} is {kind}, not text.")
    return pool


def _is_there(output: Path) -> bool:
    return (output / MANIFEST).is_file()


def _same_download(output: Path, pool: Source, settings: DownloadSettings) -> Manifest:
    """Return the manifest of a finished download if it is of these rows, with these settings."""
    made = read_manifest(output)
    if made.kind != SHARDS_KIND or made.parameters.get("stage") != _STAGE:
        refuse_existing(output)
    wanted = settings.as_parameters()
    different = [
        f"--{name.replace('_', '-')} was {made.parameters.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if made.parameters.get(name) != value
    ]
    if made.inputs[0].fingerprint != pool.fingerprint:
        different.insert(0, f"it was made from other rows ({made.inputs[0].path})")
    if different:
        raise OutputError(
            f"{output} already holds another download: {'; '.join(different)}.",
            "Choose another -o, or add --overwrite to replace the result there.",
        )
    return made


def _finished_before(output: Path, made: Manifest) -> DownloadResult:
    return replace(_result(output, made), finished_before=True)


def _result(output: Path, made: Manifest) -> DownloadResult:
    details = made.details
    return DownloadResult(
        output=output,
        rows_in=made.rows_in,
        rows_out=made.rows_out,
        urls=details["urls"],
        fetched=0,
        retryable=details["retryable"],
        outcomes=details["outcomes"],
        seconds=made.seconds,
    )


def _kept(output: Path) -> str:
    return f"Stopped. What was fetched for {output} is kept; the same command goes on from there."


def _plan(pool: Source, directory: Path, settings: DownloadSettings, earlier: Path | None) -> Plan:
    """Return the plan that a stopped download had made, or make one."""
    work = directory / "work"
    found = read_plan(work)
    if found is not None:
        return found
    with open_session(pool, output=directory) as session, recipe_errors(pool):
        refuse_duplicate_ids(session, session.view("pool"), pool.path)
        work.mkdir(exist_ok=True)
        number_urls(session, settings.samples_per_shard)
        if earlier is not None:
            _view_earlier(session, directory, earlier)
            session.execute(read_sql("download/only_retryable.sql"))
        processes = settings.pace.processes or available_cores()
        plan = write_plan(
            session, work, settings.samples_per_shard, processes, all_rows=earlier is None
        )
        use_pilots(session, work)
    keep_plan(work, plan)
    return plan


def _view_earlier(
    session: duckdb.DuckDBPyConnection, directory: Path, earlier: Path
) -> duckdb.DuckDBPyRelation:
    """Make the view ``earlier`` of an earlier ledger: by a link, since the session is fenced in."""
    ledger = directory / "work" / "earlier.parquet"
    if not ledger.exists():
        _link(earlier / LEDGER, ledger)
    return session.read_parquet(str(ledger.absolute())).create_view("earlier")


def _fetch_and_pack(
    directory: Path,
    work: Path,
    plan: Plan,
    settings: DownloadSettings,
    earlier: Path | None,
    on_progress: Progress,
) -> int:
    """Let img2dataset fetch, and pack each shard as soon as nothing more can come for it."""
    unpacked = {shard for shard in plan.batches if not is_packed(work, shard)}

    def pack(done: set[int]) -> bool:
        ready = [shard for shard in unpacked if done.issuperset(plan.batches[shard])]
        until = time.monotonic() + _PACKING_SECONDS
        for shard in sorted(ready):
            old = None if earlier is None else earlier / shard_name(shard)
            pack_shard(directory, work, shard, plan.batches[shard], settings, old)
            unpacked.remove(shard)
            if time.monotonic() > until:
                break  # the progress is to be seen
        return bool(ready)

    robots = work / "robots.sqlite"
    return fetch(work, robots, plan.batch_count, plan.urls, settings, on_progress, pack)


def _take_over(earlier: Path, directory: Path) -> None:
    """Link the tars of an earlier download for which nothing new has come."""
    for tar in sorted(earlier.glob("*.tar")):
        if not (directory / tar.name).exists():
            _link(tar, directory / tar.name)


def _link(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where that can't be."""
    try:
        os.link(old, new)
    except OSError:
        partial = new.with_name(f".{new.name}.partial")
        shutil.copyfile(old, partial)
        partial.replace(new)


def _conclude(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    directory: Path,
    plan: Plan,
    settings: DownloadSettings,
    earlier: Path | None,
) -> Manifest:
    """Write the ledger, and return the manifest of what is in it; its seconds are still missing."""
    _write_ledger(session, pool, directory, earlier)
    session.read_parquet(str((directory / LEDGER).absolute())).create_view("ledger")
    counts = session.sql(read_sql("download/outcomes.sql")).fetchall()
    digest = IdDigest()
    for ids in ids_of(session.view("ledger").filter("outcome = 'ok'").select(ID)):
        digest.update(ids)
    every = IdDigest()
    for ids in ids_of(session.view("ledger").select(ID)):
        every.update(ids)
    if every.count != pool.rows or not every.ascending:
        raise RuntimeError(f"the ledger has {every.count} rows for {pool.rows} ids")
    outcomes = {outcome: rows for outcome, rows, _, _ in counts}
    forecast = forecast_of(directory / "work")
    return Manifest(
        kind=SHARDS_KIND,
        parameters={"stage": _STAGE, **settings.as_parameters()},
        inputs=[pool.as_input("subset")],
        rows_in=pool.rows,
        rows_out=digest.count,
        lost={outcome: rows for outcome, rows in outcomes.items() if outcome != OK},
        id_digest=digest.hexdigest(),
        seconds=0.0,
        details={
            "urls": plan.urls if earlier is None else read_manifest(earlier).details["urls"],
            "outcomes": outcomes,
            "captions": TEXT in pool.columns,
            "retryable": sum(retryable for _, _, retryable, _ in counts),
            "bytes_served": sum(served for _, _, _, served in counts),
            "pace": asdict(settings.pace),
            "forecast": None if forecast is None else asdict(forecast),
        },
    )


def _write_ledger(
    session: duckdb.DuckDBPyConnection, pool: Source, directory: Path, earlier: Path | None
) -> None:
    files = sorted(str(path.absolute()) for path in (directory / "work" / FATES).glob("*.parquet"))
    asked = session.read_parquet(files, union_by_name=True)
    if earlier is None:
        asked.create_view("fates")
    else:
        asked.create_view("asked")
        _view_earlier(session, directory, earlier)
        session.sql(read_sql("download/fates.sql")).create_view("fates")
    view_hashes(session, pool)
    partial = directory / "work" / LEDGER
    session.sql(read_sql("download/ledger.sql")).write_parquet(
        str(partial.absolute()), compression="zstd"
    )
    partial.replace(directory / LEDGER)
