"""Selections: recipes AND-ed, cuts by fraction, matched cuts, samples, order and limit."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import read_ids, write_pool

from coyo_tools.bites import float_columns
from coyo_tools.cuts import match_rule, sample_keys
from coyo_tools.engine import open_session
from coyo_tools.errors import CoyoError, EmptyResultError, RecipeError
from coyo_tools.explain import explain_pool
from coyo_tools.filter import filter_pool
from coyo_tools.manifest import read_manifest
from coyo_tools.selection import Selection
from coyo_tools.source import open_source

ROWS = 2000


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows whose scores repeat, are missing or NaN here and there."""
    rng = np.random.default_rng(0)
    scores = rng.choice(np.linspace(0, 0.5, 300), ROWS).astype(np.float32)
    scores[rng.random(ROWS) < 0.02] = np.nan
    listed: list[float | None] = [
        None if missing else float(score)
        for score, missing in zip(scores, rng.random(ROWS) < 0.03, strict=True)
    ]
    return write_pool(
        tmp_path_factory.mktemp("pool") / "pool.parquet",
        id=(rng.permutation(ROWS) * 1000 - 500_000).tolist(),
        clip_similarity_vitl14=listed,
        clip_similarity_vitb32=rng.random(ROWS).astype(np.float32),
        num_faces=rng.integers(0, 3, ROWS).tolist(),
    )


def select(pool: Path, tmp_path: Path, *recipes: str, **asked: Any) -> list[int]:
    filter_pool(pool, Selection(recipes=recipes, **asked), tmp_path / "out", overwrite=True)
    return read_ids(tmp_path / "out")


# --- recipes together ----------------------------------------------------------------------------


