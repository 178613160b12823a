"""Download: real img2dataset against a real server with the web's faults, one scenario for all."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from making import encoded, names_in, picture, write_pool
from PIL import Image
from webserver import Web, body, hang_up, redirect, serving, silence, status

from coyo_tools.download import DownloadResult, DownloadSettings, Pace, download_pictures
from coyo_tools.errors import ColumnError, EmptyResultError, SourceError
from coyo_tools.manifest import IdDigest, read_manifest
from coyo_tools.phash import phash
from coyo_tools.pictures import PictureSettings

HASHES = {seed: phash(picture(seed)) for seed in range(30)}


@dataclass(frozen=True)
class Case:
    """A row of the scenario: its columns, and what must become of it."""

    name: str
    url: str | None
    outcome: str
    image_phash: str | None = HASHES[0]
    text: str | None = "a caption"
    detail: str = ""


@dataclass(frozen=True)
class Scenario:
    """A finished download of every case."""

    cases: dict[int, Case]
    out: Path
    ledger: dict[str, dict[str, Any]]
    result: DownloadResult
    requests: dict[str, int]
    progress: list[tuple[int, int]]


def moved(image_phash: str, bits: int) -> str:
    """A hash that differs in so many bits."""
    return f"{int(image_phash, 16) ^ (2**bits - 1):016x}"


def png(seed: int) -> bytes:
    return encoded(picture(seed), "PNG")


def cases(web: Web) -> list[Case]:
    web.pages |= {
        "/one.png": body(png(1), kind="image/png"),
        "/loud.png": body(png(1)),
        "/a%20b.png": body(png(1)),
        "/%C3%BC.png": body(png(1)),
        "/mislabelled": body(png(2), kind="text/html"),
        "/recompressed.jpg": body(encoded(picture(3), "JPEG", quality=70)),
        "/moved.png": redirect("/target.png"),
        "/target.png": body(png(4)),
        "/error": status(500),
        "/page.jpg": body(b"<!doctype html><p>Not found"),
        "/cut.png": body(png(5)[:3000], length=len(png(5))),
        "/half.png": body(png(5)[:3000]),
        "/replaced.png": body(png(7)),
        "/gone/1.png": body(png(8)),
        "/gone/2.png": body(png(8)),
        "/gone/3.png": body(png(8)),
        "/pair/1.png": body(png(9)),
        "/pair/2.png": body(png(9)),
        **{f"/two/{n}.png": body(png(24)) for n in (1, 2)},
        **{f"/mirror/{n}.png": body(png(25)) for n in (1, 2, 3)},
        "/at.png": body(png(23)),
        "/beyond.png": body(png(23)),
        "/noai.png": body(png(10), X_Robots_Tag="noai"),
        "/uncaptioned.png": body(png(11)),
        "/captionless.png": body(png(11)),
        "/unhashed.png": body(png(12)),
        "/misashed.png": body(png(13)),
        "/empty.png": body(b""),
        "/hang-up.png": hang_up,
        "/silent.png": silence,
        "/loop.png": redirect("/loop.png"),
        "/to-file.png": redirect("file:///etc/passwd"),
    }
    good = [
        Case("ok", web.url("/one.png"), "ok", HASHES[1], "the first of two"),
        Case("ok, same url", web.url("/one.png"), "ok", HASHES[1], "naïve café, the second"),
        Case("wrong content type", web.url("/mislabelled"), "ok", HASHES[2]),
        Case("recompressed", web.url("/recompressed.jpg"), "ok", HASHES[3]),
        Case("redirected", web.url("/moved.png"), "ok", HASHES[4]),
        Case("loud scheme", web.url("/loud.png").replace("http", "HTTP"), "ok", HASHES[1]),
        Case("a blank", web.url("/a b.png"), "ok", HASHES[1]),
        Case("no ASCII", web.url("/ü.png"), "ok", HASHES[1]),
        Case("no hash", web.url("/unhashed.png"), "ok", None),
        Case("at the limit", web.url("/at.png"), "ok", moved(HASHES[23], 8)),
        Case("bad hash", web.url("/misashed.png"), "ok", "xyz", detail="not 16 hex digits"),
    ]
    dead = [
        Case("404", web.url("/nothing"), "http 4xx", detail="404"),
        Case("500", web.url("/error"), "http 5xx", detail="500"),
        Case("html", web.url("/page.jpg"), "not an image", detail="HTML"),
        Case("empty", web.url("/empty.png"), "not an image", detail="empty"),
        Case("cut short", web.url("/cut.png"), "cut short", HASHES[5], detail="IncompleteRead"),
        Case("half a file", web.url("/half.png"), "undecodable", HASHES[5], detail="truncated"),
        Case("hung up", web.url("/hang-up.png"), "connection lost"),
        Case("silent", web.url("/silent.png"), "timeout", detail="timed out"),
        Case("nobody there", "http://127.0.0.1:1/x.png", "refused"),
        Case("no such host", "http://no-such-host.invalid/x.png", "dns"),
        Case("redirect loop", web.url("/loop.png"), "http 3xx"),
        Case("redirect to a file", web.url("/to-file.png"), "http 3xx", detail="not allowed"),
        Case("opted out", web.url("/noai.png"), "opt-out", HASHES[10]),
    ]
    changed = [
        Case("replaced", web.url("/replaced.png"), "drifted", HASHES[6], detail="pHash distance"),
        Case("beyond the limit", web.url("/beyond.png"), "drifted", moved(HASHES[23], 9)),
        # Three hashes, but two addresses; three addresses, but two hashes: no placeholders.
        Case("two 1", web.url("/two/1.png"), "drifted", HASHES[26]),
        Case("two 2", web.url("/two/2.png"), "drifted", HASHES[27]),
        Case("two 2 again", web.url("/two/2.png"), "drifted", HASHES[28]),
        *(
            Case(f"mirror {n}", web.url(f"/mirror/{n}.png"), "drifted", HASHES[26 + n // 3])
            for n in (1, 2, 3)
        ),
        *(
            Case(f"placeholder {n}", web.url(f"/gone/{n}.png"), "placeholder", HASHES[14 + n])
            for n in (1, 2, 3)
        ),
        *(Case(f"pair {n}", web.url(f"/pair/{n}.png"), "drifted", HASHES[20 + n]) for n in (1, 2)),
    ]
    unasked = [
        Case("file:", "file:///etc/passwd", "bad url", detail="not an http or https address"),
        Case("ftp:", "ftp://127.0.0.1/x.png", "bad url"),
        Case("no url", None, "bad url"),
        Case("empty url", "", "bad url"),
        Case("no host", "http://", "bad url"),
        Case("a path", "/one.png", "bad url"),
        Case("a password", "http://me:secret@127.0.0.1/x.png", "bad url"),
        Case("no port", "http://127.0.0.1:abc/x.png", "bad url"),
        Case("half an address", "http://[::1/x.png", "bad url"),
    ]
    silent = [
        Case("empty text", web.url("/uncaptioned.png"), "no caption", HASHES[11], " \n"),
        Case("no text", web.url("/captionless.png"), "no caption", HASHES[11], None),
    ]
    return good + dead + changed + unasked + silent


@pytest.fixture(scope="module", autouse=True)
def without_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        yield


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("download")
    with serving() as web:
        listed = cases(web)
        # Ids as COYO has them: large, unique, not in the order of the rows.
        by_id = {4_896_263_451_343 - 977 * number: case for number, case in enumerate(listed)}
        pool = write_pool(
            folder / "pool.parquet",
            id=list(by_id),
            url=[case.url for case in listed],
            text=[case.text for case in listed],
            image_phash=[case.image_phash for case in listed],
            clip_similarity_vitb32=[float("nan"), *(0.25 for _ in listed[1:])],
            num_faces=[None, *range(1, len(listed))],
        )
        progress: list[tuple[int, int]] = []
        settings = DownloadSettings(
            picture=PictureSettings(image_size=48),
            samples_per_shard=14,
            allowed_networks=("127.0.0.1/32",),
            pace=Pace(processes=1, timeout=2, attempts=1),
        )
        result = download_pictures(
            pool,
            folder / "out",
            settings,
            on_progress=lambda done, total: progress.append((done, total)),
        )
        assert names_in(folder) == {"pool.parquet", "out"}
        rows = pl.read_parquet(folder / "out" / "ledger.parquet").iter_rows(named=True)
        ledger = {by_id[row["id"]].name: row for row in rows}
        yield Scenario(by_id, folder / "out", ledger, result, dict(web.requests), progress)


def samples(out: Path) -> dict[int, dict[str, bytes]]:
    found: dict[int, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(int(stem), {})[suffix] = file.read()
    return found


def test_every_id_is_in_the_ledger_once(scenario: Scenario) -> None:
    ids = pl.read_parquet(scenario.out / "ledger.parquet")["id"].to_list()
    assert ids == sorted(scenario.cases)


def test_every_row_has_the_fate_that_its_link_has(scenario: Scenario) -> None:
    fates = {name: row["outcome"] for name, row in scenario.ledger.items()}
    assert fates == {case.name: case.outcome for case in scenario.cases.values()}


def test_every_fate_has_its_detail(scenario: Scenario) -> None:
    for case in scenario.cases.values():
        row = scenario.ledger[case.name]
        assert case.detail in row["detail"], row
        assert (row["outcome"] == "ok") == (row["shard"] is not None)
        assert row["url"] == case.url


def test_the_sums_of_result_ledger_and_manifest_agree(scenario: Scenario) -> None:
    outcomes = [case.outcome for case in scenario.cases.values()]
    counts = {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
    assert scenario.result.outcomes == counts
    manifest = read_manifest(scenario.out, "shards")
    assert (manifest.rows_in, manifest.rows_out) == (len(outcomes), counts["ok"])
    assert manifest.lost == {name: rows for name, rows in counts.items() if name != "ok"}
    digest = IdDigest()
    arrived = pl.read_parquet(scenario.out / "ledger.parquet").filter(outcome="ok")["id"]
    digest.update(arrived.to_numpy())
    assert manifest.id_digest == digest.hexdigest()


def test_every_url_is_fetched_once_and_no_other(scenario: Scenario) -> None:
    often = {path for path, times in scenario.requests.items() if times != 1}
    assert often == set()
    assert {"/one.png", "/loud.png", "/nothing", "/silent.png"} <= set(scenario.requests)


def test_a_file_is_never_opened(scenario: Scenario) -> None:
    for name in ("file:", "redirect to a file"):
        assert not scenario.ledger[name]["bytes"]
    assert not any(b"root:" in b"".join(files.values()) for files in samples(scenario.out).values())


def test_the_tars_hold_the_rows_that_arrived_and_nothing_else(scenario: Scenario) -> None:
    found = samples(scenario.out)
    assert set(found) == {id_ for id_, case in scenario.cases.items() if case.outcome == "ok"}
    for id_, files in found.items():
        case = scenario.cases[id_]
        assert set(files) == {"jpg", "txt", "json"}
        assert files["txt"].decode() == case.text
        row = json.loads(files["json"])
        assert (row["id"], row["url"], row["image_phash"]) == (id_, case.url, case.image_phash)
        assert set(row) == {
            "id",
            "url",
            "text",
            "image_phash",
            "clip_similarity_vitb32",
            "num_faces",
        }
        assert Image.open(io.BytesIO(files["jpg"])).size == (48, 36)


def test_missing_values_are_null_in_the_json(scenario: Scenario) -> None:
    first = max(scenario.cases)
    row = json.loads(samples(scenario.out)[first]["json"])
    assert row["clip_similarity_vitb32"] is None
    assert row["num_faces"] is None


def test_what_was_served_is_measured_before_it_is_shrunk(scenario: Scenario) -> None:
    row = scenario.ledger["ok"]
    assert (row["served_width"], row["served_height"]) == (96, 72)
    assert (row["served_phash"], row["phash_distance"]) == (HASHES[1], 0)
    assert row["bytes"] == len(png(1))
    assert 0 <= scenario.ledger["recompressed"]["phash_distance"] <= 8
    assert scenario.ledger["replaced"]["phash_distance"] > 8
    assert scenario.ledger["replaced"]["served_phash"] == HASHES[7]
    assert scenario.ledger["no hash"]["phash_distance"] is None
    assert scenario.ledger["bad hash"]["phash_distance"] is None


def test_nothing_but_tars_ledger_manifest_and_report_is_left(scenario: Scenario) -> None:
    names = names_in(scenario.out)
    made = {"ledger.parquet", "manifest.json", "download.html", "report.json"}
    tars = {name for name in names if name.endswith(".tar")}
    assert names == made | tars
    ledger = pl.read_parquet(scenario.out / "ledger.parquet")
    assert tars == set(ledger["shard"].drop_nulls())


def test_progress_ends_at_the_number_of_urls(scenario: Scenario) -> None:
    assert scenario.progress[-1] == (scenario.result.urls, scenario.result.urls)
    assert scenario.progress == sorted(scenario.progress)
    asked = pl.read_parquet(scenario.out / "ledger.parquet").filter(
        pl.col("detail") != "not an http or https address"
    )
    assert scenario.result.urls == asked["url"].n_unique()


# --- what needs no fetching ----------------------------------------------------------------------


def test_nothing_that_arrives_is_an_empty_result_and_leaves_nothing(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet", id=[1, 2, 3], url=["file:///x", None, "x"], text=["a"] * 3
    )
    with pytest.raises(EmptyResultError, match="None of 3 pictures arrived: bad url 3") as caught:
        download_pictures(pool, tmp_path / "out")
    assert "proxy" in caught.value.hint
    assert names_in(tmp_path) == {"pool.parquet"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a"]}, "has no column `url`"),
        ({"url": ["http://x/"]}, "has no column `text`"),
        ({"url": [b"http://x/"], "text": ["a"]}, "`url` .* is binary, not text"),
        ({"url": ["http://x/"], "text": [5]}, "`text` .* is int64, not text"),
        ({"url": ["http://x/"], "text": ["a"], "image_phash": [5]}, "`image_phash` .* is int64"),
    ],
)
def test_missing_and_mistyped_columns_are_named(
    tmp_path: Path, columns: dict[str, list[Any]], said: str
) -> None:
    pl.DataFrame({"id": [1], **columns}).write_parquet(tmp_path / "pool.parquet")
    with pytest.raises(ColumnError, match=said):
        download_pictures(tmp_path / "pool.parquet", tmp_path / "out")
    assert names_in(tmp_path) == {"pool.parquet"}


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 1], url=["x", "y"], text=["a", "b"])
    with pytest.raises(SourceError, match="Ids are not unique"):
        download_pictures(pool, tmp_path / "out")
    assert names_in(tmp_path) == {"pool.parquet"}
