"""Runs a command for a benchmark and watches its memory and the disk it takes.

``measured`` looks at the command's own process; ``measured_tree`` at all that it starts as well,
where pages that processes share count once (PSS; Linux alone).
"""

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


# Orphans become this process's children, so that their seconds count too, and none is left over.
_ADOPT = """
import ctypes, os, resource, signal, subprocess, sys, time
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
start = time.monotonic()
child = subprocess.Popen(sys.argv[3:], stdout=open(sys.argv[1], "w"), stderr=open(sys.argv[2], "w"))
code = child.wait()
end = time.monotonic()
left = 0
while True:
    try:
        if os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        break
    if time.monotonic() > end + 5:
        for stat in os.listdir("/proc"):
            try:
                parent = open(f"/proc/{stat}/stat").read().rpartition(")")[2].split()[1]
                if stat.isdigit() and int(parent) == os.getpid():
                    os.kill(int(stat), signal.SIGKILL)
                    left += 1
            except (OSError, IndexError):
                pass
    time.sleep(0.05)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, start, end, usage.ru_utime, usage.ru_stime, left)
"""


@dataclass(frozen=True)
class Moment:
    """What a command and its descendants held at a moment, in bytes.

    ``pss`` counts a page that is shared by n processes as 1/n in each; ``anonymous`` leaves pages
    of files out.
    """

    seconds: float
    pss: int
    anonymous: int
    processes: int


@dataclass(frozen=True)
class Tree:
    """A command that ended, with all that it started.

    ``start`` and ``end`` are ``time.monotonic`` seconds, ``user`` and ``system`` CPU seconds of
    all; ``left`` counts processes that still ran five seconds after the command had ended.
    """

    code: int
    told: str
    complaint: str
    start: float
    end: float
    user: float
    system: float
    left: int
    moments: list[Moment]

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.end - self.start

    @property
    def cpu(self) -> float:
        """CPU time of all processes."""
        return self.user + self.system

    def peak(self) -> Moment:
        """Return the moment at which most was held."""
        return max(self.moments, key=lambda moment: moment.pss)

    def check(self) -> None:
        """Raise if it failed."""
        if self.code:
            raise RuntimeError(f"a command ended with {self.code}:\n{self.complaint[-4000:]}")


def measured_tree(
    command: list[object], place: Path, *, every: float = 0.5, environment: dict[str, str]
) -> Tree:
    """Run a command in a directory; look at its and its descendants' memory again and again."""
    with tempfile.TemporaryDirectory() as aside:
        told, complaint = Path(aside, "out"), Path(aside, "err")
        moments: list[Moment] = []
        start = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", _ADOPT, *map(str, [told, complaint, *command])],
            stdout=subprocess.PIPE,
            text=True,
            cwd=place,
            env=os.environ | environment,
        ) as middle:
            while middle.poll() is None:
                moments.append(_held(descendants(middle.pid), time.monotonic() - start))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    middle.wait(every)
            assert middle.stdout is not None
            code, start, end, user, system, left = middle.stdout.read().split()
        return Tree(
            int(code),
            told.read_text(errors="replace"),
            complaint.read_text(errors="replace"),
            float(start),
            float(end),
            float(user),
            float(system),
            int(left),
            moments,
        )


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, and theirs, as /proc has them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting.extend(below)
    return found


def _held(pids: set[int], seconds: float) -> Moment:
    pss = anonymous = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    pss += int(line.split()[1]) * 1024
                elif line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    anonymous += int(line.split()[1]) * 1024
    return Moment(seconds, pss, anonymous, len(pids))


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
