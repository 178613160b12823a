"""The page after a download: what it counts, that it agrees with report.json, that it is safe."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from making import write_pool

from coyo_tools.download.forecast import Estimate, Forecast
from coyo_tools.download.ledger import LEDGER_SCHEMA
from coyo_tools.download.report import DownloadReport, write_download_report
from coyo_tools.source import open_source

HOSTILE = "<script>alert(1)</script>"
BROKEN = '"><img src=x onerror=alert(1)>'


def write_ledger(path: Path, rows: list[dict[str, Any]]) -> None:
    empty = dict.fromkeys(LEDGER_SCHEMA)
    pl.DataFrame([empty | row for row in rows], schema=LEDGER_SCHEMA).write_parquet(path)


def report_of(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    columns: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[DownloadReport, str]:
    """Write a pool and the ledger of its download; return the report and its page."""
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[row["id"] for row in rows],
        url=[row.get("url") for row in rows],
        **(columns or {}),
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    write_ledger(shards / "ledger.parquet", rows)
    (shards / "00000.tar").write_bytes(bytes(10_240))
    made = write_download_report(shards, open_source(pool), **({"max_drift": 8} | options))
    assert {path.name for path in shards.iterdir()} == {
        "ledger.parquet", "00000.tar", "download.html", "report.json",
    }  # fmt: skip
    return made, (shards / "download.html").read_text(encoding="utf-8")


def arrived(id_: int, url: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id_, "url": url, "outcome": "ok", "detail": "", "retryable": False, "attempts": 1,
        "seconds": 0.5, "bytes": 1000, "served_width": 640, "served_height": 480,
        "served_phash": "aca29c1c33dc23d7", "phash_distance": 0, "stored_width": 256,
        "stored_height": 192, "shard": "00000.tar",
    } | more  # fmt: skip


def lost(id_: int, url: str | None, outcome: str, detail: str = "", **more: Any) -> dict[str, Any]:
    failed = {"retryable": outcome in ("timeout", "http 5xx"), "attempts": 1, "seconds": 2.0}
    return {"id": id_, "url": url, "outcome": outcome, "detail": detail} | failed | more


PART = 1 << 33
ROWS = [
    arrived(1, "http://a.example/2014/07/1.jpg"),
    arrived(2, "http://www.a.example/2014/07/2.jpg", phash_distance=8),
    arrived(3, "http://a.example/2014/07/2.jpg", phash_distance=None),
    arrived(4, "http://a.example/2014/07/2.jpg", phash_distance=2),
    lost(5, "http://b.example/2020/13/5.jpg", "timeout", "timed out", attempts=3),
    lost(6, "http://b.example/2019/1/6.jpg", "http 4xx", "HTTP Error 404: Not Found"),
    lost(PART + 1, "http://b.example/wp/2020/12/7.jpg", "http 4xx", "HTTP Error 404: Not Found"),
    lost(PART + 2, "http://b.example/8.jpg", "http 4xx", "HTTP Error 410: Gone"),
    arrived(PART + 3, "http://c.example/9.jpg", outcome="drifted", phash_distance=10, shard=None),
    arrived(PART + 4, "http://c.example/10.jpg", outcome="drifted", phash_distance=30, shard=None),
    *(
        arrived(
            5 * PART + n, f"http://c.example/gone{n}.jpg", outcome="placeholder",
            phash_distance=32, served_phash="f" * 16, shard=None,
        )
        for n in range(3)
    ),
    lost(5 * PART + 9, None, "bad url", "not an http or https address", attempts=0),
]  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> tuple[DownloadReport, str]:
    return report_of(tmp_path, ROWS, {"width": list(range(14))})


def test_outcomes_and_whether_another_try_could_help(small: tuple[DownloadReport, str]) -> None:
    made, page = small
    assert {one.name: (one.rows, one.could_help) for one in made.outcomes} == {
        "ok": (4, 0), "http 4xx": (3, 0), "placeholder": (3, 0), "drifted": (2, 0),
        "timeout": (1, 1), "bad url": (1, 0),
    }  # fmt: skip
    assert made.outcomes[0].name == "ok"
    assert (made.rows, made.arrived, made.stored, made.could_help) == (14, 4, 4, 1)
    assert made.answer.startswith(
        "4 of 14 pictures arrived (28.6%); 14.3% had drifted to another picture; "
        "21.4% are placeholders; 35.7% could not be had; another try could bring up to 1. "
    )
    assert made.answer in html.unescape(page)
    reasons = [(one.outcome, one.detail, one.rows, one.details) for one in made.reasons]
    assert reasons[1:3] == [
        ("http 4xx", "HTTP Error 404: Not Found", 2, 2),
        ("http 4xx", "HTTP Error 410: Gone", 1, 2),
    ]


def test_groups_by_host_year_and_part(small: tuple[DownloadReport, str]) -> None:
    made, _ = small
    hosts = {one.label: (one.rows, one.ok, one.drifted, one.placeholder) for one in made.by_host}
    assert made.hosts == 3
    assert hosts == {
        "a.example": (4, 4, 0, 0), "b.example": (4, 0, 0, 0), "c.example": (5, 0, 2, 3),
        "no host in the url": (1, 0, 0, 0),
    }  # fmt: skip
    losing = [(one.label, one.rows - one.ok, one.commonest_loss) for one in made.losing_hosts]
    assert losing == [("c.example", 5, "placeholder"), ("b.example", 4, "http 4xx")]
    years = {one.label: (one.rows, one.ok, one.share_drifted) for one in made.by_year}
    assert years == {"2014": (4, 4, 0), "2020": (1, 0, None), "none named": (9, 0, 1)}
    parts = {one.label: one.rows for one in made.by_part}
    assert parts == {"0": 6, "1": 4, "5": 4}
    assert made.parts == 3


def test_drift_and_placeholders(small: tuple[DownloadReport, str]) -> None:
    made, page = small
    drift = made.drift
    assert (drift.within, drift.just_beyond, drift.beyond, drift.not_compared) == (3, 1, 5, 1)
    assert (drift.by_distance[32], drift.placeholder_by_distance[32]) == (3, 3)
    assert len(drift.by_distance) == 65
    assert made.placeholders == 1
    (one,) = made.top_placeholders
    assert (one.served_phash, one.rows, one.urls) == ("f" * 16, 3, 3)
    assert one.example == "http://c.example/gone0.jpg"
    assert "--max-drift 8" in page


def test_a_url_counts_once_however_many_rows_wait_for_it(small: tuple[DownloadReport, str]) -> None:
    made, _ = small
    assert (made.urls, made.requests, made.bytes, made.disk) == (12, 14, 8000, 10_240)
    figures = {one.name: one.figures for one in made.measured}
    assert (figures["bytes"].count, figures["bytes"].nulls) == (8, 4)
    assert figures["seconds"].count == 12
    assert figures["served_width"].quantiles["50"] == 640
    assert figures["stored_height"].max == 192
    assert figures["attempts"].max == 3


def test_many_hosts_and_parts_are_put_together(tmp_path: Path) -> None:
    rows = [arrived(n * PART, f"http://host{min(n, 59)}.example/{n}") for n in range(100)]
    made, page = report_of(tmp_path, rows)
    assert len(made.by_host) == 26
    assert (made.by_host[0].label, made.by_host[0].rows) == ("host59.example", 41)
    assert (made.by_host[-1].label, made.by_host[-1].rows) == ("35 others", 35)
    assert (made.parts, len(made.by_part)) == (100, 34)
    assert sum(one.rows for one in made.by_part) == 100
    assert made.by_part[0].label == "0 to 2"
    assert made.losing_hosts == ()
    assert "100 parts, neighbours together" in page


# --- the page ------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags of a page, and the attributes that could run something or fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.risky: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.risky += [(k, v) for k, v in attrs if k.startswith("on") or k in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_strangers_texts_do_nothing(tmp_path: Path) -> None:
    rows = [
        lost(n, f"http://host{n}.example/{BROKEN}", HOSTILE, BROKEN) for n in range(3)
    ] + [
        arrived(10 + n, f"http://{HOSTILE}{BROKEN}.example/2014/07/{n}", outcome="placeholder",
                served_phash=BROKEN, detail=HOSTILE, phash_distance=40)
        for n in range(3)
    ] + [arrived(20, "http://a.example/")]  # fmt: skip
    _, page = report_of(tmp_path, rows, {HOSTILE: range(7), BROKEN: range(7)})
    found = Tags()
    found.feed(page)
    assert not found.tags & {"script", "img", "iframe", "link", "object", "a"}
    assert found.risky == []
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_page_says_what_the_json_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = []
    for n in range(400):
        url = f"http://host{n % 40}.example/{2010 + n % 5}/0{1 + n % 9}/{n}.jpg"
        row = arrived(n, url, seconds=float(rng.random()), bytes=int(rng.integers(1000, 90_000)))
        rows.append(row if n % 40 > 15 else lost(n, url, "dns"))
    pilot = Estimate(0.6, 0.5, 0.7)
    forecast = Forecast(
        100, 100, 400, 400, 5, pilot, Estimate(0.3, 0.2, 0.4), Estimate(0.0, 0.0, 0.1),
        Estimate(240.0, 200.0, 280.0), Estimate(1e7, 9e6, 1.2e7), Estimate(1e4, None, None),
        Estimate(1.0, 0.5, 2.0), None, None,
    )  # fmt: skip
    made, page = report_of(
        tmp_path, rows, {"aesthetic_score_laion_v2": rng.normal(5, 1, 400)},
        forecast=forecast, seconds=5400.0,
    )  # fmt: skip
    stored = json.loads((tmp_path / "shards" / "report.json").read_text())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert stored["answer"] == made.answer
    for outcome in stored["outcomes"]:
        assert f"{outcome['name']} {outcome['rows']:,} {outcome['share']:.1%}" in text
    for group in stored["by_host"] + stored["by_year"]:
        assert f"{group['label']} {group['rows']:,} {group['ok']:,} " in text
    (metric,) = stored["survivorship"]["metrics"]
    assert f"{metric['difference']:+.3f}" in text
    assert f"{metric['low_of_all']:+.3f} to {metric['high_of_all']:+.3f}" in text
    assert f"{metric['mean_lost']:,.4g}" in text
    foretold = {one["name"]: one for one in stored["foretold"]}
    assert foretold["success"]["inside"] is True
    assert foretold["drifted"]["inside"] is False
    assert foretold["hours"]["actual"] == 1.5
    assert foretold["disk"]["inside"] is None
    assert "success 60.0% 50.0% to 70.0% 60.0% inside" in text
    assert "drifted 30.0% 20.0% to 40.0% 0.0% outside" in text
    assert "pictures 240 200 to 280 240 inside" in text
    seconds = next(one for one in stored["measured"] if one["name"] == "seconds")
    assert f"{seconds['figures']['quantiles']['95']:,.4g}" in text


def test_nothing_lost_nothing_arrived_and_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    made, page = report_of(tmp_path / "one", [arrived(1, "http://a/"), arrived(2, "http://b/")])
    assert "no numeric column" in page
    assert made.answer == (
        "2 of 2 pictures arrived (100.0%). Whether the rows that arrived differ from those "
        "selected can't be told."
    )
    (tmp_path / "two").mkdir()
    made, page = report_of(
        tmp_path / "two", [lost(1, "http://a/", "dns"), lost(2, None, "bad url", attempts=0)],
        {"width": [1, 2]},
    )  # fmt: skip
    assert made.answer.startswith("0 of 2 pictures arrived (0.0%); 100.0% could not be had.")
    assert "No picture was compared" in page


def test_a_report_is_made_again_over_the_old_one(tmp_path: Path) -> None:
    report_of(tmp_path, [arrived(1, "http://a/"), lost(2, "http://b/", "timeout")])
    shards = tmp_path / "shards"
    write_ledger(shards / "ledger.parquet", [arrived(1, "http://a/"), arrived(2, "http://b/")])
    again = write_download_report(shards, open_source(tmp_path / "pool.parquet"), max_drift=8)
    assert again.arrived == 2
    assert json.loads((shards / "report.json").read_text())["arrived"] == 2
