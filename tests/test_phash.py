"""image_phash: COYO's definition, checked against one written out by hand, and its command."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import coyo, encoded, picture
from PIL import Image
from scipy.fft import dctn
from typer.testing import CliRunner, Result

from coyo_tools.cli import app
from coyo_tools.decoding import hash_picture
from coyo_tools.errors import SourceError
from coyo_tools.hashing import HIDDEN, files_under
from coyo_tools.phash import PHASH_BITS, TURNS, hamming, phash, turned_phashes
from coyo_tools.pictures import Refusal

HASHES = st.integers(min_value=0, max_value=2**64 - 1).map("{:016x}".format)


def by_hand(image: Image.Image) -> str:
    """The 8 by 8 lowest frequencies of 32 by 32 greys, cut at their median, row by row."""
    greys = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = dctn(greys)[:8, :8]
    bits = (low > np.median(low)).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_the_one_written_out_by_hand(seed: int) -> None:
    assert phash(picture(seed)) == by_hand(picture(seed))


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_pictures_have_half_their_bits_set_the_first_among_them(seed: int) -> None:
    bits = int(phash(picture(seed)), 16)
    assert bits.bit_count() == PHASH_BITS // 2
    assert bits >> 63 == 1


def test_flat_pictures_have_the_hashes_that_facts_gives_them() -> None:
    assert phash(Image.new("RGB", (40, 30), "black")) == "0000000000000000"
    assert phash(Image.new("RGB", (40, 30), "orange")) == "8000000000000000"


def test_reencoding_moves_the_hash_less_than_another_picture_does() -> None:
    one = picture(1)
    again = Image.open(io.BytesIO(encoded(one, "JPEG", quality=60)))
    assert hamming(phash(one), phash(again)) <= 4
    assert hamming(phash(one), phash(picture(2))) > 8


def test_the_mode_of_a_grey_picture_does_not_matter() -> None:
    grey = picture(3).convert("L")
    assert phash(grey) == phash(grey.convert("RGB")) == phash(grey.convert("RGBA"))


@given(HASHES, HASHES, HASHES)
def test_hamming_is_a_distance(one: str, two: str, three: str) -> None:
    assert hamming(one, one) == 0
    assert hamming(one, two) == hamming(two, one)
    assert hamming(one, three) <= hamming(one, two) + hamming(two, three)


@given(HASHES, st.sets(st.integers(0, 63)))
def test_hamming_counts_flipped_bits(one: str, flipped: set[int]) -> None:
    mask = sum(1 << bit for bit in flipped)
    assert hamming(one, f"{int(one, 16) ^ mask:016x}") == len(flipped)
    assert hamming(one.upper(), one) == 0


# --- turned pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_turned_hashes_are_those_of_the_turned_pictures(mode: str) -> None:
    image = picture(5, (61, 40))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    by_hand = [phash(image), *(phash(image.transpose(turn)) for turn in Image.Transpose)]
    assert list(turned_phashes(image)) == by_hand
    assert len(set(by_hand)) == len(TURNS) == 8


def test_turns_are_named_as_pillow_names_them() -> None:
    assert TURNS == (
        "as_is", "flip_left_right", "flip_top_bottom", "rotate_90", "rotate_180", "rotate_270",
        "transpose", "transverse",
    )  # fmt: skip


def test_files_are_hashed_as_they_are_stored() -> None:
    """Not turned as EXIF says, before any resizing, with what is transparent as it is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encoded(picture(1, (800, 500)), "JPEG", exif=exif),
        encoded(picture(2).convert("RGBA"), "PNG"),
        encoded(picture(3).convert("CMYK"), "JPEG"),
    ):
        image = Image.open(io.BytesIO(data))
        assert hash_picture(data) == (phash(image),)
        assert hash_picture(data, turns=True) == turned_phashes(image)


def test_what_cant_be_decoded_has_no_hash() -> None:
    assert hash_picture(b"<html>") == Refusal("not an image", "an HTML page")
    refused = hash_picture(encoded(picture(1))[:900], turns=True)
    assert isinstance(refused, Refusal)
    assert refused.reason == "undecodable"


# --- coyo phash ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, two of them deeper, and what lies in folders besides."""
    for number, name in enumerate(("b.png", "a.jpg", "sub/c.webp", "sub/deep/d", "z.gif")):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}.get(path.suffix, "PNG")
        path.write_bytes(encoded(picture(number), kind))
    (tmp_path / "folder" / ".DS_Store").write_bytes(b"Bud1")
    return tmp_path / "folder"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["phash", *map(str, arguments)], prog_name="coyo")


def hash_of(path: Path) -> str:
    return phash(Image.open(path))


def test_a_line_is_a_hash_and_a_name(folder: Path) -> None:
    shown = run(folder / "b.png", folder / "a.jpg")
    assert shown.exit_code == 0
    assert shown.stdout == "".join(
        f"{hash_of(folder / name)}  {folder / name}\n" for name in ("b.png", "a.jpg")
    )


