"""The sums that survivorship is judged by: one scan of pool and ledger, grouped by host.

The query's text depends on which metrics a pool has, so it is put together by sqlglot. Hosts can be
millions; what grows with them lies in DuckDB's tables, which spill, and is fetched by metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlglot import exp

from coyo_tools.columns import BY_NAME, ID
from coyo_tools.engine import read_sql
from coyo_tools.source import Source

_AREA = "area"
_METRICS = (
    "clip_similarity_vitb32", "clip_similarity_vitl14", "aesthetic_score_laion_v2",
    "watermark_score", "nsfw_score_opennsfw2", "nsfw_score_gantman", "num_faces", "width",
    "height", _AREA, "text_length", "word_count",
)  # fmt: skip
_MEANING = {_AREA: "width × height, megapixels"}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HostSums:
    """A metric summed by host, each of shape (hosts,), over rows with a finite value.

    ``rows`` and ``total`` are rows and the sum of their values, ``squares`` the sum of squares;
    ``arrived`` and ``arrived_total`` are those of the rows that survived.
    """

    rows: Floats
    total: Floats
    squares: Floats
    arrived: Floats
    arrived_total: Floats


@dataclass(frozen=True)
class Missing:
    """Rows without a value to average."""

    nulls: int
    nans: int
    infinite: int


@dataclass(frozen=True)
class Counted:
    """Hosts, rows that were selected, rows that survived."""

    hosts: int
    rows: int
    survivors: int


def survival_metrics(pool: Source) -> dict[str, str]:
    """Name the numeric columns that are compared, with their meaning: COYO's, then others."""

    def numeric(name: str) -> bool:
        kind = pool.schema.field(name).type if name in pool.columns else pa.null()
        return bool(
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        )

    found = {}
    for name in _METRICS:
        needs = ("width", "height") if name == _AREA else (name,)
        if all(map(numeric, needs)):
            found[name] = _MEANING[name] if name in _MEANING else BY_NAME[name].meaning
    own = [name for name in pool.columns if name not in BY_NAME and name not in _METRICS]
    return found | {name: "a column of this pool" for name in own if numeric(name) and name != ID}


def sum_survivors(
    session: duckdb.DuckDBPyConnection, pool: Source, metrics: Sequence[str]
) -> Counted:
    """Make the tables of sums by origin and by host, which the other functions here read.

    Raises:
        RuntimeError: the view ``ledger`` has not one row for every id of the pool.
    """
    session.execute(read_sql("download/survived.sql"))
    _make_table(session, "survived_by_origin", _by_origin(metrics))
    _make_table(session, "survived_by_host", _by_host(len(metrics)))
    counted = Counted(*session.sql(read_sql("download/survived_counts.sql")).fetchall()[0])
    if counted.rows != pool.rows:
        raise RuntimeError(f"the ledger has {counted.rows} of the {pool.rows} rows of {pool.path}")
    return counted


def sums_of_metric(session: duckdb.DuckDBPyConnection, number: int) -> HostSums:
    """Fetch a metric's sums by host, in the hosts' order, so that the same rows give the same."""
    columns = [f"{label}_{number}" for label in ("n", "t", "q")]
    columns += [f"{label}_{number}_arrived" for label in ("n", "t")]
    query = exp.select(*map(exp.column, columns)).from_("survived_by_host").order_by("host")
    found = session.sql(query.sql(dialect="duckdb")).fetchnumpy()
    return HostSums(*(np.asarray(found[name], dtype=np.float64) for name in columns))


def missing_values(
    session: duckdb.DuckDBPyConnection, metrics: int
) -> list[tuple[Missing, Missing]]:
    """Count, for every metric, values that are missing, among the selected and the survivors."""
    names = ["rows", *_labels(metrics, "n", "present", "nans")]
    sums = [exp.alias_(exp.func("sum", exp.column(name)), name) for name in names]
    survived = exp.column("__survived")
    query = exp.select(survived, *sums).from_("survived_by_origin").group_by(survived)
    counts = {True: [0] * len(names), False: [0] * len(names)}
    for fate, *values in session.sql(query.sql(dialect="duckdb")).fetchall():
        counts[fate] = [int(value) for value in values]
    selected = [sum(pair) for pair in zip(*counts.values(), strict=True)]
    return [
        (_missing_of(selected, number), _missing_of(counts[True], number))
        for number in range(metrics)
    ]


