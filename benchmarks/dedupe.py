"""Measures deduplication against hand-written SQL and near-duplicate libraries.

    python benchmarks/dedupe.py --work /tmp/dedupe                # 10 M rows; makes its pools there
    python benchmarks/dedupe.py --work /tmp/dedupe --large        # and 100 M, and the whole of COYO
    python benchmarks/dedupe.py --work /tmp/dedupe --only peers --peers /tmp/peers/bin/python
    python benchmarks/dedupe.py --work /tmp/try --size 100_000 --large    # everything 1 % as large

What is measured, and how:

- ``exact``: whole rows of make_pool.py's, equal hashes removed, the best score kept, against
  DuckDB queries that write the same survivors in the same order and codec, and who went. Outputs
  are compared first. Each in turns in this process; the least of the rounds counts.
- ``pairs``: all pairs of distinct hashes (make_hashes.py) within radius 2, against DuckDB's
  equi-joins on masked hashes, ten masks of 25 bits and six of 32; and within radius 4, against
  radius 2. Hashes are in memory, for DuckDB in a table; in turns; the numbers of pairs must agree.
- ``road``: the command ``coyo dedupe --radius 2`` on a pool of hashes whose rows repeat, and on
  one where a clump has 5 % of the rows; in turns, from the start of the process to its end.
- ``peers``: other programs at sizes they can finish, on the same hashes, each in a process of its
  own (near_peers.py), starting and compiling left out. Numbers of pairs must agree. What is not
  installed is left out and told; ``--peers`` names the Python of an environment that has them.
- ``larger`` (``--large``): ten times as many hashes at 8 GB, against the first size, both as peers
  are run.
- ``whole`` (``--large``): ``road`` with COYO's 579,679,137 distinct hashes in 746,972,269 rows at
  14 GB, once. Such a pool takes 10 GB of disk, a result about as much; spill comes on top.

Peak memory is that of the command's own process: RSS, in which mapped pages of files count too,
and anonymous memory alone, which is sampled. Spill is the most that lay in the hidden directory
beside the output, sampled as well; a finished output lies there before it is moved.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filter import hand_written, in_turns, show
from make_hashes import clump_size, make_hashes, save_npy, write_pool
from make_pool import make_pool
from near_peers import INSTALL, MISSING, Hashes
from processes import GB, Process, measured

from coyo_tools.dedupe import dedupe_pool
from coyo_tools.manifest import read_manifest
from coyo_tools.neighbours import near_pairs

SIZE = 10_000_000
COYO_DISTINCT, COYO_ROWS = 579_679_137, 746_972_269  # the dataset card's
SCORE = "clip_similarity_vitl14"
CODEC = "COMPRESSION zstd, COMPRESSION_LEVEL 1"  # ours
# How many hashes each peer gets, and which radii: imagededup and the tree compare about all
# with all.
PEERS = (
    ("faiss", 10_000_000, (2,)),
    ("faiss", 1_000_000, (2, 4)),
    ("bktree", 100_000, (2,)),
    ("imagededup", 20_000, (2,)),
)


@dataclass(frozen=True)
class Bench:
    """Where the pools lie, how large they are, how often things run."""

    work: Path
    size: int
    rounds: int
    memory: int
    peers: str

    def scaled(self, count: int) -> int:
        """Return a number of rows as it is at 10 M, times what ``--size`` says."""
        return count * self.size // SIZE

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty directory, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.work) as directory:
            yield Path(directory)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="where pools are made and kept")
    parser.add_argument("--large", action="store_true", help="also 100 M hashes and whole COYO")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *LARGE], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=SIZE, help="hashes; the rest in proportion")
    parser.add_argument("--memory", type=int, default=8, help="GB, for pairs and road")
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the peers")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    # Processes run elsewhere; resolving links would lead out of a virtual environment.
    peers = str(Path(chosen.peers).absolute()) if os.sep in chosen.peers else chosen.peers
    bench = Bench(chosen.work.absolute(), chosen.size, chosen.rounds, chosen.memory * GB, peers)
    print(f"{_machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"duckdb {duckdb.__version__}, numba {numba.__version__}\n", flush=True)  # fmt: skip
    for name in chosen.only or [*PARTS, *(LARGE if chosen.large else ())]:
        (PARTS | LARGE)[name](bench)


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def hashes_of(bench: Bench, distinct: int) -> Path:
    """Return a file of so many distinct hashes, made if it isn't there."""
    path = bench.work / f"hashes-{distinct}.npy"
    if not path.exists():
        save_npy(path.with_suffix(".partial.npy"), make_hashes(distinct))
        path.with_suffix(".partial.npy").rename(path)
    return path


