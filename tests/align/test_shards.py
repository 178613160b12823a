"""Tars in, samples out: what is not there or not whole is counted, never lost in silence."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.data import load_pairs, read_ids
from coyo_align.input.images import image_processor, preprocess_of

from align.making import encoded, sample, square, squares, write_tar

SMALL = preprocess_of(image_processor(32))
RED = encoded(square("red", "left", "white"))


def write_ids(path: Path, ids: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), path)
    return path


def test_pairs_come_in_the_order_of_the_tars(shards: Path) -> None:
    told: list[tuple[int, float]] = []
    pairs = load_pairs(shards, SMALL, on_load=lambda done, share: told.append((done, share)))
    assert len(pairs) == 36
    assert pairs.images.take(np.arange(36)).shape == (36, 32, 32, 3)
    assert pairs.ids.tolist() == list(range(100, 136))
    assert pairs.captions[0] == "a red square of 20 on the left, white ground"
    assert (pairs.skipped, pairs.missing_ids) == ({}, 0)
    assert told[-1] == (36, 1.0)


def test_ids_choose_and_the_absent_ones_are_counted(shards: Path, tmp_path: Path) -> None:
    ids = write_ids(tmp_path / "ids.parquet", [101, 135, 7, 8])
    pairs = load_pairs(shards, SMALL, ids)
    assert pairs.ids.tolist() == [101, 135]
    assert pairs.missing_ids == 2


def test_ids_may_be_a_subset_directory(tmp_path: Path) -> None:
    write_ids(tmp_path / "part-00000.parquet", [1, 2])
    write_ids(tmp_path / "part-00001.parquet", [2, 3])
    assert read_ids(tmp_path).tolist() == [1, 2, 3]


def test_a_subset_of_undecodable_pictures_is_skipped_and_not_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "0.tar", [sample(1, b"no picture", "text"), sample(2, RED, "text")])
    pairs = load_pairs(tmp_path / "s", SMALL, write_ids(tmp_path / "i.parquet", [1, 2]))
    assert pairs.ids.tolist() == [2]
    assert (pairs.skipped, pairs.missing_ids) == ({"picture does not decode": 1}, 0)


def test_every_reason_is_counted(tmp_path: Path) -> None:
    made = [
        sample(1, RED, "good"),
        sample(2, RED, " \n "),
        sample(3, RED, None),
        sample(4, None, "no picture"),
        sample(5, RED[: len(RED) // 2], "half a picture"),
        sample(6, encoded(square("red", "left", "white"), "GIF"), "a GIF"),
    ]
    write_tar(tmp_path / "0.tar", made)
    pairs = load_pairs(tmp_path, SMALL)
    assert pairs.captions == ["good"]
    assert pairs.skipped == {"no caption": 2, "no picture": 1, "picture does not decode": 2}


def test_captions_keep_one_space_and_survive_bad_bytes(tmp_path: Path) -> None:
    files = sample(1, RED, "") | {"1.txt": b"two\n\n lines \xff"}
    write_tar(tmp_path / "0.tar", [files])
    assert load_pairs(tmp_path, SMALL).captions == ["two lines \N{REPLACEMENT CHARACTER}"]


def test_the_key_is_the_id_where_the_json_is_lost(tmp_path: Path) -> None:
    files = sample(77, RED, "text") | {"77.json": b"{"}
    write_tar(tmp_path / "0.tar", [files])
    assert load_pairs(tmp_path, SMALL).ids.tolist() == [77]


@pytest.mark.parametrize("keep", ["in a file", "between files", "in a header"])
def test_a_truncated_tar_keeps_what_is_whole_and_names_itself(tmp_path: Path, keep: str) -> None:
    whole = write_tar(tmp_path / "whole.tar", squares(1)[:3]).read_bytes()
    first = write_tar(tmp_path / "first.tar", squares(1)[:1]).read_bytes()
    end = len(first.rstrip(b"\0"))
    end += -end % 512  # the first sample with its padding, without the end mark
    cut = {"in a file": end + 512 + 100, "between files": end, "in a header": end + 100}[keep]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "00000.tar").write_bytes(whole[:cut])
    write_tar(tmp_path / "s" / "00001.tar", squares(1)[5:6])
    pairs = load_pairs(tmp_path / "s", SMALL)
    assert pairs.ids.tolist() in ([105], [100, 105])
    assert pairs.skipped == {"damaged tar, the rest of it is lost: 00000.tar": 1}


@pytest.mark.parametrize("content", [b"", b"this is no tar" * 100])
def test_what_is_no_tar_leaves_nothing_and_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(AlignError, match=r"No usable sample .*bad\.tar"):
        load_pairs(tmp_path, SMALL)


def test_empty_tars_no_tars_and_no_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="not a directory"):
        load_pairs(tmp_path / "nothing", SMALL)
    with pytest.raises(AlignError, match=r"holds no \.tar"):
        load_pairs(tmp_path, SMALL)
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(AlignError, match="the tars are empty"):
        load_pairs(tmp_path, SMALL)


def test_ids_that_can_not_be_read_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="No ids at"):
        read_ids(tmp_path / "absent.parquet")
    with pytest.raises(AlignError, match="No ids at"):
        read_ids(tmp_path)
    (tmp_path / "text.parquet").write_text("id\n1\n")
    with pytest.raises(AlignError, match="can't be read as parquet"):
        read_ids(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "strings.parquet")
    with pytest.raises(AlignError, match="no integer column id"):
        read_ids(tmp_path / "strings.parquet")
    pq.write_table(pa.table({"key": [1]}), tmp_path / "other.parquet")
    with pytest.raises(AlignError, match="no integer column id"):
        read_ids(tmp_path / "other.parquet")
    none = write_ids(tmp_path / "none.parquet", [7])
    with pytest.raises(AlignError, match=r"1 ids of .* not in the shards"):
        load_pairs(shards, SMALL, none)


def test_fields_are_kept_row_by_row(tmp_path: Path) -> None:
    first = sample(1, RED, "one") | {"1.cls": b" 7 \n"}
    first["1.json"] = b'{"id": 1, "url": "http://x.test/", "faces": [1, {"a": null}], "score": NaN}'
    write_tar(tmp_path / "0.tar", [sample(5, b"bad", "bad"), first, sample(2, RED, "two")])
    fields = load_pairs(tmp_path, SMALL, fields=("faces", "key", "cls", "nothing", "score")).fields
    assert fields["key"] == ["1", "2"]
    assert fields["cls"] == ["7", None]
    assert fields["faces"] == [[1, {"a": None}], None]
    assert fields["nothing"] == [None, None]
    assert fields["score"][0] != fields["score"][0]
    assert fields["score"][1] is None


def test_pictures_without_captions_are_used_where_none_are_needed(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(1, RED, None), sample(2, None, "no picture")])
    pairs = load_pairs(tmp_path, SMALL, need_caption=False)
    assert (pairs.captions, pairs.ids.tolist()) == ([""], [1])
    assert pairs.skipped == {"no picture": 1}


@pytest.mark.parametrize("json", [b"[1]", b"null", b'"id"', b"{", b"[" * 100_000, b'{"id": 1e999}'])
def test_json_that_is_no_object_with_an_id_loses_the_json_only(tmp_path: Path, json: bytes) -> None:
    write_tar(tmp_path / "0.tar", [sample(77, RED, "text") | {"77.json": json}])
    pairs = load_pairs(tmp_path, SMALL, fields=("url",))
    assert (pairs.ids.tolist(), pairs.fields["url"]) == ([77], [None])


def test_control_characters_are_the_captions_own(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(1, RED, "a\0b\x1b[31m\u202ec\td")])
    assert load_pairs(tmp_path, SMALL).captions == ["a\0b\x1b[31m\u202ec d"]


def test_ids_that_fit_no_int64_are_none(tmp_path: Path) -> None:
    files = sample(1, RED, "text")
    made = [
        {f"{name}.jpg": files["1.jpg"], f"{name}.txt": b"text", f"{name}.json": json}
        for name, json in (("a", b'{"id": 9223372036854775808}'), ("9" * 30, b"{}"), ("b", b"{}"))
    ]
    write_tar(tmp_path / "0.tar", made)
    assert load_pairs(tmp_path, SMALL).ids.tolist() == [-1, -1, -1]


def test_the_same_id_twice_is_two_pairs(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(1, RED, "one"), sample(2, RED, "two")])
    write_tar(tmp_path / "1.tar", [sample(1, RED, "again")])
    pairs = load_pairs(tmp_path, SMALL, write_ids(tmp_path / "i.parquet", [1, 9]))
    assert (pairs.captions, pairs.missing_ids) == (["one", "again"], 1)


def test_one_sample_is_enough(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", [sample(1, RED, "one")])
    assert len(load_pairs(tmp_path, SMALL)) == 1


def test_links_and_sparse_files_are_no_pictures(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [sample(1, RED, "one")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("2.txt")
        text.size = 4
        tar.addfile(text, io.BytesIO(b"text"))
    pairs = load_pairs(tmp_path, SMALL)
    assert (pairs.ids.tolist(), pairs.skipped) == ([1], {"no picture": 1})


def test_long_names_and_folders_are_read(tmp_path: Path) -> None:
    name = "folder.with.dots/" + "n" * 300
    files = {f"{name}.jpg": RED, f"{name}.txt": b"text", f"{name}.json": b'{"id": 5}'}
    write_tar(tmp_path / "0.tar", [files])
    pairs = load_pairs(tmp_path, SMALL, fields=("key",))
    assert (pairs.ids.tolist(), pairs.fields["key"]) == ([5], [name])


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["1", "folder/1", "f" * 90 + "/" + "n" * 80, "ä/ö"])
def test_every_kind_of_tar_is_read(tmp_path: Path, kind: int, name: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=kind) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for extension, content in (("JPG", RED), ("txt", b"text")):
            info = tarfile.TarInfo(f"{name}.{extension}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    pairs = load_pairs(tmp_path, SMALL, fields=("key",))
    assert (pairs.captions, pairs.fields["key"], pairs.skipped) == (["text"], [name], {})


def test_a_damaged_header_ends_the_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", squares(1)[:3])
    data = bytearray(path.read_bytes())
    second = data.index(b"101.jpg")
    data[second + 130] ^= 1  # a digit of its size, which its checksum covers
    path.write_bytes(data)
    with pytest.raises(AlignError, match="damaged tar"):
        load_pairs(tmp_path, SMALL)


def test_tars_read_by_several_processes_give_the_same(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load_pairs(shards, SMALL, fields=("url", "key"), workers=2)
    monkeypatch.setattr("coyo_align.input.index._WORTH_A_PROCESS", 1)
    two = load_pairs(shards, SMALL, fields=("url", "key"), workers=2)
    assert (one.captions, one.fields) == (two.captions, two.fields)
    np.testing.assert_array_equal(one.ids, two.ids)
