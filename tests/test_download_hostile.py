"""The command against a web that means harm: every row has its word, memory its bound."""

import csv
import gzip
import io
import os
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from making import COYO, descendants, encoded, needs_proc, picture, write_pool
from PIL import Image
from webserver import (
    FRIENDLY,
    Answer,
    Web,
    body,
    drip,
    flood,
    hang_up,
    raw,
    redirect,
    serving,
    silence,
    status,
)

from coyo_tools.phash import phash

JPEG = encoded(picture(1))
HASH = phash(Image.open(io.BytesIO(JPEG)))
OK = b"HTTP/1.1 200 OK\r\n"
GIGABYTE = 10**9


@dataclass(frozen=True)
class Case:
    """What a path answers, and what must become of the row that asks for it."""

    answer: Answer
    outcome: str


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with the beginning of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sealed = kind + data
        return struct.pack(">I", len(data)) + sealed + struct.pack(">I", zlib.crc32(sealed))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * width + 1) * 20)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    """A gigabyte of zeros in a megabyte of gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1_000_000)
    return b"".join(packer.compress(block) for _ in range(1000)) + packer.flush()


def cases(web: Web) -> dict[str, Case]:
    return {
        "/good.jpg": Case(body(JPEG), "ok"),
        "/../../../etc/passwd/%2e%2e/good.jpg": Case(body(JPEG), "ok"),
        "/größe bild 日本.jpg": Case(body(JPEG), "ok"),
        "/gzipped.jpg": Case(body(gzip.compress(JPEG), Content_Encoding="gzip"), "ok"),
        "/404": Case(status(404), "http 4xx"),
        "/500": Case(status(500), "http 5xx"),
        "/loop": Case(redirect("/loop"), "http 3xx"),
        "/cloud": Case(redirect("http://169.254.169.254/latest/meta-data/"), "blocked address"),
        "/home": Case(redirect(f"http://127.0.0.1:{web.server_port}/good.jpg"), "blocked address"),
        "/private": Case(redirect("http://10.0.0.1/x.jpg"), "blocked address"),
        "/file": Case(redirect("file:///etc/passwd"), "http 3xx"),
        "/noai": Case(body(JPEG, X_Robots_Tag="noai"), "opt-out"),
        "/bomb": Case(body(bomb(), Content_Encoding="gzip"), "too large"),
        "/claimed": Case(body(b"", length=GIGABYTE), "too large"),
        "/endless": Case(flood(OK + b"\r\n", bytes(100_000), GIGABYTE), "too large"),
        "/headers": Case(flood(OK, b"X-A: " + b"y" * 1000 + b"\r\n", 50_000_000), "other"),
        "/short.jpg": Case(body(JPEG, length=len(JPEG) + 50), "cut short"),
        "/half.jpg": Case(body(JPEG[: len(JPEG) // 2]), "undecodable"),
        "/page": Case(body(b"<!doctype html><p>Gone"), "not an image"),
        "/empty": Case(body(b""), "not an image"),
        "/vast.png": Case(body(png_of(50_000, 50_000), kind="image/png"), "too many pixels"),
        "/large.png": Case(body(png_of(9_400, 9_400), kind="image/png"), "drifted"),
        "/garbage": Case(raw(b"\x00\xff" * 500), "other"),
        "/hang-up": Case(hang_up, "connection lost"),
        "/silent": Case(silence, "timeout"),
        "/loris-body": Case(drip(OK + b"Content-Length: 9999\r\n\r\n"), "timeout"),
        "/loris-headers": Case(drip(OK + b"X: ", b"y"), "timeout"),
        "/other.jpg": Case(body(encoded(picture(2))), "drifted"),
        **{f"/gone/{n}.jpg": Case(body(encoded(picture(3))), "placeholder") for n in range(4)},
    }


class Watch:
    """The largest memory that a process and all it starts ever take together, in bytes."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            pids = {self._pid} | descendants(self._pid)
            self.peak = max(self.peak, sum(map(proportional_bytes, pids)))


def proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def download(pool: Path, out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the command; return it and the most memory it took."""
    process = subprocess.Popen(
        [COYO, "download", str(pool), "-o", str(out), "--allow-network", f"{FRIENDLY}/32",
         "--processes", "1", "--threads", "8", "--attempts", "1", "--image-size", "64", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"no_proxy": "*"},
    )  # fmt: skip
    watch = Watch(process.pid)
    try:
        said = process.communicate(timeout=300)
    finally:
        watch.close()
        process.kill()
    return subprocess.CompletedProcess([], process.returncode, *said), watch.peak


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving(FRIENDLY) as web:
        yield web


@needs_proc
def test_every_attack_has_its_word_and_memory_stays_bounded(web: Web, tmp_path: Path) -> None:
    known = cases(web)
    asked = {path: ask(path) for path in known}
    web.pages |= {asked[path]: case.answer for path, case in known.items()}
    urls = [web.url(path) for path in known]
    unasked = {
        "http://127.0.0.1:1/x.jpg": "blocked address",
        "http://169.254.169.254/latest/": "blocked address",
        "http://localhost/x.jpg": "blocked address",
        "http://0x7f000001/x.jpg": "blocked address",
        "http://[::1]/x.jpg": "blocked address",
        f"http://{FRIENDLY}:1/x.jpg": "refused",
        "http://no-such-host.invalid/x.jpg": "dns",
        "file:///etc/passwd": "bad url",
        "http://": "bad url",
        "http://a b/x.jpg": "bad url",
        "": "bad url",
    }
    urls += unasked
    wanted = [case.outcome for case in known.values()] + list(unasked.values())
    others = iter(range(10, 100))
    hashes = [
        phash(picture(next(others))) if outcome == "placeholder" else HASH for outcome in wanted
    ]
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=list(range(len(urls))),
        url=urls,
        text=["a"] * len(urls),
        image_phash=hashes,
    )
    done, peak = download(pool, tmp_path / "out", "--timeout", "2", "--deadline", "5")
    assert done.returncode == 0, done.stderr
    ledger = pl.read_parquet(tmp_path / "out" / "ledger.parquet").sort("id")
    assert ledger["id"].to_list() == list(range(len(urls)))
    found = dict(zip(urls, ledger["outcome"], strict=True))
    assert found == dict(zip(urls, wanted, strict=True))
    assert all(ledger.filter(pl.col("outcome") != "ok")["detail"].str.len_chars() > 0)
    assert max(ledger["detail"].str.len_chars()) <= 200
    assert max(ledger["seconds"].drop_nulls()) < 30
    # Three processes with img2dataset, DuckDB or Pillow take 0.9 GB when nothing bad comes.
    assert peak < 1_800_000_000


def ask(path: str) -> str:
    """What a path looks like in a request: as a browser would ask, steps up resolved."""
    if ".." in path:
        return "/etc/good.jpg"
    return "".join(
        c if " " < c < "\x7f" else "".join(f"%{b:02X}" for b in c.encode()) for c in path
    )


def test_nothing_from_the_network_became_a_path(web: Web, tmp_path: Path) -> None:
    web.pages["/good.jpg"] = body(JPEG, Content_Disposition='attachment; filename="../../x.jpg"')
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[7],
        url=[web.url("/good.jpg") + "#/../../../tmp/x"],
        text=["../../up"],
        image_phash=[HASH],
    )
    done, _ = download(pool, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {
        "pool.parquet", "out", "00000.tar", "ledger.parquet", "manifest.json", "download.html",
        "report.json",
    }  # fmt: skip


@needs_proc
def test_corrupt_pictures_are_told_from_good_ones(web: Web, shared: Path, tmp_path: Path) -> None:
    folder = shared / "corrupt_images"
    with (folder / "manifest.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    for number, row in enumerate(listed):
        web.pages[f"/corrupt/{number}"] = body((folder / row["file"]).read_bytes())
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=list(range(len(listed))),
        url=[web.url(f"/corrupt/{number}") for number in range(len(listed))],
        text=["a"] * len(listed),
    )
    done, peak = download(pool, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ledger = pl.read_parquet(tmp_path / "out" / "ledger.parquet").sort("id")
    assert ledger["id"].to_list() == list(range(len(listed)))
    bad = {"not an image", "undecodable", "too many pixels", "too slow"}
    for row, (outcome, detail) in zip(
        listed, ledger.select("outcome", "detail").iter_rows(), strict=True
    ):
        if row["pillow_result"] != "ok":
            assert outcome in bad, (row["file"], outcome, detail)
        elif outcome != "ok":
            # Formats that are not asked for: no browser shows them, or Pillow starts a program.
            assert detail and outcome in bad, (row["file"], outcome)
    assert peak < 2_500_000_000
