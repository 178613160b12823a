"""COYO's columns: the counts that are computed here are the ones that COYO published."""

import json
from pathlib import Path

import pytest

from coyo_tools.columns import BY_NAME, COYO_COLUMNS, COYO_SCHEMA, text_length, word_count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n\t", 0),
        ("!?… – «»", 0),
        ("rock-n-roll, 1956", 4),
        ("don't", 2),
        ("3.5 % of 100", 4),
        ("under_score", 1),
        ("naïve café", 2),
        ("Чёрный кот", 2),
        ("日本語 の 写真", 3),
        ("a\nb\tc", 3),
    ],
)
def test_words_are_runs_of_word_characters(text: str, words: int) -> None:
    assert word_count(text) == words


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), (" a ", 3), ("café", 4), ("cafe\u0301", 5), ("👍🏽", 2)]
)
def test_length_counts_code_points_and_keeps_blanks(text: str, length: int) -> None:
    assert text_length(text) == length


def test_the_published_rows_have_the_counts_that_coyo_gives_them(shared: Path) -> None:
    rows = _published(shared)
    counted = [row for row in rows if row.get("word_count") is not None]
    assert len(counted) >= 9
    for row in counted:
        assert word_count(row["text"]) == row["word_count"], row["text"]
        assert text_length(row["text"]) == row["text_length"], row["text"]


def test_the_published_rows_lie_in_the_ranges_of_the_columns(shared: Path) -> None:
    seen = set()
    for row in _published(shared):
        for name, value in row.items():
            column = BY_NAME.get(name)
            if column is not None and column.low is not None and value is not None:
                assert column.low <= value <= column.high, (name, value)
                seen.add(name)
    assert {"clip_similarity_vitb32", "watermark_score", "aesthetic_score_laion_v2"} <= seen


def test_the_schema_has_every_column_once_in_the_cards_order() -> None:
    names = [column.name for column in COYO_COLUMNS]
    assert len(names) == len(set(names)) == 17
    assert names[:3] == ["id", "url", "text"]
    assert COYO_SCHEMA.names == names
    assert all(COYO_SCHEMA.field(column.name).type == column.type for column in COYO_COLUMNS)


def _published(shared: Path) -> list[dict[str, object]]:
    lines = (shared / "coyo_rows" / "coyo_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["dataset"] == "coyo-700m"]