def road_pool(bench: Bench, distinct: int, rows: int, *, skew: bool) -> Path:
    """Return a pool of hashes, made if it isn't there."""
    path = bench.work / f"pool-{distinct}-{rows}{'-skew' if skew else ''}"
    if not path.exists():
        clump = clump_size(distinct, rows) if skew else 0
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_pool(partial, make_hashes(distinct, clump=clump), rows, clump=clump)
        partial.rename(path)
    return path


# What to keep is the same in all: a NaN counts as no score, no score is worst, ties end by id.
_BEST = (
    f"PARTITION BY image_phash ORDER BY CASE WHEN NOT isnan({SCORE}) THEN {SCORE} END "
    "DESC NULLS LAST, id"
)
_KEY = f"row(CASE WHEN NOT isnan({SCORE}) THEN -{SCORE} ELSE 'inf'::FLOAT END, id)"
_REMOVED = {
    "window over all rows": f"""
        SELECT id, kept FROM (
            SELECT id, first_value(id) OVER ({_BEST}) AS kept FROM pool
        ) WHERE id <> kept""",
    "window over rows whose hash repeats": f"""
        SELECT id, kept FROM (
            SELECT id, first_value(id) OVER ({_BEST}) AS kept
            FROM (SELECT id, image_phash, {SCORE} FROM pool)
            SEMI JOIN (SELECT image_phash FROM pool GROUP BY 1 HAVING count(*) > 1)
            USING (image_phash)
        ) WHERE id <> kept""",
    "arg_min and a join": f"""
        SELECT pool.id, kept FROM pool
        JOIN (
            SELECT image_phash, arg_min(id, {_KEY}) AS kept FROM pool
            GROUP BY 1 HAVING count(*) > 1
        ) USING (image_phash)
        WHERE pool.id <> kept""",
}


def exact(bench: Bench) -> None:
    """Remove equal hashes from whole rows."""
    pool = bench.work / f"whole-rows-{bench.size}"
    if not pool.exists():
        partial = pool.with_suffix(".partial")
        make_pool(partial, bench.size)
        partial.rename(pool)
    with bench.scratch() as scratch, hand_written(pool) as plain:

        def ours() -> None:
            dedupe_pool(
                pool, scratch / "ours", by=("image_phash",), keep=f"{SCORE} DESC", overwrite=True
            )

        def by_hand(removed: str) -> None:
            plain.execute(f"CREATE OR REPLACE TEMP TABLE removed AS {removed}")
            plain.execute(
                "COPY (SELECT pool.* FROM pool ANTI JOIN removed USING (id)) "
                f"TO '{scratch}/hand.parquet' ({CODEC}, PRESERVE_ORDER true)"
            )
            plain.execute(f"COPY removed TO '{scratch}/gone.parquet' ({CODEC})")

        def by_qualify() -> None:
            plain.execute(
                f"COPY (SELECT * FROM pool QUALIFY row_number() OVER ({_BEST}) = 1 ORDER BY id) "
                f"TO '{scratch}/hand.parquet' ({CODEC})"
            )
            plain.execute(
                f"COPY (SELECT id, first_value(id) OVER ({_BEST}) AS kept FROM pool "
                f"QUALIFY id <> kept) TO '{scratch}/gone.parquet' ({CODEC})"
            )

        peers: dict[str, Callable[[], object]] = {
            f"DuckDB, {name}, anti join": lambda sql=sql: by_hand(sql)
            for name, sql in _REMOVED.items()
        }
        peers["DuckDB, QUALIFY on whole rows"] = by_qualify
        ours()
        wanted = _outcome([*(scratch / "ours").glob("part-*.parquet")],
                          scratch / "ours" / "removed.parquet")  # fmt: skip
        for name, work in peers.items():
            work()
            found = _outcome([scratch / "hand.parquet"], scratch / "gone.parquet")
            assert found == wanted, f"{name}: other survivors, another order or others' places"
        times = in_turns({"coyo dedupe, manifest included": ours} | peers, bench.rounds)
    fastest = min(peers, key=lambda name: times[name])
    show(f"exact, {bench.size:,} whole rows written, against the fastest", times, fastest)


