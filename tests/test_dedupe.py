"""Equal rows: who stays, in whose favour the others went, and what is refused."""

import math
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import names_in, read_ids, write_pool

from coyo_tools.dedupe import dedupe_pool
from coyo_tools.engine import read_sql
from coyo_tools.errors import ColumnError, CoyoError, OutputError, RecipeError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.source import open_source

Row = dict[str, Any]
A, B, C = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two groups of equal image_phash, {0, 1, 4} and {2, 5}, and two rows without one."""
    return write_pool(
        tmp_path / "pool.parquet",
        id=range(7),
        url=["u0", "u1", "u2", "u3", "u4", "u5", "u6"],
        image_phash=[A, A, B, None, A, B, None],
        width=[10, 30, 20, 20, 30, 20, 20],
        clip_similarity_vitl14=[0.1, math.nan, 0.3, 0.9, 0.2, None, 0.9],
    )


def removed(out: Path) -> dict[int, int]:
    """Which row went, and in favour of which."""
    frame = pl.read_parquet(out / "removed.parquet")
    assert frame.columns == ["id", "duplicate_of", "distance"]
    assert set(frame["distance"]) <= {0}
    return dict(frame.select("id", "duplicate_of").iter_rows())


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("id", {1: 0, 4: 0, 5: 2}),
        ("id DESC", {0: 4, 1: 4, 2: 5}),
        ("width", {1: 0, 4: 0, 5: 2}),
        ("width DESC", {0: 1, 4: 1, 5: 2}),  # 1 and 4 are equal: the lesser id stays
        ("width DESC, id DESC", {0: 4, 1: 4, 2: 5}),
        ("clip_similarity_vitl14", {1: 0, 4: 0, 5: 2}),  # NaN and NULL come last …
        ("clip_similarity_vitl14 DESC", {0: 4, 1: 4, 5: 2}),  # … either way
        ("clip_similarity_vitl14 DESC NULLS FIRST", {0: 1, 4: 1, 2: 5}),
        ("-clip_similarity_vitl14", {0: 4, 1: 4, 5: 2}),
        ("abs(width - 29), id", {0: 1, 4: 1, 5: 2}),
        ("width * 2 DESC, url DESC", {0: 4, 1: 4, 2: 5}),
        ("pool.width DESC", {0: 1, 4: 1, 5: 2}),
        ("coalesce(clip_similarity_vitl14, 1) DESC", {0: 1, 4: 1, 2: 5}),
        ("width DESC -- the largest", {0: 1, 4: 1, 5: 2}),
    ],
)
def test_the_best_row_of_a_group_stays_and_ties_end_by_id(
    pool: Path, tmp_path: Path, keep: str, expected: dict[int, int]
) -> None:
    dedupe_pool(pool, tmp_path / "out", by=("image_phash",), keep=keep)
    assert removed(tmp_path / "out") == expected
    assert read_ids(tmp_path / "out") == [i for i in range(7) if i not in expected]


def _best(group: list[Row], keep: list[tuple[str, bool]]) -> Row:
    """Sort by the terms, NULL and NaN last either way, then by id; the first is the best."""

    def place(row: Row) -> tuple[Any, ...]:
        keys: list[Any] = []
        for name, descending in keep:
            value = row[name]
            missing = value is None or (isinstance(value, float) and math.isnan(value))
            keys += [missing, 0 if missing else -value if descending else value]
        return (*keys, row["id"])

    return min(group, key=place)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "hash": st.none() | st.sampled_from([A, B, C]),
                "size": st.none() | st.integers(0, 2),
                "score": st.none() | st.sampled_from([0.0, 0.25, 0.5, math.nan]),
            }
        ),
        min_size=1,
        max_size=14,
    ),
    by=st.sampled_from([("image_phash",), ("label",), ("size",), ("label", "size")]),
    keep=st.lists(st.tuples(st.sampled_from(["size", "score"]), st.booleans()), max_size=2),
)
def test_the_result_is_that_of_brute_force(
    rows: list[Row], by: tuple[str, ...], keep: list[tuple[str, bool]]
) -> None:
    for number, row in enumerate(rows):
        row["id"] = (number * 7) % 15  # distinct, and not in order
        row["image_phash"] = row["label"] = row.pop("hash")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        if None not in key:
            groups.setdefault(key, []).append(row)
    expected = {
        row["id"]: best["id"]
        for group in groups.values()
        for best in [_best(group, keep)]
        for row in group
        if row is not best
    }
    order = ", ".join(f"{name} {'DESC' if descending else 'ASC'}" for name, descending in keep)
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool(
            Path(folder) / "pool.parquet",
            id=[row["id"] for row in rows],
            image_phash=[row["label"] for row in rows],
            label=pl.Series([row["label"] for row in rows], dtype=pl.String).to_arrow(),
            size=pl.Series([row["size"] for row in rows], dtype=pl.Int32).to_arrow(),
            score=pl.Series([row["score"] for row in rows], dtype=pl.Float32).to_arrow(),
        )
        out = Path(folder) / "out"
        result = dedupe_pool(pool, out, by=by, keep=order or "id", threads=1)
        assert removed(out) == expected
        assert read_ids(out) == [row["id"] for row in rows if row["id"] not in expected]
        manifest = read_manifest(out)
    assert result.rows_in == result.rows_out + len(expected) == len(rows)
    assert sum(manifest.lost.values()) == len(expected)
    sizes = [len(group) for group in groups.values() if len(group) > 1]
    assert result.group_sizes == {size: sizes.count(size) for size in set(sizes)}
    assert result.without_key == sum(None in [row[name] for name in by] for row in rows)


def test_several_columns_must_agree_in_all(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(5),
        url=["a", "a", "a", "ab", None],
        text=["x", "x", "y", "", "x"],
    )
    dedupe_pool(pool, tmp_path / "pairs", by=("url", "text"))
    assert removed(tmp_path / "pairs") == {1: 0}
    dedupe_pool(pool, tmp_path / "urls", by=("url",))
    assert removed(tmp_path / "urls") == {1: 0, 2: 0}


def test_every_removed_row_points_at_one_that_stays(tmp_path: Path) -> None:
    count = 3000
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=[(i * 7919) % 10_007 for i in range(count)],
        image_phash=[f"{(i * i) % 257:016x}" for i in range(count)],
        width=[i % 13 for i in range(count)],
    )
    digests = set()
    for threads in (1, 2):
        out = tmp_path / f"out{threads}"
        result = dedupe_pool(pool, out, by=("image_phash",), keep="width DESC", threads=threads)
        stays, went = set(read_ids(out)), removed(out)
        assert set(went.values()) <= stays
        assert not stays & set(went)
        assert len(stays) + len(went) == result.rows_in == count
        digests.add(read_manifest(out).id_digest)
    assert len(digests) == 1


def test_rows_keep_their_order_columns_and_types(pool: Path, tmp_path: Path) -> None:
    dedupe_pool(pool, tmp_path / "out", by=("image_phash",))
    assert open_source(tmp_path / "out").schema == open_source(pool).schema
    kept = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert kept.equals(pl.read_parquet(pool).filter(pl.col("id").is_in([0, 2, 3, 6])))


def test_a_pool_without_duplicates_stays_whole(pool: Path, tmp_path: Path) -> None:
    result = dedupe_pool(pool, tmp_path / "out", by=("url",))
    assert (result.rows_out, result.group_sizes) == (7, {})
    assert removed(tmp_path / "out") == {}


@pytest.mark.parametrize("by", ["image_phash", "clip_similarity_vitl14"])
def test_rows_without_a_key_are_counted_and_stay(pool: Path, tmp_path: Path, by: str) -> None:
    result = dedupe_pool(pool, tmp_path / "out", by=(by,))
    missing = {"image_phash": {3, 6}, "clip_similarity_vitl14": {5}}[by]
    assert result.without_key == len(missing)
    assert missing <= set(read_ids(tmp_path / "out"))


def test_what_is_no_hash_is_nobodys_duplicate(tmp_path: Path) -> None:
    odd = ["", "aa", "x" * 16, "a" * 17, " " + "a" * 15, "ａ" * 16]
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(2 * len(odd) + 3),
        image_phash=[*odd, *odd, "abcdefABCDEF0123", "ABCDEFabcdef0123", "abcdefabcdef0124"],
    )
    result = dedupe_pool(pool, tmp_path / "out", by=("image_phash",))
    assert result.without_key == 2 * len(odd)
    assert removed(tmp_path / "out") == {13: 12}


def test_texts_are_compared_without_what_only_looks_different(tmp_path: Path) -> None:
    texts = [
        "Red Shoes, 2 pairs!", "red shoes pairs", "  RED\tshoes\n(12) pairs ", "red-shoes pairs",
        "redshoes pairs", "12 : 30", "50 %", None, "", "Ärger", "A\u0308RGER", "arger",
        "नमस्ते", "नमसत", "ТЕКСТ 1", "текст 2",
    ]  # fmt: skip
    pool = write_pool(tmp_path / "pool.parquet", id=range(len(texts)), text=texts)
    result = dedupe_pool(pool, tmp_path / "out", by=("text",), normalize=True)
    assert removed(tmp_path / "out") == {1: 0, 2: 0, 3: 0, 10: 9, 15: 14}
    assert result.without_key == 4
    assert read_manifest(tmp_path / "out").lost == {"same text when normalized": 5}


def test_keys_whose_hashes_meet_are_told_apart(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = read_sql("dedupe/exact.sql").replace("hash(", "length(")
    assert weak.count("length(") == 2
    known = {"dedupe/exact.sql": weak}
    monkeypatch.setattr(
        "coyo_tools.dedupe.exact.read_sql", lambda name: known.get(name) or read_sql(name)
    )
    result = dedupe_pool(pool, tmp_path / "out", by=("url",))
    assert (result.rows_out, result.group_sizes, removed(tmp_path / "out")) == (7, {}, {})


@pytest.mark.parametrize(
    ("by", "keep", "kind", "said"),
    [
        ((), "id", RecipeError, "names no column"),
        (("image_pash",), "id", ColumnError, "Did you mean `image_phash`?"),
        (("Image_Phash",), "id", ColumnError, "Did you mean `image_phash`?"),
        (("url; DROP TABLE pool",), "id", ColumnError, "has no column `url; DROP TABLE pool`"),
        (('url"',), "id", ColumnError, "has no column"),
        (("url",), "widht DESC", ColumnError, "Did you mean `width`?"),
        (("url",), "", RecipeError, "not a list of ORDER BY terms"),
        (("url",), "width DESC DESC", RecipeError, "ORDER BY terms"),
        (("url",), "width LIMIT 1", RecipeError, "more than ORDER BY terms"),
        (("url",), "width UNION SELECT 1", RecipeError, "more than ORDER BY terms"),
        (("url",), "width; DROP TABLE pool", RecipeError, "more than ORDER BY terms"),
        (("url",), "width; COPY pool TO 'x'", RecipeError, "more than ORDER BY terms"),
        (("url",), "width) FROM pool; DROP TABLE pool; --", RecipeError, "not a list of ORDER BY"),
        (("url",), "(SELECT max(id) FROM pool)", RecipeError, "does not order rows"),
        (("url",), "(SELECT 1 FROM read_csv('/etc/passwd'))", RecipeError, "does not order rows"),
        (("url",), "width, 1", RecipeError, "1 does not order rows by their columns"),
        (("url",), "random()", RecipeError, "gives other rows on every run"),
        (("url",), "width + random()", RecipeError, "gives other rows on every run"),
        (("url",), "width + url", RecipeError, "add explicit type casts"),
        (("url",), "nosuch(width)", RecipeError, "nosuch does not exist"),
        (("url",), "sum(width)", RecipeError, "GROUP BY"),
    ],
)
def test_what_cant_be_is_said_and_leaves_nothing(
    pool: Path, tmp_path: Path, by: tuple[str, ...], keep: str, kind: type[CoyoError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        dedupe_pool(pool, tmp_path / "out", by=by, keep=keep)
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert names_in(tmp_path) == {"pool.parquet"}


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, 1, 2], url=["a", "b", "c"])
    with pytest.raises(SourceError, match=r"Ids are not unique in .*: 1 on 2 rows"):
        dedupe_pool(pool, tmp_path / "out", by=("url",))
    assert names_in(tmp_path) == {"pool.parquet"}


def test_an_earlier_result_is_replaced_only_when_asked(pool: Path, tmp_path: Path) -> None:
    dedupe_pool(pool, tmp_path / "out", by=("url",))
    with pytest.raises(OutputError, match="already exists"):
        dedupe_pool(pool, tmp_path / "out", by=("image_phash",))
    dedupe_pool(pool, tmp_path / "out", by=("image_phash",), overwrite=True)
    assert len(read_ids(tmp_path / "out")) == 4
