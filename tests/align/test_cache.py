"""The cache: whole or not there, of what was asked for or not used."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.data import Pairs, load_pairs
from coyo_align.input.images import image_processor, preprocess_of

from align.making import encoded, sample, square, squares, write_tar

SMALL = preprocess_of(image_processor(32))


def load(shards: Path, cache: Path, side: int = 32) -> Pairs:
    return load_pairs(shards, preprocess_of(image_processor(side)), cache=cache, workers=1)


def pixels_dirs(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def assert_same(one: Pairs, two: Pairs) -> None:
    rows = np.arange(len(one))
    assert one.captions == two.captions
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.images.take(rows), two.images.take(rows))


def test_it_is_built_once_and_found_again(shards: Path, tmp_path: Path) -> None:
    built = load(shards, tmp_path / "cache")
    found = load(shards, tmp_path / "cache")
    assert (built.cache_built, found.cache_built) == (True, False)
    assert built.decode_seconds > 0
    assert built.pictures_per_second > 0
    assert found.decode_seconds == 0
    assert_same(built, found)
    assert_same(built, load_pairs(shards, SMALL))
    [name] = pixels_dirs(tmp_path / "cache")
    about = json.loads((tmp_path / "cache" / name / "cache.json").read_text())
    assert about["pictures"] == 36
    assert about["seconds"] > 0
    assert np.load(tmp_path / "cache" / name / "pixels.npy", mmap_mode="r").shape[1:] == (32, 32, 3)


def test_bad_pictures_leave_no_row(tmp_path: Path) -> None:
    red = encoded(square("red", "left", "white"))
    blue = encoded(square("blue", "left", "white"))
    made = [sample(1, b"bad", "bad"), sample(2, red, "red"), sample(3, blue, "blue")]
    write_tar(tmp_path / "s" / "0.tar", made)
    for _ in ("built", "found"):
        pairs = load(tmp_path / "s", tmp_path / "cache")
        assert (len(pairs), pairs.skipped) == (2, {"picture does not decode": 1})
        assert_same(pairs, load_pairs(tmp_path / "s", SMALL))


def test_all_bad_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "0.tar", [sample(1, b"bad", "bad")])
    with pytest.raises(AlignError, match="1 picture does not decode"):
        load(tmp_path / "s", tmp_path / "cache")


def test_other_geometry_other_tars_and_other_times_are_built_beside(tmp_path: Path) -> None:
    shards, cache = tmp_path / "s", tmp_path / "cache"
    write_tar(shards / "0.tar", squares(1)[:3])
    assert load(shards, cache).cache_built
    assert load(shards, cache, side=16).cache_built
    write_tar(shards / "1.tar", squares(1)[3:5])
    assert load(shards, cache).cache_built
    os.utime(shards / "0.tar", ns=(1, 1))
    assert load(shards, cache).cache_built
    assert len(pixels_dirs(cache)) == 4
    assert not load(shards, cache).cache_built


@pytest.mark.parametrize("damage", ["cut pixels", "no codes", "no pixels"])
def test_a_damaged_cache_is_built_again(shards: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    whole = load(shards, cache)
    [name] = pixels_dirs(cache)
    if damage == "cut pixels":
        os.truncate(cache / name / "pixels.npy", 1_000)
    else:
        (cache / name / f"{damage[3:]}.npy").unlink()
    again = load(shards, cache)
    assert again.cache_built
    assert_same(again, load_pairs(shards, SMALL))
    assert len(whole) == 36


LOAD = """
import sys
from pathlib import Path
from coyo_align.input.data import load_pairs
from coyo_align.errors import AlignError
from coyo_align.input.images import Geometry, Preprocess
small = Preprocess(Geometry((32, 32), 2), (1.0,) * 3, (0.0,) * 3)
try:
    load_pairs(Path(sys.argv[1]), small, cache=Path(sys.argv[2]), workers=1)
except AlignError as error:
    print(error)
"""
SLOW = """
import time
import coyo_align.input.cache as cache
def slow_save(*_):
    print("building", flush=True)
    time.sleep(60)
cache.np.save = slow_save
"""
FULL = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


def test_a_killed_build_leaves_nothing_that_looks_whole(shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", SLOW + LOAD, str(shards), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        os.kill(builder.pid, signal.SIGKILL)
    [left] = pixels_dirs(cache)
    assert left.endswith(".partial")
    assert load(shards, cache).cache_built
    [name] = pixels_dirs(cache)
    assert not name.endswith(".partial")


def test_a_second_run_waits_and_uses_what_the_first_has_built(shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ready = load(shards, tmp_path / "elsewhere")
    cache.mkdir()
    found: list[Pairs] = []
    with (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiter = threading.Thread(target=lambda: found.append(load(shards, cache)))
        waiter.start()
        time.sleep(1)
        assert waiter.is_alive()
        [name] = pixels_dirs(tmp_path / "elsewhere")
        shutil.copytree(tmp_path / "elsewhere" / name, cache / name)
    waiter.join()
    assert not found[0].cache_built
    assert_same(found[0], ready)


def test_no_room_is_said_before_anything_is_decoded(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1_234)
    monkeypatch.setattr("coyo_align.input.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(AlignError, match=r"needs 110,592 bytes .* 1,234 are free"):
        load(shards, tmp_path / "cache")
    assert pixels_dirs(tmp_path / "cache") == []


def test_a_full_disk_is_no_traceback(shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL + LOAD, str(shards), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "needs 110,592 bytes" in done.stdout
    assert pixels_dirs(tmp_path / "c") == []


def test_a_cache_that_can_not_be_written_is_said(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AlignError, match=r"file can't be written"):
        load(shards, tmp_path / "file")


def test_a_run_on_some_of_the_samples_reads_the_cache_of_all(shards: Path, tmp_path: Path) -> None:
    cache, some = tmp_path / "cache", tmp_path / "some.parquet"
    every = load(shards, cache)
    pl.DataFrame({"id": every.ids[5:30:3]}).write_parquet(some)
    found = load_pairs(shards, SMALL, some, cache=cache, workers=1)
    assert (found.cache_built, len(pixels_dirs(cache))) == (False, 1)
    assert_same(found, load_pairs(shards, SMALL, some))
    rows = np.arange(5, 30, 3)
    np.testing.assert_array_equal(found.images.take(np.arange(9)), every.images.take(rows))


def test_a_cache_of_some_is_none_of_all(shards: Path, tmp_path: Path) -> None:
    cache, some = tmp_path / "cache", tmp_path / "some.parquet"
    pl.DataFrame({"id": load_pairs(shards, SMALL).ids[3:9]}).write_parquet(some)
    load_pairs(shards, SMALL, some, cache=cache, workers=1)
    assert_same(load(shards, cache), load_pairs(shards, SMALL))
    assert len(pixels_dirs(cache)) == 2
