"""The pilot: a stratified sample of the urls is fetched first, to forecast what the rest will be.

It lies in the download's own folder. What it fetched is not fetched again: the download that
follows finds it in its journals.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import duckdb
import polars as pl

from coyo_tools.columns import ID
from coyo_tools.download.fetch import fetch, per_host_and_process
from coyo_tools.download.forecast import (
    FINISHED,
    ROWS,
    STORED_BYTES,
    Forecast,
    forecast,
    forecast_from,
)
from coyo_tools.download.ledger import LEDGER_SCHEMA
from coyo_tools.download.packing import judge
from coyo_tools.download.pilot_sample import STRATUM, URL_NUMBER, Stratum, plan_pilot
from coyo_tools.download.plan import number_urls, view_hashes, write_files
from coyo_tools.download.settings import DownloadSettings
from coyo_tools.engine import available_cores, open_session, read_sql, recipe_errors
from coyo_tools.fetching.journal import (
    JOURNALS,
    REQUESTS,
    Entry,
    Journal,
    journal_path,
    open_journal,
)
from coyo_tools.fetching.tally import Tally
from coyo_tools.progress import Progress
from coyo_tools.source import Source

_PILOT = "pilot"
_ROWS = "rows.parquet"
_STRATA = "strata.json"
_FORECAST = "forecast.json"
# What a sample takes in a tar beside its picture: three headers, a caption and COYO's columns,
# each in blocks of 512 bytes.
_SAMPLE_BYTES = 3 * 512 + 512 + 1024


def run_pilot(
    pool: Source,
    directory: Path,
    settings: DownloadSettings,
    wanted: int,
    on_progress: Progress,
) -> Forecast:
    """Fetch about ``wanted`` urls, and return what the whole download will come to.

    One that was stopped goes on; one that is finished asks for nothing.
    """
    work = directory / "work"
    folder = work / _PILOT / str(wanted)
    finished = _forecast_in(folder)
    if finished is not None:
        return finished
    with open_session(pool, output=directory) as session, recipe_errors(pool):
        batches = settings.pace.processes or available_cores()
        if not (folder / _STRATA).is_file():
            _plan(session, pool, folder, settings, wanted, batches)
        strata = tuple(Stratum(**item) for item in json.loads((folder / _STRATA).read_text()))
        rows = pl.read_parquet(folder / _ROWS)
    urls = rows[URL_NUMBER].n_unique()
    batches = len(list((folder / REQUESTS).iterdir()))
    fetch(folder, work / "robots.sqlite", batches, urls, settings, on_progress)
    with open_session(pool, output=directory) as session, recipe_errors(pool):
        ledger = _judged(session, pool, rows, folder, settings)
    made = forecast(ledger, strata, per_host=per_host_and_process(settings, batches) * batches)
    partial = folder / f"{_FORECAST}.partial"
    partial.write_text(json.dumps(asdict(made), indent=2), encoding="utf-8")
    partial.replace(folder / _FORECAST)
    return made


def forecast_of(work: Path) -> Forecast | None:
    """Return the forecast of the largest finished pilot in a download's folder, None without."""
    for folder in reversed(_pilots(work)):
        made = _forecast_in(folder)
        if made is not None:
            return made
    return None


def use_pilots(session: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Put what pilots have fetched into the journals of the batches in the table ``planned``."""
    entries = {entry.url_number: entry for folder in _pilots(work) for entry in _entries(folder)}
    if not entries:
        return
    session.register(
        "asked_before", pl.DataFrame({URL_NUMBER: list(entries)}, {URL_NUMBER: pl.Int64}).to_arrow()
    )
    found = session.sql(read_sql("download/batches_of_pilot.sql")).fetchall()
    tally = Tally(work)
    for number, batch in found:
        with Journal(journal_path(work, batch)) as journal:
            journal.put(entries[number])
        tally.add(arrived=entries[number].jpeg is not None, first=True)
    tally.tell()


def _pilots(work: Path) -> list[Path]:
    folders = [path for path in (work / _PILOT).glob("*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def _forecast_in(folder: Path) -> Forecast | None:
    path = folder / _FORECAST
    return forecast_from(json.loads(path.read_text())) if path.is_file() else None


def _plan(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    folder: Path,
    settings: DownloadSettings,
    wanted: int,
    batches: int,
) -> None:
    for name in (REQUESTS, JOURNALS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    number_urls(session, settings.samples_per_shard)
    plan = plan_pilot(session, wanted)
    session.register("pilot", plan.urls.to_arrow())
    view_hashes(session, pool)
    rows = session.sql(read_sql("download/pilot_rows.sql"))
    rows.write_parquet(str((folder / _ROWS).absolute()))
    write_files(
        session.sql(read_sql("download/pilot_requests.sql"), params={"batches": batches}),
        folder / REQUESTS,
    )
    strata = json.dumps([asdict(stratum) for stratum in plan.strata])
    partial = folder / f"{_STRATA}.partial"
    partial.write_text(strata, encoding="utf-8")
    partial.replace(folder / _STRATA)


def _entries(folder: Path) -> Iterator[Entry]:
    for path in sorted((folder / JOURNALS).glob("*.sqlite")):
        with open_journal(path) as journal:
            yield from journal.entries()


def _judged(
    session: duckdb.DuckDBPyConnection,
    pool: Source,
    rows: pl.DataFrame,
    folder: Path,
    settings: DownloadSettings,
) -> pl.DataFrame:
    """Return the ledger of the pilot's rows, with what ``forecast`` wants to know besides."""
    entries = {entry.url_number: entry for entry in _entries(folder)}
    began = min((entry.finished for entry in entries.values()), default=0.0)
    fates = []
    measured = []
    for row in rows.iter_rows(named=True):
        entry = entries.get(row[URL_NUMBER])
        fates.append(judge(row, entry, settings))
        stored = entry.jpeg if entry is not None else None
        measured.append(
            {
                ID: row[ID],
                URL_NUMBER: row[URL_NUMBER],
                STRATUM: row[STRATUM],
                ROWS: row[ROWS],
                FINISHED: entry.finished - began if entry is not None else None,
                STORED_BYTES: len(stored) + _SAMPLE_BYTES if stored is not None else None,
            }
        )
    session.register("fates", pl.DataFrame(fates, schema=LEDGER_SCHEMA).to_arrow())
    view_hashes(session, pool)
    ledger = pl.DataFrame(session.sql(read_sql("download/ledger.sql")).to_arrow_table())
    return ledger.join(pl.DataFrame(measured), on=ID)
