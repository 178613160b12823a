"""Survivorship: sums by host, and by simulation what the verdicts are worth."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from making import write_pool

from coyo_tools.download.survival_sums import HostSums, Missing
from coyo_tools.download.survivors import (
    DIFFERS,
    NO_DIFFERENCE,
    UNTESTED,
    Survivorship,
    judge_metric,
    judge_together,
    measure_survivors,
)
from coyo_tools.engine import open_session
from coyo_tools.source import open_source

NAN, INFINITE = float("nan"), float("inf")
METRICS = 6
STUDIES = 200

Array = npt.NDArray[Any]


def measure(tmp_path: Path, outcomes: list[str], **columns: Any) -> Survivorship:
    pool = write_pool(tmp_path / "pool.parquet", **columns)
    ledger = tmp_path / "ledger.parquet"
    pl.DataFrame({"id": list(columns["id"]), "outcome": outcomes}).write_parquet(ledger)
    source = open_source(pool)
    with open_session(source, output=tmp_path) as session:
        session.read_parquet(str(ledger)).create_view("ledger")
        return measure_survivors(session, source)


# --- the sums ------------------------------------------------------------------------------------


def test_means_and_counts_by_hand(tmp_path: Path) -> None:
    found = measure(
        tmp_path,
        ["ok", "ok", "dns", "drifted", "ok", "ok", "timeout"],
        id=[10, 11, 12, 13, 14, 15, 16],
        url=["http://a.com/1", "https://www.A.com/2", "http://b.com/", "http://c.com/", "http://c.com/",
             None, "nonsense"],
        aesthetic_score_laion_v2=[1.0, 3.0, 5.0, 7.0, NAN, None, NAN],
        width=[2, 2, 4, 4, None, 6, 6],
        height=[3, 3, 3, 3, 3, None, 5],
        mine=[INFINITE, 1.0, 2.0, 3.0, 4.0, None, -INFINITE],
    )  # fmt: skip
    assert (found.rows, found.survivors, found.hosts) == (7, 4, 4)  # a, b, c, none
    by_name = {one.name: one for one in found.metrics}
    assert set(by_name) == {"aesthetic_score_laion_v2", "width", "height", "area", "mine"}
    score = by_name["aesthetic_score_laion_v2"]
    assert (score.rows, score.survivors, score.lost) == (4, 2, 2)
    assert (score.mean, score.mean_survivors, score.mean_lost) == (4, 2, 6)
    assert score.deviation == pytest.approx(np.std([1, 3, 5, 7]))
    assert score.difference == pytest.approx(-2 / np.std([1, 3, 5, 7]))
    assert score.missing == Missing(nulls=1, nans=2, infinite=0)
    assert score.missing_survivors == Missing(nulls=1, nans=1, infinite=0)
    assert score.verdict == UNTESTED
    assert score.note == "all survivors are on one host"
    assert by_name["area"].mean == pytest.approx((6 + 6 + 12 + 12 + 30) / 5e6)
    assert by_name["area"].missing.nulls == 2
    mine = by_name["mine"]
    assert (mine.rows, mine.mean, mine.meaning) == (4, 2.5, "a column of this pool")
    assert mine.missing == Missing(nulls=1, nans=0, infinite=2)
    assert mine.missing_survivors == Missing(nulls=1, nans=0, infinite=1)


def test_columns_with_odd_names_and_types(tmp_path: Path) -> None:
    found = measure(
        tmp_path,
        ["ok", "ok", "dns", "ok"],
        id=[1, 2, 3, 4],
        url=["http://a/", "http://b/", "http://c/", "http://d/"],
        **{'my "own" score; --': [1, 2, 3, 4], "words": ["a"] * 4, "flag": [True] * 4},
    )
    assert [one.name for one in found.metrics] == ['my "own" score; --']
    assert found.metrics[0].mean == 2.5


def test_a_ledger_that_lacks_rows_is_a_defect(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2], url=["http://a/", "http://b/"])
    pl.DataFrame({"id": [1], "outcome": ["ok"]}).write_parquet(tmp_path / "ledger.parquet")
    source = open_source(pool)
    with open_session(source, output=tmp_path) as session:
        session.read_parquet(str(tmp_path / "ledger.parquet")).create_view("ledger")
        with pytest.raises(RuntimeError, match="1 of the 2 rows"):
            measure_survivors(session, source)


def test_nothing_lost_and_nothing_left(tmp_path: Path) -> None:
    columns = {
        "id": [1, 2, 3],
        "url": ["http://a/", "http://b/", "http://c/"],
        "width": [1, 2, 3],
        "height": [5, 5, 5],
    }
    width, height, _ = measure(tmp_path, ["ok"] * 3, **columns).metrics
    assert (width.verdict, width.difference, width.mean_lost) == (NO_DIFFERENCE, 0, None)
    assert width.note == "nothing was lost"
    assert (height.deviation, height.difference) == (0, None)
    width, height, _ = measure(tmp_path, ["dns"] * 3, **columns).metrics
    assert (width.verdict, width.difference, width.mean_survivors) == (UNTESTED, None, None)
    width, height, _ = measure(tmp_path, ["dns", "ok", "ok"], **columns).metrics
    assert (height.verdict, height.note) == (UNTESTED, "all values are equal")


# --- what the verdicts are worth -----------------------------------------------------------------


def sums_of(host: Array, values: Array, arrived: Array) -> HostSums:
    def total(weights: Array) -> Array:
        return np.bincount(host, weights=weights)

    return HostSums(
        total(np.ones(len(host))), total(values), total(values**2), total(arrived * 1.0),
        total(arrived * values),
    )  # fmt: skip


def zipf_hosts(hosts: int, rows: int) -> Array:
    """Rows by host number: the largest host has an eighth of them, as on the web."""
    share = 1 / np.arange(1, hosts + 1)
    return np.repeat(np.arange(hosts), np.maximum(rows * share / share.sum(), 1).astype(int))


def clustered(rng: np.random.Generator, host: Array, alike: float) -> Array:
    """Values of which hosts explain the share ``alike`` of the variance."""
    of_host = rng.normal(size=host.max() + 1)[host]
    return np.sqrt(alike) * of_host + np.sqrt(1 - alike) * rng.normal(size=len(host))


def iid_verdict(values: Array, arrived: Array, tests: int) -> bool:
    """What an interval says that takes every row for an independent one."""
    from scipy.stats import norm

    survivors = values[arrived]
    influence = arrived * (values - survivors.mean()) / len(survivors)
    influence -= (values - values.mean()) / len(values)
    error = np.sqrt((influence**2).sum())
    return bool(abs(survivors.mean() - values.mean()) > norm.ppf(1 - 0.025 / tests) * error)


LAYOUTS = {
    "even": np.repeat(np.arange(300), 20),
    "zipf": zipf_hosts(800, 5_000),
    "one with 40 %": np.repeat(np.arange(301), [2000] + [10] * 300),
    "eight": np.repeat(np.arange(8), 200),
}


def draw_fates(rng: np.random.Generator, host: Array, dead: str) -> Array:
    """Say which rows arrive, whatever their values are: 60 % on average."""
    hosts = int(host.max()) + 1
    if dead == "by url":
        return rng.random(len(host)) < 0.6
    if dead == "by host":
        return (rng.random(hosts) < 0.6)[host]
    return rng.random(len(host)) < rng.beta(1.2, 0.8, hosts)[host]


def any_differs(host: Array, metrics: list[Array], arrived: Array) -> bool:
    alone = [judge_metric("x", sums_of(host, values, arrived)) for values in metrics]
    return any(one.verdict == DIFFERS for one in judge_together(alone))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_that_die_at_random_raise_few_false_alarms(layout: str) -> None:
    host = LAYOUTS[layout]
    rng = np.random.default_rng(5)
    alarms = []
    for dead in ("by url", "by host", "by host's own rate"):
        for alike in (0.0, 0.5):
            of_series = 0
            for _ in range(STUDIES):
                arrived = draw_fates(rng, host, dead)
                metrics = [clustered(rng, host, alike) for _ in range(METRICS)]
                of_series += any_differs(host, metrics, arrived)
            alarms.append(of_series)
    # 5 % are due. With just that, 19 of 200 come out once in 250 series.
    assert max(alarms) <= 18, alarms
    assert sum(alarms) <= 0.06 * STUDIES * len(alarms), alarms


def test_rows_taken_for_independent_would_raise_alarms_nearly_always() -> None:
    host = LAYOUTS["even"]
    rng = np.random.default_rng(6)
    naive = ours = 0
    for _ in range(50):
        arrived = (rng.random(300) < 0.6)[host]
        metrics = [clustered(rng, host, 0.5) for _ in range(METRICS)]
        naive += any(iid_verdict(values, arrived, METRICS) for values in metrics)
        ours += any_differs(host, metrics, arrived)
    assert naive >= 48
    assert ours <= 6


def a_tenth_dead(rng: np.random.Generator, host: Array) -> tuple[Array, Array]:
    """Scores, and who arrives: of hosts with low scores more are dead, though not all."""
    hosts = int(host.max()) + 1
    liking = rng.normal(size=hosts)
    score = 4.8 + 0.7 * (np.sqrt(0.2) * liking[host] + np.sqrt(0.8) * rng.normal(size=len(host)))
    dead = np.argsort(liking + rng.gumbel(size=hosts))[: hosts // 10]
    return score, ~np.isin(host, dead)


def test_a_tenth_dead_by_host_with_the_score_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    host = LAYOUTS["even"]
    score, arrived = a_tenth_dead(rng, host)
    rows = len(host)
    found = measure(
        tmp_path,
        ["ok" if one else "dns" for one in arrived],
        id=range(rows),
        url=[f"http://host{number}.example/{row}" for row, number in enumerate(host)],
        aesthetic_score_laion_v2=score,
        watermark_score=rng.random(rows),
        word_count=rng.integers(3, 30, rows),
    )
    assert (found.rows, found.survivors, found.hosts) == (rows, rows * 9 // 10, 300)
    one = found.differing[0]
    assert one.name == "aesthetic_score_laion_v2"
    assert one.difference is not None and 0.01 < one.difference < 0.1
    assert one.low_of_all is not None and one.low is not None
    assert 0 < one.low_of_all < one.low < one.difference
    assert one.size == "negligible"
    same = judge_metric(one.name, sums_of(host, score.astype(np.float32), arrived))
    assert (same.low, same.degrees) == pytest.approx((one.low, one.degrees))


def test_it_is_found_nearly_always() -> None:
    rng = np.random.default_rng(12)
    host = LAYOUTS["even"]
    found = 0
    for _ in range(100):
        score, arrived = a_tenth_dead(rng, host)
        others = [clustered(rng, host, 0.2) for _ in range(11)]
        one, *_ = judge_together(
            [judge_metric("x", sums_of(host, values, arrived)) for values in (score, *others)]
        )
        found += one.verdict == DIFFERS
    assert found >= 90


def test_the_interval_covers_the_difference_that_the_cause_makes() -> None:
    """A url's chance to live rises with its score, so that the average difference is known."""
    rng = np.random.default_rng(8)
    host = LAYOUTS["zipf"]
    values = clustered(rng, host, 0.3)
    chance = 1 / (1 + np.exp(-values))
    true = ((chance * values).sum() / chance.sum() - values.mean()) / values.std()
    covered = 0
    for _ in range(STUDIES):
        arrived = rng.random(len(host)) < chance
        one = judge_metric("x", sums_of(host, values, arrived))
        assert one.low is not None and one.high is not None
        covered += one.low <= true <= one.high
    assert covered >= 0.95 * STUDIES - 5


def test_few_hosts_are_said_to_be_few() -> None:
    rng = np.random.default_rng(9)
    host = LAYOUTS["eight"]
    arrived = np.isin(host, [0, 1, 2, 4])
    one = judge_metric("x", sums_of(host, clustered(rng, host, 0.2), arrived))
    assert one.degrees is not None and one.degrees <= 7
    assert one.note == "few hosts decide, 8 in all"
