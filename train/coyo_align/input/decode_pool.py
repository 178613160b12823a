"""Several decoding processes at work on a list of pictures, and what becomes of those that crash.

A process that dies takes its answers with it, so the pictures it held are given out again one by
one; one whose process dies on it alone is to blame. The same goes for a process that gives no
answer for two minutes. SIGKILL comes from outside, often from a system short of memory, so it takes
two of them to blame a picture.
"""

import json
import os
import selectors
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from subprocess import Popen
from types import TracebackType
from typing import Self

from coyo_align.errors import AlignError
from coyo_align.input.children import end_child, start_child
from coyo_align.input.decode_worker import COUNT, CRASHED, GOOD, JOB, NOT_WRITTEN
from coyo_align.input.images import Geometry
from coyo_align.input.index import Tar

CHUNK = 16
"""Jobs handed out at once: few enough that all processes end together, many for one system call."""
_PATIENCE = 120.0
_STILLBORN = 10

Job = tuple[int, int, int, int]
"""See ``decode_worker.JOB``; places in the shared file tell jobs apart."""


def shared_file(size: int) -> int:
    """A file descriptor of so many bytes of memory, which children can be given.

    Not /dev/shm, which containers keep small.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("coyo_align")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


@dataclass(eq=False)
class _Worker:
    child: "Popen[bytes]"
    chunks: deque[list[Job]] = field(default_factory=deque)  # those it has not answered, in order
    heard: float = 0.0
    ready: bool = False
    answer: bytes = b""


class DecodePool:
    """Processes that decode into a shared file; use as a context manager, from one thread."""

    def __init__(self, tars: Sequence[Tar], geometry: Geometry, target: int, workers: int) -> None:
        self._target = target
        self._waiting: deque[list[Job]] = deque()
        self._settings = shared_file(0)
        said = {
            "geometry": astuple(geometry),
            "tars": [(str(tar.path), tar.size, tar.mtime_ns) for tar in tars],
        }
        with os.fdopen(os.dup(self._settings), "wb") as file:
            file.write(json.dumps(said).encode())
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._stillborn = 0
        self._spared: set[int] = set()  # places of pictures on which a process was killed alone
        try:
            for _ in range(workers):
                self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for worker in self._workers:
            worker.child.kill()
        for worker in self._workers:
            end_child(worker.child)
        self._workers.clear()
        self._selector.close()
        if self._settings >= 0:
            os.close(self._settings)
            self._settings = -1

    def submit(self, jobs: Iterable[Job], *, first: bool = False) -> None:
        """Have jobs done, after those that wait already, or before them."""
        jobs = list(jobs)
        chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
        if first:
            self._waiting.extendleft(reversed(chunks))
        else:
            self._waiting.extend(chunks)
        self._hand_out()

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """The places of jobs that were done since, and what became of each (``decode_worker``).

        Empty where nothing was done in so many seconds.

        Raises:
            AlignError: the shared file takes no more.
            RuntimeError: the processes don't start.
        """
        done: list[tuple[int, int]] = []
        for key, _ in self._selector.select(seconds):
            done += self._hear(key.data)
        now = time.monotonic()
        for worker in [w for w in self._workers if w.chunks and now - w.heard > _PATIENCE]:
            done += self._bury(worker, stuck=True)
        self._hand_out()
        if any(code == NOT_WRITTEN for _, code in done):
            raise AlignError("The disk of the pixels is full. Free some space, or use another one.")
        return done

    def _start(self) -> None:
        child = start_child(
            "coyo_align.input.decode_worker",
            (str(self._settings), str(self._target)),
            (self._settings, self._target),
        )
        worker = _Worker(child, heard=time.monotonic())
        self._workers.append(worker)
        self._selector.register(_out(child), selectors.EVENT_READ, worker)

    def _hand_out(self) -> None:
        """Two chunks to each, so that none waits for us; but what may crash goes alone."""
        for depth in (1, 2):
            for worker in list(self._workers):
                if not self._waiting:
                    return
                if len(worker.chunks) < depth and not _alone(worker.chunks):
                    self._give(worker)

    def _give(self, worker: _Worker) -> None:
        if worker.chunks and _alone(self._waiting):
            return
        chunk = self._waiting.popleft()
        if not worker.chunks:
            worker.heard = time.monotonic()
        worker.chunks.append(chunk)
        message = COUNT.pack(len(chunk)) + b"".join(JOB.pack(*job) for job in chunk)
        try:
            assert worker.child.stdin is not None  # noqa: S101  it is a pipe
            worker.child.stdin.write(message)  # 400 bytes: the pipe takes them at once
        except BrokenPipeError:
            pass  # its end is heard of next

    def _hear(self, worker: _Worker) -> list[tuple[int, int]]:
        said = os.read(_out(worker.child), 4096)
        if not said:
            return self._bury(worker)
        worker.heard = time.monotonic()
        if not worker.ready:
            worker.ready, said = True, said[1:]
            self._stillborn = 0
        worker.answer += said
        done: list[tuple[int, int]] = []
        while worker.chunks and len(worker.answer) >= len(worker.chunks[0]):
            chunk = worker.chunks.popleft()
            done += [(job[3], code) for job, code in zip(chunk, worker.answer, strict=False)]
            worker.answer = worker.answer[len(chunk) :]
        return done

    def _bury(self, worker: _Worker, *, stuck: bool = False) -> list[tuple[int, int]]:
        """Replace a dead or stuck process, and give out again what it held."""
        self._selector.unregister(_out(worker.child))
        self._workers.remove(worker)
        code = end_child(worker.child)
        done = []
        chunks = list(worker.chunks)
        if not worker.ready:
            self._stillborn += 1
            if code >= 0 or self._stillborn > _STILLBORN:  # it ended by itself, or all are killed
                raise RuntimeError(f"a picture decoder does not start (exit code {code})")
        elif _alone(chunks):
            place = chunks[0][0][3]
            if code == -signal.SIGKILL and not stuck and place not in self._spared:
                self._spared.add(place)
            else:
                done.append((place, CRASHED))
                del chunks[0]
        elif chunks:
            chunks[:1] = [[job] for job in chunks[0]]
        self._waiting.extendleft(reversed(chunks))
        self._start()
        return done


def _alone(chunks: Sequence[list[Job]]) -> bool:
    return bool(chunks) and len(chunks[0]) == 1


def _out(child: "Popen[bytes]") -> int:
    assert child.stdout is not None  # noqa: S101  it is a pipe
    return child.stdout.fileno()


__all__ = ["GOOD", "DecodePool", "Job", "shared_file"]