def test_recipes_and_predicates_are_anded(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text(
        "-- mine\n-- Source: me\nSELECT *\nFROM pool\nWHERE num_faces = 0  -- nobody\n"
        "   OR num_faces = 2;\n"
    )
    ids = select(pool, tmp_path, str(tmp_path / "mine.sql"), where=("id > 0", "id < 9e5"))
    frame = pl.read_parquet(pool)
    expected = frame.filter(pl.col("num_faces").is_in([0, 2]) & pl.col("id").is_between(1, 899_999))
    assert ids == expected["id"].to_list()
    bites = read_manifest(tmp_path / "out").details["bites"]
    assert [(bite["recipe"], bite["rule"], bite["reason"]) for bite in bites] == [
        ("mine", "num_faces = 0 OR num_faces = 2", "nobody"),
        ("--where", "id > 0", ""),
        ("--where", "id < 9e5", ""),
    ]


def test_what_is_more_than_rules_cant_be_combined(pool: Path, tmp_path: Path) -> None:
    for other in (
        "SELECT * FROM pool WHERE id > 0 LIMIT 3",
        "SELECT id FROM pool WHERE id > 0",
        "SELECT * FROM pool AS p WHERE p.id > 0",
        "WITH w AS (SELECT 1) SELECT * FROM pool WHERE id > 0",
    ):
        with pytest.raises(RecipeError, match="can't be combined"):
            select(pool, tmp_path, "num_faces = 0", other)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "There is no recipe"),
        ({"where": ("id > 0; DROP TABLE pool",)}, "2 statements"),
        ({"where": ("id > 0 LIMIT 3",)}, "more than a predicate"),
        ({"where": ("id > 0 UNION SELECT 1",)}, "more than a predicate"),
        ({"where": ("1) OR (1",)}, "does not parse"),
        ({"top": ("clip_similarity_vitl14",)}, "is not SCORE=FRACTION"),
        ({"top": ("clip_similarity_vitl14=30",)}, "Write 0.3"),
        ({"top": ("clip_similarity_vitl14=-1",)}, "not a number between 0 and 1"),
        ({"top": ("clip_similarity_vitl14=many",)}, "no column `many`"),
        ({"top": ("clip_similarity_vitl41=0.3",)}, "Did you mean `clip_similarity_vitl14`"),
        ({"top": ("'abc'=0.3",)}, "is VARCHAR, not a number"),
        ({"top": ("id) FROM pool; SELECT (id=0.3",)}, "does not parse"),
        ({"top": ("id=0.3",), "top_of": "winners"}, "--top-of is pool or survivors"),
        ({"match": ("id > 3",)}, "go together"),
        ({"match_from": "x"}, "go together"),
        ({"where": ("id > 0",), "sample": "0"}, "keeps nothing"),
        ({"where": ("id > 0",), "sample": "-3"}, "keeps nothing"),
        ({"where": ("id > 0",), "sample": "1.5"}, "neither a number of rows nor"),
        ({"where": ("id > 0",), "sample": "some"}, "neither a number of rows nor"),
        ({"where": ("id > 0",), "order_by": "random()"}, "other rows on every run"),
        ({"where": ("id > 0",), "order_by": "nosuch"}, "no column `nosuch`"),
        ({"where": ("id > 0",), "order_by": "id LIMIT 3"}, "more than ORDER BY terms"),
    ],
)
def test_what_cant_be_selected_is_said(
    pool: Path, tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(CoyoError) as caught:
        select(pool, tmp_path, **asked)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- cuts by fraction ----------------------------------------------------------------------------


def datacomp_threshold(scores: npt.NDArray[np.float32], fraction: float) -> np.float32:
    """DataComp's apply_filter.py, from its description: sort downwards, take index int(n * f)."""
    return np.float32(np.sort(scores)[::-1][int(len(scores) * fraction)])


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(
        st.sampled_from([0.1, 0.2, 0.25, 0.28, 0.3, 0.31, -0.1]) | st.floats(-1, 1, width=32),
        min_size=1,
        max_size=60,
    ),
    fraction=st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 0.7, 0.99]),
    missing=st.integers(0, 3),
)
def test_the_top_fraction_is_datacomps_to_the_row(
    tmp_path_factory: pytest.TempPathFactory,
    scores: list[float],
    fraction: float,
    missing: int,
) -> None:
    folder = tmp_path_factory.mktemp("datacomp")
    absent: list[float | None] = [None, float("nan"), None][:missing]
    pool = write_pool(
        folder / "pool.parquet",
        id=range(len(scores) + missing),
        clip_similarity_vitl14=[*scores, *absent],
    )
    exact = np.array(scores, dtype=np.float32)
    expected = np.flatnonzero(exact >= datacomp_threshold(exact, fraction)).tolist()
    name = "clip_similarity_vitl14"
    for asked in (
        Selection(top=(f"{name}={fraction}",)),
        Selection(recipes=(f"{name} >= top_fraction({name}, {fraction})",)),
    ):
        filter_pool(pool, asked, folder / "out", overwrite=True)
        assert read_ids(folder / "out") == expected
        cut = read_manifest(folder / "out").details["cuts"][0]
        assert cut["value"] == float(datacomp_threshold(exact, fraction))
        assert (cut["rank"], cut["scores"]) == (int(len(scores) * fraction), len(scores))


def test_the_macro_for_the_shell_means_the_same(pool: Path, tmp_path: Path) -> None:
    name = "clip_similarity_vitl14"
    for fraction in (0.0, 0.29, 0.3, 0.999):
        resolved = select(pool, tmp_path, top=(f"{name}={fraction}",))
        with open_session(open_source(pool)) as session:
            query = (
                f"SELECT id FROM pool WHERE {name} >= top_fraction({name}, {fraction}) "
                f"AND NOT isnan({name})"
            )
            assert [id_ for (id_,) in session.sql(query).fetchall()] == resolved


def test_a_fraction_of_survivors_is_of_what_the_other_rules_leave(
    pool: Path, tmp_path: Path
) -> None:
    frame = pl.read_parquet(pool).filter(num_faces=0)
    exact = frame["clip_similarity_vitl14"].drop_nulls().drop_nans().to_numpy()
    cut = datacomp_threshold(exact, 0.2)
    asked = {"where": ("num_faces = 0",), "top": ("clip_similarity_vitl14=0.2",)}
    ids = select(pool, tmp_path, **asked, top_of="survivors")
    score = pl.col("clip_similarity_vitl14").fill_nan(None)
    assert ids == frame.filter(score >= float(cut))["id"].to_list()
    assert ids != select(pool, tmp_path, **asked)


