"""The forecast: what a whole download will be like, by the urls that a pilot tried.

Totals are estimated by stratum, with intervals for a finite population. They are for the network as
the pilot found it; what it will be like tomorrow is in none of them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from coyo_tools.download.ledger import DRIFTED, OK, PLACEHOLDER
from coyo_tools.download.pilot_sample import STRATUM, URL_NUMBER, Stratum

ROWS = "rows"  # of the subset, that wait for a url
FINISHED = "finished"  # seconds since the pilot began
STORED_BYTES = "stored_bytes"  # that one picture takes in its shard
PILOT_COLUMNS = (
    URL_NUMBER, STRATUM, ROWS, FINISHED, STORED_BYTES, "outcome", "bytes", "seconds",
)  # fmt: skip
LEVEL = 0.95
_DECILES = 10
_LEAST_FOR_RATE = 50
_MOST_SPREAD = 20.0  # e**20 either way says "unknown" as well as any number

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; the ends are None where none can be given."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Forecast:
    """What a download of all urls will come to, by a pilot of some.

    Shares are of rows, 0 to 1; ``pictures`` are rows that arrive; ``bytes`` are fetched, ``disk``
    is what the shards take. ``hours`` is None where the pilot was too small to tell. No download
    ends before ``least_hours``, because ``slowest_host`` is asked by so many at once only.
    """

    pilot_urls: int
    pilot_rows: int
    urls: int
    rows: int
    strata: int
    success: Estimate
    drifted: Estimate
    placeholder: Estimate
    pictures: Estimate
    bytes: Estimate
    disk: Estimate
    hours: Estimate | None
    least_hours: float | None
    slowest_host: str | None


def forecast(
    pilot: pl.DataFrame, strata: tuple[Stratum, ...], *, per_host: int | None = None
) -> Forecast:
    """Work out what the whole download will come to.

    Args:
        pilot: the ledger's rows of the pilot's urls, either one for each url or one for each id,
            with the columns of the ledger and ``url_number``, ``stratum``, ``rows`` (that wait for
            the url), ``finished`` (seconds since the pilot began) and ``stored_bytes`` (of one
            picture in its shard; null where none is stored).
        strata: as planned.
        per_host: how many requests one host gets at a time.

    Raises:
        ValueError: a column is missing, or the pilot has no url of a stratum.
    """
    lacking = [name for name in PILOT_COLUMNS if name not in pilot.columns]
    if lacking:
        raise ValueError(f"the pilot has no {', '.join(lacking)}")
    urls = _by_url(pilot)
    sample = _Sample(urls, strata)
    waiting = urls[ROWS].to_numpy().astype(np.float64)
    share = {
        name: sample.share(urls[name].to_numpy(), waiting) for name in (OK, DRIFTED, PLACEHOLDER)
    }
    rows = sum(stratum.rows for stratum in strata)
    stored = urls[OK].to_numpy() * urls[STORED_BYTES].fill_null(0).to_numpy()
    least_hours, slowest = _least_hours(urls, strata, per_host)
    return Forecast(
        pilot_urls=urls.height,
        pilot_rows=int(waiting.sum()),
        urls=sample.all_urls,
        rows=rows,
        strata=len(strata),
        success=share[OK],
        drifted=share[DRIFTED],
        placeholder=share[PLACEHOLDER],
        pictures=_times(share[OK], rows),
        bytes=sample.total(urls["bytes"].fill_null(0).to_numpy().astype(np.float64)),
        disk=sample.total_by_rows(stored * waiting, waiting, rows),
        hours=_hours(urls[FINISHED].drop_nulls().to_numpy(), sample.all_urls, least_hours),
        least_hours=least_hours,
        slowest_host=slowest,
    )


def _by_url(pilot: pl.DataFrame) -> pl.DataFrame:
    """Return one row for every url; where its rows differ in outcome, their shares."""
    shares = [(pl.col("outcome") == name).mean().alias(name) for name in (OK, DRIFTED, PLACEHOLDER)]
    return (
        pilot.group_by(URL_NUMBER)
        .agg(
            pl.col(STRATUM).first(),
            pl.col(ROWS).first(),
            pl.col(FINISHED).max(),
            pl.col("bytes").max(),
            pl.col("seconds").max(),
            pl.col(STORED_BYTES).mean(),
            *shares,
        )
        .sort(URL_NUMBER)
    )


class _Sample:
    """A stratified sample without replacement: totals, shares and their intervals.

    Cochran 1977, Sampling Techniques, sections 5 and 6: by stratum, with the finite population
    correction; ratios by linearisation.
    """

    def __init__(self, urls: pl.DataFrame, strata: tuple[Stratum, ...]) -> None:
        names = {stratum.name: number for number, stratum in enumerate(strata)}
        unknown = set(urls[STRATUM].unique()) - set(names)
        if unknown:
            raise ValueError(f"the pilot has urls of unknown strata: {sorted(unknown)[:3]}")
        self._of = np.array([names[name] for name in urls[STRATUM]], dtype=np.int64)
        self._sizes = np.array([stratum.urls for stratum in strata], dtype=np.float64)
        self._taken = np.bincount(self._of, minlength=len(strata)).astype(np.float64)
        if (self._taken == 0).any():
            missed = strata[int(np.argmin(self._taken))].name
            raise ValueError(f"the pilot has no url of stratum {missed!r}")
        if (self._taken > self._sizes).any():
            raise ValueError("the pilot has more urls than there are in a stratum")
        self._weights = (self._sizes / self._taken)[self._of]
        self.all_urls = int(self._sizes.sum())
        self._degrees = max(int((self._taken - 1).sum()), 1)

    def total(self, values: Floats) -> Estimate:
        """Estimate a total; what is never negative and skewed gets its interval on a log scale."""
        total = float(np.dot(self._weights, values))
        return self._skewed(total, self._variance(values))

    def total_by_rows(self, values: Floats, rows: Floats, all_rows: int) -> Estimate:
        """Estimate a total by its ratio to the rows, whose total is known."""
        ratio = float(np.dot(self._weights, values) / np.dot(self._weights, rows))
        return self._skewed(ratio * all_rows, self._variance(values - ratio * rows))

    def share(self, shares: Floats, rows: Floats) -> Estimate:
        """Estimate a share of rows with Wilson's interval, at the sample size of equal variance.

        Korn & Graubard 1998; Dean & Pagano 2015 compare it with others.
        """
        known = float(np.dot(self._weights, rows))
        share = float(np.dot(self._weights, shares * rows)) / known
        share = min(max(share, 0.0), 1.0)
        left = float(1 - self._taken.sum() / self._sizes.sum())
        if left <= 0:
            return Estimate(share, share, share)
        variance = self._variance((shares - share) * rows) / known**2
        spread = share * (1 - share)
        # No more than the sample has urls can come of one in which all agree.
        most = len(rows) / left
        size = spread / variance if variance > spread / (50 * most) else most
        t = _t_quantile(self._degrees)
        weight = t**2 / size
        middle = (share + weight / 2) / (1 + weight)
        half = t / (1 + weight) * math.sqrt(spread / size + weight / (4 * size))
        low = max(middle - half, 0.0) if share > 0 else 0.0
        high = min(middle + half, 1.0) if share < 1 else 1.0
        return Estimate(share, low, high)

    def _variance(self, values: Floats) -> float:
        """Return the variance of an estimated total; strata with one url take the others' mean."""
        sums = np.bincount(self._of, weights=values, minlength=len(self._sizes))
        means = sums / self._taken
        squares = np.bincount(
            self._of, weights=(values - means[self._of]) ** 2, minlength=len(self._sizes)
        )
        enough = self._taken > 1
        spread = np.divide(squares, self._taken - 1, where=enough, out=np.zeros(len(squares)))
        if not enough.all():
            overall = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
            spread = np.where(enough, spread, overall)
        return float((self._sizes * (self._sizes - self._taken) * spread / self._taken).sum())

    def _skewed(self, total: float, variance: float) -> Estimate:
        if total <= 0:
            return Estimate(0.0, None, None)
        spread = _t_quantile(self._degrees) * math.sqrt(variance) / total
        factor = math.exp(min(spread, _MOST_SPREAD))
        return Estimate(total, total / factor, total * factor)


