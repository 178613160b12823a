"""Runs a command for a benchmark and watches its memory and the disk it takes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GB = 1_000_000_000

# Through a process of its own: a child's peak begins with what its parent holds.
_PEAK = """
import resource, subprocess, sys
child = subprocess.Popen(sys.argv[3:], stdout=open(sys.argv[1], "w"), stderr=open(sys.argv[2], "w"))
print(child.pid, flush=True)
print(child.wait(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclass(frozen=True)
class Process:
    """A process that ended: what it said, its seconds, the most bytes it held and spilled."""

    code: int
    told: str
    complaint: str
    seconds: float
    rss: int
    anonymous: int
    spill: int

    def check(self) -> None:
        """Raise if it failed."""
        if self.code:
            raise RuntimeError(f"a command ended with {self.code}:\n{self.complaint}")

    def memory(self) -> str:
        """Write the three as cells of a table."""
        return " | ".join(f"{b / GB:.2f} GB" for b in (self.rss, self.anonymous, self.spill))


def measured(command: list[object], place: Path) -> Process:
    """Run a command in a directory; watch its memory and what lies in the directory."""
    with tempfile.TemporaryDirectory() as aside:
        told, complaint = Path(aside, "out"), Path(aside, "err")
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", _PEAK, *map(str, [told, complaint, *command])],
            stdout=subprocess.PIPE,
            text=True,
            cwd=place,
        ) as middle:
            assert middle.stdout is not None
            pid = int(middle.stdout.readline())
            anonymous = spill = 0
            while middle.poll() is None:
                anonymous = max(anonymous, _anonymous(pid))
                spill = max(spill, _bytes_in(place))
                time.sleep(0.1)
            seconds = time.perf_counter() - start
            code, peak = map(int, middle.stdout.read().split())
        rss = peak * (1 if sys.platform == "darwin" else 1024)
        return Process(
            code, told.read_text(), complaint.read_text(), seconds, rss, anonymous, spill
        )


def _anonymous(pid: int) -> int:
    """Return a process's anonymous memory in bytes; 0 where /proc has none or it ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def _bytes_in(directory: Path) -> int:
    """Return what files of a directory take on the disk, holes left out."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(folder, name).lstat().st_blocks * 512
    return total
