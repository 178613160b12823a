"""Measures filtering against hand-written SQL, Polars, DataComp's way and row loops.

    python benchmarks/make_pool.py /tmp/pool10m --rows 10_000_000
    python benchmarks/filter.py /tmp/pool10m
    python benchmarks/filter.py /tmp/pool10m --larger /tmp/pool50m   # and the memory of both

Every peer does the same work on the same files in the same process, in turns, so that whatever else
the machine does meets all of them; the least of several rounds counts. Files are in the page cache
for all. Peers that need minutes for the whole pool do a part of it, and their rate is scaled.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq

from coyo_tools.bites import float_columns
from coyo_tools.engine import open_session
from coyo_tools.explain import explain_pool
from coyo_tools.filter import filter_pool
from coyo_tools.guard import guarded_for_scan
from coyo_tools.source import open_source

FIVE = (
    "clip_similarity_vitb32 >= 0.28",
    "clip_similarity_vitl14 >= 0.26",
    "watermark_score < 0.5",
    "aesthetic_score_laion_v2 >= 5",
    "word_count BETWEEN 3 AND 20",
)
EIGHT = (*FIVE, "width >= 256", "nsfw_score_gantman < 0.2", "height >= 256")
NEEDED = (
    "id", "clip_similarity_vitb32", "clip_similarity_vitl14", "watermark_score",
    "aesthetic_score_laion_v2", "word_count",
)  # fmt: skip
WHERE = " AND ".join(FIVE)
ROW_LOOP_ROWS = 200_000
DATASETS_ROWS = 1_000_000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--larger", type=Path, help="a pool several times as large, for memory")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    rows = open_source(chosen.pool).rows
    print(f"{rows:,} rows, {os.cpu_count()} cores, duckdb {duckdb.__version__}, "
          f"polars {pl.__version__}\n")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=chosen.pool.absolute().parent) as scratch:
        counting(chosen.pool, chosen.rounds)
        seconds = writing(chosen.pool, Path(scratch), chosen.rounds)
        row_by_row(chosen.pool, Path(scratch), rows, seconds)
        explaining(chosen.pool, chosen.rounds)
        ids_alone(chosen.pool, Path(scratch), chosen.rounds)
        if chosen.larger is not None:
            memory([chosen.pool, chosen.larger], Path(scratch))


def in_turns(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least wall time of each peer, after a round that doesn't count."""
    best = dict.fromkeys(peers, float("inf"))
    for number in range(rounds + 1):
        for name, work in peers.items():
            start = time.perf_counter()
            work()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def show(title: str, times: dict[str, float], against: str) -> None:
    """Print a table of times and their ratio to one of them."""
    print(f"### {title}\n\n| | seconds | ratio |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.3f} | {seconds / times[against]:.2f} |")
    print(flush=True)


def hand_written(pool: Path) -> duckdb.DuckDBPyConnection:
    """Return a plain DuckDB connection, as somebody would open one."""
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    connection.read_parquet(f"{pool}/*.parquet").create_view("pool")
    return connection


def counting(pool: Path, rounds: int) -> None:
    """Count the rows that pass five predicates."""
    source = open_source(pool)
    ours = f"SELECT count(*) FROM pool WHERE {WHERE}"
    with hand_written(pool) as plain, open_session(source) as session:
        guarded = guarded_for_scan(ours, float_columns(source))

        def whole() -> object:
            opened = open_source(pool)
            with open_session(opened) as own:
                sql = guarded_for_scan(ours, float_columns(opened))
                return own.sql(sql).fetchall()

        assert session.sql(guarded).fetchall() == whole()
        times = in_turns(
            {
                "hand-written DuckDB": lambda: plain.sql(ours).fetchall(),
                "coyo, the query": lambda: session.sql(guarded).fetchall(),
                "coyo, opening and fencing included": whole,
            },
            rounds * 2,
        )
    show("count with five predicates", times, "hand-written DuckDB")