def test_a_cut_of_an_expression_and_of_integers(pool: Path, tmp_path: Path) -> None:
    score = "clip_similarity_vitl14 + clip_similarity_vitb32"
    frame = pl.read_parquet(pool)
    both = (frame["clip_similarity_vitl14"] + frame["clip_similarity_vitb32"]).to_numpy()
    cut = datacomp_threshold(both[~np.isnan(both)], 0.1)
    ids = select(pool, tmp_path, top=(f"{score}=0.1",))
    assert ids == frame.filter(pl.Series(np.nan_to_num(both, nan=-9) >= cut))["id"].to_list()
    select(pool, tmp_path, top=("num_faces=0.1",))
    assert read_manifest(tmp_path / "out").details["cuts"][0]["value"] == 2.0


def test_a_score_that_nobody_has_cant_be_cut(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2], watermark_score=[None, np.nan])
    with pytest.raises(EmptyResultError, match="No row has the score watermark_score"):
        select(pool, tmp_path, top=("watermark_score=0.5",))


@pytest.mark.parametrize("rule", ["x < 0.4", "x <= 0.4", "x > 0.4", "x >= 0.4", "0.4 < x"])
def test_a_matched_cut_passes_the_share_that_the_rule_passes_there(
    tmp_path: Path, rule: str
) -> None:
    rng = np.random.default_rng(1)
    there = [*rng.random(1000).tolist(), None, float("nan")]
    here = [*(rng.random(500) ** 3).tolist(), None, float("nan")]
    other = write_pool(tmp_path / "other.parquet", id=range(1002), x=there)
    pool = write_pool(tmp_path / "pool.parquet", id=range(502), x=here)
    match = match_rule(open_source(pool), open_source(other), rule)
    passing = sum(v is not None and (v < 0.4) == ("<" in rule[:4]) for v in there[:1000])
    assert match.rate == passing / 1000
    ids = select(pool, tmp_path, match=(rule,), match_from=str(other))
    assert abs(len(ids) / 500 - match.rate) < 1 / 500
    kept = [here[id_] for id_ in ids]
    left = [v for number, v in enumerate(here[:500]) if number not in set(ids)]
    assert max(kept) < min(left) if "<" in rule[:4] else min(kept) > max(left)
    manifest = read_manifest(tmp_path / "out")
    assert [item.role for item in manifest.inputs] == ["pool", "matched pool"]
    assert manifest.details["matches"][0]["rule"] == rule


# --- samples, order, limit -----------------------------------------------------------------------


