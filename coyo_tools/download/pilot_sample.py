"""The pilot: which of the urls are tried first.

The sample is stratified by host, because links die by host and hosts are slow by host. It depends
on the urls alone, so that the same subset has the same pilot.
"""

from dataclasses import dataclass

import duckdb
import polars as pl

from coyo_tools.engine import read_sql

URL_NUMBER = "url_number"
STRATUM = "stratum"
_LEAST_IN_STRATUM = 8
_MD5_VALUES = 2**64
_CERTAIN = "many rows"  # the stratum of which every url is taken


@dataclass(frozen=True)
class Stratum:
    """A part of the urls: how many there are, rows that wait for them, its host if it is one."""

    name: str
    urls: int
    rows: int
    host: str | None = None


@dataclass(frozen=True)
class PilotPlan:
    """Which urls are tried first (``url_number``, ``stratum``), and what they stand for."""

    urls: pl.DataFrame
    strata: tuple[Stratum, ...]


def plan_pilot(session: duckdb.DuckDBPyConnection, wanted: int) -> PilotPlan:
    """Draw about ``wanted`` of the urls in the table ``urls``: url, url_number, host, rows.

    ``host`` is what the limit per host goes by. Every stratum gives at least two urls (if it has
    them), so that a few more than wanted may be drawn; all are where there are no more.
    """
    values = {"wanted": max(wanted, 1), "least": _LEAST_IN_STRATUM}
    for statement in duckdb.extract_statements(read_sql("download/pilot_strata.sql")):
        names = statement.named_parameters
        session.execute(statement, {name: values[name] for name in names})
    strata = tuple(
        Stratum(name, urls, rows, host)
        for name, host, urls, rows in session.sql(read_sql("download/pilot_totals.sql")).fetchall()
    )
    shares = _shares(strata, wanted)
    table = pl.DataFrame(
        {"stratum": list(shares), "share": list(shares.values())},
        schema={"stratum": pl.String, "share": pl.Int64},
    )
    session.register("pilot_shares", table.to_arrow())
    try:
        return PilotPlan(_draw(session, sum(shares.values()), strata), strata)
    finally:
        session.unregister("pilot_shares")


def _draw(
    session: duckdb.DuckDBPyConnection, due: int, strata: tuple[Stratum, ...]
) -> pl.DataFrame:
    """Draw the pilot's urls, from as few of all as have enough in every stratum."""
    below = min(4 * due / max(sum(stratum.urls for stratum in strata), 1), 1.0)
    while True:
        limit = int(below * (_MD5_VALUES - 1)) if below < 1 else _MD5_VALUES - 1
        rows = session.execute(read_sql("download/pilot_draw.sql"), {"below": limit}).fetchall()
        if len(rows) >= due or below >= 1:
            schema = {URL_NUMBER: pl.Int64, STRATUM: pl.String}
            return pl.DataFrame(rows, schema=schema, orient="row")
        below = min(8 * below, 1.0)


def _shares(strata: tuple[Stratum, ...], wanted: int) -> dict[str, int]:
    """Say how many urls each stratum gives: in proportion, at least two, the certain ones all."""
    certain = sum(stratum.urls for stratum in strata if stratum.name == _CERTAIN)
    urls = sum(stratum.urls for stratum in strata) - certain
    rate = min((wanted - certain) / urls, 1.0) if urls else 0.0
    return {
        stratum.name: stratum.urls
        if stratum.name == _CERTAIN
        else min(max(round(stratum.urls * rate), 2), stratum.urls)
        for stratum in strata
    }
