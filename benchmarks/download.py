"""Measures ``coyo download`` against plain img2dataset on a server of this machine.

    python benchmarks/download.py --work /tmp/download                        # the target's figures
    python benchmarks/download.py --work /tmp/download --pictures 2_000 --rounds 1 --rows 10_000

Both are run by their own command line, in turns, every run in fresh processes and a new directory,
with the same settings: 256 pixels, ``keep_ratio_largest``, only shrunk, quality 90, tars, the same
processes, threads, timeout and samples per shard. Plain img2dataset keeps all the columns that it
can (see ``write_pool``) and has its other defaults; ``no sha256, no exif`` is the same without
these two. What it fetched and decoded is the same pictures as coyo's: benchmarks/picture_server.py
serves 20,000 of them from 500 addresses, at once or, as real hosts do, late. After every run all
pictures are counted in what was written and in what the server was asked for.

- ``speed``: a pool in which no url repeats, since coyo fetches a url once and img2dataset once a
  row. Ratios are between runs of the same round, and their median counts.
- ``shared``: rows a second where 12 % of rows repeat another's url, as in COYO.
- ``memory``: ``--rows`` rows, once each; pictures repeat under other queries.
- ``rerun``: the command again, on what it has finished.

Three rates: over the whole command; from the first picture asked for to the command's end, which
leaves starting out but no work; and between the 5th and 95th of 100 requests, which would flatter a
program that fetches first and works later. Memory is PSS, summed over all processes and sampled
twice a second. CPU seconds are those of all processes, the server's told apart. Talk goes to
stderr, tables to stdout as Markdown.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from make_pictures import Pictures, make_pictures
from make_pool import make_pool
from picture_server import Server, Stats, host, serving
from processes import GB, Tree, measured_tree

from coyo_tools.columns import COYO_COLUMNS, COYO_SCHEMA

HOSTS = 500
SHARED = 0.12  # of COYO's rows repeat a url: it has 656 M for 747 M rows
PLAIN, BARE, COYO = "img2dataset", "img2dataset, no sha256, no exif", "coyo download"
PEERS = (PLAIN, BARE, COYO)
# img2dataset takes these names for its own columns and refuses a pool's.
_TAKEN = {"width": "coyo_width", "height": "coyo_height"}
# No proxies between us and the server; albumentations would ask the network for a newer version.
_ENVIRONMENT = {"no_proxy": "*", "NO_ALBUMENTATIONS_UPDATE": "1"}


@dataclass(frozen=True)
class Bench:
    """Where things lie, how much is fetched, and how."""

    work: Path
    pictures: int
    rows: int
    rounds: int
    latencies: tuple[float, ...]
    processes: int
    threads: int
    per_host: int | None
    dead: float
    shards: int

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty directory, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.work) as directory:
            yield Path(directory)


@dataclass(frozen=True)
class Pool:
    """Rows to download, for coyo and, under other names, for img2dataset."""

    coyo: Path
    plain: Path
    rows: int
    urls: int
    alive_rows: int
    alive_urls: int


@dataclass(frozen=True)
class Run:
    """One run of a peer on a pool, and what the server saw of it."""

    pool: Pool
    tree: Tree
    stats: Stats

    def rates(self) -> tuple[float, float, float]:
        """Return urls a second: over all, from the first request to the end, 5 to 95 %."""
        times = self.stats.times
        first, early, late = times[0], times[len(times) // 20], times[len(times) * 19 // 20]
        return (
            self.pool.urls / self.tree.seconds,
            self.pool.urls / (self.tree.end - first),
            0.9 * len(times) / (late - early),
        )

    @property
    def rows_per_second(self) -> float:
        """Rows done a second, over the whole command."""
        return self.pool.rows / self.tree.seconds

    def quarters(self) -> list[float]:
        """Return the mean memory in GB in each quarter of the time since the first request."""
        first = self.stats.times[0] - self.tree.start
        held = [moment.pss / GB for moment in self.tree.moments if moment.seconds >= first]
        return [float(np.mean(part)) for part in np.array_split(held, 4) if len(part)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="for pictures (kept) and runs")
    parser.add_argument("--pictures", type=int, default=20_000, help="also the rows of speed")
    parser.add_argument("--rows", type=int, default=100_000, help="of memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--latency", type=float, nargs="+", default=[0.0, 50.0], help="milliseconds, one or more"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=32, help="of each process")
    parser.add_argument("--per-host", type=int, help="requests at a time to a host, for coyo")
    parser.add_argument(
        "--dead", type=float, default=0.0, help="share of urls: 404, refused, reset"
    )
    # img2dataset starts a process anew after five shards, and its import takes seconds.
    parser.add_argument("--shards", type=int, default=8, help="into which a pool is cut")
    parser.add_argument("--only", nargs="+", choices=[*PARTS], metavar="NAME", default=[*PARTS])
    chosen = parser.parse_args()
    bench = Bench(
        chosen.work.absolute(),
        chosen.pictures,
        chosen.rows,
        chosen.rounds,
        tuple(chosen.latency),
        chosen.processes,
        chosen.threads,
        chosen.per_host,
        chosen.dead,
        chosen.shards,
    )
    say(f"pictures in {bench.work}: drawn if they aren't there")
    pictures = make_pictures(bench.work, bench.pictures)
    print(f"## Download ({datetime.datetime.now(datetime.UTC):%Y-%m-%d})\n")
    print(
        f"`python benchmarks/download.py {' '.join(sys.argv[1:])}`: {_machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, img2dataset "
        f"{version('img2dataset')}, OpenCV {version('opencv-python-headless')}, Pillow "
        f"{version('pillow')}. {bench.pictures:,} pictures, "
        f"{pictures.file.stat().st_size / GB:.2f} GB, mean "
        f"{np.mean(pictures.index['width'].to_numpy()):.0f} x "
        f"{np.mean(pictures.index['height'].to_numpy()):.0f}, from {HOSTS} addresses. "
        f"{bench.processes} processes, {bench.threads} threads each, {bench.shards} shards, "
        f"{bench.rounds} rounds, medians.\n",
        flush=True,
    )
    for name in chosen.only:
        PARTS[name](bench, pictures)


def say(message: str) -> None:
    """Tell the person at the terminal."""
    print(message, file=sys.stderr, flush=True)


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def write_pool(
    folder: Path, pictures: Pictures, server: Server, rows: int, *, shared: float, dead: float = 0
) -> Pool:
    """Write rows with COYO's columns whose urls lead to the server.

    The top one of the hosts has 4.5 % of the urls, the next ones fewer, as 1/√rank. Rows that share
    a url share its picture. For img2dataset, which refuses a column ``width`` or ``height`` of the
    user's, these two are named ``coyo_width`` and ``coyo_height``.
    """
    rng = np.random.default_rng(9)
    make_pool(folder / "drawn", rows)
    table = pq.read_table(folder / "drawn")
    shutil.rmtree(folder / "drawn")
    own = np.arange(rows)
    repeats = rng.random(rows) < shared
    shown = np.where(repeats, rng.integers(0, rows, rows), own)
    shown = np.where(repeats[shown], own, shown)  # of chains the first link alone
    picture = shown % pictures.index.num_rows
    hosts = (HOSTS * rng.random(rows) ** 2).astype(int)[shown]
    fate = np.where(rng.random(rows) < dead, rng.integers(1, 4, rows), 0)[shown]
    urls = [_url(server, *each) for each in zip(shown, picture, hosts, fate, strict=True)]
    seen = pictures.index.take(pa.array(picture))
    for name in ("width", "height", "image_phash"):
        place = COYO_SCHEMA.get_field_index(name)
        table = table.set_column(place, name, seen[name].cast(COYO_SCHEMA.field(name).type))
    table = table.set_column(COYO_SCHEMA.get_field_index("url"), "url", pa.array(urls))
    alive = fate == 0
    pool = Pool(
        folder / "pool.parquet",
        folder / "plain.parquet",
        rows,
        len(np.unique(shown)),
        int(alive.sum()),
        len(np.unique(shown[alive])),
    )
    pq.write_table(table, pool.coyo)
    names = [_TAKEN.get(name, name) for name in table.column_names]
    pq.write_table(table.rename_columns(names), pool.plain)
    return pool


def _url(server: Server, row: int, picture: int, on_host: int, fate: int) -> str:
    name, query = host(int(on_host)), f"?row={row}"
    if fate == 2:
        return f"http://{name}:{server.closed_port}/{picture}.jpg{query}"
    path = f"{picture}.jpg" if fate == 0 else f"dead/{'404' if fate == 1 else 'reset'}/{picture}"
    return f"http://{name}:{server.port}/{path}{query}"


def _command(bench: Bench, peer: str, pool: Pool, output: Path) -> list[object]:
    """Return the command of a peer."""
    per_shard = -(-pool.rows // bench.shards)
    binaries = Path(sys.executable).parent
    if peer == COYO:
        command: list[object] = [binaries / "coyo", "download", pool.coyo, "-o", output]
        options: dict[str, object] = {
            "image-size": 256,
            "quality": 90,
            "samples-per-shard": per_shard,
            "processes": bench.processes,
            "threads": bench.threads,
            "timeout": 10,
        }
        offered = _coyo_help()
        if bench.per_host is not None and "--per-host" in offered:
            options["per-host"] = bench.per_host
        for name, value in options.items():
            command += [f"--{name}", value]
        private = "--allow-private-networks"
        return [*command, private] if private in offered else command
    kept = [_TAKEN.get(column.name, column.name) for column in COYO_COLUMNS]
    options = {
        "url_list": pool.plain,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "text",
        "output_folder": output,
        "output_format": "webdataset",
        "image_size": 256,
        "resize_mode": "keep_ratio_largest",
        "resize_only_if_bigger": True,
        "encode_quality": 90,
        "processes_count": bench.processes,
        "thread_count": bench.threads,
        "number_sample_per_shard": per_shard,
        "timeout": 10,
        "enable_wandb": False,
        "save_additional_columns": json.dumps(
            [name for name in kept if name not in ("url", "text")]
        ),
    }
    if peer == BARE:
        options |= {"compute_hash": None, "extract_exif": False}
    return [binaries / "img2dataset", *(f"--{name}={value}" for name, value in options.items())]


def _coyo_help() -> str:
    return subprocess.run(
        [Path(sys.executable).with_name("coyo"), "download", "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _run(bench: Bench, server: Server, peer: str, pool: Pool) -> Run:
    """Run a peer in an empty directory; see that all was done."""
    with bench.scratch() as scratch:
        server.reset()
        tree = measured_tree(
            _command(bench, peer, pool, scratch / "out"), scratch, environment=_ENVIRONMENT
        )
        tree.check()
        stats = server.stats()
        _check(peer, pool, scratch / "out", stats)
        run = Run(pool, tree, stats)
        over_all, since_first, between = run.rates()
        say(
            f"{peer}: {tree.seconds:.1f} s, {over_all:.0f} / {since_first:.0f} / {between:.0f} "
            f"urls/s, {1000 * tree.cpu / pool.urls:.2f} ms CPU each, "
            f"peak {tree.peak().pss / GB:.2f} GB in {tree.peak().processes} processes, server "
            f"{stats.cpu:.1f} s, {stats.robots} robots.txt"
            + (f", {tree.left} processes left behind" if tree.left else "")
        )
        return run


def _check(peer: str, pool: Pool, output: Path, stats: Stats) -> None:
    """Raise unless every picture came and was stored, and each url was asked for as expected."""
    stored = 0
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            stored += sum(name.endswith(".jpg") for name in tar.getnames())
    if peer == COYO:
        ledger = pl.read_parquet(output / "ledger.parquet")
        assert ledger.height == pool.rows, (ledger.height, pool.rows)
        outcomes = dict(ledger["outcome"].value_counts().iter_rows())
        done, asked = outcomes.get("ok", 0), pool.alive_urls
    else:
        files = sorted(output.glob("[0-9]*.parquet"))
        outcomes = dict(pl.read_parquet(files)["status"].value_counts().iter_rows())
        done, asked = outcomes.get("success", 0), pool.alive_rows
    assert done == stored == pool.alive_rows, (peer, outcomes, stored, pool)
    assert stats.distinct == pool.alive_urls, (peer, stats.distinct, pool)
    assert stats.pictures == asked, (peer, stats.pictures, asked)


def _rounds(bench: Bench, server: Server, pool: Pool, peers: Sequence[str]) -> dict[str, list[Run]]:
    """Run peers in turns; who is first changes from round to round."""
    runs: dict[str, list[Run]] = {peer: [] for peer in peers}
    for number in range(bench.rounds):
        turn = number % len(peers)
        for peer in (*peers[turn:], *peers[:turn]):
            runs[peer].append(_run(bench, server, peer, pool))
    return runs


def speed(bench: Bench, pictures: Pictures) -> None:
    """Compare images a second where no url repeats."""
    for latency in bench.latencies:
        with (
            serving(bench.work, bench.pictures, latency) as server,
            bench.scratch() as folder,
        ):
            pool = write_pool(folder, pictures, server, bench.pictures, shared=0, dead=bench.dead)
            say(f"speed, {latency:.0f} ms")
            _show_speed(_rounds(bench, server, pool, PEERS), latency, bench.dead)


def _show_speed(runs: dict[str, list[Run]], latency: float, dead: float) -> None:
    faulty = f", {dead:.0%} of links dead" if dead else ""
    print(f"### Images a second, answers after {latency:.0f} ms{faulty}\n")
    print("| | images/s, whole command | ratio (target ≥ 0.90) | since the first request | ratio "
          "| 5–95 % of requests | CPU, ms an image | ratio | of it system | peak PSS | ratio |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for peer, own in runs.items():
        over_all, since_first, between = (
            statistics.median(run.rates()[which] for run in own) for which in range(3)
        )
        ratios = [
            statistics.median(
                run.rates()[which] / plain.rates()[which]
                for run, plain in zip(own, runs[PLAIN], strict=True)
            )
            for which in range(2)
        ]
        cpu = statistics.median(run.tree.cpu / run.pool.urls for run in own)
        system = statistics.median(run.tree.system / run.pool.urls for run in own)
        peak = statistics.median(run.tree.peak().pss for run in own)
        held, spent = (
            statistics.median(
                figure(run) / figure(plain) for run, plain in zip(own, runs[PLAIN], strict=True)
            )
            for figure in (lambda run: run.tree.peak().pss, lambda run: run.tree.cpu)
        )
        print(
            f"| {peer} | {over_all:.0f} | **{ratios[0]:.2f}** | {since_first:.0f} "
            f"| {ratios[1]:.2f} | {between:.0f} | {1000 * cpu:.2f} "
            f"| {spent:.2f} | {1000 * system:.2f} "
            f"| {peak / GB:.2f} GB | {held:.2f} |"
        )
    print(flush=True)


def shared(bench: Bench, pictures: Pictures) -> None:
    """Compare rows a second where rows share urls."""
    latency = bench.latencies[0]
    with serving(bench.work, bench.pictures, latency) as server, bench.scratch() as folder:
        pool = write_pool(folder, pictures, server, bench.pictures, shared=SHARED)
        say(f"shared, {pool.rows:,} rows, {pool.urls:,} urls")
        runs = _rounds(bench, server, pool, (PLAIN, COYO))
    print(f"### Rows a second, {pool.rows:,} rows with {pool.urls:,} urls, {latency:.0f} ms\n")
    print("| | rows/s | ratio | requests |\n|---|---|---|---|")
    for peer, own in runs.items():
        rows = statistics.median(run.rows_per_second for run in own)
        ratio = statistics.median(
            run.rows_per_second / plain.rows_per_second
            for run, plain in zip(own, runs[PLAIN], strict=True)
        )
        print(f"| {peer} | {rows:.0f} | {ratio:.2f} | {own[0].stats.requests:,} |")
    print(flush=True)


def memory(bench: Bench, pictures: Pictures) -> None:
    """Compare memory over a longer download."""
    latency = bench.latencies[0]
    with serving(bench.work, bench.pictures, latency) as server, bench.scratch() as folder:
        pool = write_pool(folder, pictures, server, bench.rows, shared=SHARED)
        say(f"memory, {pool.rows:,} rows, {pool.urls:,} urls")
        runs = {peer: _run(bench, server, peer, pool) for peer in (PLAIN, COYO)}
    print(f"### Memory, {pool.rows:,} rows with {pool.urls:,} urls, {latency:.0f} ms\n")
    print("| | seconds | peak PSS | ratio (target ≤ 1.3) | anonymous at the peak | processes "
          "| mean of each quarter, GB |\n|---|---|---|---|---|---|---|")  # fmt: skip
    plain = runs[PLAIN].tree.peak().pss
    for peer, run in runs.items():
        peak = run.tree.peak()
        quarters = ", ".join(f"{held:.2f}" for held in run.quarters())
        print(
            f"| {peer} | {run.tree.seconds:.0f} | {peak.pss / GB:.2f} GB "
            f"| **{peak.pss / plain:.2f}** | {peak.anonymous / GB:.2f} GB | {peak.processes} "
            f"| {quarters} |"
        )
    print(flush=True)


def rerun(bench: Bench, pictures: Pictures) -> None:
    """Give the command again when it has finished."""
    with serving(bench.work, bench.pictures) as server, bench.scratch() as folder:
        pool = write_pool(folder, pictures, server, bench.pictures, shared=0)
        say("rerun")
        command = _command(bench, COYO, pool, folder / "out")
        measured_tree(command, folder, environment=_ENVIRONMENT).check()
        again, requests = [], 0
        for _ in range(bench.rounds):
            server.reset()
            again.append(measured_tree(command, folder, environment=_ENVIRONMENT))
            requests += server.stats().requests
    seconds = statistics.median(tree.seconds for tree in again)
    codes = ", ".join(sorted({str(tree.code) for tree in again}))
    words = (again[-1].told + again[-1].complaint).strip().splitlines()
    print(f"### The same command on its finished result, {pool.rows:,} rows\n")
    print("| seconds (target ≤ 3) | requests (target 0) | exit code (0) | its last words |")
    print("|---|---|---|---|")
    print(f"| **{seconds:.2f}** | {requests} | {codes} | {words[-1] if words else ''} |\n")


PARTS = {"speed": speed, "shared": shared, "memory": memory, "rerun": rerun}

if __name__ == "__main__":
    main()
