"""A study killed, stopped, out of disk or started twice: no cell is done twice, same table."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making import COYO, coyo, names_in
from test_study import STUDY, inputs, place  # noqa: F401  a fixture is used by its name

from coyo_tools.manifest import MANIFEST, held_directory, read_manifest
from coyo_tools.study.results import RESULTS
from coyo_tools.study.run import run_study

# One arm, and more steps to be killed in.
ONE_ARM = STUDY[: STUDY.rindex("[[arms]]")].replace("[inputs.chosen]\n", "")
ONE_ARM = ONE_ARM.replace("budgets = [16]", "budgets = [64]")
# A checkpoint after every step, where the command itself keeps one every ten minutes.
OFTEN = (
    "import coyo_align.finetune as loop; loop._CHECKPOINT_SECONDS = 0; "
    "from coyo_tools.cli import main; main()"
)
STAGES = 2 + 1 + 2 + 6 + 6  # base, arm, controls, trainings, scores


@pytest.fixture(scope="module")
def study(place: Path) -> Path:  # noqa: F811
    path = place / "one-arm.toml"
    path.write_text(ONE_ARM)
    return path


def given(study: Path) -> dict[str, str]:
    return {name: path for name, path in inputs(study.parent).items() if name != "chosen"}


@pytest.fixture(scope="module")
def expected(study: Path) -> bytes:
    """The table of a study that nobody disturbed."""
    run_study(study, study.parent / "undisturbed", given(study))
    return (study.parent / "undisturbed" / RESULTS).read_bytes()


def command(study: Path, output: Path) -> list[str]:
    named = [f"--input={name}={path}" for name, path in given(study).items()]
    return ["study", str(study), "-o", str(output), *named]


def started(study: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OFTEN, *command(study, output)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def whole(output: Path) -> dict[str, tuple[int, int]]:
    """The finished stages, by what tells one that was made again: inode and time."""
    found = {}
    for path in (*output.glob(f"*/{MANIFEST}"), *output.glob(f"cells/*/{MANIFEST}")):
        if not path.parent.name.startswith("."):
            found[path.parent.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def wait_until(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Wait until something has happened, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline, "it doesn't get on"
        time.sleep(0.005)


def check_stops(study: Path, output: Path, expected: bytes, signals: list[int], seed: int) -> int:
    """Stop a study by these signals, each time further on; then let it end.

    Each comes after one or two further stages: when the next training has a checkpoint, and the
    second, fourth and so on at a random moment.

    Returns:
        How many trainings were gone on with in their middle.
    """
    random = np.random.default_rng(seed)
    seen = whole(output)
    for number, stop in enumerate(signals):
        stages = min(len(seen) + int(random.integers(1, 3)), STAGES - 2)
        process = started(study, output)
        wait_until(process, lambda least=stages: len(whole(output)) >= least)
        if number % 2:
            time.sleep(random.uniform(0, 0.3))
        else:  # in the middle of a training
            wait_until(process, lambda: any(output.glob("cells/.run-*/checkpoints/0*")))
        os.killpg(process.pid, stop)  # as a terminal does, to its children too
        said, _ = process.communicate(timeout=60)
        now = whole(output)
        assert len(now) >= stages
        assert seen.items() <= now.items(), "a finished stage was made again"
        assert not (output / RESULTS).exists()
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in said
            assert said.splitlines()[-1].startswith("Stopped. The same command goes on")
        else:
            assert process.returncode == -stop
        seen = now
    process = started(study, output)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    now = whole(output)
    assert seen.items() <= now.items(), "a finished stage was made again"
    assert len(now) == STAGES
    assert (output / RESULTS).read_bytes() == expected
    runs = [read_manifest(path) for path in (output / "cells").glob("run-*")]
    return sum(bool(run.details["resumed_at"]) for run in runs)


def test_whatever_stops_it_no_finished_cell_is_repeated_and_the_table_is_the_same(
    study: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    full = limited(study, output, 300)  # less than a model
    refused(full, "The disk is full")
    assert set(whole(output)) == {
        "arrived", "everything-but-heldout", "arm-large", "random-15-0", "random-15-1",
    }  # fmt: skip
    gone_on = check_stops(study, output, expected, [signal.SIGKILL, signal.SIGINT], seed=1)
    assert gone_on >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_kills_too(study: Path, expected: bytes, tmp_path: Path, seed: int) -> None:
    gone_on = check_stops(study, tmp_path / "out", expected, [signal.SIGKILL] * 10, seed)
    assert gone_on > 1


def test_a_disk_without_room_for_a_subset_is_told(study: Path, tmp_path: Path) -> None:
    refused(limited(study, tmp_path / "out", 2), "The disk is full")
    assert whole(tmp_path / "out") == {}


def test_a_disk_without_room_for_the_table_leaves_the_old_one(study: Path, expected: bytes) -> None:
    output = study.parent / "undisturbed"
    refused(limited(study, output, 2), f"The disk is full; {output / RESULTS} was not written.")
    assert (output / RESULTS).read_bytes() == expected
    assert not [name for name in names_in(output) if name.endswith(".partial")]


def test_a_second_process_in_the_same_directory_is_refused(study: Path, expected: bytes) -> None:
    output = study.parent / "undisturbed"
    before = whole(output)
    with held_directory(output):
        refused(coyo(*command(study, output)), f"Another process is writing {output}.")
    assert whole(output) == before
    assert (output / RESULTS).read_bytes() == expected


def refused(ran: subprocess.CompletedProcess[str], message: str) -> None:
    assert ran.returncode == 2, ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "leaked" not in ran.stderr  # what DuckDB's binding says when torch outlives it


def limited(study: Path, output: Path, blocks: int) -> subprocess.CompletedProcess[str]:
    """The command where no file may be larger than so many KiB, which stands for a full disk."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {blocks}; trap "" XFSZ; exec "$@"', "bash", COYO,
         *command(study, output)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