def polars_predicate() -> pl.Expr:
    """Return the five predicates for Polars, with the literals as 32-bit floats, as DuckDB has."""

    def literal(value: float) -> pl.Expr:
        return pl.lit(value, pl.Float32)

    return (
        (pl.col("clip_similarity_vitb32") >= literal(0.28))
        & (pl.col("clip_similarity_vitl14") >= literal(0.26))
        & (pl.col("watermark_score") < literal(0.5))
        & (pl.col("aesthetic_score_laion_v2") >= literal(5))
        & pl.col("word_count").is_between(3, 20)
    )


def writing(pool: Path, scratch: Path, rounds: int) -> float:
    """Write the whole rows that pass five predicates; return the seconds that coyo takes."""
    files = sorted(pool.glob("*.parquet"))

    def polars(codec: str) -> None:
        scan = pl.scan_parquet(files).filter(polars_predicate())
        scan.sink_parquet(scratch / "polars.parquet", compression=codec)

    with hand_written(pool) as plain:

        def by_hand(codec: str) -> None:
            plain.execute(
                f"COPY (SELECT * FROM pool WHERE {WHERE}) TO '{scratch}/hand.parquet' "
                f"(COMPRESSION {codec})"
            )

        times = in_turns(
            {
                "coyo filter (zstd), bites and manifest included": lambda: filter_pool(
                    pool, WHERE, scratch / "subset", overwrite=True
                ),
                "hand-written DuckDB, zstd": lambda: by_hand("zstd"),
                "hand-written DuckDB, snappy": lambda: by_hand("snappy"),
                "Polars sink_parquet, zstd": lambda: polars("zstd"),
                "Polars sink_parquet, snappy": lambda: polars("snappy"),
            },
            rounds,
        )
    fastest = min(list(times)[1:], key=lambda name: times[name])
    show(f"subset of whole rows, against the fastest ({fastest})", times, fastest)
    return next(iter(times.values()))


def explaining(pool: Path, rounds: int) -> None:
    """Tell what eight rules remove, against one count of the same WHERE."""
    count = f"SELECT count(*) FROM pool WHERE {' AND '.join(EIGHT)}"
    with hand_written(pool) as plain:
        times = in_turns(
            {
                "one count, hand-written DuckDB": lambda: plain.sql(count).fetchall(),
                "coyo explain": lambda: explain_pool(pool, " AND ".join(EIGHT)),
            },
            rounds * 2,
        )
    show("explain, eight rules", times, "one count, hand-written DuckDB")


def _datacomp_file(path: str) -> np.ndarray:
    frame = pd.read_parquet(path, columns=list(NEEDED))
    keep = (
        (frame["clip_similarity_vitb32"] >= 0.28)
        & (frame["clip_similarity_vitl14"] >= 0.26)
        & (frame["watermark_score"] < 0.5)
        & (frame["aesthetic_score_laion_v2"] >= 5)
        & frame["word_count"].between(3, 20)
    )
    return frame["id"][keep].to_numpy()


def ids_alone(pool: Path, scratch: Path, rounds: int) -> None:
    """Find the ids that pass five predicates, and DataComp's way (apply_filter.py) of doing so."""
    source = open_source(pool)
    files = [str(file) for file in source.files]
    ids = guarded_for_scan(f"SELECT id FROM pool WHERE {WHERE}", float_columns(source))

    def coyo() -> object:
        with open_session(open_source(pool)) as session:
            found = session.sql(ids).fetchnumpy()["id"]
        np.save(scratch / "ids.npy", found)
        return found

    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count()) as workers:

        def datacomp() -> object:
            found = np.concatenate(workers.map(_datacomp_file, files))
            np.save(scratch / "ids.npy", found)
            return found

        assert np.array_equal(np.sort(coyo()), np.sort(datacomp()))

        def datacomp_as_a_run() -> object:
            with context.Pool(os.cpu_count()) as own:
                return np.concatenate(own.map(_datacomp_file, files))

        times = in_turns(
            {
                "coyo, opening included": coyo,
                "DataComp's way, workers waiting": datacomp,
                "DataComp's way, workers started as its script does": datacomp_as_a_run,
            },
            rounds,
        )
    show("ids alone", times, "coyo, opening included")