def test_a_folder_is_all_its_pictures_by_name(folder: Path) -> None:
    shown = run(folder)
    assert shown.exit_code == 0, "a hidden file is nobody's fault"
    names = ["a.jpg", "b.png", "sub/c.webp", "sub/deep/d", "z.gif"]
    lines = [line.split("  ") for line in shown.stdout.splitlines()]
    assert lines == [[hash_of(folder / name), str(folder / name)] for name in names]
    assert shown.stderr == f"{folder}/.DS_Store: hidden file (its name begins with a dot)\n"


def test_what_is_no_picture_is_named_and_the_others_come(folder: Path, tmp_path: Path) -> None:
    (folder / "page.jpg").write_text("<html>")
    (tmp_path / "empty").mkdir()
    shown = run(folder / "none.png", folder, tmp_path / "empty")
    assert shown.exit_code == 2
    assert len(shown.stdout.splitlines()) == 5
    assert shown.stderr.splitlines() == [
        f"{folder}/none.png: missing file (No such file or directory)",
        f"{folder}/.DS_Store: hidden file (its name begins with a dot)",
        f"{folder}/page.jpg: not an image (an HTML page)",
        f"{tmp_path}/empty: no picture (the folder is empty)",
    ]


def test_json_has_hashes_and_names(folder: Path) -> None:
    shown = run("--json", folder / "a.jpg", folder / "none.png")
    assert shown.exit_code == 2
    assert json.loads(shown.stdout) == [
        {"image_phash": hash_of(folder / "a.jpg"), "file": f"{folder}/a.jpg"}
    ]


def test_names_that_are_commands_to_a_terminal_or_no_utf8_are_printed_harmlessly(
    tmp_path: Path,
) -> None:
    (tmp_path / "red\x1b[31m.png").write_bytes(encoded(picture(0), "PNG"))
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(picture(1)))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    shown = coyo("phash", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"{phash(picture(0))}  {tmp_path}/red�[31m.png",
        f"{hash_of(Path(os.fsdecode(os.fsencode(tmp_path) + bytes([47, 255]) + b'.png')))}  "
        f"{tmp_path}/�.png",
    ]
    assert len(json.loads(run("--json", tmp_path).stdout)) == 2


def test_folders_are_looked_over_without_hanging_or_going_round(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / ".git").mkdir()
    (folder / ".git" / "logo.png").write_bytes(encoded(picture(9), "PNG"))
    os.mkfifo(folder / "pipe.png")
    listed = dict(files_under(folder))
    assert list(listed) == sorted(listed)
    assert listed["sub/loop"] == Refusal("linked folder", "links to folders are not followed")
    assert listed["pipe.png"] == Refusal("not an image", "not a regular file")
    assert listed[".git"] == listed[".DS_Store"] == HIDDEN
    assert listed["gone.png"] == folder / "gone.png"
    assert {name for name in listed if name.startswith(".git/")} == set()
    shown = run(folder)
    assert shown.exit_code == 2
    assert len(shown.stdout.splitlines()) == 5
    assert "gone.png: missing file" in shown.stderr


def test_compare_prints_both_hashes_and_the_distance(folder: Path) -> None:
    one, other = folder / "a.jpg", folder / "b.png"
    apart = hamming(hash_of(one), hash_of(other))
    shown = run("--compare", one, other)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        f"{hash_of(one)}  {one}",
        f"{hash_of(other)}  {other}",
        f"{apart} of 64 bits differ",
    ]
    mixed = run("--compare", one, hash_of(other).upper(), "--json")
    assert json.loads(mixed.stdout) == {
        "one": hash_of(one), "other": hash_of(other), "distance": apart,
    }  # fmt: skip


@given(HASHES, HASHES)
def test_compare_takes_hashes(one: str, other: str) -> None:
    shown = run("--compare", one, other)
    assert shown.stdout.splitlines()[-1] == f"{hamming(one, other)} of 64 bits differ"


def test_a_file_named_like_a_hash_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "0123456789abcdef"
    Path(name).write_bytes(encoded(picture(3), "PNG"))
    assert run("--compare", name, name).stdout.startswith(f"{phash(picture(3))}  {name}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("aca29c1c33dc23d", "neither a file nor a hash of 16 hex digits"),
        ("aca29c1c33dc23dg", "neither a file nor a hash of 16 hex digits"),
        (".", "is a folder"),
        ("page.jpg", r"page.jpg can't be hashed: not an image \(an HTML page\)"),
    ],
)
def test_compare_says_what_it_cant_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("page.jpg").write_text("<html>")
    with pytest.raises(SourceError, match=message):
        CliRunner().invoke(app, ["phash", "--compare", "a.jpg", given], catch_exceptions=False)


def test_compare_takes_two(folder: Path) -> None:
    shown = run("--compare", folder / "a.jpg")
    assert shown.exit_code == 2
    assert "two pictures or hashes, not 1" in shown.stderr
