"""Compare: two pools or subsets by id, their scores, and whom a filter left out.

Each is read in a session of its own: once for its ids, once for its numbers and domains beside the
other's ids, so that no join carries more than ids. What stands on both sides for the same id is
compared by hashes; only where those differ are the values themselves.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
from sqlglot import exp

from coyo_tools.bins import ASPECT_RATIO, BINS, DERIVED, MIN_SIDE, meaning_of
from coyo_tools.columns import ID, IMAGE_PHASH, TEXT, URL
from coyo_tools.engine import (
    digest_ids,
    open_session,
    read_sql,
    recipe_errors,
    refuse_duplicate_ids,
)
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.measures import (
    Measurable,
    add_batch,
    batches_of,
    measurable,
    new_tallies,
    selected,
)
from coyo_tools.pages import write_page
from coyo_tools.source import Source, open_source
from coyo_tools.tallies import PERCENTS, ColumnTally, Figures

COMPARISON_KIND = "comparison"
TOP_DOMAINS = 20
_IN_OTHER = "in_other"
_ROW_HASH = "row_hash"
AUDITED = ("num_faces", "text_length", ASPECT_RATIO, MIN_SIDE)
_EXAMPLES = 5
_Z95 = 1.959963984540054
_METHODS = {
    "smd": "standardised mean difference: (mean of B - mean of A) / sqrt((sd of A squared + sd of "
    "B squared) / 2)",
    "std": "of the population: divided by the number of finite values; NULL and NaN are left out",
    "retention": "share of A's rows of a bin whose id is in B; bins are by A's values",
    "interval": "Wilson's 95 % interval for that share",
    "jaccard": "ids in both / ids in either",
}


@dataclass(frozen=True)
class Side:
    """One of the two: its path and fingerprint, its rows, how many the other has, their share."""

    path: str
    fingerprint: str
    id_digest: str
    rows: int
    only_here: int
    share_in_other: float


@dataclass(frozen=True)
class Shift:
    """A score in A, in B, and in the rows that only one of them has; ``lacking`` says who lacks it.

    ``smd`` and ``quantile_differences`` are B less A; None where a side has no such score, or, for
    ``smd``, where neither varies.
    """

    name: str
    meaning: str
    a: Figures | None
    b: Figures | None
    only_a: Figures | None
    only_b: Figures | None
    smd: float | None
    quantile_differences: dict[str, float | None]
    lacking: str


@dataclass(frozen=True)
class Retention:
    """How many of A's rows of a kind are in B, as a share with Wilson's 95 % interval."""

    label: str
    rows: int
    kept: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Audit:
    """Retention along one column: by bin, with NULL and NaN as bins of their own."""

    name: str
    meaning: str
    bins: tuple[Retention, ...]


@dataclass(frozen=True)
class Mismatch:
    """Rows that hold other values in A and B under the same id, by column, and a few such ids."""

    rows: int
    by_column: dict[str, int]
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What two pools have in common and how they differ.

    ``mismatch`` is None where A and B agree in all of ``values_compared`` for every id in both.
    """

    a: Side
    b: Side
    both: int
    jaccard: float
    values_compared: tuple[str, ...]
    mismatch: Mismatch | None
    shifts: tuple[Shift, ...]
    overall: Retention
    audits: tuple[Audit, ...]
    methods: dict[str, str]


@dataclass(frozen=True)
class _Seen:
    """One side, measured: rows in and not in the other, their tallies, hashes of the first."""

    both: int
    only: int
    inside: dict[str, ColumnTally]
    outside: dict[str, ColumnTally]
    hashes: tuple[int, int]
    domains: tuple[Retention, ...]


