"""Measures `coyo search`'s search against one numpy matrix product over the same files.

    python benchmarks/use_search.py /tmp/emb1m --rows 1_000_000 --width 320
    python benchmarks/use_search.py /tmp/emb1m --queries 100 --faiss   # also: pip install faiss-cpu

Random unit vectors are written once, as `coyo embed` writes them. The ways take turns in one
process; the ratio is the median of the rounds' own, which a busy machine moves less than the least
times. The product maps the parts anew in each round, as a command does that is started for one
query, and keeps no more than the scores: nothing is chosen among them. Files are in the page cache
for all. `argpartition` is the product and numpy's top k.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from coyo_tools.manifest import Manifest, new_artifact, write_manifest
from coyo_tools.search import search
from coyo_tools.vectors import (
    PART_ROWS,
    SCHEMA,
    VECTORS_KIND,
    About,
    Matrix,
    Vectors,
    VectorWriter,
    open_vectors,
)

K = 10


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--faiss", action="store_true")
    chosen = parser.parse_args()
    if not chosen.embeddings.exists():
        make(chosen.embeddings, chosen.rows, chosen.width)
    vectors = open_vectors(chosen.embeddings)
    query = sphere(np.random.default_rng(1), chosen.queries, vectors.width("image"))
    ways: dict[str, Callable[[], object]] = {
        "one numpy product": lambda: product(vectors, query),
        "numpy product, argpartition": lambda: partitioned(vectors, query),
        "coyo search": lambda: search(vectors, query, K),
    }
    if chosen.faiss:
        ways["coyo search --faiss"] = lambda: search(vectors, query, K, faiss=True)
    assert np.array_equal(partitioned(vectors, query), search(vectors, query, K).rows)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    base = seconds["one numpy product"]
    print(
        f"{vectors.rows:,} x {vectors.width('image')}, {chosen.queries} queries, "
        f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, "
        f"{chosen.rounds} rounds\n\n"
        "| way | least ms | of the product, median of rounds |\n|---|---|---|"
    )
    for name, times in seconds.items():
        ratio = float(np.median(np.array(times) / np.array(base)))
        print(f"| {name} | {1000 * min(times):.1f} | {ratio:.2f} |")
    # Mapped pages count in the peak, as long as a part is mapped.
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MB")


def product(vectors: Vectors, query: Matrix) -> list[Matrix]:
    """Multiply, and nothing else."""
    across = query[0] if len(query) == 1 else np.ascontiguousarray(query.T)
    return [
        np.load(vectors.directory / f"{part.stem}.image.npy", mmap_mode="r").view(np.ndarray)
        @ across
        for part in vectors.parts
    ]


def partitioned(vectors: Vectors, query: Matrix) -> np.ndarray:
    """Multiply and choose as one would by hand."""
    scores = np.concatenate(product(vectors, query)).reshape(-1, len(query))
    best = np.argpartition(-scores, K, axis=0)[:K].T
    order = np.argsort(-np.take_along_axis(scores.T, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def sphere(random: np.random.Generator, rows: int, width: int) -> Matrix:
    """Random unit vectors."""
    made = random.standard_normal((rows, width), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def make(output: Path, rows: int, width: int) -> None:
    """Write embeddings of nothing."""
    random = np.random.default_rng(0)
    with new_artifact(output) as directory:
        writer = VectorWriter(directory, ("image",))
        for first in range(0, rows, PART_ROWS):
            numbers = np.arange(first, min(first + PART_ROWS, rows))
            table = pa.table({"id": numbers}).select(["id"])
            for field in SCHEMA:
                if field.name != "id":
                    table = table.append_column(field, pa.nulls(len(numbers), field.type))
            writer.write_part(table, {"image": sphere(random, len(numbers), width)})
        details = About("random", "0" * 16, writer.widths, normalised=True).details()
        write_manifest(directory, Manifest(VECTORS_KIND, {}, [], rows, rows, {}, "", 0.0, details))


if __name__ == "__main__":
    main()
