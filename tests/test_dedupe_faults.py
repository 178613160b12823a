"""Deduplication killed, or out of disk: the old result stays, and the rerun is the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from making import COYO, coyo, names_in

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from make_hashes import make_hashes, write_pool

NEAR = ["--radius", "2", "--keep", "clip_similarity_vitl14 DESC", "--memory", "2GB"]


def hash_pool(directory: Path, distinct: int, rows: int) -> Path:
    write_pool(directory, make_hashes(distinct), rows)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hash_pool(tmp_path_factory.mktemp("small") / "pool", 300_000, 400_000)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hash_pool(tmp_path_factory.mktemp("large") / "pool", 8_000_000, 10_000_000)


def parquet_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


def check_kills(pool: Path, folder: Path, kills: int, rng: np.random.Generator) -> None:
    """Kill a rerun over a finished result at random moments; then let one end."""
    out = folder / "out"
    started = time.monotonic()
    first = coyo("dedupe", pool, "-o", out, *NEAR)
    seconds = time.monotonic() - started
    assert first.returncode == 0, first.stderr
    expected = parquet_bytes(out)
    assert set(expected) >= {"removed.parquet", "part-00000.parquet"}
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            [COYO, "dedupe", str(pool), "-o", str(out), "--overwrite", *NEAR],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.05, 0.95) * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert names_in(folder) <= {"out", ".out.partial"}
        assert parquet_bytes(out) == expected
    again = coyo("dedupe", pool, "-o", out, "--overwrite", *NEAR)
    assert again.returncode == 0, again.stderr
    assert names_in(folder) == {"out"}
    assert parquet_bytes(out) == expected


def test_kills_leave_the_old_result_and_the_rerun_is_the_same(small: Path, tmp_path: Path) -> None:
    check_kills(small, tmp_path, 3, np.random.default_rng(1))


@pytest.mark.slow
def test_ten_kills_of_ten_million_rows(large: Path, tmp_path: Path) -> None:
    check_kills(large, tmp_path, 10, np.random.default_rng(2))


def test_ctrl_c_leaves_nothing(small: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COYO, "dedupe", str(small), "-o", str(tmp_path / "out"), *NEAR],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    scratch = tmp_path / ".out.partial" / ".near"
    deadline = time.monotonic() + 60
    while not (scratch / "rows.u64").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "Interrupted; nothing half-written was left behind."
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("blocks", [100, 3000, 3300])
def test_a_full_disk_is_told_and_leaves_the_old_result(
    small: Path, tmp_path: Path, blocks: int
) -> None:
    """A limit on a file's size, in KiB, stands for the disk's: it meets one file or another."""
    out = tmp_path / "out"
    assert coyo("dedupe", small, "-o", out, *NEAR, "--radius", "0").returncode == 0
    before = parquet_bytes(out)
    command = f'ulimit -f {blocks}; trap "" XFSZ; exec "$@"'
    ran = subprocess.run(
        ["bash", "-c", command, "bash", COYO, "dedupe", str(small), "-o", str(out), "--overwrite",
         *NEAR],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "The disk is full" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert names_in(tmp_path) == {"out"}
    assert parquet_bytes(out) == before


def test_the_generator_makes_what_it_says() -> None:
    hashes = make_hashes(50_000)
    assert len(np.unique(hashes)) == len(hashes) == 50_000
    ones = np.bitwise_count(hashes)
    assert 0.99 < np.mean(ones == 32) < 1