def _t_quantile(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, degrees))


def _hours(finished: Floats, urls: int, least: float | None) -> Estimate | None:
    """Estimate hours from the pace of the pilot's middle eight tenths.

    The first tenth is start-up, the last one waits for timeouts; a long download has little of
    either. Each tenth's duration is one measurement of the pace.
    """
    if len(finished) < _LEAST_FOR_RATE:
        return None
    edges = np.quantile(finished, np.arange(1, _DECILES) / _DECILES)
    durations = np.diff(edges)
    mean = float(durations.mean())
    if mean <= 0:
        return None
    tenths = urls / (len(finished) / _DECILES)
    error = float(durations.std(ddof=1)) / math.sqrt(len(durations))
    factor = math.exp(_t_quantile(len(durations) - 1) * error / mean)
    floor = least or 0.0
    hours = [max(tenths * pace / 3600, floor) for pace in (mean, mean / factor, mean * factor)]
    return Estimate(*hours)


def _least_hours(
    urls: pl.DataFrame, strata: tuple[Stratum, ...], per_host: int | None
) -> tuple[float | None, str | None]:
    """Return the hours that the slowest large host needs, asked by ``per_host`` at a time."""
    seconds = dict(urls.group_by(STRATUM).agg(pl.col("seconds").mean()).drop_nulls().iter_rows())
    if per_host is None:
        return None, None
    needs = [
        (stratum.urls * seconds[stratum.name] / per_host / 3600, stratum.host)
        for stratum in strata
        if stratum.host is not None and stratum.name in seconds
    ]
    return max(needs, default=(None, None), key=lambda need: need[0] or 0.0)


