"""`coyo compare`: overlap, shifts and retention, worked out by hand and by polars."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, names_in, write_pool

from coyo_tools.compare import Audit, Comparison, Shift, compare_pools
from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import read_manifest

NAN = float("nan")
HOSTILE = "<script>alert(1)</script>"


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def shift(found: Comparison, name: str) -> Shift:
    return next(one for one in found.shifts if one.name == name)


def audit(found: Comparison, name: str) -> Audit:
    return next(one for one in found.audits if one.name == name)


def kept(found: Comparison, name: str) -> dict[str, tuple[int, int]]:
    return {one.label: (one.kept, one.rows) for one in audit(found, name).bins if one.rows}


COLUMNS: dict[str, list[Any]] = {
    "id": list(range(8)),
    "url": ["http://a.com/1", "http://a.com/2", "http://a.com/3", "http://b.com/", "http://b.com/x",
            "http://c.com/", None, "nonsense"],
    "text_length": [0, 5, 6, 50, 50, 999, 1001, None],
    "num_faces": [0, 0, 0, 1, 1, 7, None, None],
    "width": [300, 300, 300, 300, 300, 300, 300, None],
    "height": [300, 300, 300, 300, 900, 900, 900, 900],
    "watermark_score": [0.1, 0.2, 0.3, 0.4, NAN, NAN, None, 0.9],
    "image_phash": ["bac58374982e0fc7"] * 8,
}  # fmt: skip


def part(path: Path, ids: list[int], **changed: list[Any]) -> Path:
    """Write the rows of COLUMNS with these ids, some columns changed or (None) left out."""
    rows = {name: [values[i] for i in ids] for name, values in COLUMNS.items()}
    rows |= changed
    return write_pool(path, **rows)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return part(tmp_path / "pool.parquet", list(range(8)))


# --- ids -----------------------------------------------------------------------------------------


def test_a_subset(pool: Path, tmp_path: Path) -> None:
    subset = part(tmp_path / "subset.parquet", [4, 1, 0])
    found = compare_pools(pool, subset)
    assert (found.a.rows, found.b.rows, found.both) == (8, 3, 3)
    assert (found.a.only_here, found.b.only_here) == (5, 0)
    assert (found.a.share_in_other, found.b.share_in_other) == (3 / 8, 1)
    assert found.jaccard == 3 / 8
    assert found.mismatch is None
    assert set(found.values_compared) == {
        "width", "height", "text_length", "num_faces", "watermark_score",
    }  # fmt: skip


def test_neither_in_the_other(pool: Path, tmp_path: Path) -> None:
    one = part(tmp_path / "one.parquet", [0, 1, 2, 3])
    other = write_pool(tmp_path / "other.parquet", id=[2, 3, 100], num_faces=[0, 1, 5])
    found = compare_pools(one, other)
    assert (found.both, found.a.only_here, found.b.only_here) == (2, 2, 1)
    assert found.jaccard == 2 / 5
    assert (found.a.share_in_other, found.b.share_in_other) == (1 / 2, 2 / 3)
    faces = shift(found, "num_faces")
    assert faces.only_a is not None and faces.only_b is not None
    assert (faces.only_a.mean, faces.only_b.mean) == (0, 5)
    assert found.mismatch is None
    assert found.values_compared == ("num_faces",)


def test_nothing_in_common(pool: Path, tmp_path: Path) -> None:
    other = write_pool(tmp_path / "other.parquet", id=[100, 101], num_faces=[1, 3])
    found = compare_pools(pool, other)
    assert (found.both, found.jaccard, found.overall.share) == (0, 0, 0)
    assert found.overall.low == 0
    assert {one for one, _ in kept(found, "num_faces").values()} == {0}
    assert found.mismatch is None


def test_twice_the_same(pool: Path) -> None:
    found = compare_pools(pool, pool)
    assert (found.both, found.jaccard) == (8, 1)
    assert (found.a.share_in_other, found.b.share_in_other) == (1, 1)
    assert found.mismatch is None
    for one in found.shifts:
        assert one.smd in (0, None)
        assert set(one.quantile_differences.values()) <= {0, None}
        assert one.only_a is not None and one.only_a.count == 0
    assert found.overall.high == 1


@pytest.mark.parametrize("ids", [[1, 1, 2], [1, None, 2]])
def test_ids_that_say_nothing_are_refused(pool: Path, tmp_path: Path, ids: list[Any]) -> None:
    other = write_pool(tmp_path / "other.parquet", id=ids)
    for pair in ((pool, other), (other, pool)):
        with pytest.raises(SourceError, match=r"not unique in .*other|id is missing"):
            compare_pools(*pair)


def test_ids_of_other_integer_types_are_the_same_ids(pool: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(pool).with_columns(
        pl.col("id").cast(pl.Int16), pl.col("num_faces").cast(pl.Float64),
        pl.col("watermark_score").cast(pl.Float64), pl.col("width").cast(pl.UInt16),
    )  # fmt: skip
    frame.reverse().write_parquet(tmp_path / "other.parquet")
    found = compare_pools(pool, tmp_path / "other.parquet")
    assert (found.both, found.mismatch) == (8, None)


# --- values --------------------------------------------------------------------------------------


def test_other_values_under_the_same_id_are_noticed(pool: Path, tmp_path: Path) -> None:
    changed = part(
        tmp_path / "changed.parquet", [0, 1, 4, 7],
        num_faces=[0, 3, 1, 2], watermark_score=[0.1, None, None, 0.9],
    )  # fmt: skip
    found = compare_pools(pool, changed)
    assert found.mismatch is not None
    assert found.mismatch.rows == 3
    assert found.mismatch.by_column == {"num_faces": 2, "watermark_score": 2}
    assert found.mismatch.examples == (1, 4, 7)
    ran = coyo("compare", pool, changed)
    assert "warning: not of one pool: 3 of the ids in both" in ran.stderr
    assert ran.returncode == 0


def test_without_numbers_the_strings_are_compared(tmp_path: Path) -> None:
    one = write_pool(tmp_path / "one.parquet", id=[1, 2], text=["a", ""], mine=[1, 2])
    other = write_pool(tmp_path / "other.parquet", id=[1, 2], text=["a", None], mine=[1, 2])
    found = compare_pools(one, other)
    assert found.values_compared == ("text",)
    assert found.mismatch is not None and found.mismatch.examples == (2,)
    assert (found.shifts, found.audits) == ((), ())


def test_nothing_to_compare_but_ids(tmp_path: Path) -> None:
    one = write_pool(tmp_path / "one.parquet", id=[1, 2])
    found = compare_pools(one, one, output=tmp_path / "out")
    assert (found.values_compared, found.both) == ((), 2)


# --- shifts --------------------------------------------------------------------------------------


def test_shift_of_a_score(tmp_path: Path) -> None:
    one = write_pool(
        tmp_path / "one.parquet", id=range(6), watermark_score=[0.0, 0.5, 1.0, NAN, None, 0.5]
    )
    other = write_pool(
        tmp_path / "other.parquet", id=[2, 3, 4, 5], watermark_score=[1.0, NAN, None, 0.5]
    )
    score = shift(compare_pools(one, other), "watermark_score")
    assert score.a is not None and score.b is not None
    assert score.only_a is not None and score.only_b is not None
    assert (score.a.count, score.a.nulls, score.a.nans) == (4, 1, 1)
    assert (score.b.count, score.b.nulls, score.b.nans) == (2, 1, 1)
    assert (score.a.mean, score.b.mean, score.only_a.mean) == (0.5, 0.75, 0.25)
    # sd of A: sqrt(.125), of B: .25; pooled sqrt((.125 + .0625) / 2).
    assert score.a.std == pytest.approx(math.sqrt(0.125))
    assert score.smd == pytest.approx(0.25 / math.sqrt((0.125 + 0.0625) / 2))
    assert score.only_b.count == 0
    assert score.quantile_differences["1"] == pytest.approx(0.5, rel=1e-3)
    assert score.quantile_differences["99"] == pytest.approx(0)


def test_a_column_that_one_side_lacks_is_said(pool: Path, tmp_path: Path) -> None:
    other = write_pool(tmp_path / "other.parquet", id=[0, 1], width=[300, 300])
    found = compare_pools(pool, other)
    faces = shift(found, "num_faces")
    assert (faces.b, faces.smd, faces.lacking) == (None, None, "B: no such column")
    assert faces.a is not None
    assert shift(found, "min_side").lacking == "B: needs height"
    assert kept(found, "num_faces")["0"] == (2, 3)
    assert "num_faces is lacking in B" in coyo("compare", pool, other).stderr
    back = compare_pools(other, pool)
    assert [one.name for one in back.audits] == []
    assert shift(back, "num_faces").lacking == "A: no such column"


def test_a_constant_has_no_standardised_difference(tmp_path: Path) -> None:
    one = write_pool(tmp_path / "one.parquet", id=[1, 2], num_faces=[1, 1])
    other = write_pool(tmp_path / "other.parquet", id=[3, 4], num_faces=[2, 2])
    assert shift(compare_pools(one, other), "num_faces").smd is None


# --- retention -----------------------------------------------------------------------------------


def test_retention_by_kind(pool: Path, tmp_path: Path) -> None:
    subset = part(tmp_path / "subset.parquet", [0, 1, 3, 6])
    found = compare_pools(pool, subset, top_domains=1)
    assert (found.overall.kept, found.overall.rows, found.overall.share) == (4, 8, 0.5)
    assert kept(found, "num_faces") == {
        "0": (2, 3), "1": (1, 2), "6 or more": (0, 1), "NULL": (1, 2),
    }  # fmt: skip
    assert kept(found, "text_length") == {
        "0–5": (2, 2), "6–15": (0, 1), "41–60": (1, 2), "501–1000": (0, 1), "above 1000": (1, 1),
        "NULL": (0, 1),
    }  # fmt: skip
    assert kept(found, "min_side") == {"256–319": (4, 7), "NULL": (0, 1)}
    assert kept(found, "aspect_ratio") == {"1–1.05": (3, 4), "3–5": (1, 3), "NULL": (0, 1)}
    assert kept(found, "domain") == {"a.com": (2, 3), "2 others": (1, 3), "no domain": (1, 2)}


def test_wilsons_interval() -> None:
    # 8 of 10, as in Brown, Cai & DasGupta 2001: .490 to .943; and the two ends.
    from coyo_tools.compare import _retention

    some, none, all_ = _retention("", 10, 8), _retention("", 10, 0), _retention("", 10, 10)
    assert (some.low, some.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert (none.low, none.high) == (0, pytest.approx(0.2775, abs=1e-4))
    assert (all_.low, all_.high) == (pytest.approx(0.7225, abs=1e-4), 1)
    assert _retention("", 0, 0).share is None


_ROW = st.tuples(
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 9)),
    st.one_of(st.none(), st.just(NAN), st.floats(0, 1, width=32)),
    st.sampled_from(["http://a.de/", "http://b.de/", "http://b.de/1", "x", None]),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(_ROW, min_size=2, max_size=50))
def test_random_pools_equal_polars(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    directory = tmp_path_factory.mktemp("pools")
    rows = [(True, False, 1, 0.5, "x"), (False, True, 2, 0.5, "x"), *rows]
    frames = []
    for side in (0, 1):
        chosen = [(number, *row[2:]) for number, row in enumerate(rows) if row[side]]
        ids, faces, scores, urls = map(list, zip(*chosen, strict=True))
        path = write_pool(
            directory / f"{side}.parquet", id=ids, num_faces=faces, watermark_score=scores, url=urls
        )
        frames.append(pl.read_parquet(path))
    found = compare_pools(directory / "0.parquet", directory / "1.parquet")
    a, b = frames
    both = a.join(b, on="id", how="semi")
    assert (found.both, found.mismatch) == (both.height, None)
    only_a = a.join(b, on="id", how="anti")
    for name in ("num_faces", "watermark_score"):
        measured = shift(found, name)
        for figures, frame in ((measured.a, a), (measured.b, b), (measured.only_a, only_a)):
            assert figures is not None
            values = frame[name].cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
            assert (figures.count, figures.nulls) == (len(values), frame[name].null_count())
            if len(values):
                assert figures.mean == pytest.approx(values.mean())
                assert figures.std == pytest.approx(np.std(values), abs=1e-9)
    for one, (low, high) in zip(
        audit(found, "num_faces").bins[1:6], ((0, 0), (1, 1), (2, 2), (3, 5), (6, 9)), strict=True
    ):
        inside = pl.col("num_faces").is_between(low, high)
        assert (one.rows, one.kept) == (a.filter(inside).height, both.filter(inside).height)
    assert sum(one.rows for one in audit(found, "domain").bins) == a.height
    assert sum(one.kept for one in audit(found, "domain").bins) == both.height


# --- the artifact --------------------------------------------------------------------------------


def test_the_page_and_the_json(tmp_path: Path) -> None:
    urls = [f"http://{HOSTILE}/a", f"http://{HOSTILE}/b"]
    pool = write_pool(
        tmp_path / "pool.parquet", id=[1, 2], url=urls, text=[HOSTILE] * 2, num_faces=[0, None]
    )
    ran = coyo("compare", pool, pool, "-o", tmp_path / "out", "--json")
    assert ran.returncode == 0, ran.stderr
    assert names_in(tmp_path / "out") == {"compare.json", "compare.html", "manifest.json"}
    written = json.loads((tmp_path / "out" / "compare.json").read_text(), parse_constant=refuse)
    assert json.loads(ran.stdout, parse_constant=refuse) == written
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert not re.search(r"<script|javascript:|\son\w+=|src=|href=", page, re.IGNORECASE)
    assert "default-src 'none'" in page
    made = read_manifest(tmp_path / "out", "comparison")
    assert [(one.role, one.path) for one in made.inputs] == [("a", str(pool)), ("b", str(pool))]
    assert (made.rows_in, made.rows_out, sum(made.lost.values())) == (2, 2, 0)
    with pytest.raises(OutputError, match="already exists"):
        compare_pools(pool, pool, output=tmp_path / "out")


def test_the_terminal_shows_shifts_and_retention(pool: Path, tmp_path: Path) -> None:
    coyo("filter", pool, "num_faces = 0", "-o", tmp_path / "subset")
    ran = coyo("compare", pool, tmp_path / "subset")
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["A", "8", "5", "37.50%"] in lines
    assert ["0", "3", "3", "100.00%", "43.85%", "to", "100.00%"] in lines
    assert ["all", "rows", "8", "3", "37.50%", "13.68%", "to", "69.43%"] in lines
    assert "3 ids in both, Jaccard 0.3750" in ran.stderr
    assert "Traceback" not in coyo("compare", pool, tmp_path / "nowhere").stderr
