"""Evaluation sets: whatever they are kept in, their hashes come out with names and counts."""

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import encoded, picture, write_pool
from PIL import Image

from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, SourceError
from coyo_tools.evaluation import EvaluationSet, evaluation_fingerprint, read_evaluation
from coyo_tools.filter import filter_pool
from coyo_tools.phash import TURNS, phash
from coyo_tools.selection import Selection
from coyo_tools.source import open_source

HASHES = ["8000000000000000", "aca29c1c33dc23d7", "FFFFFFFFFFFFFFFF", "0000000000000000"]


def digits(evaluation: EvaluationSet) -> list[str]:
    return [f"{int(hash_):016x}" for hash_ in evaluation.hashes]


def write_table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them deeper, a flat one, and what is none."""
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "b.png").write_bytes(encoded(picture(1), "PNG"))
    (path / "sub" / "a.jpg").write_bytes(encoded(picture(2), "JPEG"))
    (path / "flat.png").write_bytes(encoded(Image.new("RGB", (30, 20), "orange"), "PNG"))
    (path / "notes.txt").write_text("notes")
    (path / ".DS_Store").write_bytes(b"Bud1")
    return path


# --- pools and parquet files ---------------------------------------------------------------------


def check_rows(evaluation: EvaluationSet, path: Path, names: Sequence[str]) -> None:
    """What HASHES with a NULL before the last comes out as."""
    assert digits(evaluation) == [hash_.lower() for hash_ in HASHES]
    assert list(evaluation.names) == list(names)
    assert evaluation.turns.tolist() == [0] * 4
    assert (evaluation.pictures, evaluation.without_hash, evaluation.refused) == (5, 1, ())
    assert evaluation.path == evaluation.input.path == str(path)
    assert evaluation.input.role == "evaluation"
    assert evaluation.input.fingerprint == evaluation_fingerprint(path)


ROWS = [*HASHES[:3], None, HASHES[3]]


def test_a_pool_gives_its_ids_as_names(tmp_path: Path) -> None:
    ids = [7, -5, 2**62, 1, 0]
    write_pool(tmp_path / "pool" / "1.parquet", id=ids[:2], image_phash=ROWS[:2])
    write_pool(tmp_path / "pool" / "2.parquet", id=ids[2:], image_phash=ROWS[2:])
    evaluation = read_evaluation(tmp_path / "pool")
    check_rows(evaluation, tmp_path / "pool", ["7", "-5", str(2**62), "0"])
    assert evaluation.input.fingerprint == open_source(tmp_path / "pool").fingerprint
    assert list(evaluation.names[1:3]) == ["-5", str(2**62)]
    globbed = read_evaluation(str(tmp_path / "pool" / "*.parquet"))
    assert digits(globbed) == digits(evaluation)


def test_one_file_has_the_fingerprint_of_a_source_too(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.parquet", id=range(5), image_phash=ROWS)
    evaluation = read_evaluation(path)
    check_rows(evaluation, path, ["0", "1", "2", "4"])
    assert evaluation.input.fingerprint == open_source(path).fingerprint


def test_a_subset_can_be_one(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.parquet", id=range(9), image_phash=[*ROWS, *HASHES])
    filter_pool(str(pool), Selection(recipes=("id < 5",)), tmp_path / "subset")
    check_rows(read_evaluation(tmp_path / "subset"), tmp_path / "subset", ["0", "1", "2", "4"])


def test_coyo_labeled_has_its_own_name_for_the_column(tmp_path: Path) -> None:
    write_table(
        tmp_path / "labeled" / "1.parquet",
        id=range(5), url=["u"] * 5, imagehash=ROWS, labels=[[1]] * 5, label_probs=[[1.0]] * 5,
        width=[1] * 5, height=[1] * 5,
    )  # fmt: skip
    check_rows(read_evaluation(tmp_path / "labeled"), tmp_path / "labeled", ["0", "1", "2", "4"])


@pytest.mark.parametrize("name", ["image_phash", "imagehash", "phash", "pHash"])
@pytest.mark.parametrize("id_", [{}, {"id": list("vwxyz")}, {"ID": [9, 8, 7, 6, 5]}])
def test_a_bare_file_needs_no_id(tmp_path: Path, name: str, id_: dict[str, Any]) -> None:
    path = write_table(tmp_path / "bare.parquet", **{name: ROWS}, **id_)
    check_rows(read_evaluation(path), path, ["0", "1", "2", "4"])


def test_a_row_without_id_is_called_null(tmp_path: Path) -> None:
    path = write_table(tmp_path / "bare.parquet", id=[3, None], phash=HASHES[:2])
    assert list(read_evaluation(path).names) == ["3", "NULL"]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_texts_of_all_kinds_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(ROWS)
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    path = write_table(tmp_path / "bare.parquet", phash=texts)
    check_rows(read_evaluation(path), path, ["0", "1", "2", "4"])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.none() | st.integers(0, 2**64 - 1), min_size=1),
    kind=st.sampled_from(["text", "int64", "uint64"]),
    group=st.integers(1, 4),
)
def test_numbers_and_texts_are_the_same_hashes(
    tmp_path: Path, numbers: list[int | None], kind: str, group: int
) -> None:
    if kind == "text":
        column = pa.array([None if n is None else f"{n:016x}" for n in numbers], pa.string())
    else:
        column = pa.array(numbers, pa.uint64())
        column = column.view(pa.int64()) if kind == "int64" else column
    path = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"phash": column}), path, row_group_size=group)
    there = [(str(place), n) for place, n in enumerate(numbers) if n is not None]
    if not there:
        with pytest.raises(EmptyResultError, match=f"None of the {len(numbers)} rows"):
            read_evaluation(path)
        return
    evaluation = read_evaluation(path)
    assert list(zip(evaluation.names, evaluation.hashes.tolist(), strict=True)) == there
    assert evaluation.hashes.dtype == np.uint64
    assert evaluation.without_hash == len(numbers) - len(there)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"id": [1], "text": ["a"]},
            ColumnError,
            "no column image_phash or imagehash or phash; it",
        ),
        ({"phash": [1.5]}, ColumnError, "`phash` of .* is double, not a text of 16 hex digits"),
        ({"phash": pa.array([1], pa.int32())}, ColumnError, "is int32, not a text"),
        ({"phash": [b"12345678"]}, ColumnError, "is binary, not a text"),
        (
            {"phash": [None, *HASHES, "x" * 99, "0xaca29c1c33dc23", "", HASHES[0] + "\n"]},
            ColumnError,
            "4 of the 9 rows of .* have something in `phash` that is no hash of 16 hex digits, "
            f"such as '{'x' * 40}'",
        ),
        (
            {"phash": pa.array([None, None])},
            EmptyResultError,
            "None of the 2 rows of .* has a hash",
        ),
        ({"phash": pa.array([], pa.string())}, EmptyResultError, "has columns but no rows"),
    ],
)
def test_what_holds_no_hashes_is_refused(
    tmp_path: Path, columns: dict[str, Any], error: type[CoyoError], message: str
) -> None:
    path = write_table(tmp_path / "bare.parquet", **columns)
    with pytest.raises(error, match=message):
        read_evaluation(path)
    if "id" not in columns:
        ids = pa.array(range(len(columns["phash"])), pa.int64())
        write_table(tmp_path / "pool" / "1.parquet", id=ids, **columns)
        with pytest.raises(error, match=message):
            read_evaluation(tmp_path / "pool")


def test_a_folder_of_parquet_without_ids_is_told_what_to_name(tmp_path: Path) -> None:
    write_table(tmp_path / "set" / "captions.parquet", phash=HASHES)
    with pytest.raises(ColumnError, match=r"no column `id`(?s:.*)One parquet file needs no `id`"):
        read_evaluation(tmp_path / "set")


def test_malformed_hashes_are_counted_in_all_row_groups(tmp_path: Path) -> None:
    texts = [*HASHES, "bad", *HASHES, "worse"]
    pq.write_table(pa.table({"phash": texts}), tmp_path / "bare.parquet", row_group_size=3)
    with pytest.raises(ColumnError, match=r"2 of the 10 rows .* such as 'bad'"):
        read_evaluation(tmp_path / "bare.parquet")


def test_hashes_cant_be_turned(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.parquet", id=[1], image_phash=HASHES[:1])
    with pytest.raises(SourceError, match="give the folder of the pictures themselves"):
        read_evaluation(path, augment=True)


def test_damaged_and_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    rows = pa.table({"phash": [f"{n:016x}" for n in range(5000)]})
    whole = tmp_path / "whole.parquet"
    pq.write_table(rows, whole, compression="none")
    raw = whole.read_bytes()
    (tmp_path / "short.parquet").write_bytes(raw[:-100])
    (tmp_path / "text.parquet").write_text("id,phash")
    (tmp_path / "pages.parquet").write_bytes(raw[:4] + bytes(2000) + raw[2004:])
    for name in ("short", "text", "pages"):
        with pytest.raises(SourceError, match=rf"{name}\.parquet (is not|can't be)"):
            read_evaluation(tmp_path / f"{name}.parquet")
    for read in (read_evaluation, evaluation_fingerprint):
        with pytest.raises(SourceError, match="none does not exist"):
            read(tmp_path / "none")
        with pytest.raises(SourceError, match="No file matches"):
            read(f"{folder}/*.tar")


# --- pictures ------------------------------------------------------------------------------------


def stored_hash(path: Path) -> str:
    return phash(Image.open(path))


def test_a_folder_is_hashed_and_what_is_no_picture_is_named(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = read_evaluation(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert list(evaluation.names) == ["b.png", "flat.png", "sub/a.jpg"]
    assert digits(evaluation) == [stored_hash(folder / name) for name in evaluation.names]
    assert evaluation.turns.tolist() == [0, 0, 0]
    assert (evaluation.pictures, evaluation.without_hash) == (3, 0)
    assert evaluation.refused == (
        (".DS_Store", "hidden file (its name begins with a dot)"),
        ("notes.txt", "not an image (starts with b'notes')"),
    )
    assert seen[-1] == (5, 5)


def test_augmented_pictures_come_in_all_ways_they_can_lie_flat_ones_once(folder: Path) -> None:
    evaluation = read_evaluation(folder, augment=True, processes=1)
    rows = list(zip(evaluation.names, evaluation.turns.tolist(), digits(evaluation), strict=True))
    assert [row[:2] for row in rows] == [
        *[("b.png", turn) for turn in range(8)],
        ("flat.png", 0),
        *[("sub/a.jpg", turn) for turn in range(8)],
    ]
    for name, turn, hash_ in rows:
        image = Image.open(folder / name)
        way = Image.Transpose[TURNS[turn].upper()] if turn else None
        assert hash_ == phash(image if way is None else image.transpose(way))
    assert evaluation.turns.dtype == np.uint8
    assert evaluation.pictures == 3


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_copy_of_half_the_size_is_near_one_of_the_hashes(
    tmp_path: Path, turn: int
) -> None:
    image = picture(7, (300, 200))
    (tmp_path / "one.png").write_bytes(encoded(image, "PNG"))
    small = image.resize((150, 100), Image.Resampling.LANCZOS)
    copy = small if turn == 0 else small.transpose(Image.Transpose(turn - 1))
    served = Image.open(io.BytesIO(encoded(copy, "JPEG", quality=70)))
    evaluation = read_evaluation(tmp_path / "one.png", augment=True)
    bits = np.bitwise_count(evaluation.hashes ^ np.uint64(int(phash(served), 16)))
    assert evaluation.turns[bits <= 4].tolist() == [turn]
    assert set(evaluation.names) == {"one.png"}


def test_a_folder_without_a_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyResultError, match=r"no picture that can be hashed\. Files: none"):
        read_evaluation(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text("id,phash")
    with pytest.raises(EmptyResultError, match=re.escape("1 refused; the first: a.csv: not an im")):
        read_evaluation(tmp_path / "texts")
    with pytest.raises(
        EmptyResultError, match="is a folder of pictures, shards, a parquet file with a col"
    ):
        read_evaluation(tmp_path / "texts" / "a.csv")


def test_the_fingerprint_is_of_names_and_content(folder: Path) -> None:
    before = evaluation_fingerprint(folder)
    assert read_evaluation(folder).input.fingerprint == before
    assert read_evaluation(folder, augment=True).input.fingerprint == before
    (folder / ".DS_Store").write_bytes(b"Bud2")
    assert evaluation_fingerprint(folder) == before
    (folder / "b.png").rename(folder / "c.png")
    renamed = evaluation_fingerprint(folder)
    changed = bytearray((folder / "c.png").read_bytes())
    changed[-20] ^= 1
    (folder / "c.png").write_bytes(changed)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    assert len({before, renamed, evaluation_fingerprint(folder)}) == 3


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Samples with a hash in their json, with a bad one, without json, and of no picture."""
    path = tmp_path / "shards"
    path.mkdir()
    rows: list[tuple[str, bytes, dict[str, Any] | None]] = [
        ("1", encoded(picture(1), "JPEG"), {"id": 1, "image_phash": HASHES[1]}),
        ("2", encoded(picture(2), "JPEG"), {"id": 2, "image_phash": "no hash"}),
        ("three", encoded(picture(3), "PNG"), None),
        ("4", b"no picture", {"id": 4}),
    ]
    with tarfile.open(path / "00000.tar", "w") as tar:
        for key, data, row in rows:
            files = {"jpg": data} | ({} if row is None else {"json": json.dumps(row).encode()})
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (path / "00001.tar").write_bytes(b"cut short")
    write_table(path / "ledger.parquet", id=[1])
    return path