def _times(share: Estimate, rows: int) -> Estimate:
    low = None if share.low is None else share.low * rows
    high = None if share.high is None else share.high * rows
    return Estimate(share.value * rows, low, high)


def forecast_from(figures: Mapping[str, Any]) -> Forecast:
    """Make a forecast of what ``dataclasses.asdict`` made of one, such as a manifest's details.

    Raises:
        ValueError: it is no forecast.
    """
    made: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, dict) else value
        for name, value in figures.items()
    }
    try:
        return Forecast(**made)
    except TypeError as error:
        raise ValueError(f"this is no forecast: {error}") from error


def forecast_lines(made: Forecast) -> list[tuple[str, str, str]]:
    """Return a forecast for a table: what, how much, its 95 % interval."""

    def line(what: str, estimate: Estimate, shown: Callable[[float], str]) -> tuple[str, str, str]:
        if estimate.low is None or estimate.high is None:
            return what, shown(estimate.value), ""
        return what, shown(estimate.value), f"{shown(estimate.low)} to {shown(estimate.high)}"

    lines = [
        line("arrive", made.success, _percent),
        line("drifted", made.drifted, _percent),
        line("placeholders", made.placeholder, _percent),
        line("pictures", made.pictures, lambda number: f"{number:,.0f}"),
        line("to fetch", made.bytes, human_bytes),
        line("shards on disk", made.disk, human_bytes),
    ]
    if made.hours is not None:
        lines.append(line("time", made.hours, human_hours))
    if made.least_hours is not None and made.slowest_host is not None:
        lines.append((f"at least, for {made.slowest_host}", human_hours(made.least_hours), ""))
    return lines


def _percent(share: float) -> str:
    return f"{share:.1%}"


def human_bytes(number: float) -> str:
    """Write a number of bytes in three digits.

    >>> human_bytes(1_234_000)
    '1.23 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 999.5 else f"{number:,.0f} TB"


def human_hours(hours: float) -> str:
    """Write a time in the unit that suits it.

    >>> human_hours(0.25)
    '15 min'
    """
    if hours < 1.5 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1.5:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
