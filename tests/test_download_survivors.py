"""Links that die with a score are found out by a download's report; links that just die are not."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from making import coyo, encoded, picture, write_pool
from webserver import Web, body, serving, status

HOSTS, PICTURES = 80, 20
METRICS = {"aesthetic_score_laion_v2", "clip_similarity_vitb32", "watermark_score", "num_faces"}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """A proxy: it is asked for whole urls, so every name leads to it."""
    with serving() as web:
        yield web


def surviving(web: Web, folder: Path, dead: np.ndarray) -> dict[str, str]:
    """Download a pool whose aesthetic score goes by host; return the verdict on each score."""
    draw = np.random.default_rng(5)
    rows = HOSTS * PICTURES
    host = np.repeat(np.arange(HOSTS), PICTURES)
    urls = [f"http://host{host[n]}.example/{n}.jpg" for n in range(rows)]
    data = encoded(picture(1))
    for url, gone in zip(urls, dead, strict=True):
        web.pages[url] = status(404) if gone else body(data)
    pool = write_pool(
        folder / "pool.parquet",
        id=list(range(rows)),
        url=urls,
        text=["a caption"] * rows,
        aesthetic_score_laion_v2=(4 + host / HOSTS + draw.normal(0, 0.5, rows)).tolist(),
        clip_similarity_vitb32=draw.normal(0.3, 0.03, rows).tolist(),
        watermark_score=draw.beta(1, 4, rows).tolist(),
        num_faces=draw.poisson(0.6, rows).tolist(),
    )
    done = coyo(
        "download", pool, "-o", folder / "out", "--ignore-opt-outs", "--per-host", "64",
        http_proxy=f"http://127.0.0.1:{web.server_port}", no_proxy="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (folder / "out" / "download.html").is_file()
    verdicts = {one["name"]: one["verdict"] for one in report["survivorship"]["metrics"]}
    assert set(verdicts) == METRICS
    return verdicts


def test_hosts_that_die_with_their_score_are_found(web: Web, tmp_path: Path) -> None:
    host = np.repeat(np.arange(HOSTS), PICTURES)
    verdicts = surviving(web, tmp_path, host < HOSTS // 10)
    assert verdicts.pop("aesthetic_score_laion_v2") == "differs"
    assert set(verdicts.values()) == {"no difference found"}


def test_links_that_die_at_random_are_not(web: Web, tmp_path: Path) -> None:
    dead = np.random.default_rng(11).random(HOSTS * PICTURES) < 0.1
    assert set(surviving(web, tmp_path, dead).values()) == {"no difference found"}


def test_hosts_that_die_at_random_are_not(web: Web, tmp_path: Path) -> None:
    gone = np.random.default_rng(3).choice(HOSTS, HOSTS // 10, replace=False)
    dead = np.isin(np.repeat(np.arange(HOSTS), PICTURES), gone)
    assert set(surviving(web, tmp_path, dead).values()) == {"no difference found"}
