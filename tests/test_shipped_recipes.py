"""The shipped recipes: rows in, rows out, with values on either side of every threshold."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from making import read_ids, write_pool

from coyo_tools.columns import BY_NAME
from coyo_tools.errors import RecipeError
from coyo_tools.filter import filter_pool
from coyo_tools.recipe import find_shipped, load_recipe, shipped_recipes

NAMES = [recipe.name for recipe in shipped_recipes()]

# A row that every shipped recipe keeps.
GOOD: dict[str, Any] = {
    "width": 1200,
    "height": 1100,
    "text_length": 40,
    "word_count": 8,
    "clip_similarity_vitb32": 0.4,
    "clip_similarity_vitl14": 0.4,
    "nsfw_score_opennsfw2": 0.01,
    "nsfw_score_gantman": 0.01,
    "watermark_score": 0.1,
    "aesthetic_score_laion_v2": 6.0,
}


def below(value: float) -> float:
    """The greatest 32-bit float below a value, since COYO's scores are 32-bit."""
    return float(np.nextafter(np.float32(value), np.float32(-math.inf)))


def kept(tmp_path: Path, recipe: str, *changes: dict[str, Any]) -> list[bool]:
    """Whether a recipe keeps the good row with some values changed; the good row is always kept."""
    rows = [GOOD, *({**GOOD, **change} for change in changes)]
    columns = {name: [row[name] for row in rows] for name in GOOD}
    pool = write_pool(tmp_path / "pool.parquet", id=range(len(rows)), **columns)
    filter_pool(pool, recipe, tmp_path / "out", overwrite=True, threads=1)
    ids = set(read_ids(tmp_path / "out"))
    assert 0 in ids
    return [number in ids for number in range(1, len(rows))]


def test_there_are_recipes_and_ours_is_among_them() -> None:
    assert "coyo-clean" in NAMES
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_where_it_is_from_and_what_it_does_on_coyo(name: str) -> None:
    shipped = find_shipped(name)
    head = shipped.path.read_text(encoding="utf-8").split("SELECT")[0].splitlines()
    assert all(line.startswith("--") for line in head)
    assert len(shipped.summary) > 20
    assert head[1].startswith("-- Source: ")
    assert any(line.startswith("-- On COYO: ") for line in head)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_rules_over_coyos_columns_alone(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.where_decides
    assert recipe.rules
    assert set(recipe.columns) <= set(BY_NAME)


def test_every_rule_of_coyo_clean_has_its_reason() -> None:
    rules = load_recipe("coyo-clean").rules
    assert len(rules) == 8
    assert all(rule.reason for rule in rules)
    assert "LAION" in rules[0].reason
    assert "removes nothing" in rules[-1].reason


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_and_keeps_a_good_row(tmp_path: Path, name: str) -> None:
    bad = {"width": 100, "height": 90, "text_length": 2, "word_count": 1}
    bad |= {"clip_similarity_vitb32": 0.1, "aesthetic_score_laion_v2": 2.0}
    assert kept(tmp_path, name, bad) == [False]


@pytest.mark.parametrize(
    ("column", "inside", "outside"),
    [
        ("clip_similarity_vitb32", [0.28, 1.0], [below(0.28), -0.1, None]),
        ("clip_similarity_vitl14", [0.22], [below(0.22), None]),
        ("watermark_score", [below(0.5), 0.0], [0.5, 1.0, None, math.nan]),
        ("nsfw_score_opennsfw2", [below(0.2)], [0.2, None]),
        ("nsfw_score_gantman", [below(0.2)], [0.2, None]),
        ("word_count", [3, 64], [2, 65, None]),
        ("width", [200, 3300, 367], [199, 3301, 366, 0, None]),
        ("height", [200, 3600, 400], [199, 3601, 399, 0, None]),
    ],
)
def test_coyo_clean_cuts_at_its_thresholds(
    tmp_path: Path, column: str, inside: list[Any], outside: list[Any]
) -> None:
    changes = [{column: value} for value in [*inside, *outside]]
    if column in ("width", "height"):
        other = "height" if column == "width" else "width"
        limits = {200: 600, 199: 590, 367: 1100, 366: 1100, 400: 1200, 399: 1200}
        changes = [{**change, other: limits.get(change[column], GOOD[other])} for change in changes]
    expected = [True] * len(inside) + [False] * len(outside)
    assert kept(tmp_path, "coyo-clean", *changes) == expected


@pytest.mark.parametrize(
    ("recipe", "column", "inside", "outside"),
    [
        ("laion-400m", "clip_similarity_vitb32", [0.3], [below(0.3), None]),
        ("laion-400m", "text_length", [5], [4, None]),
        ("laion-2b-en", "clip_similarity_vitb32", [0.28], [below(0.28)]),
        ("laion-aesthetic", "aesthetic_score_laion_v2", [5.0], [below(5.0), None]),
        ("sd-v1", "aesthetic_score_laion_v2", [5.01], [5.0]),
        ("sd-v1", "width", [512], [511]),
        ("sd-v1", "watermark_score", [below(0.5)], [0.5]),
        ("laion-high-res", "height", [1024], [1023, None]),
        ("cc12m", "word_count", [3, 256], [2, 257]),
        ("cc12m", "height", [481], [400, 479]),
        ("datacomp-basic", "word_count", [3], [2]),
        ("datacomp-basic", "text_length", [6], [5]),
        ("datacomp-basic", "width", [367], [366]),
    ],
)
def test_published_thresholds_are_where_the_papers_have_them(
    tmp_path: Path, recipe: str, column: str, inside: list[Any], outside: list[Any]
) -> None:
    changes = [{column: value} for value in [*inside, *outside]]
    expected = [True] * len(inside) + [False] * len(outside)
    assert kept(tmp_path, recipe, *changes) == expected


def test_shape_macros_are_null_when_a_side_is_missing_or_zero(tmp_path: Path) -> None:
    widths = [300, 100, 300, None, 300, None, 0]
    heights = [100, 300, 300, 300, None, None, 300]
    pool = write_pool(tmp_path / "pool.parquet", id=range(7), width=widths, height=heights)
    query = (
        "SELECT *, aspect_ratio(width, height) AS ratio, min_side(width, height) AS side FROM pool"
    )
    filter_pool(pool, query, tmp_path / "out")
    out = pl.read_parquet(tmp_path / "out" / "part-*.parquet").sort("id")
    assert out["ratio"].to_list() == [3.0, 3.0, 1.0, None, None, None, None]
    assert out["side"].to_list() == [100, 100, 300, None, None, None, 0]


def test_a_null_side_fails_either_way_round(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2], width=[300, None], height=[300, 300])
    for rule in ("aspect_ratio(width, height) <= 3", "NOT aspect_ratio(width, height) > 3"):
        filter_pool(pool, rule, tmp_path / "out", overwrite=True)
        assert read_ids(tmp_path / "out") == [1]


@pytest.mark.parametrize("typed", ["coyo-claen", "Coyo-Clean", "coyo_clean"])
def test_a_mistyped_name_gets_the_nearest_one(typed: str) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean coyo-clean\?"):
        load_recipe(typed)