def _keep_row(row: dict[str, float]) -> bool:
    values = [row[name] for name in NEEDED]
    return None not in values and (
        row["clip_similarity_vitb32"] >= 0.28
        and row["clip_similarity_vitl14"] >= 0.26
        and row["watermark_score"] < 0.5
        and row["aesthetic_score_laion_v2"] >= 5
        and 3 <= row["word_count"] <= 20
    )


def _keep_batch(batch: dict[str, np.ndarray]) -> np.ndarray:
    return (
        (batch["clip_similarity_vitb32"] >= 0.28)
        & (batch["clip_similarity_vitl14"] >= 0.26)
        & (batch["watermark_score"] < 0.5)
        & (batch["aesthetic_score_laion_v2"] >= 5)
        & (batch["word_count"] >= 3)
        & (batch["word_count"] <= 20)
    )


def row_by_row(pool: Path, scratch: Path, rows: int, coyo: float) -> None:
    """Pick whole rows with Python functions, which are scaled from a part; they write nothing."""
    times = {
        "coyo filter, written": coyo,
        f"datasets.filter, batched numpy ({DATASETS_ROWS:,} rows, scaled)": _datasets(
            pool, scratch, rows, batched=True
        ),
        f"datasets.filter, a function of a row ({ROW_LOOP_ROWS:,} rows, scaled)": _datasets(
            pool, scratch, rows, batched=False
        ),
        f"a loop over rows, as img2dataset reads ({ROW_LOOP_ROWS:,} rows, scaled)": _row_loop(
            pool, rows
        ),
    }
    show("whole rows, against functions in Python", times, "coyo filter, written")


def _datasets(pool: Path, scratch: Path, rows: int, *, batched: bool) -> float:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    some = DATASETS_ROWS if batched else ROW_LOOP_ROWS
    first = next(iter(sorted(pool.glob("*.parquet"))))
    data = datasets.Dataset.from_parquet(str(first), cache_dir=str(scratch / "cache"))
    data = data.select(range(some))
    start = time.perf_counter()
    if batched:
        data.with_format("numpy").filter(_keep_batch, batched=True, batch_size=10_000)
    else:
        data.filter(_keep_row)
    return (time.perf_counter() - start) * rows / some


def _row_loop(pool: Path, rows: int) -> float:
    first = next(iter(sorted(pool.glob("*.parquet"))))
    start = time.perf_counter()
    seen = 0
    kept = []
    with pq.ParquetFile(first) as parquet:
        for batch in parquet.iter_batches(batch_size=10_000):
            kept += [row for row in batch.to_pylist() if _keep_row(row)]
            seen += batch.num_rows
            if seen >= ROW_LOOP_ROWS:
                break
    return (time.perf_counter() - start) * rows / seen


# Through a process of its own: a child's peak begins with what its parent holds.
_PEAK = """
import resource, subprocess, sys
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
code = subprocess.call(sys.argv[1:], **quiet)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def memory(pools: list[Path], scratch: Path) -> None:
    """Measure the peak memory of ``coyo filter --memory 2GB`` on pools of different sizes."""
    command = Path(sys.executable).with_name("coyo")
    print("### peak memory at --memory 2GB\n\n| command | rows | seconds | peak RSS |")
    print("|---|---|---|---|")
    ways = {
        "whole rows, five rules": [WHERE],
        "computed columns": [f"SELECT *, width * height AS area FROM pool WHERE {WHERE}"],
        "the best 30 %, half sampled": [
            "--top", "clip_similarity_vitl14=0.3", "--sample", "0.5",
        ],
        "texts on at most ten rows": [
            "text NOT IN (SELECT text FROM pool GROUP BY text HAVING count(*) > 10)"
        ],
    }  # fmt: skip
    for name, arguments in ways.items():
        for pool in pools:
            out = scratch / "memory"
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            told = subprocess.run(
                [sys.executable, "-c", _PEAK, command, "filter", pool, *arguments]
                + ["-o", out, "--memory", "2GB"],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            seconds = time.perf_counter() - start
            peak = int(told) * (1 if sys.platform == "darwin" else 1024) / 1e9
            rows = open_source(pool).rows
            print(f"| {name} | {rows:,} | {seconds:.1f} | {peak:.2f} GB |", flush=True)
    print()


if __name__ == "__main__":
    main()
