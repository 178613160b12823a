"""The judgement after a download: a page and the same figures as JSON, from pool and ledger.

Everything is counted from the finished ledger; no picture is looked at. COYO has no date of its
crawl, so the year that a url names and the part of the pool stand for it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import duckdb

from coyo_tools.bins import Bins
from coyo_tools.download.forecast import Estimate, Forecast, human_bytes, human_hours
from coyo_tools.download.ledger import DRIFTED, OK, PLACEHOLDER
from coyo_tools.download.survivors import FEW, Survivorship, measure_survivors
from coyo_tools.engine import BATCH_ROWS, open_session, read_sql, recipe_errors
from coyo_tools.pages import percent, write_page
from coyo_tools.shards import LEDGER
from coyo_tools.source import Source
from coyo_tools.tallies import ColumnTally, Figures

REPORT_PAGE = "download.html"
REPORT_JSON = "report.json"
TOP_HOSTS = 25
_TOP_LOSING = 15
_TOP_DETAILS = 3
_TOP_PLACEHOLDERS = 20
_MOST_PARTS = 40
_JUST_BEYOND = 4  # bits
_HASH_BITS = 64
_ANY = Bins((0.0, 1.0), open_end=True)  # only quantiles are wanted
_BY_URL = {
    "bytes": "bytes served, by url",
    "seconds": "seconds of the last attempt, by url",
    "attempts": "attempts, by url",
}
_BY_ROW = {
    "served_width": "width as served, pixels",
    "served_height": "height as served, pixels",
    "stored_width": "width as stored, pixels",
    "stored_height": "height as stored, pixels",
}


@dataclass(frozen=True)
class Outcome:
    """Rows with one outcome, their share, those that another try could bring."""

    name: str
    rows: int
    share: float
    could_help: int


@dataclass(frozen=True)
class Reason:
    """One of an outcome's commonest details, its rows, how many different details there are."""

    outcome: str
    detail: str
    rows: int
    share: float
    details: int


@dataclass(frozen=True)
class Group:
    """Rows of one kind and what became of them; the rest of ``rows`` could not be had.

    ``share_ok`` is of all rows, ``share_drifted`` that of drifted rows and placeholders among
    those that answered with a picture; None where none did.
    """

    label: str
    rows: int
    ok: int
    drifted: int
    placeholder: int
    share_ok: float
    share_drifted: float | None
    commonest_loss: str = ""


@dataclass(frozen=True)
class Drift:
    """Rows by the distance from the row's image_phash, 0 to 64 bits; with ``max_drift`` allowed.

    ``just_beyond`` are those up to four bits farther than allowed; ``not_compared`` were served,
    but their row has no hash to compare.
    """

    max_drift: int
    by_distance: tuple[int, ...]
    placeholder_by_distance: tuple[int, ...]
    within: int
    just_beyond: int
    beyond: int
    not_compared: int


@dataclass(frozen=True)
class Placeholder:
    """One picture served in place of many: its hash, rows and urls, one of the urls."""

    served_phash: str
    rows: int
    urls: int
    example: str


@dataclass(frozen=True)
class Measured:
    """A measured quantity: what it is, and its figures."""

    name: str
    meaning: str
    figures: Figures


@dataclass(frozen=True)
class Foretold:
    """What the pilot said and what came; ``inside`` is None where it gave no interval."""

    name: str
    unit: str
    forecast: Estimate
    actual: float
    inside: bool | None


@dataclass(frozen=True)
class DownloadReport:
    """All that the page shows, and report.json holds."""

    answer: str
    source: str
    fingerprint: str
    rows: int
    arrived: int
    stored: int
    could_help: int
    outcomes: tuple[Outcome, ...]
    reasons: tuple[Reason, ...]
    hosts: int
    by_host: tuple[Group, ...]
    losing_hosts: tuple[Group, ...]
    by_year: tuple[Group, ...]
    parts: int
    by_part: tuple[Group, ...]
    drift: Drift
    placeholders: int
    top_placeholders: tuple[Placeholder, ...]
    urls: int
    requests: int
    bytes: int
    disk: int
    seconds: float | None
    measured: tuple[Measured, ...]
    survivorship: Survivorship
    foretold: tuple[Foretold, ...]
    pilot_urls: int | None


