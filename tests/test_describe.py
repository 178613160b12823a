"""What is said of a pool's columns: from the footers alone, or from every row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, write_pool

from coyo_tools.checks import check_source
from coyo_tools.describe import describe_pool
from coyo_tools.source import open_source

NAN = float("nan")


def kinds(pool: Path, *columns: str) -> list[tuple[str, str]]:
    source = open_source(pool)
    return [(remark.column, remark.kind) for remark in check_source(source, columns or None)]


def test_coyos_own_columns_give_no_remark(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[1, 2], text=["a", "b"], width=[200, 300], clip_similarity_vitl14=[0.1, 0.3],
        watermark_score=[0.0, 1.0], aesthetic_score_laion_v2=[1.0, 10.0],
    )  # fmt: skip
    assert kinds(pool) == []


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"watermark_score": ["0.5", "0.6"]}, "type"),
        ({"text": [5, 6]}, "type"),
        ({"width": ["a", "b"]}, "type"),
        ({"num_faces": [True, False]}, "type"),
        ({"width": pa.array([1, 2], pa.int64())}, "stored"),
        ({"watermark_score": pa.array([0.1, 0.2], pa.float64())}, "stored"),
        ({"clip_similarity_vitl14": pa.array([6016.0, 0.2], pa.float32())}, "scale"),
        ({"watermark_score": pa.array([55.0, 99.0], pa.float32())}, "scale"),
        ({"aesthetic_score_laion_v2": pa.array([0.2, 0.9], pa.float32())}, "scale"),
        ({"width": pa.array([0, 9], pa.int32())}, "scale"),
        ({"nsfw_score_gantman": pa.array([None, None], pa.float32())}, "all null"),
        ({"num_faces": pa.array([None, 1], pa.int32())}, "null"),
    ],
)
def test_what_is_odd_is_told_from_the_footers(
    tmp_path: Path, columns: dict[str, Any], kind: str
) -> None:
    pq.write_table(pa.table({"id": [1, 2], **columns}), tmp_path / "pool.parquet")
    (name,) = columns
    assert kinds(tmp_path / "pool.parquet") == [(name, kind)]
    assert kinds(tmp_path / "pool.parquet", "id", "other") == []


def test_a_remark_says_what_was_seen(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2], clip_similarity_vitl14=[-5.0, 6016.0])
    (remark,) = check_source(open_source(pool), ["clip_similarity_vitl14"])
    assert remark.text == (
        "down to -5 and up to 6016, COYO's is -1 to 1: another scale, or damaged rows"
    )


def test_files_without_statistics_leave_it_open(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "width": pa.array([0], pa.int32())})
    pq.write_table(table, tmp_path / "pool.parquet", write_statistics=False)
    (_, width) = describe_pool(tmp_path / "pool.parquet").columns
    assert (width.nulls, width.low, width.high, width.remark) == (None, None, None, "")
    (_, width) = describe_pool(tmp_path / "pool.parquet", scan=True).columns
    assert (width.nulls, width.low, width.high) == (0, 0, 0)
    assert "another scale" in width.remark


def test_a_scan_counts_what_footers_hide(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[1, 1, 1, 2, 2, 3, None],
        watermark_score=[NAN, 0.5, None, NAN, 0.25, 0.5, 0.5],
    )
    facts = describe_pool(pool, scan=True)
    score = facts.columns[1]
    assert (score.nulls, score.nans, score.low, score.high) == (1, 2, 0.25, 0.5)
    assert "NaN on 2 rows" in score.remark
    assert facts.ids is not None
    assert (facts.ids.missing, facts.ids.doubled_ids, facts.ids.doubled_rows) == (1, 2, 5)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.integers(0, 5),
            st.none() | st.floats(width=32, allow_infinity=False),
            st.none() | st.text(max_size=3),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_scan_is_what_counting_by_hand_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int | None, float | None, str | None]],
) -> None:
    ids, scores, texts = map(list, zip(*rows, strict=True))
    path = tmp_path_factory.mktemp("scan") / "pool.parquet"
    pool = write_pool(path, id=ids, watermark_score=scores, text=texts)
    facts = describe_pool(pool, scan=True)
    _, score, text = facts.columns
    real = [value for value in scores if value is not None and value == value]
    assert score.nulls == scores.count(None)
    assert score.nans == sum(value is not None and value != value for value in scores)
    assert (score.low, score.high) == (min(real, default=None), max(real, default=None))
    assert (text.nulls, text.nans, text.low) == (texts.count(None), None, None)
    counts = Counter(ids)
    missing = counts.pop(None, 0)
    assert facts.ids is not None
    assert facts.ids.missing == missing
    assert facts.ids.doubled_ids == sum(count > 1 for count in counts.values())
    assert facts.ids.doubled_rows == sum(count for count in counts.values() if count > 1)


def test_a_column_of_nulls_alone_can_be_scanned(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "nothing": pa.nulls(2)})
    pq.write_table(table, tmp_path / "pool.parquet")
    assert describe_pool(tmp_path / "pool.parquet", scan=True).columns[1].nulls == 2


def test_the_command_prints_both(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 1], watermark_score=[NAN, 90.0])
    plain = coyo("info", pool)
    assert plain.returncode == 0
    assert "NaN" not in plain.stdout
    assert "ids:" not in plain.stderr
    scanned = coyo("info", pool, "--scan")
    assert "NaN" in scanned.stdout
    assert "ids: 0 rows have none, 1 stand on more than one row (2 rows)" in scanned.stderr
    facts = json.loads(coyo("info", pool, "--scan", "--json").stdout)
    assert facts["layout"] == "COYO-700M"
    assert facts["ids"]["doubled_rows"] == 2
    assert facts["columns"][1]["nans"] == 1


def test_a_subset_keeps_its_pools_notes(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "made" / "part-00000.parquet", id=[1], watermark_score=[0.5])
    manifest = {
        "kind": "subset", "parameters": {"stage": "filter"}, "inputs": [], "rows_in": 1,
        "rows_out": 1, "lost": {}, "id_digest": "", "seconds": 0,
        "details": {"column_notes": {"watermark_score": "LAION's", "gone": "x"}},
    }  # fmt: skip
    (pool.parent / "manifest.json").write_text(json.dumps(manifest))
    (remark,) = check_source(open_source(pool.parent))
    assert (remark.kind, remark.text) == ("note", "LAION's")
