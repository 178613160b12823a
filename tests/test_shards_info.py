"""`coyo shards info`: what is counted, what is told, and that nothing hostile gets through."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from making import coyo, encoded, names_in, picture
from PIL import Image, ImageFont

from coyo_tools.errors import OutputError, SourceError
from coyo_tools.index import index_pictures
from coyo_tools.picture_sizes import picture_size
from coyo_tools.sample_grid import fold
from coyo_tools.shard_tally import OTHERS
from coyo_tools.shards import ShardWriter, read_samples
from coyo_tools.shards_info import ShardsInfo, shards_info

SAMPLES = 10
SIZES = [(96, 72), (60, 200), (300, 120), (40, 40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards as `coyo index` makes them: ten pictures, four to a tar, one caption refused."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(SAMPLES):
        picture(seed, SIZES[seed % 4]).save(folder / f"{seed}.png")
    rows = [{"file": f"{seed}.png", "text": "ab" * (seed + 1), "x": None} for seed in range(10)]
    rows.append({"file": "none.png", "text": "nobody", "x": 1})
    pl.DataFrame(rows).write_parquet(folder / "captions.parquet")
    index_pictures(
        folder / "captions.parquet", folder / "out", image_column="file", text_column="text",
        samples_per_shard=4, processes=1,
    )  # fmt: skip
    return folder / "out" / "shards"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy of them, to be harmed."""
    return shutil.copytree(made, tmp_path / "shards")


def faults(info: ShardsInfo) -> dict[str, int]:
    return {fault.reason: fault.count for fault in info.faults}


