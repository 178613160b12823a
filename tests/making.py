"""What the tests are made of: tiny pools, tiny pictures, the command itself in a process."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coyo_tools.columns import BY_NAME

# Who started whom is read from /proc.
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc here")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the page in")

COYO = str(Path(sys.executable).with_name("coyo"))


def write_pool(path: Path, **columns: Sequence[Any]) -> Path:
    """Write a parquet file; columns that COYO has get COYO's type."""
    arrays = {
        name: pa.array(values, type=BY_NAME[name].type if name in BY_NAME else None)
        for name, values in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)
    return path


def read_ids(subset: Path) -> list[int]:
    """The ids of a subset, in the order they are stored in."""
    return pl.read_parquet(sorted(subset.glob("part-*.parquet")))["id"].to_list()


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Soft coloured blobs: a picture whose pHash survives re-encoding and differs by seed."""
    blobs = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def coyo(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [COYO, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def names_in(*directories: Path) -> set[str]:
    """Everything that lies in some directories, hidden files too."""
    return {path.name for directory in directories for path in directory.iterdir()}


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and theirs, as /proc has them."""
    parents: dict[int, list[int]] = {}
    for child, parent in _parents():
        parents.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pids: Iterable[int]) -> set[int]:
    """Those of some processes that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


def _parents() -> Iterable[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        yield int(stat.parent.name), int(fields[1])


def browse(page: Path, scratch: Path) -> str:
    """What the page is when a browser has made of it what it can."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={scratch / 'browser'}", "--dump-dom",
        page.resolve().as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
