"""`coyo stats`: figures against numpy, histograms against counting, strangers' text on the page."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, names_in, write_pool

from coyo_tools.bins import BINS, Bins
from coyo_tools.columns import BY_NAME, COYO_COLUMNS
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.source import open_source
from coyo_tools.stats import ColumnStats, Stats, measure_pool
from coyo_tools.tallies import (
    PERCENTS,
    QUANTILE_ERROR,
    ColumnTally,
    Figures,
    Histogram,
    _edges_of,
)

NAN = float("nan")
INF = float("inf")
HOSTILE = "<script>alert(1)</script>&\"'"


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def column(stats: Stats, name: str) -> ColumnStats:
    return next(found for found in stats.columns if found.name == name)


def rows_by_bin(found: ColumnStats) -> dict[str, int]:
    return {one.label: one.rows for one in found.histogram.all_bins() if one.rows}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(8),
        url=["http://a.com/1", "https://www.A.com:443/2", "http://a.com/1", "http://b.org", None,
             "nonsense", "", "http://c.net/?u=http://a.com/"],
        text=["x", "x", "y", "", None, "x", "", "z"],
        image_phash=["ffff000000000000", "ffff000000000000", None, "8000000000000000"] * 2,
        width=[200, 255, 256, 100, None, 65_535, 70_000, 0],
        height=[200, 510, 128, 0, 5, 65_535, 70_000, 7],
        num_faces=[0, 1, 2, 3, 5, 6, 736, None],
        clip_similarity_vitb32=[0.3, NAN, None, -0.2, 0.6, 0.61, -INF, 0.2999999],
        watermark_score=[None] * 8,
    )  # fmt: skip


# --- worked out by hand --------------------------------------------------------------------------


def test_figures(pool: Path) -> None:
    stats = measure_pool(pool)
    assert stats.rows == 8
    faces = column(stats, "num_faces").figures
    assert (faces.count, faces.nulls, faces.nans, faces.min, faces.max) == (7, 1, 0, 0, 736)
    assert faces.mean == pytest.approx(753 / 7)
    assert faces.quantiles == {"1": 0, "5": 0, "25": 1, "50": 3, "75": 6, "95": 736, "99": 736}
    clip = column(stats, "clip_similarity_vitb32").figures
    assert (clip.count, clip.nulls, clip.nans, clip.infinite) == (5, 1, 1, 1)
    assert clip.mean == pytest.approx((0.3 - 0.2 + 0.6 + 0.61 + 0.2999999) / 5, rel=1e-6)
    nothing = column(stats, "watermark_score").figures
    assert (nothing.count, nothing.nulls, nothing.mean, nothing.max) == (0, 8, None, None)
    assert set(nothing.quantiles.values()) == {None}


def test_bins_have_their_lower_edge_and_the_last_both(pool: Path) -> None:
    stats = measure_pool(pool)
    assert rows_by_bin(column(stats, "num_faces")) == {
        "0": 1, "1": 1, "2": 1, "3–5": 2, "6 or more": 2, "NULL": 1,
    }  # fmt: skip
    assert rows_by_bin(column(stats, "width")) == {
        "below 1": 1, "1–199": 1, "200–255": 2, "256–319": 1, "4096–65535": 1, "above 65535": 1,
        "NULL": 1,
    }  # fmt: skip
    assert rows_by_bin(column(stats, "clip_similarity_vitb32")) == {
        "below -0.2": 1, "-0.2–-0.175": 1, "0.275–0.3": 1, "0.3–0.325": 1, "0.575–0.6": 1,
        "above 0.6": 1, "NULL": 1, "NaN": 1,
    }  # fmt: skip


def test_sides_make_two_more_columns(pool: Path) -> None:
    stats = measure_pool(pool)
    assert rows_by_bin(column(stats, "min_side")) == {
        "below 1": 2, "1–199": 1, "200–255": 2, "4096–65535": 1, "above 65535": 1, "NULL": 1,
    }  # fmt: skip
    # 200 × 200, 255 × 510, 256 × 128, twice a square; a side of 0 or NULL gives none.
    assert rows_by_bin(column(stats, "aspect_ratio")) == {"1–1.05": 3, "2–2.5": 2, "NULL": 3}


def test_different_values_and_domains(pool: Path) -> None:
    stats = measure_pool(pool, top_domains=2)
    assert [(item.name, item.rows, item.different) for item in stats.different] == [
        ("url", 7, 6), ("text", 7, 4), ("image_phash", 6, 2), ("image_phash, text", 5, 3),
    ]  # fmt: skip
    assert stats.empty_texts == 2
    assert (stats.domains, stats.without_domain) == (3, 3)
    assert [(item.domain, item.rows) for item in stats.top_domains] == [("a.com", 3), ("b.org", 1)]


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    only = write_pool(tmp_path / "pool.parquet", id=[1, 2], height=[3, 4], mine=["a", "b"])
    frame = pl.read_parquet(only).with_columns(num_faces=pl.lit("two"))
    frame.write_parquet(only)
    stats = measure_pool(only)
    assert [found.name for found in stats.columns] == ["height"]
    assert stats.lacking.keys() | {"id", "height"} == {
        *(known.name for known in COYO_COLUMNS), "min_side", "aspect_ratio",
    }  # fmt: skip
    assert stats.lacking["num_faces"] == "string, not a number"
    assert stats.lacking["min_side"] == "needs width"
    assert stats.other_columns == ("mine",)
    assert (stats.different, stats.domains, stats.top_domains) == ((), None, ())


def test_no_number_at_all(tmp_path: Path) -> None:
    stats = measure_pool(write_pool(tmp_path / "pool.parquet", id=[1, 2], text=["a", "a"]))
    assert (stats.rows, stats.columns) == (2, ())
    assert [(item.rows, item.different) for item in stats.different] == [(2, 1)]


def test_another_layout_is_measured_under_coyos_names(tmp_path: Path) -> None:
    path = tmp_path / "laion.parquet"
    pl.DataFrame(
        {"SAMPLE_ID": [1, 2], "URL": ["http://a.b/", "http://a.b/"], "TEXT": ["one", "two words"],
         "WIDTH": [200, 300], "HEIGHT": [300, 300], "similarity": [0.25, 0.5]}
    ).write_parquet(path)  # fmt: skip
    stats = measure_pool(path)
    assert stats.layout == "LAION"
    assert column(stats, "clip_similarity_vitb32").figures.mean == 0.375
    assert "LAION" in column(stats, "clip_similarity_vitb32").note
    assert column(stats, "word_count").figures.max == 2


# --- against brute force -------------------------------------------------------------------------

_FLOATS = st.one_of(
    st.none(),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-0.5, 0.75, width=32),
    st.sampled_from([np.float32(edge).item() for edge in BINS["clip_similarity_vitb32"].edges]),
    st.sampled_from([0.0, -0.0]),
)
_INTEGERS = st.one_of(st.none(), st.integers(-5, 70_000), st.sampled_from([0, 1, 2, 3, 5, 6, 4096]))


def check(
    figures: Figures, histogram: Histogram, values: list[Any], bins: Bins, exact: bool
) -> None:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    finite = known[np.isfinite(known)]
    assert figures.nulls == len(values) - len(known)
    assert figures.nans == int(np.isnan(known).sum())
    assert figures.infinite == int(np.isinf(known).sum())
    assert figures.count == len(finite)
    if len(finite):
        assert (figures.min, figures.max) == (finite.min(), finite.max())
        scale = np.abs(finite).max()
        assert figures.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-9 * scale)
        assert figures.std == pytest.approx(finite.std(), rel=1e-6, abs=1e-6 * scale)
        for percent in PERCENTS:
            true = np.quantile(finite, percent / 100, method="inverted_cdf")
            found = figures.quantiles[str(percent)]
            assert found is not None
            if exact and abs(true) <= 4096:
                assert found == true
            else:
                assert abs(found - true) <= abs(true) * QUANTILE_ERROR * 1.01 + 1e-38 + exact
    numbers = known[~np.isnan(known)].astype(np.float32)
    edges = np.array(bins.edges, dtype=np.float32)
    expected = [
        int(((numbers >= low) & (numbers < high)).sum()) for low, high in itertools.pairwise(edges)
    ]
    expected[-1] += int((numbers >= edges[-1] if bins.open_end else numbers == edges[-1]).sum())
    assert [one.rows for one in histogram.bins] == expected
    assert histogram.under == int((numbers < edges[0]).sum())
    assert histogram.over == (0 if bins.open_end else int((numbers > edges[-1]).sum()))
    assert sum(one.rows for one in histogram.all_bins()) == len(values)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_FLOATS, max_size=30), max_size=4), st.sampled_from(sorted(BINS)))
def test_tallies_of_floats_equal_counting(batches: list[list[float | None]], name: str) -> None:
    first, second = ColumnTally(BINS[name], False), ColumnTally(BINS[name], False)
    for number, batch in enumerate(batches):
        known = np.array([value for value in batch if value is not None], dtype=np.float32)
        (first if number % 2 else second).add(known, len(batch) - len(known))
    tally = first.plus(second)
    values = [value for batch in batches for value in batch]
    check(tally.figures(), tally.histogram(), values, BINS[name], False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_INTEGERS, max_size=30), max_size=4), st.sampled_from(sorted(BINS)))
def test_tallies_of_integers_equal_counting(batches: list[list[int | None]], name: str) -> None:
    tally = ColumnTally(BINS[name], True)
    for batch in batches:
        known = np.array([value for value in batch if value is not None], dtype=np.int32)
        tally.add(known, len(batch) - len(known))
    values = [value for batch in batches for value in batch]
    check(tally.figures(), tally.histogram(), values, BINS[name], True)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["http://a.de/1", "http://a.de/2", "HTTP://b.de:80", "x", None]),
            st.sampled_from(["", "t", "T", "ü", None]),
            st.sampled_from(["00", "01", None]),
            st.one_of(st.none(), st.integers(1, 3000)),
            st.one_of(st.none(), st.just(NAN), st.floats(0, 1, width=32)),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_whole_pools_equal_polars(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    url, text, phash, width, score = map(list, zip(*rows, strict=True))
    path = write_pool(
        tmp_path_factory.mktemp("pool") / "pool.parquet",
        id=range(len(rows)), url=url, text=text, image_phash=phash, width=width,
        watermark_score=score,
    )  # fmt: skip
    stats = measure_pool(path, threads=2)
    for name, values, exact in (("width", width, True), ("watermark_score", score, False)):
        found = column(stats, name)
        check(found.figures, found.histogram, values, BINS[name], exact)
    frame = pl.read_parquet(path)
    pairs = frame.select("image_phash", "text").drop_nulls()
    assert [item.different for item in stats.different] == [
        frame["url"].drop_nulls().n_unique(), frame["text"].drop_nulls().n_unique(),
        frame["image_phash"].drop_nulls().n_unique(), pairs.n_unique(),
    ]  # fmt: skip
    hosts = {"http://a.de/1": "a.de", "http://a.de/2": "a.de", "HTTP://b.de:80": "b.de"}
    counted = {item.domain: item.rows for item in stats.top_domains}
    known = [hosts[one] for one in url if one in hosts]
    assert counted == {host: known.count(host) for host in set(known)}
    assert stats.without_domain == len(rows) - len(known)


def test_edges_of_no_two_bins_share_a_counter() -> None:
    for bins in BINS.values():
        _, keys, _ = _edges_of(bins)
        assert len(set(keys.tolist())) == len(bins.edges)
        assert len(bins.labels) == len(bins.edges) - 1


def test_huge_numbers_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    pl.DataFrame(
        {"id": [1, 2], "watermark_score": [1e300, -1e300], "width": [2**62, 1]}
    ).write_parquet(path)
    stats = measure_pool(path)
    assert column(stats, "watermark_score").figures.mean == 0
    assert column(stats, "watermark_score").figures.std is None
    assert rows_by_bin(column(stats, "width")) == {"1–199": 1, "above 65535": 1}
    json.loads(coyo("stats", path, "--json").stdout, parse_constant=refuse)


# --- the artifact --------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "hostile.parquet",
        id=range(3),
        url=[f"http://{HOSTILE}.com/", f"http://{HOSTILE}.com/a", "http://\x1b[31mx/"],
        text=[HOSTILE] * 3,
        watermark_score=[0.5, NAN, INF],
    )


def test_the_page_and_the_json(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = coyo("stats", hostile, "-o", out, "--json")
    assert ran.returncode == 0, ran.stderr
    assert names_in(out) == {"stats.json", "stats.html", "manifest.json"}
    written = json.loads((out / "stats.json").read_text(), parse_constant=refuse)
    assert json.loads(ran.stdout, parse_constant=refuse) == written
    assert written["top_domains"][0] == {"domain": HOSTILE.lower().split("/")[0], "rows": 2}
    page = (out / "stats.html").read_text()
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|javascript:|\son\w+=|src=|href=", page, re.IGNORECASE)
    assert "default-src 'none'" in page
    made = read_manifest(out, "stats")
    assert (made.rows_in, made.rows_out, made.lost) == (3, 3, {})
    assert made.inputs == [open_source(hostile).as_input("pool")]


def test_the_page_names_columns_of_strangers_as_text(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    pl.DataFrame({"id": [1], HOSTILE: [2]}).write_parquet(path)
    measure_pool(path, output=tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "stats.html").read_text()


def test_the_ids_are_those_of_the_subset(pool: Path, tmp_path: Path) -> None:
    coyo("filter", pool, "id >= 2", "-o", tmp_path / "subset")
    measure_pool(tmp_path / "subset", output=tmp_path / "out")
    made = read_manifest(tmp_path / "out")
    assert made.id_digest == read_manifest(tmp_path / "subset").id_digest
    with pytest.raises(SourceError, match="is a stats directory, not a pool or subset"):
        open_source(tmp_path / "out")


def test_an_earlier_result_is_not_replaced_unasked(pool: Path, tmp_path: Path) -> None:
    measure_pool(pool, output=tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        measure_pool(pool, output=tmp_path / "out")
    measure_pool(pool, output=tmp_path / "out", overwrite=True)


def test_the_terminal_shows_the_main_table(pool: Path) -> None:
    ran = coyo("stats", pool)
    faces = next(line for line in ran.stdout.splitlines() if line.startswith("num_faces"))
    assert faces.split()[:4] == ["num_faces", "7", "1", "0"]
    assert "lacking: text_length, word_count" in ran.stderr
    assert "\x1b" not in ran.stdout


def test_the_real_rows(shared: Path, tmp_path: Path) -> None:
    rows = pl.read_ndjson(shared / "coyo_rows" / "coyo_rows.jsonl")
    rows = rows.select(name for name in BY_NAME if name in rows.columns)
    rows.write_parquet(tmp_path / "pool.parquet")
    stats = measure_pool(tmp_path / "pool.parquet")
    for name in ("word_count", "clip_similarity_vitb32", "aesthetic_score_laion_v2"):
        assert column(stats, name).figures.mean == pytest.approx(rows[name].mean())
    assert all(found.histogram.under == found.histogram.over == 0 for found in stats.columns)
    assert stats.without_domain == 0
