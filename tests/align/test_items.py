"""Loose pictures go the way of those in shards; a model is known by what decides its answers."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.images import image_processor, open_picture, preprocess_of
from coyo_align.input.stream import stream
from coyo_align.using.fingerprint import fingerprint_of
from coyo_align.using.items import TOO_LONG, UNREADABLE, file_pairs, picture_files

from align.conftest import Trained
from align.making import encoded, square

PREPROCESS = preprocess_of(image_processor(16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    (tmp_path / "b.jpg").write_bytes(encoded(square("red", "left", "white"), quality=95))
    (tmp_path / "below" / "a.PNG").write_bytes(encoded(square("blue", "right", "grey"), "PNG"))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "notes.txt").write_text("not one")
    return tmp_path


def test_the_pictures_of_a_folder_are_found_below_it_too(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in picture_files(folder)]
    assert names == ["b.jpg", "below/a.PNG", "broken.jpg"]
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(AlignError, match="holds no picture"):
        picture_files(empty)
    with pytest.raises(AlignError, match="not a directory"):
        picture_files(folder / "b.jpg")


def test_pixels_are_those_of_pictures_in_shards_and_losses_are_counted(folder: Path) -> None:
    long = folder / "long.jpg"
    with long.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    files = [*picture_files(folder), folder / "gone.jpg"]
    pairs = file_pairs(files, PREPROCESS, workers=1)
    assert pairs.fields["key"] == [str(path) for path in files[:3]]
    batches = [(np.arange(len(pairs)), None)]
    with closing(stream(pairs, batches)) as pictures:
        ((rows, pixels),) = ((rows, pixels.copy()) for rows, pixels in pictures)
    assert rows.tolist() == [0, 1]
    for row, got in zip(rows, pixels, strict=True):
        wanted = PREPROCESS.resize(open_picture(files[row].read_bytes()))
        assert np.array_equal(got, wanted)
    assert pairs.skipped == {UNREADABLE: 1, TOO_LONG: 1, "picture does not decode": 1}


def test_nothing_readable_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"None of 1 pictures can be read: .*gone\.jpg"):
        file_pairs([tmp_path / "gone.jpg"], PREPROCESS)


def test_a_copy_has_the_same_fingerprint_and_any_change_another(
    trained: Trained, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained.run, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    first = fingerprint_of(trained.run)
    assert fingerprint_of(copy) == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint_of(copy) != first
    shutil.copy(trained.run / "model.safetensors", copy)
    assert fingerprint_of(copy) == first
    (copy / "processor_config.json").unlink()
    assert fingerprint_of(copy) != first
    with pytest.raises(AlignError, match=r"no config\.json"):
        fingerprint_of(tmp_path)
