"""Stats: the tables and histograms of COYO's dataset card, for any pool or subset.

Three scans: one of the numbers (measures.py), one that counts different urls, texts and hashes, one
of the urls' domains. None of them holds more than counters or tables that spill.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
from sqlglot import exp

from coyo_tools.bins import DERIVED, OWN, meaning_of
from coyo_tools.columns import COYO_COLUMNS, ID, IMAGE_PHASH, TEXT, URL
from coyo_tools.engine import id_numbers, open_session, read_sql, recipe_errors
from coyo_tools.manifest import IdDigest, Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.measures import add_batch, batches_of, measurable, new_tallies, selected
from coyo_tools.pages import write_page
from coyo_tools.source import Source, open_source
from coyo_tools.tallies import QUANTILE_ERROR, Figures, Histogram

STATS_KIND = "stats"
TOP_DOMAINS = 50
_STRINGS = (URL, TEXT, IMAGE_PHASH)
_METHODS = {
    "quantiles": "the least value with at least that share of all finite values at or below it; "
    "whole numbers up to 4096 exactly, others with a relative error of at most "
    f"{QUANTILE_ERROR:.3g} (2**-12)",
    "std": "of the population: divided by the number of finite values",
    "bins": "each has its lower edge, the last one both; floats are compared as float32",
    "different": "different 64-bit hashes, all counted; two of n values share one with odds of "
    "n * n / 2**65, so that of 750 million about 0.015 are missed",
    "domains": "host of the url in lower case, without user, port and a leading www.",
}


@dataclass(frozen=True)
class ColumnStats:
    """One column: what it means, a note if it is not quite COYO's, its figures, its histogram."""

    name: str
    meaning: str
    note: str
    figures: Figures
    histogram: Histogram


@dataclass(frozen=True)
class Different:
    """How many rows have a value, and how many different values there are."""

    name: str
    rows: int
    different: int


@dataclass(frozen=True)
class Domain:
    """A url's host and the rows that have it."""

    domain: str
    rows: int


@dataclass(frozen=True)
class Stats:
    """All that ``coyo stats`` finds out about a pool.

    ``lacking`` says of COYO's columns that are not there why; ``other_columns`` are those that are
    none of COYO's and are not described. ``without_domain`` rows have no url, or no host in it.
    """

    source: str
    fingerprint: str
    layout: str
    rows: int
    columns: tuple[ColumnStats, ...]
    lacking: dict[str, str]
    other_columns: tuple[str, ...]
    different: tuple[Different, ...]
    empty_texts: int | None
    domains: int | None
    without_domain: int | None
    top_domains: tuple[Domain, ...]
    methods: dict[str, str]


def measure_pool(
    source: str | Path,
    *,
    output: Path | None = None,
    top_domains: int = TOP_DOMAINS,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> Stats:
    """Measure a pool, and write stats.json and stats.html if ``output`` is given.

    Args:
        source: the pool or subset.
        output: directory to make.
        top_domains: how many domains are named.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        CoyoError: the pool can't be read, or the output not be written.
    """
    watch = Stopwatch()
    pool = open_source(source)
    if output is None:
        with open_session(pool, memory=memory, threads=threads) as session:
            return _measure(session, pool, top_domains)[0]
    with new_artifact(output, overwrite=overwrite) as directory:
        with open_session(pool, output=directory, memory=memory, threads=threads) as session:
            stats, digest = _measure(session, pool, top_domains)
        text = json.dumps(asdict(stats), indent=2, ensure_ascii=False, allow_nan=False)
        (directory / "stats.json").write_text(text + "\n", encoding="utf-8")
        write_page(
            directory / "stats.html", "stats.html.j2", title="What the pool holds", stats=stats
        )
        write_manifest(
            directory,
            Manifest(
                kind=STATS_KIND,
                parameters={"stage": "stats", "top_domains": top_domains},
                inputs=[pool.as_input("pool")],
                rows_in=pool.rows,
                rows_out=pool.rows,
                lost={},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
            ),
        )
    return stats


def _measure(
    session: duckdb.DuckDBPyConnection, pool: Source, top_domains: int
) -> tuple[Stats, IdDigest]:
    found = measurable(pool)
    tallies = new_tallies(found)
    digest = IdDigest()
    query = exp.select(exp.column(ID), *selected(found.columns)).from_("pool")
    with recipe_errors(pool):
        for batch in batches_of(session, query):
            digest.update(id_numbers(batch.column(0)))
            add_batch(tallies, batch)
        different, empty_texts = _different(session, pool)
        domains = _domains(session, pool, top_domains)
    known = {column.name for column in COYO_COLUMNS}
    lacking = {name: "no such column" for name in (ID, *_STRINGS) if name not in pool.columns}
    stats = Stats(
        source=pool.path,
        fingerprint=pool.fingerprint,
        layout=pool.column_map.layout,
        rows=digest.count,
        columns=tuple(
            ColumnStats(
                name, meaning_of(name), _note(pool, name), tally.figures(), tally.histogram()
            )
            for name, tally in tallies.items()
        ),
        lacking=lacking | found.lacking,
        other_columns=tuple(name for name in pool.columns if name not in known | OWN.keys()),
        different=different,
        empty_texts=empty_texts,
        domains=domains[0],
        without_domain=domains[1],
        top_domains=domains[2],
        methods=_METHODS,
    )
    return stats, digest


def _note(pool: Source, name: str) -> str:
    return "" if name in DERIVED else pool.notes.get(name, "")


def _different(
    session: duckdb.DuckDBPyConnection, pool: Source
) -> tuple[tuple[Different, ...], int | None]:
    """Count different values of the columns that are no numbers, and texts without a letter."""
    view = exp.select(
        *(
            exp.alias_(
                exp.cast(exp.column(name) if name in pool.columns else exp.null(), "text"), name
            )
            for name in _STRINGS
        )
    ).from_("pool")
    session.sql(view.sql(dialect="duckdb")).create_view("strings")
    counts = session.sql(read_sql("stats/distinct.sql"))
    found = dict(zip(counts.columns, counts.fetchall()[0], strict=True))
    wanted = [
        (URL, "urls", {URL}),
        (TEXT, "texts", {TEXT}),
        (IMAGE_PHASH, "hashes", {IMAGE_PHASH}),
        (f"{IMAGE_PHASH}, {TEXT}", "pairs", {IMAGE_PHASH, TEXT}),
    ]
    there = set(pool.columns)
    different = tuple(
        Different(name, found[key], found[f"different_{key}"])
        for name, key, needs in wanted
        if needs <= there
    )
    return different, found["empty_texts"] if TEXT in there else None


def _domains(
    session: duckdb.DuckDBPyConnection, pool: Source, top: int
) -> tuple[int | None, int | None, tuple[Domain, ...]]:
    if URL not in pool.columns:
        return None, None, ()
    session.execute(read_sql("stats/domains.sql"))
    rows = session.execute(read_sql("stats/top_domains.sql"), {"top": top}).fetchall()
    ((domains, without),) = session.sql(read_sql("stats/domain_counts.sql")).fetchall()
    return domains, without, tuple(Domain(*row) for row in rows)
