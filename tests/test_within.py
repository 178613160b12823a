"""Rows are kept whose id another artifact has: shards, with or without a ledger, or a pool."""

import io
import tarfile
from pathlib import Path

import polars as pl
import pytest
from making import encoded, picture

from coyo_tools.errors import CoyoError, EmptyResultError
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import run_pipeline
from coyo_tools.verify import verify_subset
from coyo_tools.within import ELSEWHERE, keep_within

ROAD = """
[inputs.pool]
[inputs.shards]

[[stages]]
name = "arrived"
does = "within"
source = "pool"
other = "shards"
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Ten rows in an order of their own."""
    ids = [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]
    rows = pl.DataFrame({"id": ids, "text": [f"row {i}" for i in ids]})
    rows.write_parquet(tmp_path / "pool.parquet", row_group_size=3)
    return tmp_path / "pool.parquet"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pictures of 1, 5 and 12, a caption without a picture of 3, and a key that is no number."""
    (tmp_path / "shards").mkdir()
    files = {"1.jpg": b"1", "5.png": b"5", "12.jpg": b"12", "3.txt": b"lost", "x.jpg": b"x"}
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for name, data in files.items():
            content = encoded(picture(1), "JPEG") if name.endswith("g") else data
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path / "shards"


def ids_of(subset: Path) -> list[int]:
    return pl.read_parquet(subset / "part-*.parquet")["id"].to_list()


def test_rows_whose_picture_is_in_the_tars_stay_in_the_pools_order(
    pool: Path, shards: Path, tmp_path: Path
) -> None:
    result = keep_within(pool, shards, tmp_path / "out")
    assert ids_of(tmp_path / "out") == [5, 1]
    assert (result.rows_in, result.rows_out) == (10, 2)
    manifest = read_manifest(tmp_path / "out", "subset")
    assert manifest.lost == {ELSEWHERE: 8}
    assert [item.role for item in manifest.inputs] == ["pool", "shards"]


def test_a_ledger_is_believed_before_the_tars(pool: Path, shards: Path, tmp_path: Path) -> None:
    fates = {"id": [9, 1, 0], "shard": ["00000", None, "00000"]}
    pl.DataFrame(fates).write_parquet(shards / "ledger.parquet")
    keep_within(pool, shards, tmp_path / "out")
    assert ids_of(tmp_path / "out") == [9, 0]


def test_another_pool_serves_as_well(pool: Path, tmp_path: Path) -> None:
    pl.DataFrame({"id": [2, 3, 99]}).write_parquet(tmp_path / "other.parquet")
    keep_within(pool, tmp_path / "other.parquet", tmp_path / "out")
    assert ids_of(tmp_path / "out") == [3, 2]


def test_a_pipeline_keeps_what_arrived_and_verify_makes_it_again(
    pool: Path, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "road.toml").write_text(ROAD)
    road = tmp_path / "road"
    run_pipeline(tmp_path / "road.toml", road, {"pool": str(pool), "shards": str(shards)})
    assert ids_of(road / "arrived") == [5, 1]
    verdict = verify_subset(road / "arrived")
    assert (verdict.same_ids, verdict.same_bytes, verdict.problems) == (True, True, ())
    with (shards / "00000.tar").open("ab") as tar:
        tar.write(bytes(512))
    assert "shards" in verify_subset(road / "arrived").problems[0]


def test_nothing_in_common_and_nothing_there_are_one_message(
    pool: Path, shards: Path, tmp_path: Path
) -> None:
    pl.DataFrame({"id": [99]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(EmptyResultError, match="None of the 10 ids"):
        keep_within(pool, tmp_path / "other.parquet", tmp_path / "out")
    with pytest.raises(CoyoError, match="no-such"):
        keep_within(pool, tmp_path / "no-such", tmp_path / "out")
    (shards / "ledger.parquet").write_bytes(b"no parquet")
    with pytest.raises(CoyoError, match=r"ledger\.parquet can't be read"):
        keep_within(pool, shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