def put(tar: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


# --- what is counted -----------------------------------------------------------------------------


def test_everything_is_counted(made: Path) -> None:
    info = shards_info(made)
    assert (info.tars, info.samples, info.whole) == (3, SAMPLES, SAMPLES)
    assert info.files == {"jpg": SAMPLES, "txt": SAMPLES, "json": SAMPLES}
    tars = {path.name: path.stat().st_size for path in made.glob("*.tar")}
    assert info.bytes == sum(tars.values())
    assert (info.smallest.bytes, info.largest.bytes) == (min(tars.values()), max(tars.values()))
    kept = [read_samples(made, {seed: f"{seed // 4:05d}.tar"})[seed] for seed in range(SAMPLES)]
    sizes = [Image.open(io.BytesIO(sample.jpeg)).size for sample in kept]
    for spread, values in (
        (info.width, [width for width, _ in sizes]),
        (info.height, [height for _, height in sizes]),
        (info.caption_length, [len(sample.text) for sample in kept]),
        (info.picture_bytes, [len(sample.jpeg) for sample in kept]),
    ):
        middle = sorted(values)[(len(values) - 1) // 2]
        assert (spread.count, spread.min, spread.max) == (SAMPLES, min(values), max(values))
        assert spread.median == pytest.approx(middle, rel=2**-11)
    assert {c.name: (c.samples, c.nulls) for c in info.columns}["x"] == (SAMPLES, SAMPLES)
    assert info.ledger is not None
    assert info.ledger.outcomes == {"ok": SAMPLES, "missing file": 1}
    assert (info.ledger.ok, info.ledger.not_found, info.ledger.not_in_ledger) == (SAMPLES, 0, 0)
    assert (info.faults, info.missing) == ((), ())


def test_the_command_prints_and_says_by_its_exit_code_whether_all_is_well(shards: Path) -> None:
    well = coyo("shards", "info", shards)
    assert (well.returncode, "All 10 ok rows" in well.stderr) == (0, True)
    assert "missing file" in well.stdout
    (shards / "00001.tar").write_bytes((shards / "00001.tar").read_bytes()[:5000])
    harmed = coyo("shards", "info", shards, "--json")
    assert harmed.returncode == 1
    said = {fault["reason"] for fault in json.loads(harmed.stdout)["faults"]}
    assert said >= {"cut short or damaged", "in the ledger, but not in the tar it names"}


def test_shards_of_img2dataset_are_looked_at_too(tmp_path: Path) -> None:
    """Keys are positions, the json has img2dataset's fields, there is no ledger."""
    for number in range(2):
        with tarfile.open(tmp_path / f"{number:05d}.tar", "w") as tar:
            for place in range(3):
                key = f"{number:05d}{place:04d}"
                row = {"url": "http://x/", "key": key, "status": "success", "exif": "{}"}
                put(tar, f"{key}.jpg", encoded(picture(place)))
                if place != 1 or number:
                    put(tar, f"{key}.txt", b"words" if place else b" ")
                put(tar, f"{key}.json", json.dumps(row).encode())
        pl.DataFrame({"key": ["a"]}).write_parquet(tmp_path / f"{number:05d}.parquet")
    info = shards_info(tmp_path)
    assert (info.samples, info.whole, info.empty_captions) == (6, 5, 2)
    assert info.ledger is None
    assert faults(info) == {"sample without .txt": 1}
    assert [note.split(",")[0] for note in info.missing] == [
        "no ledger.parquet", "no manifest.json",
        "6 samples have no id in a .json: keys may be positions",
    ]  # fmt: skip


def test_columns_that_strangers_invent_do_not_fill_the_memory(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as shard:
        for id_ in range(3):
            shard.add(id_, b"", "a", {"id": id_} | {f"{id_} {n}": n for n in range(800)})
    columns = {column.name: column.samples for column in shards_info(tmp_path).columns}
    assert len(columns) == 1001
    assert columns[OTHERS] == 3 * 801 - 3 - 999


# --- a silent loss shows -------------------------------------------------------------------------


def rewritten(path: Path, keep: Callable[[str], bool]) -> list[tuple[str, bytes]]:
    """Leave files out of a tar; return those."""
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            if keep(name):
                put(tar, name, data)
    return [(name, data) for name, data in files if not keep(name)]


def test_a_sample_that_is_lost_shows(shards: Path) -> None:
    rewritten(shards / "00000.tar", lambda name: not name.startswith("2."))
    info = shards_info(shards)
    assert faults(info) == {"in the ledger, but not in the tar it names": 1}
    assert info.ledger is not None
    assert info.ledger.not_found == 1


def test_half_a_sample_shows(shards: Path) -> None:
    rewritten(shards / "00000.tar", lambda name: name != "2.txt")
    assert faults(shards_info(shards)) == {
        "sample without .txt": 1,
        "in the ledger, but not whole in the tar it names": 1,
    }


def test_a_sample_in_another_tar_shows_from_both_sides(shards: Path) -> None:
    moved = rewritten(shards / "00000.tar", lambda name: not name.startswith("2."))
    with tarfile.open(shards / "00001.tar", "a") as tar:
        for name, data in moved:
            put(tar, name, data)
    assert faults(shards_info(shards)) == {
        "in the ledger, but not in the tar it names": 1,
        "in a tar, but not by the ledger": 1,
    }


def test_a_sample_that_is_there_twice_shows(shards: Path) -> None:
    shutil.copy(shards / "00000.tar", shards / "00009.tar")
    info = shards_info(shards)
    assert faults(info) == {
        "in a tar, but not by the ledger": 4,
        "key that several samples have": 4,
    }
    assert "0: 2 in 00000.tar, 00009.tar" in info.faults[1].examples


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda ledger: ledger.filter(pl.col("id") != 3),
            {"in a tar, but not by the ledger": 1, "manifest.json that is not true": 3},
        ),
        (
            lambda ledger: ledger.with_columns(
                shard=pl.when(pl.col("id") != 3).then(pl.col("shard"))
            ),
            {"ok in the ledger, but no shard named": 1, "in a tar, but not by the ledger": 1},
        ),
        (
            lambda ledger: pl.concat([ledger, ledger.filter(pl.col("id") == 10)]),
            {"id twice in the ledger": 1, "manifest.json that is not true": 1},
        ),
        (lambda ledger: ledger.drop("outcome"), {"unreadable ledger.parquet": 1}),
    ],
)
def test_a_ledger_that_is_not_true_shows(
    shards: Path, change: Callable[[pl.DataFrame], pl.DataFrame], said: dict[str, int]
) -> None:
    ledger = pl.read_parquet(shards / "ledger.parquet")
    change(ledger).write_parquet(shards / "ledger.parquet")
    assert faults(shards_info(shards)) == said