def _outcome(survivors: list[Path], removed: Path) -> tuple[bytes, bytes]:
    """Return the survivors' ids as they are stored, and who was replaced by whom."""
    ids = [pq.read_table(file, columns=["id"])["id"].to_numpy() for file in sorted(survivors)]
    gone = pq.read_table(removed).sort_by("id")
    return np.concatenate(ids).tobytes(), b"".join(
        gone.column(place).to_numpy().tobytes() for place in (0, 1)
    )


def masked_joins(blocks: int, radius: int) -> str:
    """Write all pairs within a radius as equi-joins on two of so many blocks of bits."""
    edges = [round(64 * block / blocks) for block in range(blocks + 1)]
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    return " UNION ".join(
        "SELECT a.hash AS first, b.hash AS second FROM hashes a JOIN hashes b "
        f"ON a.hash & {one | other}::UBIGINT = b.hash & {one | other}::UBIGINT "
        f"AND a.hash < b.hash WHERE bit_count(xor(a.hash, b.hash)) <= {radius}"
        for one, other in itertools.combinations(masks, 2)
    )


def pairs(bench: Bench) -> None:
    """Find all near pairs of distinct hashes."""
    hashes = np.load(hashes_of(bench, bench.size))
    counted: dict[str, int] = {}

    with bench.scratch() as scratch, duckdb.connect(str(scratch / "spill.db")) as plain:
        plain.execute("SET enable_progress_bar = false")
        plain.register("arrow", pa.table({"hash": hashes}))
        plain.execute("CREATE TEMP TABLE hashes AS FROM arrow")

        def ours(name: str, radius: int) -> None:
            counted[name] = _our_pairs(bench, hashes, radius)

        def theirs(name: str, blocks: int) -> None:
            plain.execute(f"CREATE OR REPLACE TEMP TABLE pairs AS {masked_joins(blocks, 2)}")
            counted[name] = plain.table("pairs").count("*").fetchall()[0][0]

        ten, six = "DuckDB, ten masks of 25 or 26 bits", "DuckDB, six masks of 32 bits"
        two, four = "coyo, radius 2", "coyo, radius 4"
        times = in_turns(
            {
                two: lambda: ours(two, 2),
                ten: lambda: theirs(ten, 5),
                six: lambda: theirs(six, 4),
                four: lambda: ours(four, 4),
            },
            bench.rounds,
        )
    assert counted[two] == counted[ten] == counted[six], counted
    radius_two = {name: times[name] for name in (two, ten, six)}
    show(f"radius 2, {len(hashes):,} hashes, {counted[two]:,} pairs", radius_two, ten)
    radii = {name: times[name] for name in (two, four)}
    show(f"radius 4, {counted[four]:,} pairs, against radius 2", radii, two)


def _our_pairs(bench: Bench, hashes: Hashes, radius: int) -> int:
    with bench.scratch() as scratch:
        return near_pairs(
            hashes, radius, scratch, memory=bench.memory, threads=os.cpu_count() or 1
        ).count


def peers(bench: Bench) -> None:
    """Find near pairs with other programs."""
    print("### near pairs with other programs\n")
    print("| | hashes | radius | pairs | seconds | coyo, seconds | ratio |")
    print("|---|---|---|---|---|---|---|")
    missing: set[str] = set()
    for way, rows, radius in _peer_runs(bench):
        theirs = _near_process(bench, bench.peers, way, rows, radius)
        if theirs is None:
            missing.add(way)
            continue
        own = _near_process(bench, sys.executable, "coyo", rows, radius)
        assert own is not None
        assert own.pairs == theirs.pairs, (way, own, theirs)
        print(
            f"| {way} {theirs.version} | {rows:,} | {radius} | {own.pairs:,} "
            f"| {theirs.seconds:.3f} | {own.seconds:.3f} | {theirs.seconds / own.seconds:.1f} |",
            flush=True,
        )
    print()
    for way in sorted(missing):
        print(f"{way} is not installed for {bench.peers}: {INSTALL[way]}\n", flush=True)


