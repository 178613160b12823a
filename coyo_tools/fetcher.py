"""Runs img2dataset in a process of its own: ``python -m coyo_tools.fetcher < settings.json``.

Of its own, because importing img2dataset takes seconds, because its workers and threads must end
with the stage that started them, and because a stage must be able to end them. img2dataset only
fetches: bytes are stored as they were served, and hashed, judged and shrunk afterwards, since
img2dataset keeps nothing of the original once it has resized it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

USER_AGENT = "coyo-tools"
URL_NUMBER = "url_number"
SERVED_BYTES = "jpg"  # img2dataset names the column after its encode_format, whatever the bytes are


@dataclass(frozen=True)
class FetchSettings:
    """What to fetch and how hard.

    ``urls`` is a parquet file with ``url`` and ``url_number``, ``output`` the folder for raw
    shards, ``threads`` counts per process, ``timeout`` seconds per request.
    """

    urls: str
    output: str
    urls_per_shard: int
    processes: int
    threads: int
    timeout: int


def start_fetching(settings: FetchSettings, log: Path) -> "subprocess.Popen[bytes]":
    """Start img2dataset in a new process group, writing what it says to ``log``."""
    environment = os.environ | {"WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "coyo_tools.fetcher"],
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
    """Read ``FetchSettings`` as JSON from stdin and let img2dataset fetch."""
    parent = os.getppid()
    settings = FetchSettings(**json.load(sys.stdin))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    from img2dataset import download

    download(
        url_list=settings.urls,
        input_format="parquet",
        output_folder=settings.output,
        output_format="parquet",
        save_additional_columns=[URL_NUMBER],
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash=None,
        number_sample_per_shard=settings.urls_per_shard,
        processes_count=settings.processes,
        thread_count=settings.threads,
        timeout=settings.timeout,
        user_agent_token=USER_AGENT,
        enable_wandb=False,
    )


if __name__ == "__main__":
    main()
