"""The pilot of a download: a forecast that holds, and nothing that is fetched twice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from making import coyo, encoded, names_in, picture, write_pool
from webserver import Web, body, serving, status

from coyo_tools.download import DownloadSettings, Forecast, Pace, download_pictures, pilot_download
from coyo_tools.errors import OutputError, RecipeError
from coyo_tools.manifest import read_manifest
from coyo_tools.phash import phash

URLS = 900
SETTINGS = DownloadSettings(
    samples_per_shard=250,
    allowed_networks=("127.0.0.0/8",),
    honour_opt_outs=False,
    pace=Pace(processes=2, threads=4, attempts=2, backoff=0.2),
)


def url(number: int) -> str:
    """One that is the same in every run: which urls a pilot takes goes by their MD5."""
    return f"http://pictures.example/{number}.png"


@dataclass(frozen=True)
class Road:
    """A web, asked as a proxy: a third is dead, a ninth has drifted; and a pool of it."""

    web: Web
    pool: Path


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    with pytest.MonkeyPatch.context() as patch, serving() as web:
        patch.setenv("http_proxy", f"http://127.0.0.1:{web.server_port}")
        patch.setenv("no_proxy", "")
        pictures = [encoded(picture(seed), "PNG") for seed in range(40)]
        for number in range(URLS):
            # Shuffled by a factor, so that no order of urls has the dead ones together.
            fate = number * 7 % URLS
            web.pages[url(number)] = (
                status(404) if fate < URLS // 3 else body(pictures[number % 40])
            )
        pool = write_pool(
            tmp_path_factory.mktemp("pilot") / "pool.parquet",
            id=list(range(URLS + 90)),
            url=[url(number % URLS) for number in range(URLS + 90)],
            text=["a caption"] * (URLS + 90),
            image_phash=[
                phash(picture((number + (number % 6 == 0)) % 40)) for number in range(URLS)
            ]
            + [phash(picture(number % 40)) for number in range(90)],
        )
        yield Road(web, pool)


def test_a_pilot_stops_after_its_forecast_and_the_download_uses_it(
    road: Road, tmp_path: Path
) -> None:
    road.web.requests.clear()
    seen: list[tuple[int, int]] = []
    made = pilot_download(
        road.pool, tmp_path / "out", SETTINGS, 300, on_progress=lambda *at: seen.append(at)
    )
    asked = dict(road.web.requests)
    assert 290 <= len(asked) <= 310
    assert set(asked.values()) == {1}
    assert names_in(tmp_path) == {".out.partial"}
    assert seen[-1] == (made.pilot_urls, made.pilot_urls)

    again = pilot_download(road.pool, tmp_path / "out", SETTINGS, 300)
    assert again == made
    assert dict(road.web.requests) == asked

    result = download_pictures(road.pool, tmp_path / "out", SETTINGS)
    assert set(road.web.requests.values()) == {1}
    assert len(road.web.requests) == URLS
    assert result.fetched == URLS - made.pilot_urls
    assert names_in(tmp_path) == {"out"}
    check(made, result.outcomes, result.rows_in)
    kept = read_manifest(tmp_path / "out").details["forecast"]
    assert kept["success"]["value"] == made.success.value

    fresh = download_pictures(road.pool, tmp_path / "fresh", SETTINGS)
    assert fresh.outcomes == result.outcomes
    for tar in (tmp_path / "fresh").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "out" / tar.name).read_bytes()
    size = sum(tar.stat().st_size for tar in (tmp_path / "out").glob("*.tar"))
    assert made.disk.value == pytest.approx(size, rel=0.35)  # little pictures: blocks of 512 count


def check(made: Forecast, outcomes: object, rows: int) -> None:
    """What came lies within the intervals: this web is fixed, so this holds or does not."""
    assert isinstance(outcomes, dict)
    for estimate, name in ((made.success, "ok"), (made.drifted, "drifted")):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= outcomes.get(name, 0) / rows <= estimate.high, name
    assert made.rows == rows
    assert made.urls == URLS


def test_a_larger_pilot_begins_anew_and_both_are_used(road: Road, tmp_path: Path) -> None:
    pilot_download(road.pool, tmp_path / "out", SETTINGS, 100)
    larger = pilot_download(road.pool, tmp_path / "out", SETTINGS, 200)
    road.web.requests.clear()
    download_pictures(road.pool, tmp_path / "out", SETTINGS)
    assert set(road.web.requests.values()) == {1}
    assert len(road.web.requests) <= URLS - larger.pilot_urls
    forecast = read_manifest(tmp_path / "out").details["forecast"]
    assert forecast["pilot_urls"] == larger.pilot_urls


def test_a_pilot_of_other_settings_is_not_mixed_in(road: Road, tmp_path: Path) -> None:
    pilot_download(road.pool, tmp_path / "out", SETTINGS, 100)
    with pytest.raises(OutputError, match="with other max_drift"):
        download_pictures(road.pool, tmp_path / "out", replace(SETTINGS, max_drift=2))


def test_a_pilot_of_a_finished_download_is_refused(road: Road, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1], url=[url(899)], text=["a"])
    download_pictures(pool, tmp_path / "out", SETTINGS)
    with pytest.raises(OutputError, match="already exists"):
        pilot_download(pool, tmp_path / "out", SETTINGS, 100)


def test_the_command_shows_the_forecast_and_goes_on_if_told_to(road: Road, tmp_path: Path) -> None:
    options = (
        "-o", tmp_path / "out", "--allow-private-networks", "--ignore-opt-outs", "--pilot", "150",
        "--samples-per-shard", "250", "--backoff", "0.2", "--attempts", "2",
    )  # fmt: skip
    shown = coyo("download", road.pool, *options)
    assert shown.returncode == 0, shown.stderr
    assert "arrive" in shown.stdout
    assert "95 % interval" in shown.stdout
    assert "give the command without --pilot" in shown.stderr
    told = coyo("download", road.pool, *options, "--json")
    figures = json.loads(told.stdout)
    assert 0.4 < figures["success"]["low"] < figures["success"]["high"] < 0.7
    whole = coyo("download", road.pool, *options, "--go-on")
    assert whole.returncode == 0, whole.stderr
    assert "arrive: " in whole.stderr
    assert "990 rows asked for, 900 urls" in whole.stderr


def test_a_network_that_is_none_is_told_before_anything_is_fetched(
    road: Road, tmp_path: Path
) -> None:
    road.web.requests.clear()
    for call in (
        lambda settings: download_pictures(road.pool, tmp_path / "out", settings),
        lambda settings: pilot_download(road.pool, tmp_path / "out", settings, 100),
    ):
        with pytest.raises(RecipeError, match="--allow-network: 'ten' does not appear to be"):
            call(replace(SETTINGS, allowed_networks=("ten",)))
    assert not road.web.requests
    assert names_in(tmp_path) == set()
