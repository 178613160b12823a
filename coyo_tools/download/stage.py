"""Download: img2dataset fetches each url once; what it got is judged, and packed by id.

The rows of a subset become WebDataset tars keyed by id, and a ledger that says of every id what
became of it. A picture that no longer has the pHash the row was scored with has drifted, and
stays out. Raw bytes live only until their shard is packed. Left out for now: retrying, resuming,
forecasting.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import ID, IMAGE_PHASH, TEXT, URL
from coyo_tools.engine import (
    available_cores,
    count_rows,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
)
from coyo_tools.errors import ColumnError, DownloadError, EmptyResultError
from coyo_tools.fetcher import (
    SERVED_BYTES,
    URL_NUMBER,
    FetchSettings,
    start_fetching,
    stop_fetching,
)
from coyo_tools.manifest import IdDigest, Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.phash import hamming
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import Picture, PictureSettings, Refusal
from coyo_tools.progress import Progress, no_progress
from coyo_tools.shards import LEDGER, SHARDS_KIND, ShardWriter, shard_name
from coyo_tools.source import open_source

_PHASH = re.compile("[0-9a-fA-F]{16}")
_FATES_SCHEMA = {
    ID: pl.Int64,
    URL: pl.String,
    IMAGE_PHASH: pl.String,
    "outcome": pl.String,
    "detail": pl.String,
    "bytes": pl.Int64,
    "served_width": pl.Int32,
    "served_height": pl.Int32,
    "served_phash": pl.String,
    "phash_distance": pl.Int32,
    "shard": pl.String,
}

# What urllib's exceptions say, as img2dataset passes it on; the first that fits names the outcome.
_NETWORK_OUTCOMES = (
    ("X-Robots-Tag", "opt-out"),
    ("timed out", "timeout"),
    ("Name or service not known", "dns"),
    ("name resolution", "dns"),
    ("nodename nor servname", "dns"),
    ("No address associated", "dns"),
    ("Connection refused", "refused"),
    ("IncompleteRead", "cut short"),
    ("reset by peer", "connection lost"),
    ("Remote end closed", "connection lost"),
    ("Broken pipe", "connection lost"),
    ("codec can't encode", "bad url"),
    ("URL can't contain", "bad url"),
    ("nonnumeric port", "bad url"),
    ("Invalid IPv6 URL", "bad url"),
    ("CERTIFICATE", "tls"),
    ("SSL", "tls"),
)


@dataclass(frozen=True)
class DownloadSettings:
    """How to download: see ``coyo download --help`` for what each is for."""

    picture: PictureSettings = field(default_factory=PictureSettings)
    max_drift: int = 8
    samples_per_shard: int = 10_000
    processes: int | None = None
    threads: int = 32
    timeout: int = 10


@dataclass(frozen=True)
class DownloadResult:
    """What a download did: ``outcomes`` counts the ledger's rows by outcome, commonest first."""

    output: Path
    rows_in: int
    rows_out: int
    urls: int
    outcomes: dict[str, int]
    seconds: float