def write_download_report(
    directory: Path,
    pool: Source,
    *,
    max_drift: int,
    forecast: Forecast | None = None,
    seconds: float | None = None,
    memory: str | None = None,
    threads: int | None = None,
) -> DownloadReport:
    """Write download.html and report.json into a directory with shards and ``ledger.parquet``.

    Args:
        directory: with the shards, which may still be one that is being made.
        pool: the rows that were to be downloaded.
        max_drift: bits that a picture may be away from its row's image_phash.
        forecast: what the pilot said, to be held against what came.
        seconds: that the download took, for the same.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        RuntimeError: the ledger has not one row for every id of the pool.
        CoyoError: pool or directory can't be read or written.
    """
    ledger = (directory / LEDGER).absolute()
    with (
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
        recipe_errors(pool),
    ):
        session.read_parquet(str(ledger)).create_view("ledger")
        survivorship = measure_survivors(session, pool)
        report = _report(session, directory, pool, survivorship, max_drift, forecast, seconds)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False)
    partial = directory / f".{REPORT_JSON}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(directory / REPORT_JSON)
    write_page(
        directory / REPORT_PAGE,
        "download.html.j2",
        title="What the download got",
        report=report,
        human={"bytes": human_bytes, "hours": human_hours},
        whole=_whole_if_large,
    )
    return report


def _report(
    session: duckdb.DuckDBPyConnection,
    directory: Path,
    pool: Source,
    survivorship: Survivorship,
    max_drift: int,
    forecast: Forecast | None,
    seconds: float | None,
) -> DownloadReport:
    counted = session.sql(read_sql("download/report_outcomes.sql")).fetchall()
    rows = pool.rows
    outcomes = tuple(Outcome(name, count, count / rows, more) for name, count, more, _ in counted)
    by_name = {outcome.name: outcome.rows for outcome in outcomes}
    session.execute(read_sql("download/report_hosts.sql"))
    largest = _fetch(session, "report_largest_hosts", top=TOP_HOSTS)
    losing = _fetch(session, "report_losing_hosts", top=_TOP_LOSING)
    years = _fetch(session, "report_years")
    parts = _fetch(session, "report_parts", most=_MOST_PARTS)
    placeholders = _fetch(session, "report_placeholders", top=_TOP_PLACEHOLDERS)
    session.execute(read_sql("download/report_fetches.sql"))
    ((urls, requests, fetched),) = session.sql(read_sql("download/report_totals.sql")).fetchall()
    disk = sum(path.stat().st_size for path in directory.glob("*.tar"))
    arrived = by_name.get(OK, 0)
    could_help = sum(outcome.could_help for outcome in outcomes)
    actual = {
        "success": arrived / rows,
        "drifted": by_name.get(DRIFTED, 0) / rows,
        "placeholder": by_name.get(PLACEHOLDER, 0) / rows,
        "pictures": float(arrived),
        "bytes": float(fetched),
        "disk": float(disk),
        "hours": None if seconds is None else seconds / 3600,
    }
    return DownloadReport(
        answer=_answer(rows, by_name, could_help, survivorship),
        source=pool.path,
        fingerprint=pool.fingerprint,
        rows=rows,
        arrived=arrived,
        stored=sum(stored for *_, stored in counted),
        could_help=could_help,
        outcomes=outcomes,
        reasons=tuple(
            Reason(outcome, detail, count, count / rows, details)
            for outcome, detail, count, details, _ in _fetch(
                session, "report_reasons", top=_TOP_DETAILS
            )
        ),
        hosts=sum(hosts for _, _, hosts, *_ in largest),
        by_host=tuple(
            _group(_host_label(kind, name, hosts), *counts)
            for kind, name, hosts, *counts in largest
        ),
        losing_hosts=tuple(_group(*line) for line in losing),
        by_year=tuple(
            _group("none named" if year is None else year, *counts) for year, *counts in years
        ),
        parts=sum(number for _, _, number, *_ in parts),
        by_part=tuple(
            _group(f"{first}" if first == last else f"{first} to {last}", *counts)
            for first, last, _, *counts in parts
        ),
        drift=_drift(session, max_drift),
        placeholders=placeholders[0][-1] if placeholders else 0,
        top_placeholders=tuple(Placeholder(*line[:-1]) for line in placeholders),
        urls=urls,
        requests=requests,
        bytes=fetched,
        disk=disk,
        seconds=seconds,
        measured=_measured(session),
        survivorship=survivorship,
        foretold=() if forecast is None else _foretold(forecast, actual),
        pilot_urls=None if forecast is None else forecast.pilot_urls,
    )


def _fetch(session: duckdb.DuckDBPyConnection, name: str, **values: int) -> list[Any]:
    return session.execute(read_sql(f"download/{name}.sql"), values).fetchall()


