"""Runs img2dataset over the batches: ``python -m coyo_tools.fetching.run < settings.json``.

Pass after pass, until nothing more can come: what is worth another try gets it in the next pass,
when the others have had their turn. Batches are read by img2dataset's Reader and worked on by its
Downloader, here or, through its distributor, on a Spark cluster that shares the folder.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_tools.fetching.journal import REQUESTS, URL_NUMBER, done_batches
from coyo_tools.fetching.process import FetchSettings

if TYPE_CHECKING:
    from coyo_tools.fetching.worker import BatchFetcher

_CRASHES = 3
_BATCHES_PER_WORKER = 20
_SUBJOB = 1000  # batches that Spark is given at a time, as many as img2dataset's default

Batch = tuple[int, str]


def _end_with_parent(parent: int) -> None:
    """Kill this process group once ``parent`` is gone, even if that was by ``kill -9``."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Read ``FetchSettings`` as JSON from stdin and let img2dataset fetch, pass after pass."""
    parent = os.getppid()
    settings = FetchSettings(**json.load(sys.stdin))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    with closing(_Workers(settings.processes)) as workers:
        _fetch(settings, workers)


def _fetch(settings: FetchSettings, workers: "_Workers") -> None:
    if settings.distributor == "multiprocessing":
        workers.start()  # they import what takes seconds while this process does
    else:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else any python3 on the PATH
    with _without_torch():
        from img2dataset.distributor import pyspark_distributor

        from coyo_tools.fetching.policy import FetchPolicy
        from coyo_tools.fetching.worker import BatchFetcher, BatchSettings
        from coyo_tools.pictures import PictureSettings

    folder = Path(settings.folder)
    fetcher = BatchFetcher(
        BatchSettings(
            folder,
            FetchPolicy(**settings.policy),
            PictureSettings(**settings.picture),
            settings.threads,
            settings.attempts,
            settings.backoff,
        )
    )
    # A pass more than attempts, for batches that a crash has cost one.
    for _ in range(settings.attempts + 1):
        done = done_batches(folder)
        if len(done) == settings.batches:
            break
        reader = _reader(folder, done)
        if settings.distributor == "pyspark":
            pyspark_distributor(settings.processes, fetcher, reader, _SUBJOB, 1)
        else:
            workers.distribute(fetcher, reader)


def _reader(folder: Path, done: set[int]) -> Iterable[Batch]:
    """Return what hands out the batches that are not done, each read when it is its turn."""
    from img2dataset.reader import Reader

    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    reader: Iterable[Batch] = Reader(
        str(folder / REQUESTS), "parquet", "url", None, None, None, [URL_NUMBER],
        10**9, done, str(scratch),
    )  # fmt: skip
    return reader


class _Workers:
    """Processes of this machine that work on batches.

    In the place of img2dataset's own pool, which waits for ever when the system kills one of its
    workers, as it does when memory is short.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._crashes = 0

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        self._pool = ProcessPoolExecutor(
            self._processes,
            mp_context=get_context("spawn"),
            max_tasks_per_child=_BATCHES_PER_WORKER,
            initializer=_import_worker,
        )
        for _ in range(self._processes):
            self._pool.submit(os.getpid)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()

    def distribute(self, fetcher: "BatchFetcher", batches: Iterable[Batch]) -> None:
        """Have every batch worked on once, a few ahead.

        Raises:
            BrokenProcessPool: workers have been killed again and again.
        """
        waiting = iter(batches)
        running: dict[Future[Any], Batch] = {}
        while True:
            if self._pool is None:
                self.start()
                running = {self._submit(fetcher, batch): batch for batch in running.values()}
            while len(running) <= self._processes and (batch := next(waiting, None)) is not None:
                running[self._submit(fetcher, batch)] = batch
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            try:
                for future in finished:
                    future.result()
                    del running[future]
            except BrokenProcessPool:
                self._crashes += 1
                print("a worker process was killed; is memory short?", flush=True)
                if self._crashes == _CRASHES:
                    raise
                self.close()
                self._pool = None

    def _submit(self, fetcher: "BatchFetcher", batch: Batch) -> Future[Any]:
        assert self._pool is not None  # noqa: S101 - it was started
        return self._pool.submit(fetcher, batch)


def _import_worker() -> None:
    with _without_torch():
        import coyo_tools.fetching.worker  # noqa: F401


@contextmanager
def _without_torch() -> Iterator[None]:
    """Let what is imported in here find no torch, as where the extra `train` is not installed.

    img2dataset imports webdataset, and that torch, for classes that no download uses: 3 s of the
    5 s that each process takes to start, and 170 MB.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python says "not to be found"
    try:
        yield
    finally:
        del sys.modules["torch"]


if __name__ == "__main__":
    main()
