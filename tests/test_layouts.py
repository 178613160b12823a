"""Other pools under COYO's names: what is renamed, computed, left alone; what is said of it."""

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import coyo, read_ids, write_pool

from coyo_tools.columns import text_length, word_count
from coyo_tools.engine import open_session, pool_relation, read_sql
from coyo_tools.errors import ColumnError, SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.source import open_source

UIDS = ["00000000000000070123456789abcdef", "ff" * 16, "8000000000000008" + "0" * 16]
LAION_400M = {
    "SAMPLE_ID": [1, 2, 3],
    "URL": ["http://a.example/1", "http://a.example/2", "http://a.example/3"],
    "TEXT": ["a red fox", "größe 4", None],
    "HEIGHT": [300, 200, 100],
    "WIDTH": [400, 500, 600],
    "LICENSE": ["?", "?", "?"],
    "NSFW": ["UNLIKELY", "UNSURE", "NSFW"],
    "similarity": [0.31, 0.35, 0.5],
}
LAION_5B = LAION_400M | {
    "punsafe": [0.1, 0.2, 0.3],
    "pwatermark": [0.4, 0.6, 0.2],
    "AESTHETIC_SCORE": [5.5, 6.5, 4.5],
    "LANGUAGE": ["en", "de", "en"],
}
DATACOMP = {
    "uid": UIDS,
    "url": LAION_400M["URL"],
    "text": LAION_400M["TEXT"],
    "original_width": [400, 500, 600],
    "original_height": [300, 200, 100],
    "clip_b32_similarity_score": [0.31, 0.35, 0.5],
    "clip_l14_similarity_score": [0.2, 0.3, 0.4],
    "face_bboxes": [[[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4]], [], None],
    "sha256": ["a" * 64, "b" * 64, "c" * 64],
}
LABELED = {
    "id": [1, 2, 3],
    "url": LAION_400M["URL"],
    "imagehash": ["0" * 16, "1" * 16, "2" * 16],
    "labels": [[1], [2], [3]],
    "label_probs": [[0.5], [0.5], [0.5]],
    "width": [1, 2, 3],
    "height": [1, 2, 3],
}


