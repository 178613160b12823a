"""The same download through img2dataset's Spark distributor, on one machine."""

import os
from pathlib import Path

import polars as pl
import pytest
from making import encoded, picture, write_pool
from webserver import body, serving, status

from coyo_tools.download import DownloadSettings, Pace, download_pictures
from coyo_tools.phash import phash

pytestmark = pytest.mark.spark


def test_spark_makes_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark", reason="the spark extra is not installed")
    monkeypatch.setenv("no_proxy", "*")
    rows = 120
    with serving() as web:
        for number in range(rows):
            web.pages[f"/{number}.png"] = body(encoded(picture(number), "PNG"))
        web.pages["/7.png"] = status(503)
        pool = write_pool(
            tmp_path / "pool.parquet",
            id=list(range(rows)),
            url=[web.url(f"/{number}.png") for number in range(rows)],
            text=[f"caption {number}" for number in range(rows)],
            image_phash=[phash(picture(number)) for number in range(rows)],
        )
        made = {}
        for distributor in ("multiprocessing", "pyspark"):
            pace = Pace(processes=2, threads=4, attempts=2, backoff=0.2, distributor=distributor)
            settings = DownloadSettings(
                samples_per_shard=40, allowed_networks=("127.0.0.0/8",), pace=pace
            )
            made[distributor] = download_pictures(pool, tmp_path / distributor, settings)
    assert made["pyspark"].outcomes == made["multiprocessing"].outcomes
    assert made["pyspark"].outcomes == {"ok": rows - 1, "http 5xx": 1}
    for number in range(3):
        name = f"{number:05d}.tar"
        one, other = (tmp_path / way / name for way in made)
        assert one.read_bytes() == other.read_bytes()
    ledgers = [pl.read_parquet(tmp_path / way / "ledger.parquet").drop("seconds") for way in made]
    assert ledgers[0].equals(ledgers[1])
    assert not os.environ.get("PYSPARK_PYTHON")
