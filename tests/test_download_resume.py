"""A download that is killed, stopped, repeated, retried: nothing is lost, mixed or asked twice."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from making import (
    COYO,
    alive,
    coyo,
    descendants,
    encoded,
    names_in,
    needs_proc,
    picture,
    write_pool,
)
from webserver import Web, body, serving, status

from coyo_tools.download import DownloadSettings, Pace, download_pictures
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.phash import phash

ROWS = 400
HASHES = {seed: phash(picture(seed)) for seed in range(50)}
PACE = Pace(processes=2, threads=4, attempts=2, backoff=0.2)
SETTINGS = DownloadSettings(
    samples_per_shard=90, allowed_networks=("127.0.0.0/8",), honour_opt_outs=False, pace=PACE
)
OPTIONS = (
    "--samples-per-shard", "90", "--allow-network", "127.0.0.0/8", "--ignore-opt-outs",
    "--processes", "2", "--threads", "4", "--attempts", "2", "--backoff", "0.2",
)  # fmt: skip


@dataclass(frozen=True)
class Road:
    """A web that answers slowly, a pool of it, and what an undisturbed download makes of that."""

    web: Web
    pool: Path
    whole: Path
    seconds: float


@pytest.fixture(scope="module", autouse=True)
def without_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        yield


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    folder = tmp_path_factory.mktemp("road")
    with serving() as web:
        pictures = {seed: encoded(picture(seed), "PNG") for seed in HASHES}
        for number in range(ROWS):
            web.pages[f"/{number}.png"] = slowly(pictures[number % 50])
        for number in range(0, ROWS, 40):
            web.pages[f"/{number}.png"] = status(503)
            web.pages[f"/{number + 1}.png"] = status(404)
        # Every tenth row asks for the url of the row before, every seventh has another hash.
        urls = [web.url(f"/{n - 1 if n % 10 == 9 else n}.png") for n in range(ROWS)]
        pool = write_pool(
            folder / "pool.parquet",
            id=[10**12 - 7 * n for n in range(ROWS)],
            url=urls,
            text=[f"caption {n}" for n in range(ROWS)],
            image_phash=[
                HASHES[(n - (n % 10 == 9) + (3 if n % 7 == 0 else 0)) % 50] for n in range(ROWS)
            ],
        )
        start = time.monotonic()
        whole = coyo("download", pool, "-o", folder / "whole", *OPTIONS)
        assert whole.returncode == 0, whole.stderr
        yield Road(web, pool, folder / "whole", time.monotonic() - start)


def slowly(data: bytes):  # type: ignore[no-untyped-def]
    answer = body(data, kind="image/png")

    def wait_and_answer(handler):  # type: ignore[no-untyped-def]
        time.sleep(0.03)
        answer(handler)

    return wait_and_answer


def check_same_fates(one: Path, other: Path, *but: str) -> None:
    """The ledgers, but for some columns; before the tars, so that a difference says what it is."""
    ledgers = [pl.read_parquet(place / "ledger.parquet").drop(but) for place in (one, other)]
    assert set(ledgers[0].rows()) ^ set(ledgers[1].rows()) == set()
    assert ledgers[0].equals(ledgers[1])


def check_same_tars(one: Path, other: Path) -> None:
    for tar in sorted(one.glob("*.tar")):
        assert tar.read_bytes() == (other / tar.name).read_bytes(), tar.name


def check_same(one: Path, other: Path) -> None:
    """Tars to the byte; the ledger but for the seconds that answers took."""
    check_same_fates(one, other, "seconds")
    assert names_in(one) == names_in(other)
    check_same_tars(one, other)
    manifests = [read_manifest(place, "shards") for place in (one, other)]
    assert manifests[0].id_digest == manifests[1].id_digest
    assert manifests[0].lost == manifests[1].lost


def test_the_undisturbed_download_has_what_was_planted(road: Road) -> None:
    ledger = pl.read_parquet(road.whole / "ledger.parquet")
    assert ledger["id"].to_list() == sorted(10**12 - 7 * n for n in range(ROWS))
    counts = dict(ledger["outcome"].value_counts().iter_rows())
    assert counts["http 4xx"] == 10
    assert counts["http 5xx"] == 10
    assert counts["drifted"] > 30
    assert counts["ok"] > 300
    assert set(ledger.filter(outcome="http 5xx")["attempts"]) == {2}
    assert set(ledger.filter(outcome="ok")["attempts"]) == {1}
    assert set(ledger.filter("retryable")["outcome"]) == {"http 5xx"}


def kill_and_go_on(road: Road, folder: Path, kills: int, seed: int) -> None:
    moments = np.random.default_rng(seed)
    out = folder / "out"
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            [COYO, "download", str(road.pool), "-o", str(out), *OPTIONS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(moments.uniform(0.3, road.seconds))
        except subprocess.TimeoutExpired:
            started = descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            deadline = time.monotonic() + 20
            while alive(started) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not alive(started)
        if out.exists():  # faster than the kill: whatever is there is whole
            check_same(out, road.whole)
            out.rename(folder / f"whole-{killed}")
        else:
            assert names_in(folder) - {f"whole-{n}" for n in range(kills)} <= {".out.partial"}
        killed += 1
    final = coyo("download", road.pool, "-o", out, *OPTIONS)
    assert final.returncode == 0, final.stderr
    check_same(out, road.whole)


@needs_proc
def test_killed_three_times_it_makes_the_same(road: Road, tmp_path: Path) -> None:
    kill_and_go_on(road, tmp_path, kills=3, seed=0)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_ten_times_it_makes_the_same(road: Road, tmp_path: Path, seed: int) -> None:
    kill_and_go_on(road, tmp_path, kills=10, seed=seed)


def test_what_was_fetched_before_a_kill_is_not_fetched_again(road: Road, tmp_path: Path) -> None:
    before = sum(road.web.requests.values())
    process = subprocess.Popen(
        [COYO, "download", str(road.pool), "-o", str(tmp_path / "out"), *OPTIONS],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while sum(road.web.requests.values()) < before + 250 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = coyo("download", road.pool, "-o", tmp_path / "out", *OPTIONS)
    assert again.returncode == 0, again.stderr
    urls = read_manifest(road.whole).details["urls"]
    # At most what was not committed is asked again: half a second of each process, and 10 retries.
    assert sum(road.web.requests.values()) - before < urls + 10 + 150
    check_same(tmp_path / "out", road.whole)


@needs_proc
def test_ctrl_c_says_that_nothing_is_lost(road: Road, tmp_path: Path) -> None:
    before = sum(road.web.requests.values())
    process = subprocess.Popen(
        [COYO, "download", str(road.pool), "-o", str(tmp_path / "out"), *OPTIONS],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    while sum(road.web.requests.values()) < before + 50 and process.poll() is None:
        time.sleep(0.01)
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("Stopped. What was fetched for ")
    assert names_in(tmp_path) == {".out.partial"}
    deadline = time.monotonic() + 20
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(started)


def test_a_full_disk_is_told_and_what_was_fetched_is_kept(road: Road, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk's end; it is met in a journal."""
    out = tmp_path / "out"
    limited = 'trap "" XFSZ; ulimit -f 96; exec "$@"'
    command = [COYO, "download", str(road.pool), "-o", str(out), *OPTIONS]
    full = subprocess.run(
        ["bash", "-c", limited, "bash", *command], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2, full.stderr
    assert "What was fetched can't be written: disk I/O error." in full.stderr
    assert "Traceback" not in full.stderr
    assert names_in(tmp_path) == {".out.partial"}
    road.web.requests.clear()
    again = coyo("download", road.pool, "-o", out, *OPTIONS)
    assert again.returncode == 0, again.stderr
    assert sum(road.web.requests.values()) < ROWS
    check_same(out, road.whole)


# --- nothing is mixed ----------------------------------------------------------------------------


def test_other_settings_or_rows_are_noticed_in_an_unfinished_download(
    road: Road, tmp_path: Path
) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    begun = {"subset": "another", **SETTINGS.as_parameters(), "retry_of": None, "max_drift": 4}
    (partial / "begun.json").write_text(json.dumps(begun))
    (partial / "kept").touch()
    with pytest.raises(OutputError, match="unfinished one with other max_drift, subset") as caught:
        download_pictures(road.pool, tmp_path / "out", SETTINGS)
    assert "--restart" in caught.value.hint
    assert (partial / "kept").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_drift": 4}, "--max-drift was 8, not 4"),
        ({"keep_drifted": True}, "--keep-drifted was False, not True"),
        ({"samples_per_shard": 10}, "--samples-per-shard was 90, not 10"),
    ],
)
def test_other_settings_are_noticed_in_a_finished_download(
    road: Road, changed: dict[str, int], said: str
) -> None:
    with pytest.raises(OutputError, match=said):
        download_pictures(road.pool, road.whole, replace(SETTINGS, **changed))