def _peer_runs(bench: Bench) -> Iterator[tuple[str, int, int]]:
    """Yield peer, number of hashes and radius."""
    for way, rows, radii in PEERS:
        for radius in radii:
            yield way, bench.scaled(rows), radius


@dataclass(frozen=True)
class Found:
    """What a process of near_peers.py found, in how long, with how much memory."""

    version: str
    pairs: int
    seconds: float
    process: Process


def _near_process(
    bench: Bench, python: str, way: str, rows: int, radius: int, memory: int = 8 * GB
) -> Found | None:
    """Run near_peers.py; None if the peer is not installed."""
    script = Path(__file__).with_name("near_peers.py")
    with bench.scratch() as scratch:
        process = measured(
            [python, script, way, hashes_of(bench, rows), "--radius", radius, "--memory", memory],
            scratch,
        )
    if process.code == MISSING and way in INSTALL:
        return None
    process.check()
    told = json.loads(process.told.splitlines()[-1])
    return Found(told["version"], told["pairs"], told["seconds"], process)


def larger(bench: Bench) -> None:
    """Find the near pairs of ten times as many hashes."""
    print("### ten times as many hashes, radius 2, 8 GB\n")
    print("| hashes | pairs | seconds | ratio | peak RSS | anonymous | spill |")
    print("|---|---|---|---|---|---|---|")
    first = 0.0
    for rows in (bench.size, 10 * bench.size):
        found = _near_process(bench, sys.executable, "coyo", rows, 2)
        assert found is not None
        first = first or found.seconds
        print(
            f"| {rows:,} | {found.pairs:,} | {found.seconds:.1f} | {found.seconds / first:.1f} "
            f"| {found.process.memory()} |",
            flush=True,
        )
    print()


def road(bench: Bench) -> None:
    """Run the command on a pool, and on one with a clump, several times in turns."""
    rows = COYO_ROWS * bench.size // COYO_DISTINCT
    _roads(bench, bench.size, rows, bench.memory, bench.rounds)


def whole(bench: Bench) -> None:
    """Run the command on pools of COYO's size, once each."""
    _roads(bench, bench.scaled(COYO_DISTINCT), bench.scaled(COYO_ROWS), 14 * GB, 1)


def _roads(bench: Bench, distinct: int, rows: int, memory: int, rounds: int) -> None:
    pools = {
        "even": road_pool(bench, distinct, rows, skew=False),
        "5 % in a clump": road_pool(bench, distinct, rows, skew=True),
    }
    print(f"### coyo dedupe --radius 2 --memory {memory // GB}GB, {distinct:,} distinct hashes\n")
    print("| pool | rows in | rows out | seconds | ratio | peak RSS | anonymous | spill |")
    print("|---|---|---|---|---|---|---|---|")
    best: dict[str, tuple[int, int, Process]] = {}
    for number, (name, pool) in itertools.product(range(rounds), pools.items()):
        ran = _command(bench, pool, memory)
        if name not in best or ran[2].seconds < best[name][2].seconds:
            best[name] = ran
        if number == rounds - 1:
            rows_in, rows_out, process = best[name]
            print(
                f"| {name} | {rows_in:,} | {rows_out:,} | {process.seconds:.1f} "
                f"| {process.seconds / best['even'][2].seconds:.2f} | {process.memory()} |",
                flush=True,
            )
    print()


def _command(bench: Bench, pool: Path, memory: int) -> tuple[int, int, Process]:
    """Run the command; return rows in, rows out, and what the process took."""
    with bench.scratch() as scratch:
        out = scratch / "out"
        process = measured(
            [Path(sys.executable).with_name("coyo"), "dedupe", pool, "-o", out]
            + ["--radius", 2, "--memory", f"{memory // GB}GB"],
            scratch,
        )
        process.check()
        manifest = read_manifest(out)
        removed = pq.read_metadata(out / "removed.parquet").num_rows
        assert manifest.rows_in == manifest.rows_out + removed
        return manifest.rows_in, manifest.rows_out, process


PARTS: dict[str, Callable[[Bench], None]] = {
    "exact": exact,
    "pairs": pairs,
    "road": road,
    "peers": peers,
}
LARGE: dict[str, Callable[[Bench], None]] = {"larger": larger, "whole": whole}


if __name__ == "__main__":
    main()
