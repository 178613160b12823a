"""Embeddings on disk: what is written is read again, in whatever order; what is wrong is told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_making import ABOUT, on_sphere, rows_table, write_vectors

from coyo_tools.errors import CoyoError, SourceError
from coyo_tools.manifest import Manifest, resumable_artifact, write_manifest
from coyo_tools.vectors import VectorWriter, open_vectors


def test_parts_are_read_again_as_they_were_written(tmp_path: Path):
    image, text = on_sphere(25, 6), on_sphere(25, 6, seed=1)
    ids = [None if number % 7 == 3 else number * 10 for number in range(25)]
    vectors = write_vectors(tmp_path / "emb", {"text": text, "image": image}, part_rows=10, id=ids)
    assert (vectors.rows, vectors.sides) == (25, ("image", "text"))
    for side, wanted in (("image", image), ("text", text)):
        blocks = list(vectors.blocks(side, 4, unit=True))
        assert [first for first, _ in blocks] == [0, 4, 8, 10, 14, 18, 20, 24]
        assert np.array_equal(np.concatenate([block for _, block in blocks]), wanted)
    rows = np.array([24, 0, 10, 9, 9, 19])
    assert np.array_equal(vectors.take("text", rows), text[rows])
    table = vectors.table(rows, ["text", "id"])
    assert table.column("id").to_pylist() == [ids[row] for row in rows]
    assert table.column("text").to_pylist() == [f"caption {row}" for row in rows]
    read = [
        number if has else None
        for _, part, valid in vectors.ids()
        for number, has in zip(part.tolist(), valid, strict=True)
    ]
    assert read == ids
    mapped = np.load(tmp_path / "emb" / "part-00001.text.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(mapped, text[10:20])


def test_a_look_up_crosses_row_groups(tmp_path: Path):
    vectors = write_vectors(tmp_path / "emb", {"image": on_sphere(30_000, 2)}, part_rows=20_000)
    rows = np.random.default_rng(0).integers(0, 30_000, 200)
    assert vectors.table(rows, ["key"]).column(0).to_pylist() == [f"{row:05d}" for row in rows]
    assert vectors.table(rows[:0], ["key"]).num_rows == 0
    with pytest.raises(ValueError, match="30000"):
        vectors.take("image", np.array([30_000]))


def test_raw_embeddings_become_units_where_units_are_needed(tmp_path: Path):
    raw = on_sphere(9, 5) * np.arange(1, 10, dtype=np.float32)[:, None]
    vectors = write_vectors(
        tmp_path / "emb", {"image": raw}, about=replace(ABOUT, normalised=False)
    )
    ((_, block),) = vectors.blocks("image")
    assert np.array_equal(block, raw)
    ((_, units),) = vectors.blocks("image", unit=True)
    np.testing.assert_allclose(units, on_sphere(9, 5), atol=1e-6)


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from coyo_tools.manifest import resumable_artifact
from coyo_tools.vectors import VectorWriter
from vector_making import on_sphere, rows_table

renames = 0
rename = Path.replace
def replace(self, target):
    global renames
    if self.name.startswith(".part-"):
        renames += 1
        if renames == {stop}:
            os._exit(9)  # as kill -9 does
    return rename(self, target)
Path.replace = replace

with resumable_artifact(Path({output!r}), {{"model": "a"}}) as directory:
    writer = VectorWriter(directory)
    for number in range(writer.parts, 4):
        matrix = on_sphere(5, 3, seed=number)
        writer.write_part(
            rows_table(5, 5 * number), {{"image": matrix, "text": matrix}}, {{"lost": number}}
        )
"""


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 8])
def test_a_writer_that_was_killed_between_files_goes_on(tmp_path: Path, stop: int):
    output = tmp_path / "emb"
    code = KILLED.format(tests=str(Path(__file__).parent), stop=stop, output=str(output))
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not output.exists()
    with resumable_artifact(output, {"model": "a"}) as directory:
        writer = VectorWriter(directory)
        assert (writer.parts, writer.rows) == ((stop - 1) // 3, 5 * ((stop - 1) // 3))
        for number in range(writer.parts, 4):
            matrix = on_sphere(5, 3, seed=number)
            sides = {"image": matrix, "text": matrix}
            writer.write_part(rows_table(5, 5 * number), sides, {"lost": number})
        assert [note["lost"] for note in writer.notes()] == [0, 1, 2, 3]
        details = replace(ABOUT, widths=writer.widths).details()
        write_manifest(directory, Manifest("embeddings", {}, [], 20, 20, {}, "", 0.0, details))
    vectors = open_vectors(output)
    wanted = np.concatenate([on_sphere(5, 3, seed=number) for number in range(4)])
    assert np.array_equal(vectors.take("image", np.arange(20)), wanted)
    assert vectors.table(np.arange(20), ["id"]).column(0).to_pylist() == list(range(20))
    assert len(list(output.iterdir())) == 4 * 3 + 1  # nothing temporary


def test_a_writer_refuses_what_does_not_fit(tmp_path: Path):
    writer = VectorWriter(tmp_path, ("image",))
    for vectors in (
        {"text": on_sphere(3, 4)},
        {"image": on_sphere(2, 4)},
        {"image": on_sphere(3, 4).astype(np.float64)},
        {"image": np.full((3, 4), np.nan, np.float32)},
    ):
        with pytest.raises(ValueError):
            writer.write_part(rows_table(3), vectors)
    writer.write_part(rows_table(3), {"image": on_sphere(3, 4)})
    with pytest.raises(ValueError, match="widths"):
        writer.write_part(rows_table(3), {"image": on_sphere(3, 5)})
    assert writer.parts == 1


def cut_npy(emb: Path) -> None:
    path = emb / "part-00001.image.npy"
    os.truncate(path, path.stat().st_size - 4)


def lengthen_npy(emb: Path) -> None:
    with (emb / "part-00001.image.npy").open("ab") as file:
        file.write(b"1234")


def save(matrix: np.ndarray) -> Callable[[Path], None]:
    return lambda emb: np.save(emb / "part-00001.image.npy", matrix, allow_pickle=True)


def lose_part(emb: Path) -> None:
    (emb / "part-00001.parquet").unlink()


def lose_npy(emb: Path) -> None:
    (emb / "part-00001.image.npy").unlink()


def cut_parquet(emb: Path) -> None:
    os.truncate(emb / "part-00001.parquet", 100)


def lose_column(emb: Path) -> None:
    table = pq.read_table(emb / "part-00001.parquet")
    pq.write_table(table.drop(["tar"]), emb / "part-00001.parquet")


def change_type(emb: Path) -> None:
    table = pq.read_table(emb / "part-00001.parquet")
    column = pa.array(["x"] * len(table))
    pq.write_table(table.set_column(0, "id", column), emb / "part-00001.parquet")


def header_of_gibberish(emb: Path) -> None:
    (emb / "part-00001.image.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': exit()}")


def no_npy(emb: Path) -> None:
    (emb / "part-00001.image.npy").write_bytes(b"<html>not found</html>")


def change_manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def changed(emb: Path) -> None:
        raw = json.loads((emb / "manifest.json").read_text())
        change(raw)
        (emb / "manifest.json").write_text(json.dumps(raw))

    return changed


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (cut_npy, r"part-00001\.image\.npy is cut short: 364 bytes instead of 368"),
        (lengthen_npy, r"part-00001\.image\.npy is too long"),
        (lose_npy, r"part-00001\.image\.npy is missing"),
        (no_npy, r"part-00001\.image\.npy is no \.npy file"),
        (header_of_gibberish, r"part-00001\.image\.npy is no \.npy file"),
        (save(np.full((10, 6), None)), r"is object \(10, 6\), not float32"),
        (save(on_sphere(10, 6).astype(np.float64)), r"is float64 \(10, 6\), not float32"),
        (save(np.asfortranarray(on_sphere(10, 6))), "in Fortran order, not float32"),
        (save(on_sphere(60, 1)[:, 0]), r"is float32 \(60,\), not float32 \(rows, width\)"),
        (save(on_sphere(9, 6)), "has 9 embeddings for the 10 rows of part-00001.parquet"),
        (save(on_sphere(10, 7)), "has embeddings of 7 numbers; the manifest says 6"),
        (lose_part, "has 10 rows in 1 parts; its manifest says 25"),
        (cut_parquet, r"part-00001\.parquet is damaged or cut short"),
        (lose_column, r"part-00001\.parquet has no column `tar`"),
        (change_type, "column `id` is string, not int64"),
        (lambda emb: (emb / "manifest.json").unlink(), "is not a embeddings directory: it has no"),
        (change_manifest(lambda raw: raw.update(kind="subset")), "is a subset directory, not"),
        (change_manifest(lambda raw: raw.update(details={})), "does not say what its embeddings"),
        (
            change_manifest(lambda raw: raw["details"]["embeddings"].update(widths={})),
            "does not say what its embeddings",
        ),
        (
            change_manifest(lambda raw: raw["details"]["embeddings"].update(widths="6")),
            "does not say what its embeddings",
        ),
        (
            change_manifest(lambda raw: raw["details"]["embeddings"].update(normalised="yes")),
            "does not say what its embeddings",
        ),
    ],
)
def test_what_is_wrong_with_a_directory_is_said_in_one_message(tmp_path: Path, break_it, message):
    write_vectors(tmp_path / "emb", {"image": on_sphere(25, 6)}, part_rows=10)
    break_it(tmp_path / "emb")
    with pytest.raises(CoyoError, match=message):
        open_vectors(tmp_path / "emb")


def test_a_side_that_is_not_there_is_said(tmp_path: Path):
    vectors = write_vectors(tmp_path / "emb", {"image": on_sphere(3, 6)})
    with pytest.raises(SourceError, match="has no text embeddings, only those of images"):
        vectors.take("text", np.array([0]))


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        (np.nan, False, "row 3 is not finite"),
        (np.inf, True, "row 3 is not finite"),
        (0.0, True, "row 3 is zero"),
        (0.5, True, "row 3 does not have length 1, as the manifest says"),
    ],
)
def test_a_bad_embedding_is_told_when_it_is_read(tmp_path: Path, value, unit, message):
    vectors = write_vectors(tmp_path / "emb", {"image": on_sphere(10, 6)}, part_rows=5)
    path = tmp_path / "emb" / "part-00001.image.npy"
    matrix = np.load(path)
    matrix[3] = value
    np.save(path, matrix)
    with pytest.raises(SourceError, match=message):
        list(vectors.blocks("image", 2, unit=unit))
    with pytest.raises(SourceError, match=message):
        vectors.take("image", np.array([0, 8]), unit=unit)
