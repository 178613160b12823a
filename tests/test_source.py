"""Opening a pool: what can be wrong with somebody's files is said by file name, before a stage."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import names_in, write_pool

from coyo_tools.dedupe import dedupe_pool
from coyo_tools.engine import open_session, pool_relation
from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, SourceError
from coyo_tools.filter import filter_pool
from coyo_tools.footers import TAIL_BYTES
from coyo_tools.source import open_source


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.parquet", id=range(10), width=[200 + i for i in range(10)])


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.parquet does not exist") as caught:
        open_source(tmp_path / "nowhere.parquet")
    assert caught.value.hint


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "pool.parquet").write_text("id,width\n1,200\n")
    with pytest.raises(SourceError, match=r"pool\.parquet is not a readable parquet file"):
        open_source(tmp_path / "pool.parquet")


@pytest.mark.parametrize("keep", [0, 3, 11, 200])
def test_a_truncated_file_is_named_and_told_to_be_fetched_again(pool: Path, keep: int) -> None:
    pool.write_bytes(pool.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"pool\.parquet is not a readable") as caught:
        open_source(pool)
    assert "fetch it again" in caught.value.hint


def test_one_truncated_part_among_good_ones_is_named(tmp_path: Path) -> None:
    for number in range(3):
        write_pool(tmp_path / f"part-{number}.parquet", id=[number])
    broken = tmp_path / "part-1.parquet"
    broken.write_bytes(broken.read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"part-1\.parquet is not a readable parquet file"):
        open_source(tmp_path)


def test_a_damaged_page_behind_a_good_footer_is_the_sources_fault(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(20_000),
        image_phash=[f"{i:016x}" for i in range(20_000)],
    )
    raw = bytearray(pool.read_bytes())
    raw[1000:30_000] = bytes(255 - byte for byte in raw[1000:30_000])
    pool.write_bytes(raw)
    assert open_source(pool).rows == 20_000
    with pytest.raises(SourceError, match=r"pool\.parquet can't be read"):
        filter_pool(pool, "id >= 0", tmp_path / "out")
    with pytest.raises(SourceError, match=r"pool\.parquet can't be read"):
        dedupe_pool(pool, tmp_path / "out", by=("image_phash",))
    assert names_in(tmp_path) == {"pool.parquet"}


def test_a_glob_without_a_match_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"No file matches .*part-\*\.parquet"):
        open_source(f"{tmp_path}/part-*.parquet")


def test_a_folder_without_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"holds no \*\.parquet file"):
        open_source(tmp_path)


def test_files_directories_and_globs_open_the_same_rows(tmp_path: Path) -> None:
    for number in range(3):
        write_pool(tmp_path / f"part-{number}.parquet", id=[2 * number, 2 * number + 1])
    by_folder, by_glob = open_source(tmp_path), open_source(f"{tmp_path}/part-*.parquet")
    assert by_folder.rows == by_glob.rows == 6
    assert by_folder.files == by_glob.files
    assert open_source(tmp_path / "part-1.parquet").rows == 2
    assert open_source(f"{tmp_path}/part-[12].parquet").rows == 4


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": [5], "height": [1]}, "missing width, extra height|missing width; extra height"),
        ({"id": [5]}, "missing width"),
        ({"id": [5], "width": [1.5]}, "width is double instead of int32"),
        ({"width": [1], "id": [5]}, "the same columns in another order"),
    ],
)
def test_parts_that_differ_are_named_with_their_difference(
    tmp_path: Path, columns: dict[str, list[float]], said: str
) -> None:
    write_pool(tmp_path / "part-0.parquet", id=[1], width=[200])
    arrays = {
        name: pa.array(values, type=pa.int32() if name == "width" and values == [1] else None)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), tmp_path / "part-1.parquet")
    with pytest.raises(SourceError, match=said) as caught:
        open_source(tmp_path)
    assert "part-1.parquet has other columns than" in str(caught.value)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(pa.int32(), pa.int64()), (pa.int8(), pa.int32()), (pa.float32(), pa.float64())],
)
def test_widths_of_numbers_are_unified(
    tmp_path: Path, narrow: pa.DataType, wide: pa.DataType
) -> None:
    """Whichever part comes first, and with a value that the narrow type can't hold."""
    for first, second in (("a", "b"), ("b", "a")):
        folder = tmp_path / first
        folder.mkdir()
        small = pa.table({"id": [1], "value": pa.array([1], narrow)})
        large = pa.table({"id": [2], "value": pa.array([2**30 + 1], wide)})
        pq.write_table(small, folder / f"{first}.parquet")
        pq.write_table(large, folder / f"{second}.parquet")
        source = open_source(folder)
        assert source.schema.field("value").type == wide
        filter_pool(folder, "value > 0", folder / "out")
        assert open_source(folder / "out").schema.field("value").type == wide
        values = pl.read_parquet(folder / "out" / "part-00000.parquet")["value"].to_list()
        assert sorted(values) == [1, 2**30 + 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int32(), pa.float32()), (pa.int64(), pa.uint64()), (pa.int32(), pa.string()),
        (pa.float32(), pa.string()), (pa.bool_(), pa.int8()),
    ],
)  # fmt: skip
def test_other_types_are_never_unified(
    tmp_path: Path, one: pa.DataType, other: pa.DataType
) -> None:
    for number, kind in enumerate((one, other)):
        table = pa.table({"id": [number], "value": pa.array([1]).cast(kind)})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    with pytest.raises(SourceError, match=f"part-1.parquet .*: value is {other} instead of {one}"):
        open_source(tmp_path)


