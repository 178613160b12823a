"""Scores many rows with ``coyo score`` and looks at its memory as they go by.

    python benchmarks/use_score.py RUN --work /tmp/score --rows 100000

The pool has rows of ten words; every hundredth has no picture in the shards. A few hundred
different JPEGs are written again and again, so that the tars are as long as real ones while making
them takes little. Memory is the resident set of the command and of all that it starts, looked at
every half second, as the highest of each quarter of the rows: it must not grow. Then the command is
killed (kill -9) at half of the rows and given again: the bytes have to be the same. Linux alone.
"""

import argparse
import datetime
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_pictures import draw
from PIL import Image

from coyo_tools.columns import COYO_SCHEMA

_DIFFERENT = 300
_PER_TAR = 10_000
_MEGA = 2**20
_WORDS = "red green blue old new tall small house tree cat dog sea map cell bone star wall".split()  # noqa: SIM905


def make(work: Path, rows: int) -> None:
    """A pool and its shards, unless they are there."""
    if (work / "pool.parquet").exists():
        return
    pictures = []
    for number in range(_DIFFERENT):
        data, _ = draw(0, number)
        with Image.open(io.BytesIO(data)) as picture:
            small = picture.convert("RGB")
            small.thumbnail((256, 256))
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=90)
            pictures.append(stream.getvalue())
    random = np.random.default_rng(0)
    texts = [" ".join(some) for some in random.choice(_WORDS, (rows, 10)).tolist()]
    shards = work / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    for start in range(0, rows, _PER_TAR):
        with tarfile.open(shards / f"{start // _PER_TAR:05}.tar", "w") as tar:
            for id_ in range(start, min(rows, start + _PER_TAR)):
                if id_ % 100:
                    info = tarfile.TarInfo(f"{id_:09}.jpg")
                    info.size = len(pictures[id_ % _DIFFERENT])
                    tar.addfile(info, io.BytesIO(pictures[id_ % _DIFFERENT]))
    schema = pa.schema([COYO_SCHEMA.field("id"), COYO_SCHEMA.field("text")])
    table = pa.table([pa.array(range(rows)), pa.array(texts)], schema=schema)
    pq.write_table(table, work / "pool.parquet")


def start(work: Path, model: Path, output: str, threads: int) -> "subprocess.Popen[bytes]":
    """Begin to score."""
    command = [
        sys.executable, "-c", "from coyo_tools.cli import main; main()", "score", "pool.parquet",
        "--model", str(model.absolute()), "--data", "shards", "-o", output, "--threads",
        str(threads), "--processes", str(threads),
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=work, stdout=sys.stderr)


def resident(pid: int) -> int:
    """Bytes in memory of a process and all that it started."""
    kib = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            children = Path(f"/proc/{one}/task/{one}/children").read_text()
        except OSError:
            continue  # ended meanwhile
        kib += int(status.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in status else 0
        waiting += map(int, children.split())
    return kib * 1024


def scored(work: Path, output: str) -> int:
    """How many rows have been scored for sure."""
    note = work / f".{output}.partial" / ".passes" / "align_similarity.json"
    try:
        return int(json.loads(note.read_text())["records"])
    except (OSError, ValueError):
        return 0


def main() -> None:
    """Parse, score, kill, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-kill", action="store_true")
    given = parser.parse_args()
    make(given.work, given.rows)
    begun = time.monotonic()
    running = start(given.work, given.model, "whole", given.threads)
    highest = [0] * 4
    quarter = 0
    while running.poll() is None:
        quarter = max(quarter, min(3, 4 * scored(given.work, "whole") // given.rows))
        highest[quarter] = max(highest[quarter], resident(running.pid))
        time.sleep(0.5)
    seconds = time.monotonic() - begun
    if running.returncode:
        raise SystemExit(running.returncode)
    print(f"{datetime.date.today()}, {platform.processor() or platform.machine()}, "
          f"{given.threads} threads\n")  # fmt: skip
    print("| rows | seconds | rows/s | MB in quarter 1 | 2 | 3 | 4 |")
    print("|---|---|---|---|---|---|---|")
    cells = " | ".join(f"{size / _MEGA:,.0f}" for size in highest)
    print(f"| {given.rows:,} | {seconds:,.0f} | {given.rows / seconds:,.0f} | {cells} |")
    if given.no_kill:
        return
    killed = start(given.work, given.model, "again", given.threads)
    while killed.poll() is None and scored(given.work, "again") < given.rows // 2:
        time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = scored(given.work, "again")
    start(given.work, given.model, "again", given.threads).wait()
    parts = sorted(path.name for path in (given.work / "whole").glob("part-*.parquet"))
    same = all(
        (given.work / "whole" / name).read_bytes() == (given.work / "again" / name).read_bytes()
        for name in parts
    )
    print(f"\nKilled after {kept:,} rows and given again: {'the same' if same else 'OTHER'} bytes.")


if __name__ == "__main__":
    main()