def download_pictures(
    source: str | Path,
    output: Path,
    settings: DownloadSettings | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> DownloadResult:
    """Fetch the pictures of a pool or subset into shards with a ledger.

    Raises:
        CoyoError: the source is at fault, img2dataset failed, or not one picture arrived.
    """
    watch = Stopwatch()
    chosen = settings or DownloadSettings()
    pool = open_source(source)
    for name in (URL, TEXT):
        if name not in pool.columns:
            raise ColumnError(f"{source} has no column `{name}`, so there is nothing to download.")
    for name in (URL, TEXT, IMAGE_PHASH):
        if name in pool.columns and not pa.types.is_string(pool.schema.field(name).type):
            kind = pool.schema.field(name).type
            raise ColumnError(f"Column `{name}` of {source} is {kind}, not text.")
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory) as session,
    ):
        work = directory / "work"
        with recipe_errors(pool):
            refuse_duplicate_ids(session, session.view("pool"), pool.path)
            urls = _plan(session, work)
        if urls:
            _fetch_and_pack(directory, work, urls, chosen, on_progress)
        _unfetchable(session).write_parquet(work / "fates-unfetchable.parquet")
        ledger = _write_ledger(session, directory, work, pool.rows)
        shutil.rmtree(work)
        outcomes = dict(
            ledger["outcome"].value_counts().sort("count", "outcome", descending=True).iter_rows()
        )
        if not outcomes.get("ok"):
            said = ", ".join(f"{outcome} {rows:,}" for outcome, rows in outcomes.items())
            raise EmptyResultError(
                f"None of {pool.rows:,} pictures arrived: {said}.",
                "Check the network, and the proxy settings (http_proxy, https_proxy).",
            )
        digest = IdDigest()
        digest.update(ledger.filter(outcome="ok")[ID].to_numpy().astype(np.int64))
        write_manifest(
            directory,
            Manifest(
                kind=SHARDS_KIND,
                parameters={
                    "stage": "download",
                    "image_size": chosen.picture.image_size,
                    "quality": chosen.picture.quality,
                    "max_drift": chosen.max_drift,
                    "samples_per_shard": chosen.samples_per_shard,
                },
                inputs=[pool.as_input("subset")],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost={name: rows for name, rows in outcomes.items() if name != "ok"},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={"urls": urls, "bytes_served": int(ledger["bytes"].sum() or 0)},
            ),
        )
    return DownloadResult(output, pool.rows, digest.count, urls, outcomes, watch.seconds())


def _plan(session: duckdb.DuckDBPyConnection, work: Path) -> int:
    """Write what img2dataset fetches and the rows that wait for it; return the number of urls."""
    work.mkdir()
    session.execute(read_sql("download/urls.sql"))
    urls = session.table("urls").order(URL_NUMBER)
    urls.write_parquet(str(work / "urls.parquet"))
    session.sql(read_sql("download/rows.sql")).write_parquet(str(work / "rows.parquet"))
    return count_rows(session.table("urls"))