def test_categories_are_the_text_they_stand_for(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [1], "text": ["a"]}, schema_overrides={"text": pl.Categorical})
    frame.write_parquet(tmp_path / "pool.parquet")
    assert open_source(tmp_path).schema.field("text").type == pa.string()


def test_a_source_knows_the_rows_and_bytes_of_each_file(tmp_path: Path) -> None:
    for number in range(3):
        write_pool(tmp_path / f"part-{number}.parquet", id=range(10 * number, 11 * number + 1))
    source = open_source(tmp_path)
    assert source.file_rows == (1, 2, 3)
    assert source.file_bytes == tuple(Path(file).stat().st_size for file in source.files)
    assert source.rows == 6
    with open_session(source) as session:
        last = pool_relation(session, source, source.files[2:])
        assert last.fetchall() == [(20,), (21,), (22,)]


def test_a_footer_longer_than_the_tail_is_read(tmp_path: Path) -> None:
    columns = {f"a column with a rather long name, number {number}": [1] for number in range(2000)}
    write_pool(tmp_path / "pool.parquet", id=[1], **columns)
    assert len(open_source(tmp_path).tails[0]) > TAIL_BYTES
    assert len(open_source(tmp_path).columns) == 2001


@pytest.mark.parametrize("damage", [b"\x00" * 40, b"\xff" * 40])
def test_a_damaged_footer_is_named(pool: Path, damage: bytes) -> None:
    raw = bytearray(pool.read_bytes())
    raw[-60:-20] = damage
    pool.write_bytes(raw)
    with pytest.raises(SourceError, match=r"pool\.parquet is not a readable parquet file"):
        open_source(pool)


def test_parts_by_different_writers_belong_together(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [1], "text": ["polars writes large strings"]})
    frame.write_parquet(tmp_path / "a.parquet")
    fields = [pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())]
    table = pa.table({"id": [2], "text": ["arrow"]}, schema=pa.schema(fields))
    pq.write_table(table.replace_schema_metadata({"made": "by hand"}), tmp_path / "b.parquet")
    assert open_source(tmp_path).rows == 2
    assert filter_pool(tmp_path, "text <> ''", tmp_path / "out").rows_out == 2


def test_a_pool_without_id_is_told_what_it_has(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", width=[1], height=[2])
    with pytest.raises(ColumnError, match="has no column `id`; it has width, height") as caught:
        open_source(pool)
    assert "coyo index" in caught.value.hint


@pytest.mark.parametrize("ids", [["a", "b"], [1.0, 2.0], [True, False]])
def test_an_id_that_is_no_integer_is_refused(tmp_path: Path, ids: list[object]) -> None:
    pq.write_table(pa.table({"id": ids}), tmp_path / "pool.parquet")
    with pytest.raises(ColumnError, match=r"Column `id` .* not an integer"):
        open_source(tmp_path / "pool.parquet")


def test_a_missing_id_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=[1, None, 2], image_phash=["a", "a", "b"])
    with pytest.raises(SourceError, match=r"the id is missing \(NULL\) on 1 rows") as caught:
        filter_pool(pool, "image_phash <> ''", tmp_path / "out")
    assert "id IS NOT NULL" in caught.value.hint
    with pytest.raises(SourceError, match="the id is missing"):
        dedupe_pool(pool, tmp_path / "out", by=("image_phash",))
    assert filter_pool(pool, "id IS NOT NULL", tmp_path / "out").rows_out == 2


