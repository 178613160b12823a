"""Child processes that start light and end with their parent.

Plain subprocesses that run one of this package's modules, not multiprocessing's: those import the
caller's script anew, and fork is no way out of a process that holds torch's threads and a GPU. A
child reads its work from stdin, so it ends when its parent does, however that ends.
"""

import os
import subprocess
import sys
from collections.abc import Sequence


def cores() -> int:
    """How many processes this one may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_child(
    module: str, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Run ``python -m module`` with pipes for stdin and stdout, unbuffered."""
    return subprocess.Popen(
        # With -P no file in the working directory is taken for a module.
        (sys.executable, "-P", "-m", module, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=tuple(pass_fds),
        # A Ctrl-C goes to the foreground's process group; what it means is for the parent.
        process_group=0,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            # One process a core: a library's own threads would only get in each other's way.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            # glibc would give each picture's memory back and ask for it again for the next one,
            # page by page. Like this it keeps up to 128 MiB.
            "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
            "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
        },
    )


def end_child(child: "subprocess.Popen[bytes]") -> int:
    """Kill a child, close its pipes and return how it ended."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    return child.wait()
