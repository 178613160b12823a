"""The pilot: which urls it draws, and whether its intervals hold what they promise."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from making import write_pool

from coyo_tools.download.forecast import (
    Forecast,
    forecast,
    forecast_from,
    forecast_lines,
    human_bytes,
    human_hours,
)
from coyo_tools.download.pilot_sample import PilotPlan, Stratum, plan_pilot
from coyo_tools.engine import open_session
from coyo_tools.source import open_source

Array = npt.NDArray[Any]


def plan(urls: pl.DataFrame, wanted: int) -> PilotPlan:
    with duckdb.connect() as session:
        session.register("given", urls.to_arrow())
        session.execute("CREATE TABLE urls AS FROM given")
        return plan_pilot(session, wanted)


def web(sizes: list[int], rows: list[int] | None = None) -> pl.DataFrame:
    """Urls of hosts of these sizes."""
    hosts = [f"host{number}.example" for number, size in enumerate(sizes) for _ in range(size)]
    return pl.DataFrame(
        {
            "url": [f"http://{host}/{number}.jpg" for number, host in enumerate(hosts)],
            "url_number": range(len(hosts)),
            "host": hosts,
            "rows": rows or [1] * len(hosts),
        }
    )


# --- the sample ----------------------------------------------------------------------------------


def test_large_hosts_have_their_share_and_small_ones_are_pooled() -> None:
    urls = web([5000, 2000] + [3] * 1000)
    found = plan(urls, 400)
    assert len(set(found.urls["url_number"])) == found.urls.height
    assert 395 <= found.urls.height <= 405
    drawn = found.urls.join(urls, on="url_number")
    by_host = Counter(drawn["host"])
    assert by_host["host0.example"] == 200
    assert by_host["host1.example"] == 80
    strata = {stratum.name: stratum for stratum in found.strata}
    assert strata["host host0.example"] == Stratum(
        "host host0.example", 5000, 5000, "host0.example"
    )
    others = [stratum for stratum in found.strata if stratum.host is None]
    assert sum(stratum.urls for stratum in others) == 3000
    assert len(others) == 3000 * 400 // (8 * 10_000)
    assert all(abs(stratum.urls - 200) <= 3 for stratum in others)
    assert sum(stratum.rows for stratum in found.strata) == urls.height
    taken = Counter(found.urls["stratum"])
    assert all(taken[stratum.name] >= 2 for stratum in found.strata)


def test_the_same_urls_give_the_same_pilot_in_whatever_order_they_come() -> None:
    urls = web([500, 90] + [4] * 100)
    one, other = plan(urls, 60), plan(urls.sample(fraction=1, shuffle=True, seed=1), 60)
    assert one.urls.equals(other.urls)
    assert one.strata == other.strata
    assert one.urls["url_number"].is_sorted()


def test_urls_with_many_rows_are_taken_for_certain() -> None:
    rows = [1] * 1000
    rows[17], rows[500] = 400, 90
    found = plan(web([1000], rows), 100)
    chosen = dict(found.urls.iter_rows())
    assert chosen[17] == chosen[500] == "many rows"
    assert found.strata[1] == Stratum("many rows", 2, 490)


@pytest.mark.parametrize("sizes", [[1], [3], [2, 1, 1], [40], [30, 1]])
def test_a_pilot_of_more_than_there_is_takes_all(sizes: list[int]) -> None:
    found = plan(web(sizes), 1000)
    assert found.urls["url_number"].to_list() == list(range(sum(sizes)))


def test_a_fenced_session_can_plan_a_pilot_twice(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1], url=["http://a/"])
    with open_session(open_source(pool), output=tmp_path) as session:
        session.execute(
            "CREATE TEMP TABLE urls AS SELECT 'http://h' || i % 50 || '/' || i AS url, "
            "i AS url_number, 'h' || i % 50 AS host, 1 AS rows FROM range(5000) AS numbers(i)"
        )
        one, other = plan_pilot(session, 200), plan_pilot(session, 200)
    assert one.urls.equals(other.urls)
    assert one.urls.height == 200


def test_hosts_that_are_missing_or_hostile_are_strata_like_others() -> None:
    urls = web([50, 50, 50])
    names = [None] * 50 + ["'); DROP TABLE urls; --"] * 50 + ["<script>"] * 50
    found = plan(urls.with_columns(host=pl.Series(names)), 60)
    assert {stratum.host for stratum in found.strata} == {"", "'); DROP TABLE urls; --", "<script>"}
    assert found.urls.height == 60


# --- the figures ---------------------------------------------------------------------------------


def pilot(rows: list[dict[str, Any]]) -> pl.DataFrame:
    defaults = {
        "stratum": "a", "rows": 1, "finished": None, "stored_bytes": None, "bytes": None,
        "seconds": None,
    }  # fmt: skip
    schema = {
        "url_number": pl.Int64, "stratum": pl.String, "rows": pl.Int64, "finished": pl.Float64,
        "stored_bytes": pl.Int64, "outcome": pl.String, "bytes": pl.Int64, "seconds": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(
        [defaults | {"url_number": number} | row for number, row in enumerate(rows)], schema=schema
    )


def test_a_pilot_of_everything_is_no_forecast_but_a_count() -> None:
    rows = [
        {"outcome": "ok", "bytes": 100, "stored_bytes": 50, "rows": 2},
        {"outcome": "dns"},
        {"outcome": "drifted", "bytes": 10},
        {"outcome": "placeholder", "bytes": 1},
    ]
    made = forecast(pilot(rows), (Stratum("a", 4, 5),))
    assert (made.success.value, made.success.low, made.success.high) == (0.4, 0.4, 0.4)
    assert (made.drifted.value, made.placeholder.value) == (0.2, 0.2)
    assert asdict(made.pictures) == {"value": 2, "low": 2, "high": 2}
    assert made.bytes.value == pytest.approx(111)
    assert made.disk.value == pytest.approx(100)
    assert (made.disk.low, made.disk.high) == (made.disk.value, made.disk.value)
    assert made.hours is None


def test_strata_weigh_as_much_as_they_have_urls() -> None:
    rows = [{"outcome": "ok"}] * 10 + [{"outcome": "dns", "stratum": "b"}] * 10
    made = forecast(pilot(rows), (Stratum("a", 900, 900), Stratum("b", 100, 100)))
    assert made.success.value == pytest.approx(0.9)
    assert made.pictures.value == pytest.approx(900)


def test_rows_of_one_url_may_fare_differently() -> None:
    rows = [
        {"url_number": 0, "rows": 2, "outcome": "ok", "bytes": 100, "stored_bytes": 40},
        {"url_number": 0, "rows": 2, "outcome": "drifted", "bytes": 100},
    ]
    made = forecast(pilot(rows), (Stratum("a", 1, 2),))
    assert (made.success.value, made.drifted.value) == (0.5, 0.5)
    assert (made.bytes.value, made.disk.value) == (100, 40)  # fetched once, stored for one row


def test_where_all_arrive_the_interval_still_has_a_width() -> None:
    made = forecast(pilot([{"outcome": "ok"}] * 100), (Stratum("a", 10_000, 10_000),))
    assert made.success.high == 1
    assert made.success.low == pytest.approx(1 / (1 + 1.984**2 / (100 / 0.99)), abs=0.001)  # Wilson
    none = forecast(pilot([{"outcome": "dns"}] * 100), (Stratum("a", 10_000, 10_000),))
    assert none.success.low == 0
    assert none.success.high is not None and 0.03 < none.success.high < 0.04
    assert (none.disk.value, none.disk.low, none.disk.high) == (0, None, None)


def test_hours_come_from_the_middle_of_the_pilot() -> None:
    # 10 s of start-up, then 50 urls a second, and timeouts that hold up the last ones.
    finished = np.concatenate([10 + np.arange(950) / 50, 40 + np.arange(50) * 2.0])
    rows = [{"outcome": "ok", "finished": float(second)} for second in finished]
    made = forecast(pilot(rows), (Stratum("a", 9_000_000, 9_000_000),))
    assert made.hours is not None
    assert made.hours.value == pytest.approx(9_000_000 / 50 / 3600, rel=0.01)
    few = forecast(pilot(rows[:20]), (Stratum("a", 9_000_000, 9_000_000),))
    assert few.hours is None


def test_no_download_is_faster_than_its_slowest_host() -> None:
    rows = [{"outcome": "ok", "finished": n / 50, "seconds": 0.1} for n in range(500)]
    rows += [
        {"outcome": "ok", "finished": n / 50, "seconds": 3.0, "stratum": "slow"} for n in range(9)
    ]
    strata = (
        Stratum("a", 50_000, 50_000, "fast.example"),
        Stratum("slow", 48_000, 90_000, "slow.example"),
    )
    made = forecast(pilot(rows), strata, per_host=4)
    assert made.slowest_host == "slow.example"
    assert made.least_hours == pytest.approx(10)  # 48,000 urls of 3 s, four at a time
    assert made.hours is not None
    assert (made.hours.value, made.hours.low) == (made.least_hours, made.least_hours)


def test_what_is_wrong_with_a_pilot_is_said() -> None:
    strata = (Stratum("a", 10, 10),)
    with pytest.raises(ValueError, match="has no stored_bytes"):
        forecast(pilot([{"outcome": "ok"}]).drop("stored_bytes"), strata)
    with pytest.raises(ValueError, match="unknown strata"):
        forecast(pilot([{"outcome": "ok", "stratum": "b"}]), strata)
    with pytest.raises(ValueError, match="no url of stratum 'b'"):
        forecast(pilot([{"outcome": "ok"}]), (*strata, Stratum("b", 5, 5)))


# --- coverage ------------------------------------------------------------------------------------


def hosts_that_die_differently(rng: np.random.Generator) -> tuple[pl.DataFrame, Array, Array]:
    """A web of Zipf hosts, each with its own rate of death and size of pictures."""
    share = 1 / np.arange(1, 401) ** 0.9
    of_host = np.maximum(4000 * share / share.sum(), 1).astype(int)
    host = np.repeat(np.arange(400), of_host)
    waiting = 1 + rng.geometric(0.85, len(host)) // 2
    alive = rng.random(len(host)) < rng.beta(0.6, 0.5, 400)[host]
    served = rng.lognormal(11 + rng.normal(0, 0.4, 400)[host], 0.9)
    sizes = np.where(alive, served, 0).astype(np.int64)
    return web(of_host.tolist(), waiting.tolist()), alive, sizes


def test_intervals_cover_what_they_estimate() -> None:
    """300 pilots of one web; the draw comes from the urls, so each has its urls renamed."""
    urls, alive, sizes = hosts_that_die_differently(np.random.default_rng(3))
    waiting = urls["rows"].to_numpy()
    truth = {
        "pictures": float((alive * waiting).sum()),
        "bytes": float(sizes.sum()),
        "disk": float((alive * waiting * (sizes // 4)).sum()),
    }
    covered = dict.fromkeys(truth, 0)
    with duckdb.connect() as session:
        session.register("given", urls.to_arrow())
        session.execute("CREATE TABLE base AS FROM given")
        for study in range(300):
            session.execute(
                "CREATE OR REPLACE TEMP TABLE urls AS "
                f"SELECT * REPLACE (url || '?{study}' AS url) FROM base"
            )
            planned = plan_pilot(session, 300)
            chosen = planned.urls["url_number"].to_numpy()
            sample = planned.urls.with_columns(
                rows=waiting[chosen],
                finished=None,
                stored_bytes=sizes[chosen] // 4,
                outcome=np.where(alive[chosen], "ok", "dns"),
                bytes=sizes[chosen],
                seconds=1.0,
            )
            made = forecast(sample, planned.strata)
            for name, true in truth.items():
                estimate = getattr(made, name)
                covered[name] += estimate.low <= true <= estimate.high
    for times in covered.values():
        assert 0.92 * 300 <= times <= 0.98 * 300, covered


# --- how it is told ------------------------------------------------------------------------------


def some_forecast() -> Forecast:
    rows = [
        {"outcome": "ok" if n % 2 else "dns", "finished": n / 10, "bytes": 1000 * n, "seconds": 0.5,
         "stored_bytes": 300}
        for n in range(200)
    ]  # fmt: skip
    return forecast(pilot(rows), (Stratum("a", 80_000, 90_000, "a.example"),), per_host=2)


def test_it_survives_json() -> None:
    made = some_forecast()
    written = json.dumps(asdict(made), allow_nan=False)
    assert forecast_from(json.loads(written)) == made
    with pytest.raises(ValueError, match="no forecast"):
        forecast_from({"urls": 5})


def test_lines_for_the_terminal() -> None:
    lines = {what: (value, interval) for what, value, interval in forecast_lines(some_forecast())}
    assert lines["arrive"] == ("50.0%", "43.1% to 56.9%")
    assert lines["pictures"][0] == "45,000"
    assert lines["to fetch"][0] == "7.96 GB"
    assert lines["time"][0] == "5.6 h"
    assert lines["at least, for a.example"] == ("5.6 h", "")


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (5e9, "5 GB"), (2.5e13, "25 TB"),
     (3e15, "3,000 TB")],
)  # fmt: skip
def test_bytes_in_words(number: float, written: str) -> None:
    assert human_bytes(number) == written


@pytest.mark.parametrize(
    ("hours", "written"),
    [(0.001, "4 s"), (0.5, "30 min"), (2, "2.0 h"), (100, "4.2 days")],
)
def test_hours_in_words(hours: float, written: str) -> None:
    assert human_hours(hours) == written