def test_shards_give_the_hashes_of_their_rows_else_of_their_pictures(shards: Path) -> None:
    evaluation = read_evaluation(shards, processes=1)
    hashed = [phash(Image.open(io.BytesIO(encoded(picture(2), "JPEG")))), phash(picture(3))]
    assert digits(evaluation) == [HASHES[1], *hashed]
    assert list(evaluation.names) == ["1", "2", "three"]
    assert evaluation.pictures == 3
    assert [name for name, _ in evaluation.refused] == ["4", "00001.tar"]
    assert evaluation.input.fingerprint == evaluation_fingerprint(shards)


def test_shards_can_be_turned_too_and_keep_the_hash_of_their_row(shards: Path) -> None:
    evaluation = read_evaluation(shards, augment=True, processes=1)
    first = [
        turn for turn, name in zip(evaluation.turns, evaluation.names, strict=True) if name == "1"
    ]
    assert first == list(range(8))
    assert digits(evaluation)[0] == HASHES[1]
    assert digits(evaluation)[1] != HASHES[1]


def test_a_tar_that_changes_changes_the_fingerprint(shards: Path) -> None:
    before = evaluation_fingerprint(shards)
    with (shards / "00001.tar").open("ab") as file:
        file.write(b" and longer")
    assert evaluation_fingerprint(shards) != before