def test_a_ledger_or_manifest_that_is_broken_is_a_fault(shards: Path) -> None:
    (shards / "ledger.parquet").write_bytes(b"PAR1 and nothing else")
    (shards / "manifest.json").write_text("{")
    assert faults(shards_info(shards)) == {
        "unreadable ledger.parquet": 1,
        "unreadable manifest.json": 1,
    }


def test_a_row_under_another_key_shows(shards: Path) -> None:
    with ShardWriter(shards / "00000.tar") as shard:
        for id_ in range(4):
            shard.add(id_, encoded(picture(id_)), "text", {"id": id_ if id_ != 2 else 3})
    assert faults(shards_info(shards)) == {"id in the .json that is not the key": 1}


# --- what strangers make -------------------------------------------------------------------------


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def negative(name: str) -> bytes:
    """A header whose size is -512: next to endless for a reader that believes it."""
    raw = bytearray(header(name, 0))
    raw[124:136] = b"\xff" * 10 + b"\xfe\x00"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


BROKEN = {
    "empty": (b"", "the file is empty"),
    "noise": (bytes(range(256)) * 20, "invalid header"),
    "ten gigabytes": (header("1.jpg", 10 * 2**30) + b"x" * 900, "claims 10,737,418,240 bytes"),
    "long name": (header("x", 2**31, tarfile.GNUTYPE_LONGNAME) + b"n" * 600, "claims 2,147,"),
    "negative": (negative("1.jpg") * 3 + bytes(1024), "claims an impossible size"),
    "endless headers": (header("p", 0, tarfile.XHDTYPE) * 3000, "recursion"),
    "no end": (header("1.jpg", 0), "no end mark at byte 512"),
    "half a header": (header("1.jpg", 0) + b"2.jpg", ""),
    "then noise": (header("1.jpg", 0) + bytes(range(256)) * 8, "no end mark"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tar_is_one_fault_and_the_others_are_read(tmp_path: Path, kind: str) -> None:
    data, said = BROKEN[kind]
    (tmp_path / "0.tar").write_bytes(data)
    with ShardWriter(tmp_path / "1.tar") as shard:
        shard.add(7, encoded(picture(1)), "text", {"id": 7})
    info = shards_info(tmp_path)
    found = {fault.reason: fault for fault in info.faults}
    assert found["cut short or damaged"].count == 1
    assert said in found["cut short or damaged"].examples[0]
    assert info.width.count == 1


def test_nothing_is_written_anywhere_and_no_link_followed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shards"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        put(tar, "../../escaped.jpg", b"x")
        put(tar, f"{tmp_path}/absolute.jpg", b"x")
        put(tar, "1.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        put(tar, "2.jpg", b"", type=tarfile.CHRTYPE)
        put(tar, "folder", b"", type=tarfile.DIRTYPE)
        put(tar, "folder/\x1b[31ma.b.jpg", encoded(picture(1)))
        put(tar, "folder/\x1b[31ma.txt", b"\xff\xfe")
        put(tar, "folder/\x1b[31ma.json", b"[" * 100_000)
        put(tar, "folder/\x1b[31ma.txt", b"again")
    os.mkfifo(folder / "1.tar")
    ran = coyo("shards", "info", folder, "--grid", tmp_path / "grid.png")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    assert faults(shards_info(folder)) == {
        "named like a tar, but no file": 1,
        "unsafe name": 2,
        "no regular file": 2,
        "a file twice in a sample": 1,
        "caption that is no UTF-8": 1,
        ".json that holds no row": 1,
    }
    assert names_in(tmp_path, folder.parent, folder) == {
        "deep", "grid.png", "shards", "0.tar", "1.tar",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "does not exist"), ("file", "is not a directory"), ("empty", "holds no .tar"),
        ("made", "Use .*shards"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_no_shards_is_one_message(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "made" / "shards").mkdir(parents=True)
    with pytest.raises(SourceError, match=said):
        shards_info(tmp_path / name)


# --- the grid ------------------------------------------------------------------------------------


def test_the_grid_shows_samples_of_all_tars_the_same_for_a_seed(made: Path, tmp_path: Path) -> None:
    def drawn(seed: int) -> bytes:
        info = shards_info(made, grid=tmp_path / "grid.png", samples=6, seed=seed)
        assert info.drawn == 6
        return (tmp_path / "grid.png").read_bytes()

    assert drawn(0) == drawn(0) != drawn(1)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG"
        assert grid.size[0] == 16 + 3 * (224 + 16)
        colours = grid.getcolors(grid.width * grid.height)
        assert colours is not None
        assert len(colours) > 1000  # pictures are in it


def test_the_grid_draws_any_letters_and_a_place_for_what_is_no_picture(tmp_path: Path) -> None:
    texts = ["قطة حمراء على سجادة", "赤い猫", "🇰🇷", "", "\x1b[0m\n\u202e", "w" * 5000, "naïve"]
    with ShardWriter(tmp_path / "0.tar") as shard:
        for id_, text in enumerate(texts):
            jpeg = encoded(picture(id_)) if id_ else b"\xff\xd8 no picture"
            shard.add(id_, jpeg, text, {"id": id_})
    info = shards_info(tmp_path, grid=tmp_path / "grid.JPG")
    assert info.drawn == len(texts) - 1
    with Image.open(tmp_path / "grid.JPG") as grid:
        assert grid.format == "JPEG"
    with ShardWriter(tmp_path / "0.tar"):
        pass
    assert shards_info(tmp_path, grid=tmp_path / "grid.JPG").drawn == 0


def test_a_grid_that_cant_be_written_is_refused_before_the_tars_are_read(
    made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(OutputError, match="Let it end in"):
        shards_info(made, grid=made / "grid.gif")
    with pytest.raises(OutputError, match="is a directory"):
        shards_info(made, grid=folder)


def test_captions_are_folded_at_blanks_and_end_in_an_ellipsis() -> None:
    font = ImageFont.load_default(14)
    wide = int(font.getlength("some words here"))
    assert fold("some words", font, wide, 2) == ["some words"]
    assert fold("some words here and there", font, wide, 2) == ["some words here", "and there"]
    long = fold("some words here " * 9, font, wide, 2)
    assert long[0] == "some words here"
    assert long[1].endswith("…")
    assert all(font.getlength(line) <= wide for line in long)
    assert fold("", font, wide, 2) == []
    assert len(fold("x" * 300, font, wide, 2)) == 2
    assert fold("xyz", font, 0, 2)  # ends even where nothing fits


# --- sizes from headers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + b"x" * 60_000}), ("JPEG", {"comment": b"\xff\xc0" * 999}),
        ("PNG", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0x"}),
    ],
)  # fmt: skip
def test_sizes_are_read_from_the_header(kind: str, options: dict[str, Any]) -> None:
    for size in ((96, 72), (1, 300), (301, 2)):
        data = encoded(picture(1, size), kind, **options)
        assert picture_size(data) == size
        for length in range(0, 64, 3):
            assert picture_size(data[:length]) in (None, size)


def test_what_gives_no_size_gives_none() -> None:
    for data in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 99,
        b"<html>",
        encoded(picture(1), "GIF"),
    ):
        assert picture_size(data) is None