def _by_origin(metrics: Sequence[str]) -> exp.Select:
    """Sum every metric by origin and fate: rows, sum, squares, NULLs and NaNs."""
    survived, origin = exp.column("__survived"), exp.column("__origin")
    values = []
    for number, name in enumerate(metrics):
        value: exp.Expr = exp.cast(exp.column(name, quoted=True), "double")
        if name == _AREA:
            sides = (exp.cast(exp.column(side), "double") for side in ("width", "height"))
            pixels = exp.Mul(this=next(sides), expression=next(sides))
            value = exp.Div(this=pixels, expression=exp.Literal.number(1_000_000))
        values.append(exp.alias_(value, f"raw_{number}"))
    raw = exp.select(survived, origin, *values).from_("survived").subquery("raw")
    finite = []
    for number in range(len(metrics)):
        column = exp.column(f"raw_{number}")
        kept = exp.case().when(exp.func("isfinite", column), column)
        finite += [column, exp.alias_(kept, f"value_{number}")]
    values_of = exp.select(survived, origin, *finite).from_(raw).subquery("finite")
    sums = [exp.alias_(exp.func("count", exp.Star()), "rows")]
    for number in range(len(metrics)):
        column, value = exp.column(f"raw_{number}"), exp.column(f"value_{number}")
        square = exp.Mul(this=value, expression=value.copy())
        nan = exp.func("is_nan", column)
        for label, aggregate in (
            ("n", exp.func("count", value)),
            ("t", exp.func("sum", value)),
            ("q", exp.func("sum", square)),
            ("present", exp.func("count", column)),
            ("nans", exp.func("count_if", nan)),
        ):
            sums.append(exp.alias_(aggregate, f"{label}_{number}"))
    return exp.select(survived, origin, *sums).from_(values_of).group_by(survived, origin)


def _by_host(metrics: int) -> exp.Select:
    """Sum the origins of a host: ``x`` over all of its rows, ``x_arrived`` over the survivors'."""
    host = exp.func("left", exp.func("url_domain", exp.column("__origin")), exp.Literal.number(253))
    sums: list[exp.Expr] = [exp.alias_(host, "host")]
    for name in ("rows", *_labels(metrics, "n", "t", "q")):
        # As doubles: a sum of integers would be one of 128 bits.
        everywhere = exp.func("sum", exp.cast(exp.column(name), "double"))
        sums.append(exp.alias_(_or_zero(everywhere), name))
        if not name.startswith("q"):
            arrived = exp.Filter(
                this=everywhere.copy(), expression=exp.Where(this=exp.column("__survived"))
            )
            sums.append(exp.alias_(_or_zero(arrived), f"{name}_arrived"))
    return exp.select(*sums).from_("survived_by_origin").group_by("host")


def _labels(metrics: int, *labels: str) -> list[str]:
    return [f"{label}_{number}" for number in range(metrics) for label in labels]


def _or_zero(value: exp.Expr) -> exp.Expr:
    return exp.func("coalesce", value, exp.Literal.number(0))


def _make_table(session: duckdb.DuckDBPyConnection, name: str, query: exp.Select) -> None:
    made = exp.Create(
        this=exp.to_table(name),
        kind="TABLE",
        replace=True,
        properties=exp.Properties(expressions=[exp.TemporaryProperty()]),
        expression=query,
    )
    session.execute(made.sql(dialect="duckdb"))


def _missing_of(counts: Sequence[int], number: int) -> Missing:
    finite, present, nans = counts[1 + 3 * number : 4 + 3 * number]
    return Missing(nulls=counts[0] - present, nans=nans, infinite=present - finite - nans)
