"""Survivorship: do the rows whose pictures arrived differ from the rows that were selected?

Links die by host, so rows of one host are no independent witnesses: an interval that takes them
for such finds differences where there are none. Here every host is one witness. One scan sums each
metric by host, the rest is arithmetic on hosts. It says whether rows differ, not why, and nothing
of the pictures themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlglot import exp

from coyo_tools.columns import BY_NAME, ID
from coyo_tools.engine import read_sql
from coyo_tools.source import Source

NEGLIGIBLE = 0.1
FEW_HOSTS = 20
LEVEL = 0.95
_LARGE_SHARE = 0.25
_AREA = "area"
_METRICS = (
    "clip_similarity_vitb32", "clip_similarity_vitl14", "aesthetic_score_laion_v2",
    "watermark_score", "nsfw_score_opennsfw2", "nsfw_score_gantman", "num_faces", "width",
    "height", _AREA, "text_length", "word_count",
)  # fmt: skip
_MEANING = {_AREA: "width × height, megapixels"}
DIFFERS = "differs"
NO_DIFFERENCE = "no difference found"
UNTESTED = "can't be tested"
METHODS = {
    "difference": "(mean of survivors - mean of selected) / standard deviation of selected: a "
    f"standardised difference; below {NEGLIGIBLE} in size counts as negligible (Austin 2009, "
    "Statistics in Medicine 28:3083)",
    "interval": "95 %, by the jackknife over hosts (delete one host; MacKinnon, Nielsen & Webb "
    "2023, CV3), so that rows of one host may share their fate and their scores; quantile of "
    "Student's t",
    "simultaneous": "95 % for all metrics together (Bonferroni); the verdict is read from this one",
    "missing": "NULL, NaN and infinite values are counted and stand in no mean",
}

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
class Survival:
    """One metric among the selected, the survivors and the lost; None is what can't be said.

    ``low`` and ``high`` are the 95 % interval of ``difference`` for this metric alone,
    ``low_of_all`` and ``high_of_all`` that for all metrics together. ``degrees`` is what Student's
    t was taken at: small where few hosts decide. ``size`` is ``negligible`` or ``not negligible``
    where the whole simultaneous interval is, else ``undecided``.
    """

    name: str
    meaning: str
    rows: int
    survivors: int
    lost: int
    missing: Missing
    missing_survivors: Missing
    mean: float | None
    mean_survivors: float | None
    mean_lost: float | None
    deviation: float | None
    difference: float | None
    low: float | None
    high: float | None
    low_of_all: float | None
    high_of_all: float | None
    hosts: int
    degrees: float | None
    verdict: str
    size: str
    note: str


@dataclass(frozen=True)
class Survivorship:
    """All metrics: rows that were selected and arrived, hosts, and what was found."""

    rows: int
    survivors: int
    hosts: int
    metrics: tuple[Survival, ...]
    methods: dict[str, str]

    @property
    def differing(self) -> tuple[Survival, ...]:
        """The metrics that differ, the largest difference first."""
        found = [one for one in self.metrics if one.verdict == DIFFERS]
        return tuple(sorted(found, key=lambda one: -abs(one.difference or 0.0)))


def measure_survivors(session: duckdb.DuckDBPyConnection, pool: Source) -> Survivorship:
    """Compare the rows that arrived with those that were selected.

    Args:
        session: with the pool's view and a view ``ledger``, which has each of the pool's ids once.
        pool: what the session reads.

    Raises:
        RuntimeError: the ledger has not one row for every id of the pool.
    """
    metrics = survival_metrics(pool)
    session.execute(read_sql("download/survived.sql"))
    _make_table(session, "survived_by_origin", _by_origin(metrics))
    _make_table(session, "survived_by_host", _by_host(len(metrics)))
    hosts, rows, survivors = session.sql(read_sql("download/survived_counts.sql")).fetchall()[0]
    if rows != pool.rows:
        raise RuntimeError(f"the ledger has {rows} of the {pool.rows} rows of {pool.path}")
    missing = _missing(session, len(metrics))
    alone = [
        judge_metric(name, _sums_of(session, number), meaning=meaning, missing=missing[number])
        for number, (name, meaning) in enumerate(metrics.items())
    ]
    return Survivorship(rows, survivors, hosts, judge_together(alone), METHODS)


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


def judge_metric(
    name: str,
    sums: HostSums,
    *,
    meaning: str = "",
    missing: tuple[Missing, Missing] = (Missing(0, 0, 0), Missing(0, 0, 0)),
) -> Survival:
    """Judge one metric, as if it were the only one, from its sums by host.

    Args:
        name: of the metric.
        sums: by host.
        meaning: in words.
        missing: rows without a value, among the selected and among the survivors.
    """
    there = sums.rows > 0
    rows, arrived = sums.rows[there], sums.arrived[there]
    total, arrived_total = sums.total[there], sums.arrived_total[there]
    selected, survivors, hosts = rows.sum(), arrived.sum(), len(rows)
    lost = selected - survivors
    mean = total.sum() / selected if selected else math.nan
    spread = np.maximum(sums.squares[there] - 2 * mean * total + mean * mean * rows, 0.0)
    # Squares that cancel to the last digits leave noise where a column is constant.
    constant = spread.sum() <= 1e-12 * sums.squares.sum()
    deviation = 0.0 if constant or not selected else math.sqrt(spread.sum() / selected)
    difference = low = high = degrees = None
    note = _why_not(sums)
    if deviation and survivors:
        difference = (arrived_total.sum() / survivors - mean) / deviation
    if difference is not None and not note:
        degrees = _degrees(rows, total - mean * rows, spread, arrived)
        error = _jackknife(rows, total, arrived, arrived_total, difference, deviation)
        half = _quantile(LEVEL, degrees) * error
        low, high = _known(difference - half), _known(difference + half)
        if hosts < FEW_HOSTS or degrees < FEW_HOSTS / 2:
            note = f"few hosts decide ({hosts:,} in all), so that the interval is wide"
    return Survival(
        name=name,
        meaning=meaning,
        rows=int(selected),
        survivors=int(survivors),
        lost=int(lost),
        missing=missing[0],
        missing_survivors=missing[1],
        mean=_known(mean),
        mean_survivors=_ratio(arrived_total.sum(), survivors),
        mean_lost=_ratio(total.sum() - arrived_total.sum(), lost),
        deviation=_known(deviation) if selected else None,
        difference=_known(difference),
        low=low,
        high=high,
        low_of_all=low,
        high_of_all=high,
        hosts=hosts,
        degrees=_known(degrees),
        verdict=NO_DIFFERENCE if selected and not lost else _verdict(low, high),
        size=_size(low, high),
        note=note,
    )


def judge_together(alone: Sequence[Survival]) -> tuple[Survival, ...]:
    """Widen the intervals of metrics that are judged together, and judge again by these."""
    tests = sum(1 for one in alone if one.low is not None)
    return tuple(_widened(one, tests) for one in alone)


def _widened(one: Survival, tests: int) -> Survival:
    if one.difference is None or one.high is None or one.degrees is None:
        return one
    half = one.high - one.difference
    half *= _quantile(1 - (1 - LEVEL) / tests, one.degrees) / _quantile(LEVEL, one.degrees)
    low, high = _known(one.difference - half), _known(one.difference + half)
    return replace(
        one,
        low_of_all=low,
        high_of_all=high,
        verdict=_verdict(low, high),
        size=_size(low, high),
    )


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNTESTED
    return DIFFERS if low > 0 or high < 0 else NO_DIFFERENCE


def _why_not(sums: HostSums) -> str:
    """Say why no interval can be given; empty where one can."""
    selected, survivors = sums.rows.sum(), sums.arrived.sum()
    if not selected:
        return "no row has a value"
    if not survivors:
        return "no survivor has a value"
    if survivors == selected:
        return "nothing was lost"
    if np.count_nonzero(sums.rows) < 2:
        return "all rows are on one host"
    if np.count_nonzero(sums.arrived) < 2:
        return "all survivors are on one host"
    mean = sums.total.sum() / selected
    if sums.squares.sum() - mean * mean * selected <= 1e-12 * sums.squares.sum():
        return "all values are equal"
    return ""


def _jackknife(
    rows: Floats,
    total: Floats,
    arrived: Floats,
    arrived_total: Floats,
    difference: float,
    deviation: float,
) -> float:
    """Return the standard error of the difference: each host is left out once.

    To first order it is the linearised influence of every row summed by host; unlike that, it is
    not too small where one host has much of the rows.
    """
    without = (arrived_total.sum() - arrived_total) / (arrived.sum() - arrived)
    without -= (total.sum() - total) / (rows.sum() - rows)
    apart = without / deviation - difference
    return math.sqrt((len(rows) - 1) / len(rows) * float(np.dot(apart, apart)))


def _degrees(rows: Floats, centred: Floats, spread: Floats, arrived: Floats) -> float:
    """Return the degrees of freedom of the standard error, from 1 to hosts - 1.

    Where urls die one by one, a host's part of the error is about normal, with a variance in
    proportion to the squares of its values, and few large hosts make few degrees of freedom
    (Satterthwaite 1946). Where whole hosts die, that part is one of two numbers, and the ratio of
    difference and error stays within bounds of itself; then hosts count. ``alike`` says which it
    is: the intra-host correlation of arriving. Checked by simulation (tests/test_survivors.py).
    """
    hosts = len(rows)
    share = arrived.sum() / rows.sum()
    chance = share * (1 - share)
    pairs = chance * np.dot(rows, rows - 1)
    apart = arrived - share * rows
    alike = (np.dot(apart, apart) - chance * rows.sum()) / pairs if pairs else 1.0
    alike = min(max(alike, 0.0), 1.0)
    whole = alike * centred**2
    single = (1 - alike) * spread
    parts = whole + single
    scale = parts.sum() ** 2
    if not scale:
        return 1.0
    inverse = np.dot(single, single) / scale + 1 / (hosts - 1)
    if rows.max() > _LARGE_SHARE * rows.sum():
        # One host with a quarter of all rows: what became of it is one witness, however many
        # others there are (effective clusters: Carter, Schnepel & Steigerwald 2017).
        inverse = max(inverse, np.dot(parts, parts) / scale)
    return float(max(1 / inverse, 1.0))


def _quantile(level: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees))


def _size(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "undecided"
    if low > -NEGLIGIBLE and high < NEGLIGIBLE:
        return "negligible"
    return "not negligible" if low >= NEGLIGIBLE or high <= -NEGLIGIBLE else "undecided"


def _known(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _ratio(total: float, rows: float) -> float | None:
    return _known(total / rows) if rows else None


def _by_origin(metrics: dict[str, str]) -> exp.Select:
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


def _sums_of(session: duckdb.DuckDBPyConnection, number: int) -> HostSums:
    """Fetch a metric's sums by host, in the hosts' order, so that the same rows give the same."""
    columns = [f"{label}_{number}" for label in ("n", "t", "q")]
    columns += [f"{label}_{number}_arrived" for label in ("n", "t")]
    query = exp.select(*map(exp.column, columns)).from_("survived_by_host").order_by("host")
    found = session.sql(query.sql(dialect="duckdb")).fetchnumpy()
    return HostSums(*(np.asarray(found[name], dtype=np.float64) for name in columns))


def _missing(session: duckdb.DuckDBPyConnection, metrics: int) -> list[tuple[Missing, Missing]]:
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


def _missing_of(counts: Sequence[int], number: int) -> Missing:
    finite, present, nans = counts[1 + 3 * number : 4 + 3 * number]
    return Missing(nulls=counts[0] - present, nans=nans, infinite=present - finite - nans)
