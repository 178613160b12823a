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

from coyo_tools.download.survival_sums import (
    Floats,
    HostSums,
    Missing,
    missing_values,
    sum_survivors,
    sums_of_metric,
    survival_metrics,
)
from coyo_tools.source import Source

NEGLIGIBLE = 0.1
FEW_HOSTS = 20
LEVEL = 0.95
_LARGE_SHARE = 0.25
DIFFERS = "differs"
NO_DIFFERENCE = "no difference found"
UNTESTED = "can't be tested"
FEW = "few hosts decide"
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
    rows = sum_survivors(session, pool, tuple(metrics))
    missing = missing_values(session, len(metrics))
    alone = [
        judge_metric(
            name, sums_of_metric(session, number), meaning=meaning, missing=missing[number]
        )
        for number, (name, meaning) in enumerate(metrics.items())
    ]
    return Survivorship(rows.rows, rows.survivors, rows.hosts, judge_together(alone), METHODS)


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
            note = f"{FEW}, {hosts:,} in all"
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