def compare_pools(
    a: str | Path,
    b: str | Path,
    *,
    output: Path | None = None,
    top_domains: int = TOP_DOMAINS,
    audited: Sequence[str] = AUDITED,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare two pools or subsets, and write compare.json and compare.html if asked to.

    Args:
        a: the pool.
        b: what was made of it, or any other pool with ids of the same kind.
        output: directory to make.
        top_domains: how many domains the audit names; the rest count as one.
        audited: columns with bins (bins.py) along which retention is told, where A has them.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        SourceError: ids are missing or not unique.
        CoyoError: a pool can't be read, or the output not be written.
    """
    watch = Stopwatch()
    pools = open_source(a), open_source(b)
    if output is None:
        with tempfile.TemporaryDirectory(prefix=".compare-") as work:
            return _compare(*pools, Path(work), top_domains, audited, memory, threads)
    with new_artifact(output, overwrite=overwrite) as directory:
        with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as work:
            found = _compare(*pools, Path(work), top_domains, audited, memory, threads)
        text = json.dumps(asdict(found), indent=2, ensure_ascii=False, allow_nan=False)
        (directory / "compare.json").write_text(text + "\n", encoding="utf-8")
        write_page(
            directory / "compare.html", "compare.html.j2", title="Two pools compared", found=found
        )
        write_manifest(
            directory,
            Manifest(
                kind=COMPARISON_KIND,
                parameters={"stage": "compare", "top_domains": top_domains},
                inputs=[pools[0].as_input("a"), pools[1].as_input("b")],
                rows_in=found.a.rows,
                rows_out=found.both,
                lost={"not in b": found.a.only_here},
                id_digest=found.a.id_digest,
                seconds=watch.seconds(),
            ),
        )
    return found


def _compare(
    a: Source,
    b: Source,
    work: Path,
    top: int,
    audited: Sequence[str],
    memory: str | None,
    threads: int | None,
) -> Comparison:
    columns = measurable(a), measurable(b)
    shared = _shared(a, b, columns)
    digests = []
    for pool, name in ((a, "a"), (b, "b")):
        with open_session(pool, output=work, memory=memory, threads=threads) as session:
            digests.append(_write_ids(session, pool, work / f"{name}.parquet"))
    sides = []
    for pool, other, own in ((a, "b", columns[0]), (b, "a", columns[1])):
        with open_session(pool, output=work, memory=memory, threads=threads) as session:
            _join(session, work / f"{other}.parquet")
            domains = top if pool is a and URL in a.columns else 0
            sides.append(_see(session, own, shared, domains, pool))
    seen_a, seen_b = sides
    mismatch = None
    if seen_a.hashes != seen_b.hashes:
        with open_session(b, output=work, memory=memory, threads=threads) as session:
            _join(session, work / "a.parquet")
            _write_values(session, shared, work / "values.parquet")
        with open_session(a, output=work, memory=memory, threads=threads) as session:
            mismatch = _mismatch(session, shared, work / "values.parquet")
    both = seen_a.both
    overall = _retention("all rows", a.rows, both)
    return Comparison(
        a=_side(a, digests[0], seen_a),
        b=_side(b, digests[1], seen_b),
        both=both,
        jaccard=both / (a.rows + b.rows - both),
        values_compared=tuple(shared),
        mismatch=mismatch,
        shifts=_shifts(seen_a, seen_b, columns),
        overall=overall,
        audits=_audits(seen_a, audited),
        methods=_METHODS,
    )


def _write_ids(session: duckdb.DuckDBPyConnection, pool: Source, path: Path) -> str:
    """Write a pool's ids to a file and return their digest.

    Raises:
        SourceError: an id is missing or not unique.
    """
    ids = session.view("pool").select(ID)
    ids.write_parquet(str(path.absolute()), compression="zstd")
    digest = digest_ids([path])
    if not digest.ascending:
        refuse_duplicate_ids(session, ids, pool.path)
    return digest.hexdigest()


def _join(session: duckdb.DuckDBPyConnection, ids: Path) -> None:
    session.read_parquet(str(ids.absolute())).create_view("other_ids")
    session.execute(read_sql("compare/matched.sql"))


def _see(
    session: duckdb.DuckDBPyConnection,
    columns: Measurable,
    shared: dict[str, str],
    top: int,
    pool: Source,
) -> _Seen:
    """Measure the rows that the other side has, and those that it has not."""
    inside, outside = new_tallies(columns), new_tallies(columns)
    row_hash = exp.func("hash", exp.cast(exp.column(ID), "bigint"), *_canonical(shared).values())
    query = exp.select(
        exp.column(_IN_OTHER), exp.alias_(row_hash, _ROW_HASH), *selected(columns.columns)
    ).from_("matched")
    both = rows = total = mixed = 0
    domains: tuple[Retention, ...] = ()
    with recipe_errors(pool):
        for batch in batches_of(session, query):
            matched = batch.column(0).to_numpy(zero_copy_only=False)
            hashes = batch.column(1).to_numpy()[matched]
            total += int(hashes.sum(dtype=np.uint64))
            mixed ^= int(np.bitwise_xor.reduce(hashes, initial=np.uint64(0)))
            rows += len(matched)
            both += len(hashes)
            add_batch(inside, batch, matched)
            add_batch(outside, batch, ~matched)
        if top:
            counts = session.execute(read_sql("compare/domains.sql"), {"top": top}).fetchall()
            domains = tuple(
                _retention(_domain_label(kind, name, count), rows_of, kept)
                for kind, name, count, rows_of, kept in counts
            )
    return _Seen(both, rows - both, inside, outside, (total % 2**64, mixed), domains)


def _domain_label(kind: str, name: str | None, count: int) -> str:
    if kind == "top" and name is not None:
        return name
    return "no domain" if kind == "none" else f"{count:,} others"


def _shared(a: Source, b: Source, columns: tuple[Measurable, Measurable]) -> dict[str, str]:
    """Return the columns whose values are compared, and the SQL type they are compared as.

    Those are the numbers that both have; the strings where there are none.
    """
    one, other = columns
    numbers = {
        name: "bigint" if name in one.whole & other.whole else "double"
        for name in one.columns
        if name in other.columns and name not in DERIVED
    }
    both = [name for name in (URL, TEXT, IMAGE_PHASH) if name in a.columns and name in b.columns]
    return numbers or dict.fromkeys(both, "text")


def _canonical(shared: dict[str, str]) -> dict[str, exp.Expr]:
    """Cast columns so that equal values have equal hashes, however they are stored."""
    return {
        name: exp.TryCast(this=exp.column(name), to=exp.DataType.build(kind, dialect="duckdb"))
        for name, kind in shared.items()
    }


def _write_values(session: duckdb.DuckDBPyConnection, shared: dict[str, str], path: Path) -> None:
    """Write the compared values of the rows that the other side has too."""
    values = [exp.alias_(value, name) for name, value in _canonical(shared).items()]
    query = exp.select(exp.column(ID), *values).from_("matched").where(exp.column(_IN_OTHER))
    session.sql(query.sql(dialect="duckdb")).write_parquet(str(path.absolute()))


def _mismatch(session: duckdb.DuckDBPyConnection, shared: dict[str, str], path: Path) -> Mismatch:
    """Count the rows, and the columns, in which this side's values are not those written."""
    session.read_parquet(str(path.absolute())).create_view("theirs")
    ours = exp.select(
        exp.column(ID), *(exp.alias_(value, name) for name, value in _canonical(shared).items())
    ).from_("pool")
    session.sql(ours.sql(dialect="duckdb")).create_view("ours")
    tests = [
        exp.alias_(
            exp.NullSafeNEQ(
                this=exp.column(name, table="ours"), expression=exp.column(name, table="theirs")
            ),
            name,
        )
        for name in shared
    ]
    joined = exp.select(exp.column(ID, table="ours"), *tests).from_("ours")
    joined = joined.join("theirs", using=ID)
    session.sql(joined.sql(dialect="duckdb")).create_view("tests")
    some = exp.or_(*(exp.column(name) for name in shared))
    counts = exp.select(
        exp.alias_(exp.func("count_if", some), "rows"),
        *(exp.alias_(exp.func("count_if", exp.column(name)), name) for name in shared),
    ).from_("tests")
    rows, *by_column = session.sql(counts.sql(dialect="duckdb")).fetchall()[0]
    few = exp.select(exp.column(ID)).from_("tests").where(some).order_by(ID).limit(_EXAMPLES)
    examples = tuple(id_ for (id_,) in session.sql(few.sql(dialect="duckdb")).fetchall())
    differing = {name: count for name, count in zip(shared, by_column, strict=True) if count}
    return Mismatch(rows, differing, examples)


def _side(pool: Source, digest: str, seen: _Seen) -> Side:
    return Side(pool.path, pool.fingerprint, digest, pool.rows, seen.only, seen.both / pool.rows)


def _shifts(a: _Seen, b: _Seen, columns: tuple[Measurable, Measurable]) -> tuple[Shift, ...]:
    shifts = []
    for name in BINS:
        sides = [
            (seen.inside[name].plus(seen.outside[name]).figures(), seen.outside[name].figures())
            if name in seen.inside
            else (None, None)
            for seen in (a, b)
        ]
        (all_a, only_a), (all_b, only_b) = sides
        lacking = [
            f"{side}: {own.lacking[name]}"
            for side, own in zip("AB", columns, strict=True)
            if name in own.lacking
        ]
        if any(name in own.columns for own in columns):
            shifts.append(
                Shift(
                    name,
                    meaning_of(name),
                    all_a,
                    all_b,
                    only_a,
                    only_b,
                    _smd(all_a, all_b),
                    _quantile_differences(all_a, all_b),
                    "; ".join(lacking),
                )
            )
    return tuple(shifts)


def _smd(a: Figures | None, b: Figures | None) -> float | None:
    """Return (mean of B - mean of A) / pooled sd (Cohen's d with equal weights)."""
    if a is None or b is None or a.mean is None or b.mean is None:
        return None
    if a.std is None or b.std is None:
        return None
    pooled = math.sqrt((a.std**2 + b.std**2) / 2)
    return (b.mean - a.mean) / pooled if pooled else None


def _quantile_differences(a: Figures | None, b: Figures | None) -> dict[str, float | None]:
    differences: dict[str, float | None] = {}
    for percent in map(str, PERCENTS):
        one = None if a is None else a.quantiles[percent]
        other = None if b is None else b.quantiles[percent]
        differences[percent] = None if one is None or other is None else other - one
    return differences


def _audits(a: _Seen, audited: Sequence[str]) -> tuple[Audit, ...]:
    audits = []
    for name in audited:
        if name not in a.inside:
            continue
        kept = a.inside[name].histogram().all_bins()
        left_out = a.outside[name].histogram().all_bins()
        bins = tuple(
            _retention(one.label, one.rows + other.rows, one.rows)
            for one, other in zip(kept, left_out, strict=True)
        )
        audits.append(Audit(name, meaning_of(name), bins))
    if a.domains:
        audits.append(Audit("domain", "host of the url", a.domains))
    return tuple(audits)


def _retention(label: str, rows: int, kept: int) -> Retention:
    """Return a share with its 95 % interval (Wilson 1927)."""
    if rows == 0:
        return Retention(label, 0, 0, None, None, None)
    share = kept / rows
    weight = _Z95**2 / rows
    middle = (share + weight / 2) / (1 + weight)
    half = _Z95 / (1 + weight) * math.sqrt(share * (1 - share) / rows + weight / (4 * rows))
    low = middle - half if kept else 0.0
    high = middle + half if kept < rows else 1.0
    return Retention(label, rows, kept, share, low, high)