def test_an_id_beyond_64_bits_with_a_sign_is_refused(tmp_path: Path) -> None:
    ids = pa.array([1, 2**64 - 1], type=pa.uint64())
    pq.write_table(pa.table({"id": ids}), tmp_path / "pool.parquet")
    with pytest.raises(ColumnError, match=r"Ids must fit 64 bits with a sign.*1844674407370955\d+"):
        filter_pool(tmp_path / "pool.parquet", "id > 0", tmp_path / "out")


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint32(), pa.uint64()])
def test_every_integer_type_will_do_for_an_id(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"id": pa.array([1, 2], type=kind)}), tmp_path / "pool.parquet")
    filter_pool(tmp_path / "pool.parquet", "id > 1", tmp_path / "out")
    assert open_source(tmp_path / "out").rows == 1


def test_zero_rows_are_an_empty_result(tmp_path: Path) -> None:
    with pytest.raises(EmptyResultError, match="has columns but no rows"):
        open_source(write_pool(tmp_path / "pool.parquet", id=[]))


def test_the_rest_of_an_interrupted_run_is_no_pool(tmp_path: Path) -> None:
    write_pool(tmp_path / ".clean.partial" / "part-00000.parquet", id=[1])
    with pytest.raises(SourceError, match="rest of an interrupted run"):
        open_source(tmp_path / ".clean.partial")


@pytest.mark.parametrize("kind", ["shards", "run", "scores"])
def test_another_kind_of_directory_is_no_pool(pool: Path, tmp_path: Path, kind: str) -> None:
    filter_pool(pool, "id > 3", tmp_path / "made")
    manifest = tmp_path / "made" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "subset"', f'"kind": "{kind}"'))
    with pytest.raises(SourceError, match=f"is a {kind} directory, not a pool or subset"):
        open_source(tmp_path / "made")


def test_an_index_directory_points_at_its_pool(pool: Path, tmp_path: Path) -> None:
    filter_pool(pool, "id > 3", tmp_path / "made")
    manifest = tmp_path / "made" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "subset"', '"kind": "index"'))
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "made")
    assert caught.value.hint == f"Use {tmp_path / 'made' / 'pool'}."


def test_only_the_parts_of_a_subset_are_its_rows(pool: Path, tmp_path: Path) -> None:
    dedupe_pool(pool, tmp_path / "unique", by=("width",))
    assert (tmp_path / "unique" / "removed.parquet").is_file()
    assert open_source(tmp_path / "unique").files == (
        str(tmp_path / "unique" / "part-00000.parquet"),
    )


@pytest.mark.parametrize(
    "name",
    ["a b", "it's", 'say "x"', "1[2]", "wh?t", "st*r", "run=1", "id=3", "naïve", "-o", "a;b", "$x",
     "100%", "{a,b}", "#1", "~"],
)  # fmt: skip
def test_paths_with_odd_signs_are_read_and_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    pool = write_pool(folder / f"{name}.parquet", id=range(6), width=[1, 1, 2, 2, 3, 3])
    filter_pool(pool, "id >= 2", folder / "out")
    filter_pool(folder, "id >= 2", folder / f"out {name}")
    dedupe_pool(folder / f"out {name}", folder / "unique", by=("width",))
    unique = open_source(folder / "unique")
    assert unique.rows == 2
    assert unique.columns == ("id", "width")  # and none made up from the path


def test_relative_paths_and_links_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.parquet").symlink_to("../pool.parquet")
    (tmp_path / "sub" / "up").symlink_to("..")
    monkeypatch.chdir(tmp_path / "sub")
    for number, name in enumerate(("../pool.parquet", "link.parquet", "up/pool.parquet")):
        assert filter_pool(name, "id > 3", Path(f"up/out{number}")).rows_out == 6


def test_the_fingerprint_changes_with_the_content_alone(tmp_path: Path) -> None:
    one = write_pool(tmp_path / "a" / "pool.parquet", id=[1, 2], width=[200, 300])
    same = write_pool(tmp_path / "b" / "pool.parquet", id=[1, 2], width=[200, 300])
    before = open_source(one).fingerprint
    assert open_source(same).fingerprint == before
    for changed in ({"id": [1, 3]}, {"width": [200, 301]}, {"id": [1, 2, 3]}):
        columns = {"id": [1, 2], "width": [200, 300], **changed}
        if len(columns["id"]) == 3:
            columns["width"] = [200, 300, 300]
        other = write_pool(tmp_path / "c" / "pool.parquet", **columns)
        assert open_source(other).fingerprint != before


def test_the_fingerprint_changes_with_the_number_of_parts(tmp_path: Path) -> None:
    write_pool(tmp_path / "a.parquet", id=[1])
    before = open_source(tmp_path).fingerprint
    write_pool(tmp_path / "b.parquet", id=[2])
    assert open_source(tmp_path).fingerprint != before


def test_every_refusal_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(CoyoError) as caught:
        open_source(tmp_path)
    assert caught.value.exit_code == 2
