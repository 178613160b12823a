"""Verify: what replays is said to, and whatever keeps a subset from replaying is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from making import names_in, write_pool

from coyo_tools.balance import balance_pool
from coyo_tools.dedupe import dedupe_pool
from coyo_tools.errors import SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.selection import Selection
from coyo_tools.verify import verify_subset

SCORE = "clip_similarity_vitl14"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(500),
        clip_similarity_vitl14=rng.random(500).astype(np.float32),
        num_faces=rng.integers(0, 4, 500).tolist(),
        image_phash=[f"{value:016x}" for value in rng.integers(0, 200, 500)],
    )


SELECTIONS: dict[str, Selection] = {
    "a predicate": Selection(recipes=("num_faces = 0",)),
    "a query": Selection(recipes=("SELECT id, num_faces * 2 AS n FROM pool WHERE n > 2",)),
    "a LIMIT": Selection(recipes=("SELECT * FROM pool WHERE num_faces > 0 LIMIT 9",)),
    "a cut": Selection(recipes=("num_faces = 0",), top=(f"{SCORE}=0.3",)),
    "of survivors": Selection(where=("num_faces = 0",), top=(f"{SCORE}=0.3",), top_of="survivors"),
    "a sample": Selection(recipes=("num_faces > 0",), sample="0.2", seed=4),
    "order and limit": Selection(order_by=f"{SCORE} DESC", limit=20),
}


@pytest.mark.parametrize("asked", SELECTIONS.values(), ids=SELECTIONS.keys())
@pytest.mark.parametrize("threads", [1, 2])
def test_a_subset_replays_with_any_number_of_threads(
    pool: Path, tmp_path: Path, asked: Selection, threads: int
) -> None:
    filter_pool(pool, asked, tmp_path / "out", threads=3)
    verdict = verify_subset(tmp_path / "out", threads=threads)
    assert verdict.problems == ()
    assert verdict.replays
    assert names_in(tmp_path) == {"pool.parquet", "out"}


def test_a_deduplicated_subset_replays(pool: Path, tmp_path: Path) -> None:
    dedupe_pool(pool, tmp_path / "out", by=("image_phash",), keep=f"{SCORE} DESC", threads=1)
    assert verify_subset(tmp_path / "out", threads=2).replays


def test_a_balanced_subset_replays(tmp_path: Path) -> None:
    texts = ["a red car", "a red dog", "the dog", "nothing", None] * 40
    pool = write_pool(tmp_path / "pool.parquet", id=range(200), text=texts)
    (tmp_path / "entries.txt").write_text("red\ndog\n")
    balance_pool(pool, tmp_path / "entries.txt", tmp_path / "out", max_per_entry=30)
    assert verify_subset(tmp_path / "out", threads=1).replays
    (tmp_path / "entries.txt").write_text("red\n")
    problems = verify_subset(tmp_path / "out").problems
    assert problems[0] == f"Its entries {tmp_path / 'entries.txt'} has changed since."


def test_a_recipe_file_that_changes_later_changes_nothing(pool: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.sql"
    recipe.write_text("SELECT * FROM pool WHERE num_faces = 0")
    filter_pool(pool, str(recipe), tmp_path / "out")
    recipe.write_text("SELECT * FROM pool WHERE num_faces = 1")
    assert verify_subset(tmp_path / "out").replays


def test_a_matched_cut_replays(pool: Path, tmp_path: Path) -> None:
    other = write_pool(
        tmp_path / "other.parquet", id=range(9), num_faces=[0, 0, 0, 1, 1, 2, 2, 3, 3]
    )
    asked = Selection(match=("num_faces < 1",), match_from=str(other))
    filter_pool(pool, asked, tmp_path / "out")
    assert verify_subset(tmp_path / "out").replays
    write_pool(other, id=[1], num_faces=[0])
    verdict = verify_subset(tmp_path / "out")
    assert verdict.problems == (f"Its matched pool {other} has changed since.",)
    assert verdict.same_bytes and not verdict.replays


def edit(manifest: Path, change: Any) -> None:
    raw = json.loads(manifest.read_text())
    change(raw)
    manifest.write_text(json.dumps(raw))


def test_a_changed_input_is_named_and_its_rows_compared(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    frame = pl.read_parquet(pool).with_columns(num_faces=pl.lit(0, pl.Int32))
    frame.write_parquet(pool)
    verdict = verify_subset(tmp_path / "out")
    assert verdict.problems[0] == f"Its pool {pool} has changed since."
    assert "Other rows come out now: 500 instead of" in verdict.problems[1]
    assert (verdict.same_ids, verdict.same_bytes) == (False, False)


def test_rows_that_changed_behind_the_same_footer_are_found(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "num_faces >= 0", tmp_path / "out")
    table = pq.read_table(pool)
    start = pq.read_metadata(pool).row_group(0).column(0).data_page_offset
    raw = bytearray(pool.read_bytes())
    # Two bits of an id, in a page that is stored as it is.
    pq.write_table(table, pool, compression="none", use_dictionary=False)
    filter_pool(pool, "num_faces >= 0", tmp_path / "out", overwrite=True)
    raw = bytearray(pool.read_bytes())
    place = raw.index((250).to_bytes(8, "little"), start)
    raw[place : place + 8] = (249).to_bytes(8, "little")
    raw[place - 8 : place] = (250).to_bytes(8, "little")
    pool.write_bytes(raw)
    verdict = verify_subset(tmp_path / "out")
    assert verdict.problems == ("part-00000.parquet has other bytes than when it is made again.",)
    assert (verdict.same_ids, verdict.same_bytes) == (True, False)


def test_an_input_that_is_gone_can_be_named_anew(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    moved = pool.rename(tmp_path / "elsewhere.parquet")
    verdict = verify_subset(tmp_path / "out")
    assert not verdict.replays
    assert verdict.same_ids is None
    assert "is gone or damaged" in verdict.problems[0]
    assert "--source" in verdict.remarks[0]
    # The file's name is part of the fingerprint; its rows are the same.
    verdict = verify_subset(tmp_path / "out", source=str(moved))
    assert (verdict.same_ids, verdict.same_bytes) == (True, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("part-00000.parquet", "is missing"), ("part-00007.parquet", "is not made by this command")],
)
def test_files_that_come_and_go_are_named(pool: Path, tmp_path: Path, name: str, said: str) -> None:
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    (tmp_path / "out" / "part-00000.parquet").rename(tmp_path / "out" / name) if "7" in name else (
        tmp_path / "out" / name
    ).unlink()
    assert any(f"{name} {said}" in problem for problem in verify_subset(tmp_path / "out").problems)


def test_other_versions_are_remarked_on(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    edit(tmp_path / "out" / "manifest.json", lambda raw: raw["versions"].update(duckdb="1.0.0"))
    verdict = verify_subset(tmp_path / "out")
    assert verdict.replays
    assert verdict.remarks[0].startswith("duckdb was 1.0.0, is ")


def test_what_is_no_subset_cant_be_verified(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no manifest\.json"):
        verify_subset(tmp_path)
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    edit(tmp_path / "out" / "manifest.json", lambda raw: raw["parameters"].update(stage="magic"))
    with pytest.raises(SourceError, match="was made by 'magic', which can't be done again"):
        verify_subset(tmp_path / "out")


def test_a_recipe_in_a_manifest_is_as_fenced_as_any(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "num_faces = 0", tmp_path / "out")
    attack = f"SELECT * FROM read_parquet('{pool}')"
    edit(tmp_path / "out" / "manifest.json", lambda raw: raw["parameters"].update(query=attack))
    verdict = verify_subset(tmp_path / "out")
    assert not verdict.replays
    assert "It can't be made again: A recipe reads only the table pool" in verdict.problems[0]
