"""Starts and ends the process that img2dataset runs in; see ``fetching.run`` for what it does.

Of its own, because importing img2dataset takes seconds, because its workers and threads must end
with the stage that started them, and because a stage must be able to end them.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
    # glibc's resolver can't be interrupted; by itself it takes up to half a minute for a dead name.
    environment.setdefault("RES_OPTIONS", "timeout:3 attempts:2")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "coyo_tools.fetching.run"],
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