def _group(
    label: str, rows: int, ok: int, drifted: int, placeholder: int, commonest_loss: str = ""
) -> Group:
    answered = ok + drifted + placeholder
    share_drifted = (drifted + placeholder) / answered if answered else None
    return Group(label, rows, ok, drifted, placeholder, ok / rows, share_drifted, commonest_loss)


def _host_label(kind: str, name: str | None, hosts: int) -> str:
    if kind == "top" and name is not None:
        return name
    return "no host in the url" if kind == "none" else f"{hosts:,} others"


def _drift(session: duckdb.DuckDBPyConnection, max_drift: int) -> Drift:
    by_distance, placeholders = [0] * (_HASH_BITS + 1), [0] * (_HASH_BITS + 1)
    not_compared = 0
    for distance, rows, placeholder in _fetch(session, "report_drift"):
        if distance is None:
            not_compared += rows
        else:
            by_distance[distance] = rows
            placeholders[distance] = placeholder
    return Drift(
        max_drift=max_drift,
        by_distance=tuple(by_distance),
        placeholder_by_distance=tuple(placeholders),
        within=sum(by_distance[: max_drift + 1]),
        just_beyond=sum(by_distance[max_drift + 1 : max_drift + 1 + _JUST_BEYOND]),
        beyond=sum(by_distance[max_drift + 1 :]),
        not_compared=not_compared,
    )


def _measured(session: duckdb.DuckDBPyConnection) -> tuple[Measured, ...]:
    stored = session.view("ledger").filter(duckdb.ColumnExpression("shard").isnotnull())
    measured = []
    for relation, columns in ((session.table("fetches"), _BY_URL), (stored, _BY_ROW)):
        tallies = {name: ColumnTally(_ANY, name != "seconds") for name in columns}
        for batch in relation.select(*columns).to_arrow_reader(BATCH_ROWS):
            for name, tally in tallies.items():
                column = batch.column(name)
                tally.add(column.drop_null().to_numpy(), column.null_count)
        measured += [
            Measured(name, meaning, tallies[name].figures()) for name, meaning in columns.items()
        ]
    return tuple(measured)


def _foretold(forecast: Forecast, actual: dict[str, float | None]) -> tuple[Foretold, ...]:
    """Hold every estimate of a forecast against what came."""
    units = {"pictures": "rows", "bytes": "bytes", "disk": "bytes", "hours": "hours"}
    held = []
    for one in fields(forecast):
        estimate, came = getattr(forecast, one.name), actual.get(one.name)
        if not isinstance(estimate, Estimate) or came is None:
            continue
        inside = None
        if estimate.low is not None and estimate.high is not None:
            inside = estimate.low <= came <= estimate.high
        held.append(Foretold(one.name, units.get(one.name, "share"), estimate, came, inside))
    return tuple(held)


def _whole_if_large(value: float | None) -> float | None:
    """Round a mean that four digits would write with an exponent."""
    return round(value) if value is not None and abs(value) >= 10_000 else value


def _answer(rows: int, by_name: dict[str, int], could_help: int, survivorship: Survivorship) -> str:
    """Say in two sentences what arrived, and whether it is still what was selected."""
    arrived, drifted = by_name.get(OK, 0), by_name.get(DRIFTED, 0)
    placeholders = by_name.get(PLACEHOLDER, 0)
    said = [f"{arrived:,} of {rows:,} pictures arrived ({percent(arrived / rows)})"]
    if drifted:
        said.append(f"{percent(drifted / rows)} had drifted to another picture")
    if placeholders:
        said.append(f"{percent(placeholders / rows)} are placeholders")
    missing = rows - arrived - drifted - placeholders
    if missing:
        said.append(f"{percent(missing / rows)} could not be had")
    if could_help:
        said.append(f"another try could bring up to {could_help:,}")
    return f"{'; '.join(said)}. {_about_survivors(survivorship)}"


def _about_survivors(survivorship: Survivorship) -> str:
    found = survivorship.differing
    tested = [one for one in survivorship.metrics if one.low is not None]
    if found:
        shown = _in_words([f"{one.name} ({one.difference:+.3f} sd)" for one in found[:3]])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        small = all(one.size == "negligible" for one in found)
        size = ", by negligible amounts" if small else ""
        return f"The rows that arrived differ from those selected in {shown}{more}{size}."
    if tested:
        metrics = f"{len(tested)} metrics" if len(tested) > 1 else tested[0].name
        few = any(one.note.startswith(FEW) for one in tested)
        weak = f"; {FEW}, so that only a large one would show" if few else ""
        return (
            f"In {metrics} no difference was found between the rows that arrived and those "
            f"selected{weak}."
        )
    return "Whether the rows that arrived differ from those selected can't be told."


def _in_words(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
