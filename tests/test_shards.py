"""Shards: plain WebDataset tars that others read without our code."""

import io
import json
import math
import shutil
import subprocess
import tarfile
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pytest
import webdataset
from making import encoded, picture
from PIL import Image

from coyo_tools.shards import (
    ShardWriter,
    encode_sample,
    encoded_samples,
    read_samples,
    shard_name,
)

TEXTS = {7: "a red cat", 5_000_000_000_000: "naïve café, 日本語\nsecond line", -3: "x"}


def write(path: Path, rows: dict[int, dict[str, Any]] | None = None) -> Path:
    with ShardWriter(path) as shard:
        for seed, (id_, text) in enumerate(TEXTS.items()):
            row = (rows or {}).get(id_, {})
            shard.add(id_, encoded(picture(seed, (40, 30))), text, {"id": id_, "text": text, **row})
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_sample_is_three_files_named_by_its_id(tmp_path: Path) -> None:
    found = members(write(tmp_path / "00000.tar"))
    assert list(found) == [f"{id_}.{suffix}" for id_ in TEXTS for suffix in ("jpg", "txt", "json")]
    assert found["7.txt"] == b"a red cat"
    assert json.loads(found["5000000000000.json"])["text"] == TEXTS[5_000_000_000_000]
    assert Image.open(io.BytesIO(found["-3.jpg"])).size == (40, 30)


def test_a_sample_without_a_text_has_no_file_for_it(tmp_path: Path) -> None:
    labels = {"id": 4, "labels": [3, 1], "label_probs": [0.7, 0.4]}
    sample = encode_sample(4, encoded(picture(1, (40, 30))), None, labels)
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add_encoded(sample)
    assert list(members(tmp_path / "00000.tar")) == ["4.jpg", "4.json"]
    assert list(encoded_samples(tmp_path / "00000.tar")) == [sample]
    (back,) = read_samples(tmp_path, {4: "00000.tar"}).values()
    assert (back.text, back.row) == ("", labels)


def test_webdataset_reads_it_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.tar")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [str(id_) for id_ in TEXTS]
    assert [sample["txt"] for sample in samples] == list(TEXTS.values())
    assert [sample["json"]["id"] for sample in samples] == list(TEXTS)
    assert all(sample["jpg"].size == (40, 30) for sample in samples)


def test_hugging_face_datasets_reads_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = write(tmp_path / "00000.tar")
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path)]},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded["__key__"] == [str(id_) for id_ in TEXTS]
    assert [row["id"] for row in loaded["json"]] == list(TEXTS)
    assert loaded[0]["jpg"].size == (40, 30)
    assert loaded[1]["txt"] == TEXTS[5_000_000_000_000]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write(tmp_path / "a" / "00000.tar"), write(tmp_path / "b" / "00000.tar")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_the_bytes_are_those_that_tarfile_writes(tmp_path: Path) -> None:
    """Checksums, padding and end included; a tar that GNU tar reads without a word."""
    path = write(tmp_path / "00000.tar")
    with tarfile.open(tmp_path / "again.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members(path).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert path.read_bytes() == (tmp_path / "again.tar").read_bytes()
    with ShardWriter(tmp_path / "empty.tar"):
        pass
    assert members(tmp_path / "empty.tar") == {}


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_the_systems_own_tar_lists_it(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.tar")
    said = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert said.stdout.split() == list(members(path))
    assert said.stderr == ""


def ids_in_order(path: Path) -> list[int]:
    return [int(name[:-4]) for name in members(path) if name.endswith(".txt")]


@pytest.mark.parametrize("nothing", [None, math.nan, [], [None], {"x": None}, {}])
def test_samples_that_show_the_types_come_first(tmp_path: Path, nothing: Any) -> None:
    """datasets looks at five samples of a tar; see the head of coyo_tools.shards."""
    rows = [{"id": n, "a": nothing, "b": n} for n in range(10)]
    rows[7]["a"] = {"x": 1.5}
    with ShardWriter(tmp_path / "00000.tar") as shard:
        for row in rows:
            shard.add(row["id"], b"jpeg", "text", row)
    assert ids_in_order(tmp_path / "00000.tar") == [0, 7, 1, 2, 3, 4, 5, 6, 8, 9]


def test_samples_stay_in_order_where_nothing_is_gained(tmp_path: Path) -> None:
    for name, values in {
        "seen-early": [None, None, 3, None, 4, 5, None, 6],
        "never": [None] * 8,
        "too-late": [None] * 1000 + [1] * 3,
    }.items():
        with ShardWriter(tmp_path / f"{name}.tar") as shard:
            for id_, value in enumerate(values):
                shard.add(id_, b"jpeg", "text", {"id": id_, "a": value})
        assert ids_in_order(tmp_path / f"{name}.tar") == list(range(len(values)))


def test_what_json_cant_hold_is_null_or_text(tmp_path: Path) -> None:
    row = {
        "nan": math.nan, "infinite": -math.inf, "score": 0.25, "none": None, "yes": True,
        "big": 2**63, "day": date(2022, 8, 31), "price": Decimal("1.50"),
        "nested": {"scores": [0.5, math.nan, None], "at": (1, 2)},
    }  # fmt: skip
    found = members(write(tmp_path / "00000.tar", {7: row}))
    assert json.loads(found["7.json"], parse_constant=_no_constant) == {
        "id": 7, "text": "a red cat", "nan": None, "infinite": None, "score": 0.25, "none": None,
        "yes": True, "big": 2**63, "day": "2022-08-31", "price": "1.50",
        "nested": {"scores": [0.5, None, None], "at": [1, 2]},
    }  # fmt: skip


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_samples_are_read_back_from_the_shards_they_are_in(tmp_path: Path) -> None:
    write(tmp_path / "00000.tar")
    with ShardWriter(tmp_path / "00001.tar") as shard:
        shard.add(8, b"jpeg", "another", {"id": 8, "width": 9})
    found = read_samples(tmp_path, {7: "00000.tar", 8: "00001.tar"})
    assert {id_: sample.text for id_, sample in found.items()} == {7: "a red cat", 8: "another"}
    assert found[8].jpeg == b"jpeg"
    assert found[8].row == {"id": 8, "width": 9}
    assert read_samples(tmp_path, {}) == {}


def test_shard_names_sort_as_their_numbers_do() -> None:
    names = [shard_name(number) for number in (0, 9, 10, 99_999)]
    assert names == sorted(names) == ["00000.tar", "00009.tar", "00010.tar", "99999.tar"]