def pool_of(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lower(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name.lower(): values for name, values in columns.items()}


@pytest.mark.parametrize(
    "columns", [LAION_400M, lower(LAION_400M), LAION_5B, lower(LAION_5B), DATACOMP]
)
def test_one_recipe_runs_on_all(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    pool = pool_of(tmp_path / "pool.parquet", columns)
    recipe = """
        SELECT * FROM pool
        WHERE clip_similarity_vitb32 < 0.5 AND min_side(width, height) >= 200
          AND text_length > 5 AND word_count BETWEEN 2 AND 2
    """
    result = filter_pool(pool, recipe, tmp_path / "out")
    assert result.rows_out == 1
    (row,) = pl.read_parquet(tmp_path / "out" / "part-00000.parquet").to_dicts()
    assert row["url"] == "http://a.example/2"
    assert (row["text_length"], row["word_count"]) == (7, 2)


@pytest.mark.parametrize(
    ("columns", "layout", "names"),
    [
        (
            LAION_400M, "LAION",
            "id url text height width LICENSE NSFW clip_similarity_vitb32 text_length word_count",
        ),
        (
            LAION_5B, "LAION",
            "id url text height width LICENSE NSFW clip_similarity_vitb32 punsafe watermark_score "
            "aesthetic_score_laion_v2 LANGUAGE text_length word_count",
        ),
        (
            DATACOMP, "DataComp",
            "id uid url text width height clip_similarity_vitb32 clip_similarity_vitl14 "
            "face_bboxes sha256 num_faces text_length word_count",
        ),
        (LABELED, "COYO-Labeled-300M", "id url image_phash labels label_probs width height"),
    ],
)  # fmt: skip
def test_a_layout_is_known_by_its_names(
    tmp_path: Path, columns: dict[str, list[Any]], layout: str, names: str
) -> None:
    source = open_source(pool_of(tmp_path / "pool.parquet", columns))
    assert source.column_map.layout == layout
    assert source.columns == tuple(names.split())
    with open_session(source) as session:
        shown = session.view("pool").to_arrow_table().schema
    assert [(item.name, item.type) for item in shown] == [
        (item.name, item.type) for item in source.schema
    ]


def test_scores_of_other_models_carry_a_note(tmp_path: Path) -> None:
    source = open_source(pool_of(tmp_path / "pool.parquet", LAION_5B))
    assert source.notes["watermark_score"] == "LAION's watermark model, not COYO's"
    assert "multilingual" in source.notes["clip_similarity_vitb32"]
    english = {name: values for name, values in LAION_5B.items() if name != "LANGUAGE"}
    source = open_source(pool_of(tmp_path / "english.parquet", english))
    assert source.notes["clip_similarity_vitb32"] == "LAION's own run of CLIP ViT-B/32"


def test_what_may_be_taken_for_coyos_is_not_mapped_and_said(tmp_path: Path) -> None:
    columns = LAION_400M | {"aesthetic": [7.0, 8.0, 9.0], "punsafe": [0.1, 0.2, 0.3]}
    pool = pool_of(tmp_path / "pool.parquet", columns)
    source = open_source(pool)
    assert {"aesthetic", "punsafe"} <= set(source.columns)
    assert "aesthetic_score_laion_v2" not in source.columns
    assert "V1" in source.column_map.absent["aesthetic_score_laion_v2"]
    assert set(source.column_map.absent) > {"nsfw_score_gantman"}
    assert not open_source(pool_of(tmp_path / "b.parquet", LAION_400M)).column_map.absent
    ran = coyo("info", pool)
    assert "note: no aesthetic_score_laion_v2: `aesthetic` is LAION-Aesthetics V1" in ran.stderr


def test_coyos_own_names_stay_and_nothing_is_added(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1], text=["a"], hash=[5], similarity=[0.5])
    assert open_source(pool).columns == ("id", "text", "hash", "similarity")


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    columns = LAION_5B | {"watermark_score": [0.9, 0.9, 0.9], "word_count": [1, 1, 1]}
    source = open_source(pool_of(tmp_path / "pool.parquet", columns))
    assert source.columns.count("watermark_score") == 1
    assert "pwatermark" in source.columns
    assert "watermark_score" not in source.notes
    with open_session(source) as session:
        rows = session.sql("SELECT watermark_score, word_count FROM pool").fetchall()
    assert rows == [(0.9, 1)] * 3


def test_pruning_reaches_renamed_columns(tmp_path: Path) -> None:
    columns = LAION_400M | {"SAMPLE_ID": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "pool.parquet", row_group_size=1)
    with open_session(open_source(tmp_path / "pool.parquet")) as session:
        rows = session.sql(
            "EXPLAIN ANALYZE SELECT url FROM pool WHERE clip_similarity_vitb32 > 0.4 AND id > 0"
        ).fetchall()
    assert "similarity > 0.4" in rows[0][1]
    assert "Row Groups Scanned: 1 / 3" in rows[0][1]


def test_another_cursor_sees_the_same_pool(tmp_path: Path) -> None:
    source = open_source(pool_of(tmp_path / "pool.parquet", DATACOMP))
    with open_session(source) as session, session.cursor() as cursor:
        assert cursor.sql("SELECT word_count FROM pool").fetchall() == [(3,), (2,), (None,)]
        ids = pool_relation(cursor, source).select("id").fetchall()
    assert ids == [(7,), (2**63 - 1,), (8,)]


def test_uids_become_63_bits(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.parquet", DATACOMP)
    with open_session(open_source(pool)) as session:
        ids = [row[0] for row in session.sql("SELECT id FROM pool").fetchall()]
    assert ids == [int(uid[:16], 16) & (2**63 - 1) for uid in UIDS]
    assert ids == [7, 2**63 - 1, 8]


def test_a_uid_that_is_none_has_no_id_and_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.parquet", DATACOMP | {"uid": [UIDS[0], "zz" * 16, "12"]})
    with pytest.raises(SourceError, match=r"the id is missing \(NULL\) on 2 rows"):
        filter_pool(pool, "width > 0", tmp_path / "out")


def test_faces_are_counted(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.parquet", DATACOMP)
    with open_session(open_source(pool)) as session:
        assert session.sql("SELECT num_faces FROM pool").fetchall() == [(2,), (0,), (None,)]


def test_sample_ids_stored_as_double_become_ids_and_it_is_said(tmp_path: Path) -> None:
    columns = LAION_400M | {"SAMPLE_ID": [1.0, 34655009450.0, 3.0]}
    pool = pool_of(tmp_path / "pool.parquet", columns)
    source = open_source(pool)
    assert source.schema.field("id").type == pa.int64()
    assert "SAMPLE_ID is stored as double" in source.notes["id"]
    filter_pool(pool, "width > 0", tmp_path / "out")
    assert read_ids(tmp_path / "out") == [1, 34655009450, 3]


@pytest.mark.parametrize("ids", [[1.0, None, 3.0], [1.0, 2.5, 3.0], [1.0, float("nan"), 3.0]])
def test_a_sample_id_that_is_missing_or_no_integer_is_refused(
    tmp_path: Path, ids: list[float | None]
) -> None:
    pool = pool_of(tmp_path / "pool.parquet", LAION_400M | {"SAMPLE_ID": ids})
    with pytest.raises(SourceError, match=r"the id is missing \(NULL\) on 1 rows"):
        filter_pool(pool, "width > 0", tmp_path / "out")


def test_sample_ids_beyond_what_a_double_holds_are_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.parquet", LAION_400M | {"SAMPLE_ID": [1.0, 2.0, 1e17]})
    with pytest.raises(ColumnError, match=r"`SAMPLE_ID` .* reaches 1e\+17; beyond 2\*\*53"):
        open_source(pool)


def test_sample_ids_stored_as_text_are_refused_by_name(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool.parquet", LAION_400M | {"SAMPLE_ID": ["1", "2", "3"]})
    with pytest.raises(ColumnError, match=r"`SAMPLE_ID` \(`id` here\) .* is string"):
        open_source(pool)


def test_without_sample_ids_laions_hash_is_the_id(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = dict(LAION_400M)
    del columns["SAMPLE_ID"]
    source = open_source(pool_of(tmp_path / "a.parquet", columns | {"hash": [-5, 6, 7]}))
    assert "hash of url and text" in source.notes["id"]
    with pytest.raises(ColumnError, match="no column `id`"):
        open_source(pool_of(tmp_path / "b.parquet", columns))
    both = open_source(pool_of(tmp_path / "c.parquet", dict(LAION_400M) | {"hash": [-5, 6, 7]}))
    assert "hash" in both.columns
    assert "id" not in both.notes


def test_columns_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    columns = {"id": [1], "url": ["a"], "URL": ["b"]}
    pool = pool_of(tmp_path / "pool.parquet", columns)
    with pytest.raises(ColumnError, match="`url` and `URL`"):
        open_source(pool)


def test_words_and_characters_are_pythons(tmp_path: Path) -> None:
    texts = [
        "", "rock-n-roll, 1956", "größe", "snake_case", "日本語 テキスト", "٣ apples",
        "e\u0301te\u0301",
        "½ cup", "naïve café", "😀 smile", "a\u00a0b", "Ⅷ", "don’t",
    ]  # fmt: skip
    pool = tmp_path / "pool.parquet"
    count = len(texts)
    pool_of(
        pool,
        {"SAMPLE_ID": list(range(count)), "URL": ["u"] * count, "TEXT": texts},
    )
    with open_session(open_source(pool)) as session:
        rows = session.sql("SELECT text_length, word_count FROM pool").fetchall()
    assert rows == [(text_length(text), word_count(text)) for text in texts]


def test_a_word_character_is_pythons_for_every_character(tmp_path: Path) -> None:
    """The two Unicode versions differ in characters that one of them does not know yet."""
    signs = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    write_pool(tmp_path / "pool.parquet", id=range(len(signs)), text=signs)
    with open_session(open_source(tmp_path / "pool.parquet")) as session:
        session.execute(read_sql("layouts.sql"))
        rows = session.sql("SELECT words_of(text) FROM pool ORDER BY id").fetchall()
    differ = [
        sign
        for sign, (words,) in zip(signs, rows, strict=True)
        if words != len(re.findall(r"\w+", sign))
    ]
    assert {unicodedata.category(sign) for sign in differ} <= {"Cn"}


def test_real_laion_rows_run_through(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "laion_like" / "laion400m_rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "laion.parquet")
    pool = tmp_path / "laion.parquet"
    with pytest.raises(SourceError, match=r"the id is missing \(NULL\) on 1 rows"):
        filter_pool(pool, "laion-400m", tmp_path / "out")
    rule = "id IS NOT NULL AND clip_similarity_vitb32 >= 0.3 AND text_length >= 5"
    result = filter_pool(pool, rule, tmp_path / "out")
    kept = {
        row["SAMPLE_ID"]
        for row in rows
        if row.get("SAMPLE_ID") and row["similarity"] >= 0.3 and len(row["TEXT"]) >= 5
    }
    assert result.rows_in == len(rows)
    assert set(read_ids(tmp_path / "out")) == kept


def test_real_labeled_rows_run_through(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "coyo_rows" / "coyo_rows.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["dataset"] == "coyo-labeled-300m"]
    named = [
        {"id": row["id"], "url": row["url"], "imagehash": row["image_phash"]}
        | {"width": row["width"], "height": row["height"], "labels": [1], "label_probs": [0.5]}
        for row in rows
    ]
    assert len(named) == 6
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "labeled.parquet")
    filter_pool(
        tmp_path / "labeled.parquet", "image_phash <> '' AND width >= 300", tmp_path / "out"
    )
    assert set(read_ids(tmp_path / "out")) == {row["id"] for row in rows if row["width"] >= 300}
