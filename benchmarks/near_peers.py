"""Finds the near pairs of some hashes in one way, in a process of its own, for dedupe.py.

    python benchmarks/near_peers.py faiss hashes.npy --rows 1_000_000 --radius 2

Prints JSON: the seconds from hashes in memory to all pairs, an index's building included, and the
number of pairs. Needs numpy and what the way is made of, nothing of coyo's but for ``coyo`` itself,
so that a peer can live in an environment of its own.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MISSING = 3  # exit code: the peer isn't installed
INSTALL = {
    "faiss": "pip install faiss-cpu",
    "imagededup": "pip install --no-deps imagededup && pip install pywavelets scipy scikit-learn "
    "matplotlib tqdm pillow",
    "bktree": "pip install pybktree",
}
PACKAGES = {
    "coyo": "coyo-tools", "faiss": "faiss-cpu", "imagededup": "imagededup", "bktree": "pybktree",
}  # fmt: skip
Hashes = npt.NDArray[np.uint64]


def coyo(hashes: Hashes, radius: int, memory: int) -> tuple[float, int]:
    """Run near_pairs after a small call, which lets numba compile."""
    from coyo_tools.neighbours import near_pairs

    counted = 0.0
    for some in (hashes[:20_000], hashes):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
            start = time.perf_counter()
            pairs = near_pairs(
                some, radius, Path(scratch), memory=memory, threads=os.cpu_count() or 1
            ).count
            counted = time.perf_counter() - start
    return counted, pairs


def faiss(hashes: Hashes, radius: int, memory: int) -> tuple[float, int]:  # noqa: ARG001
    """Search IndexBinaryMultiHash, three blocks of 21 bits: exact, because some block of a near
    pair differs in at most a third of the bits, and so many are flipped.
    """
    library = importlib.import_module("faiss")
    codes = hashes.view(np.uint8).reshape(-1, 8)
    start = time.perf_counter()
    index = library.IndexBinaryMultiHash(64, 3, 21)
    index.nflip = radius // 3
    index.add(codes)
    # Everything nearer than a distance, itself and both directions of a pair included.
    _, distances, _ = index.range_search(codes, radius + 1)
    return time.perf_counter() - start, (len(distances) - len(hashes)) // 2


def imagededup(hashes: Hashes, radius: int, memory: int) -> tuple[float, int]:  # noqa: ARG001
    """Search hashes alone with PHash.find_duplicates; its networks, and torch, stay out."""
    importlib.import_module("brute_force_cython_ext")
    for name, attribute in (("methods.cnn", "CNN"), ("utils.models", "CustomModel")):
        stub: Any = types.ModuleType(f"imagededup.{name}")
        setattr(stub, attribute, None)
        sys.modules[stub.__name__] = stub
    methods = importlib.import_module("imagededup.methods")
    encodings = {str(number): f"{hash_:016x}" for number, hash_ in enumerate(hashes.tolist())}
    method = methods.PHash(verbose=False)
    start = time.perf_counter()
    found = method.find_duplicates(encoding_map=encodings, max_distance_threshold=radius)
    return time.perf_counter() - start, sum(map(len, found.values())) // 2


def bktree(hashes: Hashes, radius: int, memory: int) -> tuple[float, int]:  # noqa: ARG001
    """Ask pybktree for the neighbours of every hash."""
    library = importlib.import_module("pybktree")
    values = hashes.tolist()

    def distance(one: int, other: int) -> int:
        return (one ^ other).bit_count()

    start = time.perf_counter()
    tree = library.BKTree(distance, values)
    found = sum(len(tree.find(value, radius)) for value in values)
    return time.perf_counter() - start, (found - len(values)) // 2


WAYS = {"coyo": coyo, "faiss": faiss, "imagededup": imagededup, "bktree": bktree}


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("hashes", type=Path, help="distinct ones, uint64, .npy")
    parser.add_argument("--rows", type=int, help="the first so many; default all")
    parser.add_argument("--radius", type=int, default=2)
    parser.add_argument("--memory", type=int, default=8_000_000_000, help="bytes, for coyo")
    chosen = parser.parse_args()
    hashes = np.load(chosen.hashes)[: chosen.rows]
    try:
        seconds, pairs = WAYS[chosen.way](hashes, chosen.radius, chosen.memory)
    except ModuleNotFoundError as error:
        if chosen.way not in INSTALL:
            raise
        print(f"{error}; {INSTALL[chosen.way]}", file=sys.stderr)
        sys.exit(MISSING)
    version = importlib.metadata.version(PACKAGES[chosen.way])
    print(json.dumps({"version": version, "seconds": seconds, "pairs": pairs}))


if __name__ == "__main__":
    main()
