"""Near-duplicates: who stays and who goes, by star and by components; flat hashes; the report."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, names_in, read_ids, write_pool

from coyo_tools.dedupe import DedupeResult, dedupe_pool, size_bins
from coyo_tools.errors import ColumnError, CoyoError, RecipeError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.verify import verify_subset

Row = dict[str, Any]
# 32 bits set, as ordinary hashes have; a swap of two bits is a distance of 2.
BASE = 0xAAAA_AAAA_AAAA_AAAA


def swapped(*pairs: int, start: int = BASE) -> str:
    """The hash with neighbouring bits swapped at some places: 2 bits of distance each."""
    for pair in pairs:
        start ^= 3 << (2 * pair)
    return f"{start:016x}"


def chain(length: int) -> list[str]:
    """Hashes each of which is 2 bits from the one before and after it, and 2k from the k-th."""
    return [swapped(*range(link)) for link in range(length)]


def removed(out: Path) -> dict[int, tuple[int, int]]:
    """Which row went, in favour of which, and how far they are apart."""
    frame = pl.read_parquet(out / "removed.parquet")
    assert frame.schema == {"id": pl.Int64, "duplicate_of": pl.Int64, "distance": pl.UInt8}
    return {id_: (kept, bits) for id_, kept, bits in frame.iter_rows()}


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """Five rows in a chain of 2 bits a link; the best is in the middle."""
    return write_pool(
        tmp_path / "pool.parquet", id=range(5), image_phash=chain(5), width=[3, 2, 9, 2, 3]
    )


def test_star_takes_only_what_is_within_the_radius_of_who_stays(
    chained: Path, tmp_path: Path
) -> None:
    result = dedupe_pool(chained, tmp_path / "out", radius=2, keep="width DESC")
    assert removed(tmp_path / "out") == {1: (2, 2), 3: (2, 2)}
    assert read_ids(tmp_path / "out") == [0, 2, 4]
    assert (result.pairs, result.chained, result.group_sizes) == (4, 0, {3: 1})
    wide = dedupe_pool(chained, tmp_path / "wide", radius=4, keep="width DESC")
    assert removed(tmp_path / "wide") == {0: (2, 4), 1: (2, 2), 3: (2, 2), 4: (2, 4)}
    assert wide.by_distance == {2: 2, 4: 2}


def test_star_goes_in_the_order_of_keep_and_ties_end_by_id(chained: Path, tmp_path: Path) -> None:
    dedupe_pool(chained, tmp_path / "by-id", radius=2)
    assert removed(tmp_path / "by-id") == {1: (0, 2), 3: (2, 2)}
    dedupe_pool(chained, tmp_path / "back", radius=2, keep="id DESC")
    assert removed(tmp_path / "back") == {3: (4, 2), 1: (2, 2)}
    dedupe_pool(chained, tmp_path / "width", radius=2, keep="width")
    assert removed(tmp_path / "width") == {0: (1, 2), 2: (1, 2), 4: (3, 2)}


def test_components_take_whole_chains_and_say_so(chained: Path, tmp_path: Path) -> None:
    result = dedupe_pool(chained, tmp_path / "out", radius=2, linkage="components", keep="id")
    assert removed(tmp_path / "out") == {1: (0, 2), 2: (0, 4), 3: (0, 6), 4: (0, 8)}
    assert (result.chained, result.farthest, result.group_sizes) == (3, 8, {5: 1})
    assert read_manifest(tmp_path / "out").lost == {
        "same image_phash": 0,
        "within 2 bits of a better row": 1,
        "joined to a better row by a chain": 3,
    }
    ran = coyo(
        "dedupe", chained, "-o", tmp_path / "shown", "--radius", "2", "--linkage", "components"
    )
    assert ran.returncode == 0
    assert "warning: 3 rows are farther than 2 bits" in ran.stderr
    assert "up to 8: chains" in ran.stderr


def test_large_components_are_left_to_star(tmp_path: Path) -> None:
    far = [f"{int(link, 16) ^ (0xFF00 << 40):016x}" for link in chain(3)]
    pool = write_pool(tmp_path / "pool.parquet", id=range(8), image_phash=[*chain(5), *far])
    result = dedupe_pool(
        pool, tmp_path / "out", radius=2, linkage="components", max_group=4, keep="id"
    )
    assert removed(tmp_path / "out") == {1: (0, 2), 3: (2, 2), 6: (5, 2), 7: (5, 4)}
    assert (result.split, result.chained) == (1, 1)
    same = dedupe_pool(pool, tmp_path / "same", radius=2, linkage="components", max_group=5)
    assert (same.split, same.chained) == (0, 4)


def test_equal_hashes_go_with_what_replaces_their_hash(tmp_path: Path) -> None:
    hashes = [chain(2)[0], chain(2)[1], chain(2)[1], chain(2)[0], chain(2)[1]]
    pool = write_pool(tmp_path / "pool.parquet", id=[5, 4, 3, 2, 1], image_phash=hashes)
    result = dedupe_pool(pool, tmp_path / "out", radius=2)
    assert removed(tmp_path / "out") == {5: (1, 2), 4: (1, 0), 3: (1, 0), 2: (1, 2)}
    assert (result.distinct, result.pairs, result.by_distance) == (2, 1, {0: 2, 2: 2})


FLAT = ["8000000000000000", "8000000000000000", "0000000000000000", "8000000000000001"]


def test_flat_hashes_are_compared_for_equality_unless_asked(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(6), image_phash=[*FLAT, *chain(2)])
    result = dedupe_pool(pool, tmp_path / "exact", radius=2)
    assert removed(tmp_path / "exact") == {1: (0, 0), 5: (4, 2)}
    assert result.flat == 4
    result = dedupe_pool(pool, tmp_path / "near", radius=2, flat="near")
    assert removed(tmp_path / "near") == {1: (0, 0), 2: (0, 1), 3: (0, 1), 5: (4, 2)}
    ran = coyo("dedupe", pool, "-o", tmp_path / "told", "--radius", "2")
    assert "note: 4 rows have the hash of a flat picture" in ran.stderr


def reference(
    rows: list[Row], radius: int, *, components: bool, flat_near: bool, max_group: int | None
) -> dict[int, tuple[int, int]]:
    """What the definitions say, row by row: rows come best first."""
    hashed = [row for row in rows if row["hash"] is not None]

    def near(one: Row, other: Row) -> bool:
        bits = (one["hash"] ^ other["hash"]).bit_count()
        ordinary = all(24 <= row["hash"].bit_count() <= 40 for row in (one, other))
        return bits == 0 or (bits <= radius and (ordinary or flat_near))

    def star(members: list[Row]) -> dict[int, Row]:
        replaced: dict[int, Row] = {}
        for row in members:
            if row["id"] not in replaced:
                for other in members:
                    if other["id"] not in replaced and near(row, other):
                        replaced[other["id"]] = row
        return replaced

    groups: list[list[Row]] = []
    left = list(hashed)
    while left:
        group, waiting = [], [left.pop(0)]
        while waiting:
            row = waiting.pop()
            group.append(row)
            found = [other for other in left if near(row, other)]
            left = [other for other in left if not near(row, other)]
            waiting += found
        groups.append([row for row in hashed if row in group])
    went: dict[int, tuple[int, int]] = {}
    for group in groups:
        whole = components and (max_group is None or len(group) <= max_group)
        replaced = {row["id"]: group[0] for row in group} if whole else star(group)
        for row in group:
            kept = replaced[row["id"]]
            if kept is not row:
                went[row["id"]] = (kept["id"], (kept["hash"] ^ row["hash"]).bit_count())
    return went


@settings(max_examples=80, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(["chain", "flat", "none", "other"]),
            st.integers(0, 7),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=24,
    ),
    radius=st.integers(0, 6),
    components=st.booleans(),
    flat_near=st.booleans(),
    max_group=st.none() | st.integers(1, 6),
    descending=st.booleans(),
)
def test_rows_that_go_are_those_of_the_definitions(
    drawn: list[tuple[str, int, int]],
    radius: int,
    components: bool,
    flat_near: bool,
    max_group: int | None,
    descending: bool,
) -> None:
    rows: list[Row] = []
    for number, (kind, place, width) in enumerate(drawn):
        hash_: int | None = {
            "chain": int(chain(8)[place], 16),
            "flat": (1 << 63) ^ ((1 << place) - 1),
            "none": None,
            "other": BASE ^ (0xF << (4 * place)) ^ (0x3 << (40 + 2 * width)),
        }[kind]
        rows.append({"id": (number * 11) % 29, "hash": hash_, "width": width})
    limit = max_group if components else None
    ranked = sorted(
        rows, key=lambda row: (-row["width"] if descending else row["width"], row["id"])
    )
    expected = reference(
        ranked, radius, components=components, flat_near=flat_near, max_group=limit
    )
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool(
            Path(folder) / "pool.parquet",
            id=[row["id"] for row in rows],
            image_phash=[None if row["hash"] is None else f"{row['hash']:016x}" for row in rows],
            width=[row["width"] for row in rows],
        )
        out = Path(folder) / "out"
        result = dedupe_pool(
            pool, out, radius=radius, linkage="components" if components else "star",
            max_group=limit, flat="near" if flat_near else "exact",
            keep="width DESC" if descending else "width", threads=2, memory="100MB",
        )  # fmt: skip
        assert removed(out) == expected
        assert read_ids(out) == [row["id"] for row in rows if row["id"] not in expected]
        manifest = read_manifest(out)
    assert result.rows_in == result.rows_out + len(expected) == len(rows)
    assert sum(manifest.lost.values()) == len(expected)
    sizes: dict[int, int] = {}
    for kept, _ in expected.values():
        sizes[kept] = sizes.get(kept, 1) + 1
    counts = list(sizes.values())
    assert result.group_sizes == {size: counts.count(size) for size in set(counts)}
    assert result.without_key == sum(row["hash"] is None for row in rows)
    assert result.chained == sum(bits > radius for _, bits in expected.values())


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60,000 rows: neighbours, repeats, a clump, flat ones, NULLs; three files, ids not sorted."""
    rng = np.random.default_rng(7)
    drawn = rng.integers(1 << 63, (1 << 64) - 1, 900_000, dtype=np.uint64)
    hashes = drawn[np.bitwise_count(drawn) == 32][:40_000]
    for share in (12_000, 4_000):
        moved = hashes[rng.integers(0, len(hashes), share)]
        for _ in range(2):
            moved = moved ^ (np.uint64(1) << rng.integers(0, 63, share).astype(np.uint64))
        hashes = np.concatenate([hashes, moved])
    clump = np.full(3_000, hashes[0]) ^ (np.uint64(3) << rng.integers(0, 60, 3_000).astype("u8"))
    flat = np.uint64(1 << 63) ^ (np.uint64(1) << rng.integers(0, 40, 500).astype(np.uint64))
    every = np.concatenate([hashes, clump, flat, hashes[:500]])
    rng.shuffle(every)
    text = [f"{value:016x}" for value in every.tolist()]
    for place in rng.integers(0, len(text), 300):
        text[place] = None  # type: ignore[call-overload]
    directory = tmp_path_factory.mktemp("crowd") / "pool"
    ids = rng.permutation(len(text))
    for part, rows in enumerate(np.array_split(np.arange(len(text)), 3)):
        write_pool(
            directory / f"part-{part}.parquet",
            id=ids[rows],
            image_phash=[text[row] for row in rows],
            text=[f"caption {ids[row]}" for row in rows],
            clip_similarity_vitl14=rng.random(len(rows)).astype(np.float32).round(2),
        )
    return directory


