"""Runs img2dataset in a process of its own: ``python -m coyo_tools.fetching.process < settings``.

Of its own, because importing img2dataset takes seconds, because its workers and threads must end
with the stage that started them, and because a stage must be able to end them.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_tools.fetching.journal import REQUESTS, URL_NUMBER, done_path

if TYPE_CHECKING:
    from coyo_tools.fetching.worker import BatchFetcher

_CRASHES = 3
_BATCHES_PER_WORKER = 20

Batch = tuple[int, str]


@dataclass(frozen=True)
class FetchSettings:
    """What to fetch and how: ``folder`` holds requests/NNNNN.parquet, one file a batch.

    ``policy`` and ``picture`` are the fields of FetchPolicy and PictureSettings.
    """

    folder: str
    batches: int
    processes: int
    threads: int
    attempts: int
    backoff: float
    distributor: str
    policy: dict[str, Any]
    picture: dict[str, Any]


def start_fetching(settings: FetchSettings, log: Path) -> "subprocess.Popen[bytes]":
    """Start img2dataset in a new process group, writing what it says to ``log``."""
    environment = os.environ | {"WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "coyo_tools.fetching.process"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    assert process.stdin is not None  # noqa: S101 - PIPE was asked for
    process.stdin.write(json.dumps(asdict(settings)).encode())
    process.stdin.close()
    return process


def stop_fetching(process: "subprocess.Popen[bytes]") -> None:
    """End img2dataset and all its workers, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
    from coyo_tools.fetching.opener import FetchPolicy
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
        done = {n for n in range(settings.batches) if done_path(folder, n).exists()}
        if len(done) == settings.batches:
            break
        _one_pass(fetcher, folder, done, settings)


def _one_pass(
    fetcher: "BatchFetcher", folder: Path, done: set[int], settings: FetchSettings
) -> None:
    """Give every batch that is not done to a worker once."""
    from img2dataset.distributor import pyspark_distributor
    from img2dataset.reader import Reader

    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    reader = Reader(
        str(folder / REQUESTS), "parquet", "url", None, None, None, [URL_NUMBER],
        10**9, done, str(scratch),
    )  # fmt: skip
    if settings.distributor == "pyspark":
        pyspark_distributor(settings.processes, fetcher, reader, 1000, 1)
    else:
        _distribute(settings.processes, fetcher, reader)


def _distribute(processes: int, fetcher: "BatchFetcher", batches: Iterable[Batch]) -> None:
    """Work on batches in processes of this machine, a few ahead.

    In the place of img2dataset's own, which waits for ever when the system kills a worker, as it
    does when memory is short.
    """
    crashes = 0
    waiting = iter(batches)
    again: list[Batch] = []
    while True:
        running: dict[Future[Any], Batch] = {}
        pool = ProcessPoolExecutor(
            processes, mp_context=get_context("spawn"), max_tasks_per_child=_BATCHES_PER_WORKER
        )
        try:
            with pool:
                while True:
                    while len(running) < processes + 1:
                        batch = again.pop() if again else next(waiting, None)
                        if batch is None:
                            break
                        running[pool.submit(fetcher, batch)] = batch
                    if not running:
                        return
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                        del running[future]
        except BrokenProcessPool:
            crashes += 1
            print(f"a worker was killed, for the {crashes}. time")
            if crashes == _CRASHES:
                raise
            again += running.values()


if __name__ == "__main__":
    main()
