"""Embeddings made in the test: random ones on the sphere, written as ``coyo embed`` writes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from coyo_tools.manifest import IdDigest, Manifest, new_artifact, write_manifest
from coyo_tools.vectors import SCHEMA, VECTORS_KIND, About, Matrix, VectorWriter, open_vectors
from coyo_tools.vectors import Vectors as Vectors

ABOUT = About("a-model", "0123456789abcdef", {}, normalised=True)


def on_sphere(rows: int, width: int, seed: int = 0) -> Matrix:
    """Random unit vectors, (rows, width)."""
    made = np.random.default_rng(seed).normal(size=(rows, width))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def rows_table(rows: int, first: int = 0, **columns: Sequence[Any]) -> pa.Table:
    """The rows of a part, numbered from ``first`` on; columns over the made-up ones."""
    numbers = range(first, first + rows)
    made: dict[str, Sequence[Any]] = {
        "id": list(numbers),
        "key": [f"{number:05d}" for number in numbers],
        "text": [f"caption {number}" for number in numbers],
        "tar": [None] * rows,
        "offset": [None] * rows,
        "size": [None] * rows,
    }
    return pa.table({**made, **columns}, schema=SCHEMA)


def write_vectors(
    output: Path,
    sides: dict[str, Matrix],
    *,
    part_rows: int = 10**9,
    about: About = ABOUT,
    **columns: Sequence[Any],
) -> Vectors:
    """Write a whole directory of embeddings, and open it."""
    rows = len(next(iter(sides.values())))
    table = rows_table(rows, **columns)
    with new_artifact(output) as directory:
        writer = VectorWriter(directory, tuple(sides))
        for first in range(0, rows, part_rows):
            some = slice(first, first + part_rows)
            writer.write_part(
                table.slice(first, part_rows), {name: all_[some] for name, all_ in sides.items()}
            )
        details = replace(about, widths=writer.widths).details()
        manifest = Manifest(
            VECTORS_KIND, {}, [], rows, rows, {}, IdDigest().hexdigest(), 0.0, details
        )
        write_manifest(directory, manifest)
    return open_vectors(output)