def _fetch_and_pack(
    directory: Path, work: Path, urls: int, settings: DownloadSettings, on_progress: Progress
) -> None:
    processes = settings.processes or available_cores()
    raw = work / "raw"
    log = work / "img2dataset.log"
    shards = -(-urls // settings.samples_per_shard)
    fetcher = start_fetching(
        FetchSettings(
            urls=str((work / "urls.parquet").absolute()),
            output=str(raw.absolute()),
            urls_per_shard=settings.samples_per_shard,
            processes=min(processes, shards),
            threads=settings.threads,
            timeout=settings.timeout,
        ),
        log,
    )
    packed = 0
    try:
        with PictureWorkers(settings.picture, processes) as workers:
            for number in _finished_shards(raw, shards, lambda: fetcher.poll() is None):
                first = number * settings.samples_per_shard
                last = min(first + settings.samples_per_shard, urls)
                rows = _rows_of_shard(work / "rows.parquet", first, last)
                fates = _pack_shard(directory, raw, number, rows, workers, settings)
                fates.write_parquet(work / f"fates-{number:05d}.parquet")
                packed += 1
                on_progress(min(packed * settings.samples_per_shard, urls), urls)
    finally:
        stop_fetching(fetcher)
    if packed < shards:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tail = "\n  ".join(lines[-5:])
        raise DownloadError(
            f"img2dataset ended after {packed} of {shards} shards. Its last words:\n  {tail}"
        )


def _finished_shards(raw: Path, shards: int, running: Callable[[], bool]) -> Iterator[int]:
    """Yield shard numbers as img2dataset finishes them (it then writes NUMBER_stats.json)."""
    waiting = set(range(shards))
    while waiting:
        still_running = running()
        ready = sorted(n for n in waiting if (raw / f"{n:05d}_stats.json").is_file())
        yield from ready
        waiting -= set(ready)
        if not ready and not still_running:
            return
        if not ready:
            time.sleep(0.1)


def _rows_of_shard(rows: Path, first: int, last: int) -> pl.DataFrame:
    wanted = pl.col(URL_NUMBER).is_between(first, last, closed="left")
    return pl.scan_parquet(rows).filter(wanted).collect()


def _pack_shard(
    directory: Path,
    raw: Path,
    number: int,
    rows: pl.DataFrame,
    workers: PictureWorkers,
    settings: DownloadSettings,
) -> pl.DataFrame:
    """Judge what was served for one shard's urls, write its tar, return its rows' fates."""
    served = raw / f"{number:05d}.parquet"
    results: dict[int, Picture | Refusal] = {}
    with pq.ParquetFile(served) as parquet:
        results.update(workers.decode(_served(parquet, results)))
    fates = []
    name = shard_name(number)
    with ShardWriter(directory / name) as shard:
        for row in rows.sort(ID).iter_rows(named=True):
            missing = Refusal("not fetched", "img2dataset gave no answer for this url")
            result = results.get(row.pop(URL_NUMBER), missing)
            fate = _judge(row, result, settings.max_drift)
            if fate["outcome"] == "ok" and isinstance(result, Picture):
                shard.add(row[ID], result.jpeg, row[TEXT], row)
                fate["shard"] = name
            fates.append(fate)
    served.unlink()
    return pl.DataFrame(fates, schema=_FATES_SCHEMA)


def _served(
    parquet: pq.ParquetFile, results: dict[int, Picture | Refusal]
) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes that were served; note the urls that gave none in ``results``."""
    columns = [URL_NUMBER, "error_message", SERVED_BYTES]
    for batch in parquet.iter_batches(batch_size=64, columns=columns):
        for sample in batch.to_pylist():
            if sample["error_message"] is not None:
                message = sample["error_message"]
                results[sample[URL_NUMBER]] = Refusal(network_outcome(message), message)
            else:
                yield sample[URL_NUMBER], sample[SERVED_BYTES]


def network_outcome(message: str) -> str:
    """Name the outcome that an error message of img2dataset stands for.

    >>> network_outcome("HTTP Error 404: Not Found")
    'http 4xx'
    """
    if message.startswith("HTTP Error "):
        return f"http {message[len('HTTP Error ')]}xx"
    for sign, outcome in _NETWORK_OUTCOMES:
        if sign in message:
            return outcome
    return "other"


def _judge(row: dict[str, Any], result: Picture | Refusal, max_drift: int) -> dict[str, Any]:
    fate: dict[str, Any] = {ID: row[ID], URL: row[URL], IMAGE_PHASH: row.get(IMAGE_PHASH)}
    if isinstance(result, Refusal):
        return fate | {"outcome": result.reason, "detail": result.detail}
    fate |= {
        "outcome": "ok",
        "detail": "",
        "bytes": result.bytes_served,
        "served_width": result.width,
        "served_height": result.height,
        "served_phash": result.image_phash,
    }
    if row[TEXT] is None or not row[TEXT].strip():
        return fate | {"outcome": "no caption", "detail": "the text is empty"}
    if fate[IMAGE_PHASH] is None:
        return fate
    if not _PHASH.fullmatch(fate[IMAGE_PHASH]):
        return fate | {"detail": "drift unknown: image_phash is not 16 hex digits"}
    distance = hamming(result.image_phash, fate[IMAGE_PHASH])
    fate["phash_distance"] = distance
    if distance > max_drift:
        fate |= {"outcome": "drifted", "detail": f"pHash distance {distance}"}
    return fate


def _unfetchable(session: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    rows = session.sql(read_sql("download/unfetchable.sql")).fetchall()
    fates = [
        {ID: id_, URL: url, "outcome": "bad url", "detail": "not an http or https address"}
        for id_, url in rows
    ]
    return pl.DataFrame(fates, schema=_FATES_SCHEMA)


def _write_ledger(
    session: duckdb.DuckDBPyConnection, directory: Path, work: Path, rows: int
) -> pl.DataFrame:
    fates = sorted(str(path.absolute()) for path in work.glob("fates-*.parquet"))
    session.read_parquet(fates).create_view("fates")
    session.sql(read_sql("download/ledger.sql")).write_parquet(str(directory / LEDGER))
    ledger = pl.read_parquet(directory / LEDGER)
    if ledger.height != rows or ledger[ID].n_unique() != rows:
        raise RuntimeError(f"the ledger has {ledger.height} rows for {rows} ids")
    return ledger
