"""Killed in the middle of a write: nothing that opens as a subset, and the rerun succeeds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from making import COYO, coyo, names_in

from coyo_tools.errors import SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.source import open_source

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from make_pool import make_pool

PLAIN = "word_count >= 3"
COMPUTED = "SELECT *, width * height AS area FROM pool WHERE word_count >= 3"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small") / "pool"
    make_pool(directory, 400_000)
    return directory


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / "pool"
    make_pool(directory, 10_000_000)
    return directory


def started(pool: Path, recipe: str, out: Path) -> subprocess.Popen[str]:
    """A filter that has begun to write its first part."""
    process = subprocess.Popen(
        [COYO, "filter", str(pool), recipe, "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = out.parent / f".{out.name}.partial"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(part.stat().st_size for part in partial.glob("part-*.parquet")):
            return process
        time.sleep(0.005)
    raise AssertionError(f"no part was begun: {process.communicate()}")


def check_kill(pool: Path, recipe: str, folder: Path) -> None:
    out = folder / "out"
    process = started(pool, recipe, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert names_in(folder) <= {".out.partial"}
    with pytest.raises(SourceError, match="rest of an interrupted run"):
        open_source(folder / ".out.partial")
    with pytest.raises(SourceError):
        read_manifest(folder / ".out.partial")
    again = coyo("filter", pool, recipe, "-o", out)
    assert again.returncode == 0, again.stderr
    assert names_in(folder) == {"out"}
    rows = read_manifest(out).rows_out
    assert rows == sum(pq.read_metadata(part).num_rows for part in out.glob("part-*.parquet"))
    assert rows == open_source(pool).rows
    assert coyo("verify", out).returncode == 0


@pytest.mark.parametrize("recipe", [PLAIN, COMPUTED], ids=["copied", "computed"])
def test_a_kill_in_the_middle_of_a_write_leaves_no_subset(
    small: Path, tmp_path: Path, recipe: str
) -> None:
    check_kill(small, recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [PLAIN, COMPUTED], ids=["copied", "computed"])
def test_a_kill_in_the_middle_of_ten_million_rows_leaves_no_subset(
    large: Path, tmp_path: Path, recipe: str
) -> None:
    check_kill(large, recipe, tmp_path)


@pytest.mark.parametrize("recipe", [PLAIN, COMPUTED], ids=["copied", "computed"])
def test_ctrl_c_in_the_middle_of_a_write_leaves_nothing(
    small: Path, tmp_path: Path, recipe: str
) -> None:
    process = started(small, recipe, tmp_path / "out")
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "Interrupted; nothing half-written was left behind."
    assert names_in(tmp_path) == set()
