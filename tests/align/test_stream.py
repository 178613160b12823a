"""Batches of pictures out of the tars: whole, in order, alike for any number of processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.data import Pairs, load_pairs
from coyo_align.input.images import image_processor, preprocess_of
from coyo_align.input.pictures import Decoded, InTars, Rows
from coyo_align.input.stream import stream

from align.making import squares, write_tar

SMALL = preprocess_of(image_processor(32))
BAD = (3, 7, 20, 21, 30)
Load = Callable[[Path], Pairs]

CRASHES = """
import os, signal
from PIL import Image
opened = Image.open
def open_or_crash(file, *arguments, **named):
    if file.getvalue() in (b"crash", b"eats all memory"):
        os.kill(os.getpid(), signal.SIGKILL if b"eats" in file.getvalue() else signal.SIGABRT)
    return opened(file, *arguments, **named)
Image.open = open_or_crash
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """36 samples in two tars, five of which are no pictures."""
    made = squares()
    for row in BAD:
        made[row][f"{100 + row}.jpg"] = b"bad"
    write_tar(tmp_path / "shards" / "0.tar", made[:20])
    write_tar(tmp_path / "shards" / "1.tar", made[20:])
    return tmp_path / "shards"


@pytest.fixture
def in_tars(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load as what is too large for the memory is loaded."""

    def load(shards: Path) -> Pairs:
        with monkeypatch.context() as patch:
            patch.setattr("coyo_align.input.data._IN_MEMORY", 0)
            pairs = load_pairs(shards, SMALL, workers=2)
        assert isinstance(pairs.images, InTars)
        return pairs

    return load


def batches(pairs: Pairs, count: int, size: int = 8) -> Iterator[tuple[Rows, Rows]]:
    random = np.random.default_rng(1)
    for _ in range(count):
        order = random.permutation(len(pairs))
        yield order[:size], order[size : 2 * size]


def copied(made: Iterator[tuple[Rows, np.ndarray]]) -> list[tuple[Rows, np.ndarray]]:
    return [(rows.copy(), pixels.copy()) for rows, pixels in made]


def test_rows_and_pixels_belong_together_wherever_they_are(
    damaged: Path, in_tars: Load, tmp_path: Path
) -> None:
    memory, tars = load_pairs(damaged, SMALL), in_tars(damaged)
    cached = load_pairs(damaged, SMALL, cache=tmp_path / "cache")
    assert (len(memory), len(cached), len(tars)) == (31, 31, 36)
    by_id = {number: row for row, number in enumerate(memory.ids.tolist())}
    for pairs in (memory, cached, tars):
        seen = 0
        for rows, pixels in stream(pairs, batches(pairs, 12)):
            same = np.asarray([by_id[number] for number in pairs.ids[rows].tolist()])
            np.testing.assert_array_equal(memory.images.take(same), pixels)
            seen += len(rows)
        assert seen == 96
    assert tars.skipped == memory.skipped == {"picture does not decode": 5}


def test_bad_rows_are_replaced_alike_by_any_number_of_processes(
    damaged: Path, in_tars: Load
) -> None:
    found = []
    for workers in (1, 3):
        pairs = in_tars(damaged)
        found.append(copied(stream(pairs, batches(pairs, 12), workers=workers)))
        # What is known to be bad by now must give the same again.
        found.append(copied(stream(pairs, batches(pairs, 12), workers=workers)))
        assert pairs.skipped == {"picture does not decode": 5}
    for other in found[1:]:
        for (rows, pixels), (rows_too, pixels_too) in zip(found[0], other, strict=True):
            assert rows.tolist() == rows_too.tolist()
            np.testing.assert_array_equal(pixels, pixels_too)
    assert all(len(set(rows.tolist())) == 8 for rows, _ in found[0])
    assert not any(set(BAD) & set(rows.tolist()) for rows, _ in found[0])


def test_replacements_are_the_next_good_rows_of_the_reserve(damaged: Path, in_tars: Load) -> None:
    batch = (np.asarray([3, 0, 7]), np.asarray([20, 10, 21, 11, 12]))
    [(rows, _)] = copied(stream(in_tars(damaged), [batch]))
    # Round one puts 20 for 3 and 10 for 7; 20 is bad, and so is 21 after it.
    assert rows.tolist() == [11, 0, 10]


def test_without_a_reserve_bad_rows_are_left_out_and_counted(damaged: Path, in_tars: Load) -> None:
    pairs = in_tars(damaged)
    parts = [(np.arange(start, min(start + 10, 36)), None) for start in range(0, 36, 10)]
    rows = np.concatenate([rows.copy() for rows, _ in stream(pairs, parts)])
    assert rows.tolist() == [row for row in range(36) if row not in BAD]
    assert pairs.skipped == {"picture does not decode": 5}


def test_a_reserve_that_is_used_up_ends_the_run_with_counts(damaged: Path, in_tars: Load) -> None:
    good, bad = np.asarray([0, 1, 2]), np.asarray([3, 7, 1])
    made = stream(in_tars(damaged), [(good, good[:0]), (bad, np.asarray([20, 5]))])
    assert next(made)[0].tolist() == [0, 1, 2]
    with pytest.raises(AlignError, match=r"3 of 5 pictures .*does not decode"):
        next(made)


def test_take_gives_the_rows_or_says_how_many_are_bad(damaged: Path, in_tars: Load) -> None:
    pairs = in_tars(damaged)
    taken = pairs.images.take(np.asarray([35, 0, 0]))
    memory = load_pairs(damaged, SMALL)
    np.testing.assert_array_equal(taken, memory.images.take(np.asarray([30, 0, 0])))
    with pytest.raises(AlignError, match=r"2 of 4 pictures can't be used"):
        pairs.images.take(np.asarray([0, 3, 7, 1]))


def test_an_array_holds_until_the_next_batch_but_one(shards: Path, in_tars: Load) -> None:
    for pairs in (load_pairs(shards, SMALL), in_tars(shards)):
        before: tuple[np.ndarray, np.ndarray] | None = None
        for _, pixels in stream(pairs, batches(pairs, 30), ahead=1):
            if before is not None:
                np.testing.assert_array_equal(*before)
            before = (pixels, pixels.copy())


def children() -> set[int]:
    # Not /proc/self/task/*/children, which is right only while no child comes or goes (proc(5)).
    return {child.pid for child in psutil.Process().children()}


def test_closing_early_ends_threads_and_processes(shards: Path, in_tars: Load) -> None:
    threads, before = threading.active_count(), children()
    for pairs in (load_pairs(shards, SMALL), in_tars(shards)):
        with closing(stream(pairs, batches(pairs, 10_000))) as made:
            next(made)
            assert threading.active_count() == threads + 1
        assert threading.active_count() == threads
    assert children() == before


def test_an_error_in_the_order_reaches_the_loop(shards: Path, in_tars: Load) -> None:
    def broken(pairs: Pairs) -> Iterator[tuple[Rows, Rows]]:
        yield from batches(pairs, 1)
        raise ZeroDivisionError

    for pairs in (load_pairs(shards, SMALL), in_tars(shards)):
        made = stream(pairs, broken(pairs))
        next(made)
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_killed_processes_are_replaced_and_no_picture_is_blamed(
    shards: Path, in_tars: Load
) -> None:
    pairs, memory = in_tars(shards), load_pairs(shards, SMALL)
    before, killed, seen = children(), set(), 0
    for rows, pixels in stream(pairs, batches(pairs, 60), workers=2):
        np.testing.assert_array_equal(memory.images.take(rows), pixels)
        seen += 1
        if not killed:  # not those that come after: what one dies on alone is blamed
            for child in children() - before:
                os.kill(child, signal.SIGKILL)
                killed.add(child)
    assert (seen, pairs.skipped) == (60, {})
    assert killed


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards two of whose pictures end their process: as a bug in C does, and as a system short of
    memory does."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.syspath_prepend(tmp_path / "site")
    made = squares()
    made[5]["105.jpg"] = b"crash"
    made[33]["133.jpg"] = b"eats all memory"
    write_tar(tmp_path / "shards" / "0.tar", made)
    return tmp_path / "shards"


def test_a_picture_that_crashes_its_decoder_is_found_and_counted(
    crashing: Path, in_tars: Load
) -> None:
    reason = "picture crashes the decoder"
    memory = load_pairs(crashing, SMALL, workers=2)
    assert memory.skipped == {reason: 2}
    assert not {105, 133} & set(memory.ids.tolist())
    pairs = in_tars(crashing)
    rows = np.concatenate([r.copy() for r, _ in stream(pairs, [(np.arange(36), None)])])
    assert rows.tolist() == [row for row in range(36) if row not in (5, 33)]
    assert pairs.skipped == {reason: 2}


@pytest.mark.parametrize("how", ["other bytes in place", "another file", "no file"])
def test_a_tar_replaced_while_training_is_bad_and_no_crash(
    damaged: Path, in_tars: Load, how: str
) -> None:
    pairs = in_tars(damaged)
    tar = damaged / "0.tar"
    if how == "no file":
        tar.unlink()
    elif how == "another file":
        write_tar(damaged / "new", squares()[2:22]).rename(tar)
    else:
        tar.write_bytes(tar.read_bytes()[512:])
    rows = np.concatenate([r.copy() for r, _ in stream(pairs, [(np.arange(36), None)])])
    assert rows.tolist() == [row for row in range(20, 36) if row not in BAD]
    reason = (
        "its file can't be read"
        if how == "no file"
        else "its file has changed since it was indexed"
    )
    assert pairs.skipped == {reason: 20, "picture does not decode": 3}


def test_decoded_pictures_need_no_processes(shards: Path) -> None:
    pairs = load_pairs(shards, SMALL)
    assert isinstance(pairs.images, Decoded)
    before = children()
    for _ in stream(pairs, batches(pairs, 3)):
        assert children() == before


ORPHANS = """
import os, sys
from pathlib import Path
from coyo_align.input import data
from coyo_align.input.images import Geometry, Preprocess
from coyo_align.input.stream import stream
data._IN_MEMORY = 0
small = Preprocess(Geometry((32, 32), 2), (1.0,) * 3, (0.0,) * 3)
pairs = data.load_pairs(Path(sys.argv[1]), small)
rows = data.np.arange(8)
made = stream(pairs, iter(lambda: (rows, None), None), workers=2)
next(made)
own = Path(f"/proc/{os.getpid()}/task")
print(*(c for task in own.iterdir() for c in (task / "children").read_text().split()), flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_processes_end_with_a_killed_parent(shards: Path) -> None:
    command = [sys.executable, "-c", ORPHANS, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    orphans = [Path(f"/proc/{number}") for number in done.stdout.split()]
    assert len(orphans) == 2
    deadline = time.monotonic() + 20
    while any(path.exists() for path in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.05)