def test_other_rows_are_noticed_in_a_finished_download(road: Road, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1], url=[road.web.url("/1.png")], text=["a"])
    with pytest.raises(OutputError, match="made from other rows"):
        download_pictures(pool, road.whole, SETTINGS)


def test_a_finished_download_is_left_alone(road: Road) -> None:
    before = sum(road.web.requests.values())
    ledger = (road.whole / "ledger.parquet").stat()
    again = coyo("download", road.pool, "-o", road.whole, *OPTIONS)
    assert again.returncode == 0, again.stderr
    assert "Finished before; nothing was fetched." in again.stderr
    assert "10 rows could still come another time: add --retry." in again.stderr
    assert sum(road.web.requests.values()) == before
    assert (road.whole / "ledger.parquet").stat() == ledger


# --- trying again --------------------------------------------------------------------------------


def test_retry_asks_only_for_what_could_come(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = download_pictures(road.pool, out, SETTINGS)
    assert made.retryable == 10
    pages = dict(road.web.pages)
    road.web.requests.clear()
    back = [number for number in range(0, ROWS, 40) if number != 40]
    try:
        for number in back:
            road.web.pages[f"/{number}.png"] = body(encoded(picture(number % 50), "PNG"))
        again = download_pictures(road.pool, out, SETTINGS, retry=True)
    finally:
        road.web.pages = pages
    asked = {path: times for path, times in road.web.requests.items() if times}
    assert asked == {f"/{n}.png": 1 for n in back} | {"/40.png": 2}
    assert again.fetched == 10
    assert again.rows_in == ROWS
    ledger = pl.read_parquet(out / "ledger.parquet")
    assert ledger["id"].to_list() == sorted(10**12 - 7 * n for n in range(ROWS))
    assert set(ledger.filter("retryable")["id"]) == {10**12 - 7 * 40}
    came = ledger.filter(pl.col("id").is_in([10**12 - 7 * n for n in back]))
    assert set(came["attempts"]) == {3}
    assert set(ledger.filter("retryable")["attempts"]) == {4}
    check_tars(out, ledger)
    assert names_in(tmp_path) == {"out"}


def check_tars(out: Path, ledger: pl.DataFrame) -> None:
    """The tars hold what the ledger says."""
    import tarfile

    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as opened:
            names = opened.getnames()
        ids = ledger.filter(shard=tar.name)["id"].to_list()
        assert sorted(names) == sorted(
            f"{n}.{kind}" for n in ids for kind in ("jpg", "txt", "json")
        )
    assert set(ledger.filter(outcome="ok")["shard"]) <= {tar.name for tar in out.glob("*.tar")}


def test_a_retry_makes_what_a_download_at_that_time_would_have_made(
    road: Road, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    download_pictures(road.pool, out, SETTINGS)
    pages = dict(road.web.pages)
    try:
        for number in range(0, ROWS, 40):
            road.web.pages[f"/{number}.png"] = body(encoded(picture(number % 50), "PNG"))
        download_pictures(road.pool, out, SETTINGS, retry=True)
        download_pictures(road.pool, tmp_path / "fresh", SETTINGS)
    finally:
        road.web.pages = pages
    fresh = tmp_path / "fresh"
    check_same_fates(out, fresh, "seconds", "attempts", "content_type")
    check_same_tars(out, fresh)


def test_a_shard_without_a_picture_has_no_tar_until_one_comes(road: Road, tmp_path: Path) -> None:
    settings = replace(SETTINGS, samples_per_shard=1)
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[1, 2],
        url=[road.web.url("/0.png"), road.web.url("/2.png")],
        text=["a", "b"],
    )
    download_pictures(pool, tmp_path / "out", settings)
    assert {tar.name for tar in (tmp_path / "out").glob("*.tar")} == {"00001.tar"}
    dead = road.web.pages["/0.png"]
    try:
        road.web.pages["/0.png"] = body(encoded(picture(0), "PNG"))
        download_pictures(pool, tmp_path / "out", settings, retry=True)
    finally:
        road.web.pages["/0.png"] = dead
    assert {tar.name for tar in (tmp_path / "out").glob("*.tar")} == {"00000.tar", "00001.tar"}


def test_nothing_to_retry_asks_for_nothing(road: Road, tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[1, 2],
        url=[road.web.url("/2.png"), road.web.url("/1.png")],
        text=["a", "b"],
    )
    download_pictures(pool, tmp_path / "out", SETTINGS)
    road.web.requests.clear()
    again = download_pictures(pool, tmp_path / "out", SETTINGS, retry=True)
    assert again.finished_before
    assert sum(road.web.requests.values()) == 0


def test_retry_without_a_download_says_so(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--retry tries again what a finished download lacks"):
        download_pictures(road.pool, tmp_path / "out", SETTINGS, retry=True)
    assert names_in(tmp_path) == set()


def test_a_result_killed_between_two_names_is_put_back(road: Road, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1], url=[road.web.url("/2.png")], text=["a"])
    download_pictures(pool, tmp_path / "out", SETTINGS)
    (tmp_path / "out").rename(tmp_path / ".out.old")
    again = download_pictures(pool, tmp_path / "out", SETTINGS)
    assert again.finished_before
    assert names_in(tmp_path) == {"pool.parquet", "out"}