OPTIONS: list[dict[str, Any]] = [
    {"radius": 0},
    {"radius": 2},
    {"radius": 3, "keep": "clip_similarity_vitl14 DESC"},
    {"radius": 4, "linkage": "components"},
    {"radius": 4, "linkage": "components", "max_group": 10},
    {"radius": 6, "flat": "near"},
    {"by": ("text",), "normalize": True},
    {"by": ("image_phash", "text")},
    {"by": ("clip_similarity_vitl14",)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[json.dumps(options) for options in OPTIONS])
def test_no_row_is_lost_that_is_not_explained(
    crowd: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    result = dedupe_pool(crowd, tmp_path / "out", threads=1, **options)
    before = pl.read_parquet(crowd / "*.parquet")
    after = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    gone = pl.read_parquet(tmp_path / "out" / "removed.parquet")
    assert len(before) == result.rows_in == len(after) + len(gone)
    assert sorted([*after["id"], *gone["id"]]) == sorted(before["id"])
    assert set(gone["duplicate_of"]) <= set(after["id"])
    assert after.equals(before.filter(pl.col("id").is_in(after["id"].implode())))
    hashes = dict(before.select("id", "image_phash").iter_rows())
    radius = options.get("radius", 0)
    for id_, kept, bits in gone.iter_rows():
        if "by" not in options:
            assert (int(hashes[id_], 16) ^ int(hashes[kept], 16)).bit_count() == bits
        if "linkage" not in options:
            assert bits <= radius
    manifest = read_manifest(tmp_path / "out")
    assert sum(manifest.lost.values()) == len(gone)
    again = dedupe_pool(crowd, tmp_path / "again", threads=2, memory="200MB", **options)
    assert again.largest == result.largest
    for name in sorted(names_in(tmp_path / "out") - {"manifest.json", "dedupe.html"}):
        ours, theirs = (tmp_path / folder / name for folder in ("out", "again"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert verify_subset(tmp_path / "out").replays


def test_the_largest_groups_come_with_texts_and_urls(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(12),
        image_phash=[*chain(3), *["c" * 16] * 8, None],
        text=["<script>alert(1)</script>", "a\x1b[31mred", None, *[f"logo {k}" for k in range(9)]],
        url=[f"https://e.com/{k}.jpg" for k in range(12)],
    )
    result = dedupe_pool(pool, tmp_path / "out", radius=4)
    logo, links = result.largest
    assert (logo.rows, logo.kept.id, logo.kept.text, logo.kept.url) == (
        8, 3, "logo 0", "https://e.com/3.jpg",
    )  # fmt: skip
    assert [member.id for member in logo.removed] == [4, 5, 6, 7, 8, 9]
    assert [(member.id, member.distance) for member in links.removed] == [(1, 2), (2, 4)]
    page = (tmp_path / "out" / "dedupe.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "https://e.com/10.jpg" not in page  # six of a group are enough
    ran = coyo("dedupe", pool, "-o", tmp_path / "told", "--radius", "4")
    assert ran.returncode == 0
    assert "logo 0" in ran.stdout
    assert "\x1b" not in ran.stdout
    made = json.loads(coyo("dedupe", pool, "-o", tmp_path / "json", "--json").stdout)
    assert made["largest"][0]["rows"] == 8


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_hashes_may_be_integers(tmp_path: Path, kind: pa.DataType) -> None:
    bits = np.array([int(link, 16) for link in chain(3)], np.uint64)
    path = tmp_path / "pool.parquet"
    column = pa.array(bits.view(np.int64) if kind == pa.int64() else bits, kind)
    write_pool(path, id=range(3))
    pl.read_parquet(path).with_columns(image_phash=pl.Series(column)).write_parquet(path)
    dedupe_pool(path, tmp_path / "out", radius=2)
    assert removed(tmp_path / "out") == {1: (0, 2)}


def test_pools_with_other_names_are_deduplicated_too(tmp_path: Path) -> None:
    """COYO-Labeled-300M calls its hash imagehash; its rows are not copied as they are stored."""
    path = tmp_path / "pool.parquet"
    labelled = {
        "id": pa.array(range(3), pa.int64()),
        "url": ["a", "b", "c"],
        "imagehash": chain(3),
        "labels": [[1], [2], [3]],
        "label_probs": [[0.5], [0.5], [0.5]],
        "width": pa.array([1, 2, 3], pa.int32()),
        "height": pa.array([1, 2, 3], pa.int32()),
    }
    pq.write_table(pa.table(labelled), path)
    dedupe_pool(path, tmp_path / "out", radius=2, keep="width DESC")
    assert removed(tmp_path / "out") == {1: (2, 2)}
    kept = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert kept["image_phash"].to_list() == [chain(3)[0], chain(3)[2]]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"radius": 13}, RecipeError, "radius 13 is not one of 0 to 12"),
        ({"radius": -1}, RecipeError, "radius -1"),
        ({"radius": 2, "by": ("url",)}, RecipeError, "rows are compared by url"),
        ({"linkage": "single"}, RecipeError, "'single' is not one of star, components"),
        ({"flat": "no"}, RecipeError, "'no' is not one of exact, near"),
        ({"max_group": 5}, RecipeError, "star makes none"),
        ({"max_group": 0, "linkage": "components"}, RecipeError, "not a number of rows"),
        ({"normalize": True}, RecipeError, "--normalize is for texts"),
        ({"normalize": True, "by": ("width",)}, ColumnError, "Column `width` is int32"),
        ({"by": ("image_phash",), "keep": "nothing"}, ColumnError, "no column `nothing`"),
        ({"memory": "much"}, CoyoError, "--memory 'much' can't be understood"),
    ],
)
def test_what_makes_no_sense_is_refused(
    chained: Path, tmp_path: Path, options: dict[str, Any], kind: type[CoyoError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        dedupe_pool(chained, tmp_path / "out", **options)
    assert said in str(caught.value)
    assert names_in(tmp_path) == {"pool.parquet"}


def test_pools_without_hashes_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "none.parquet", id=[1], url=["a"])
    with pytest.raises(ColumnError, match="no column `image_phash`"):
        dedupe_pool(pool, tmp_path / "out")
    other = tmp_path / "other.parquet"
    pl.DataFrame({"id": [1], "image_phash": [0.5]}).write_parquet(other)
    with pytest.raises(ColumnError, match="holds no hashes"):
        dedupe_pool(other, tmp_path / "out")
    doubled = write_pool(tmp_path / "doubled.parquet", id=[1, 1], image_phash=chain(2))
    with pytest.raises(SourceError, match="1 on 2 rows"):
        dedupe_pool(doubled, tmp_path / "out", radius=2)


def test_sizes_are_binned_by_powers_of_two() -> None:
    bins = size_bins({2: 10, 3: 4, 5: 1, 8: 2, 9: 1, "1000": 1})
    assert [(one.label, one.groups, one.removed) for one in bins] == [
        ("2", 10, 10), ("3", 4, 8), ("5 to 8", 3, 18), ("9 to 16", 1, 8), ("513 to 1,024", 1, 999),
    ]  # fmt: skip
    assert size_bins({}) == []


def test_a_pool_of_one_row(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[7], image_phash=chain(1))
    result: DedupeResult = dedupe_pool(pool, tmp_path / "out", radius=4)
    assert (result.rows_in, result.rows_out, result.pairs) == (1, 1, 0)