def test_a_sample_depends_on_id_and_seed_alone(pool: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(pool)
    drawn = select(pool, tmp_path, sample="100")
    assert len(drawn) == 100
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for number, piece in enumerate(frame.sample(fraction=1, shuffle=True, seed=5).iter_slices(701)):
        piece.write_parquet(shuffled / f"{number}.parquet", row_group_size=100)
    assert set(select(shuffled, tmp_path, sample="100")) == set(drawn)
    assert set(select(pool, tmp_path, sample="100", seed=1)) != set(drawn)
    # Of a larger sample with the same seed it is a part.
    assert set(drawn) < set(select(pool, tmp_path, sample="0.1"))
    keys = sample_keys(frame["id"].to_numpy(), 0)
    assert set(drawn) == set(frame["id"].to_numpy()[np.argsort(keys)[:100]].tolist())


def test_a_sample_is_of_the_rows_that_pass(pool: Path, tmp_path: Path) -> None:
    passing = set(select(pool, tmp_path, "num_faces = 0"))
    drawn = select(pool, tmp_path, "num_faces = 0", sample="0.25")
    assert set(drawn) < passing
    assert len(drawn) == round(len(passing) / 4)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lost["not drawn by the sample"] == len(passing) - len(drawn)
    assert sum(manifest.lost.values()) == ROWS - len(drawn)
    assert len(select(pool, tmp_path, "num_faces = 0", sample="99999")) == len(passing)


def test_every_way_through_the_code_draws_the_same(pool: Path, tmp_path: Path) -> None:
    copied = select(pool, tmp_path, "num_faces = 0", sample="50")
    computed = "SELECT *, 1 AS one FROM pool WHERE num_faces = 0"
    written = select(pool, tmp_path, computed, sample="50")
    ordered = select(pool, tmp_path, "num_faces = 0", sample="50", order_by="id")
    assert copied == written
    assert sorted(copied) == ordered
    with open_session(open_source(pool)) as session:
        sql = read_manifest(tmp_path / "out").sql
        assert [row[0] for row in session.sql(f"SELECT id FROM ({sql})").fetchall()] == ordered


@pytest.mark.parametrize("direction", ["DESC", "ASC"])
def test_order_and_limit_keep_the_first(pool: Path, tmp_path: Path, direction: str) -> None:
    score = "clip_similarity_vitl14"
    ids = select(pool, tmp_path, "num_faces = 0", order_by=f"{score} {direction}", limit=1000)
    expected = (
        pl.read_parquet(pool)
        .filter(num_faces=0)
        .sort(
            pl.col(score).fill_nan(None),
            "id",
            descending=[direction == "DESC", False],
            nulls_last=True,
        )
    )
    assert ids == expected["id"].to_list()[:1000]
    best = select(pool, tmp_path, "num_faces = 0", order_by=f"{score} {direction}", limit=7)
    assert best == ids[:7]
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lost["beyond the limit"] == expected.height - 7
    assert sum(manifest.lost.values()) == ROWS - 7


def test_a_limit_alone_keeps_the_pools_first(pool: Path, tmp_path: Path) -> None:
    everything = pl.read_parquet(pool)["id"].to_list()
    assert select(pool, tmp_path, limit=5) == everything[:5]
    passing = select(pool, tmp_path, "num_faces = 0")
    assert select(pool, tmp_path, "num_faces = 0", limit=5) == passing[:5]
    drawn = select(pool, tmp_path, "num_faces = 0", sample="40")
    assert select(pool, tmp_path, "num_faces = 0", sample="40", limit=5) == drawn[:5]


def test_explain_says_what_filter_does_and_writes_nothing(pool: Path, tmp_path: Path) -> None:
    asked = Selection(recipes=("num_faces >= 0",), top=("clip_similarity_vitl14=0.3",))
    told = explain_pool(pool, asked)
    done = filter_pool(pool, asked, tmp_path / "out")
    assert (told.rows_in, told.rows_out, told.bites) == (done.rows_in, done.rows_out, done.bites)
    assert told.bites[0].removes_nothing
    assert told.bites[1].nan > 0
    with open_session(open_source(pool)) as session:
        assert len(session.sql(told.sql).fetchall()) == told.rows_out
    with pytest.raises(RecipeError, match="has no rules to explain"):
        explain_pool(pool, "SELECT * FROM pool LIMIT 3")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("aesthetic_score_laion_v2 >= 7", "LAION-Aesthetics V1"),
        ("aesthetic_score_laion_v2 >= 6.5", None),
        ("clip_similarity_vitb32 >= 28", "looks like percent"),
        ("clip_similarity_vitb32 > 1.2", "is another scale"),
        ("clip_similarity_vitb32 > 0.7", "on COYO clip_similarity_vitb32 runs from"),
        ("clip_similarity_vitb32 BETWEEN 0.3 AND 40", "40 looks like percent"),
        ("50 > watermark_score", "looks like percent"),
        ("nsfw_score_opennsfw2 < 0.6", "on COYO nsfw_score_opennsfw2 runs from"),
        ("width >= 512", None),
        ("abs(clip_similarity_vitb32) > 5", None),
    ],
)
def test_thresholds_of_another_scale_are_named(tmp_path: Path, rule: str, said: str | None) -> None:
    columns = ("aesthetic_score_laion_v2", "clip_similarity_vitb32", "watermark_score",
               "nsfw_score_opennsfw2", "width")  # fmt: skip
    pool = write_pool(tmp_path / "pool.parquet", id=[1], **{name: [None] for name in columns})
    notes = explain_pool(pool, rule).bites[0].notes
    assert (said is None and notes == ()) or (said is not None and said in notes[0])


def test_float_columns_are_found_whatever_their_case(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 2], Score=[np.nan, 0.5])
    assert float_columns(open_source(pool)) == {"score"}
    assert select(pool, tmp_path, "SCORE >= 0.1") == [2]
