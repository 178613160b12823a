"""Evaluation pictures in a training pool: found by their hashes, named, and removed."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, encoded, names_in, picture, read_ids, write_pool
from PIL import Image

from coyo_tools.dedupe import decontaminate_pool
from coyo_tools.errors import ColumnError, CoyoError, EmptyResultError, RecipeError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.phash import phash
from coyo_tools.verify import verify_subset

BASE = 0xAAAA_AAAA_AAAA_AAAA
FLAT = 1 << 63


def written(value: int) -> str:
    return f"{value:016x}"


def hashes_file(path: Path, *values: int) -> Path:
    pl.DataFrame({"image_phash": [written(value) for value in values]}).write_parquet(path)
    return path


def removed(out: Path) -> dict[int, tuple[str, str, int]]:
    """Which row went, for which evaluation picture, how that was turned, and how far they are."""
    frame = pl.read_parquet(out / "removed.parquet")
    assert frame.columns == ["id", "evaluation", "turn", "distance"]
    return {id_: rest for id_, *rest in frame.iter_rows()}  # type: ignore[misc]


def test_rows_near_an_evaluation_picture_go_and_are_named(tmp_path: Path) -> None:
    near, far = BASE ^ 0b1111, BASE ^ 0b111111
    pool = write_pool(
        tmp_path / "pool.parquet",
        id=range(6),
        image_phash=[written(BASE), written(near), written(far), None, written(near), "no hash"],
    )
    evaluation = hashes_file(tmp_path / "eval.parquet", BASE, near ^ 0b11)
    result = decontaminate_pool(pool, tmp_path / "out", against=evaluation)
    # Row 1 is 4 bits from the first and 2 from the second: the nearest is named.
    assert removed(tmp_path / "out") == {
        0: ["0", "as_is", 0], 1: ["1", "as_is", 2], 2: ["1", "as_is", 4], 4: ["1", "as_is", 2],
    }  # fmt: skip
    assert read_ids(tmp_path / "out") == [3, 5]
    assert (result.rows_in, result.rows_out, result.without_key) == (6, 2, 2)
    assert result.found == {"1": 3, "0": 1}
    assert result.by_distance == {0: 1, 2: 2, 4: 1}
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lost == {"within 4 bits of an evaluation picture": 4}
    assert [item.role for item in manifest.inputs] == ["pool", "evaluation"]
    assert verify_subset(tmp_path / "out").replays
    assert "Rows within 4 of 64 bits" in (tmp_path / "out" / "dedupe.html").read_text()


@settings(max_examples=60, deadline=None)
@given(
    pool=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=40),
    evaluation=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=12),
    radius=st.integers(0, 12),
    flat_near=st.booleans(),
)
def test_what_goes_is_what_brute_force_finds(
    pool: list[tuple[int, int]],
    evaluation: list[tuple[int, int]],
    radius: int,
    flat_near: bool,
) -> None:
    def hash_of(where: tuple[int, int]) -> int:
        family, bits = where
        start = FLAT if family == 0 else BASE ^ (0x0FF0 << (4 * family))
        return start ^ ((1 << bits) - 1)

    rows = [hash_of(one) for one in pool]
    wanted = [hash_of(one) for one in evaluation]
    expected: dict[int, list[Any]] = {}
    for id_, row in enumerate(rows):
        candidates = []
        for entry, other in enumerate(wanted):
            bits = (row ^ other).bit_count()
            ordinary = all(24 <= one.bit_count() <= 40 for one in (row, other))
            if bits <= radius and (bits == 0 or ordinary or flat_near):
                candidates.append((bits, entry))
        if candidates:
            bits, entry = min(candidates)
            expected[id_] = [str(entry), "as_is", bits]
    with tempfile.TemporaryDirectory() as folder:
        source = write_pool(
            Path(folder) / "pool.parquet",
            id=range(len(rows)),
            image_phash=[written(row) for row in rows],
        )
        against = hashes_file(Path(folder) / "eval.parquet", *wanted)
        out = Path(folder) / "out"
        options: dict[str, Any] = {"flat": "near" if flat_near else "exact", "radius": radius}
        if len(expected) == len(rows):
            with pytest.raises(EmptyResultError, match="Is the evaluation set the pool itself"):
                decontaminate_pool(source, out, against=against, **options)
            assert names_in(Path(folder)) == {"pool.parquet", "eval.parquet"}
            return
        result = decontaminate_pool(source, out, against=against, threads=2, **options)
        assert removed(out) == expected
        assert read_ids(out) == [id_ for id_ in range(len(rows)) if id_ not in expected]
    assert result.rows_in == result.rows_out + len(expected)
    assert sum(result.found.values()) == sum(result.by_distance.values()) == len(expected)


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """Three pictures, a text file and a broken picture."""
    folder = tmp_path / "val"
    (folder / "dogs").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "b.png", "dogs/c.jpg"]):
        kind = "PNG" if name.endswith("png") else "JPEG"
        (folder / name).write_bytes(encoded(picture(seed), kind))
    (folder / "notes.txt").write_text("not a picture")
    (folder / "cut.jpg").write_bytes(encoded(picture(9))[:200])
    return folder


def test_folders_of_pictures_are_hashed_as_they_are_and_turned(
    benchmark_folder: Path, tmp_path: Path
) -> None:
    mirrored = picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = picture(2).transpose(Image.Transpose.ROTATE_90)
    smaller = picture(1, (200, 150))
    shown = [mirrored, smaller, turned, picture(77)]
    pool = write_pool(
        tmp_path / "pool.parquet", id=range(4), image_phash=[phash(one) for one in shown]
    )
    ran = coyo("dedupe", pool, "-o", tmp_path / "plain", "--against", benchmark_folder)
    assert ran.returncode == 0, ran.stderr
    assert [(name, turn) for name, turn, _ in removed(tmp_path / "plain").values()] == [
        ("b.png", "as_is")
    ]
    assert "2 files of" in ran.stderr
    assert "1 within 4 bits of 1 of 3 evaluation pictures removed, 3 out" in ran.stderr
    ran = coyo(
        "dedupe", pool, "-o", tmp_path / "turned", "--against", benchmark_folder, "--augment",
        "--radius", "6",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = removed(tmp_path / "turned")
    assert set(found) == {0, 1, 2}
    assert [found[0][:2], found[2][:2]] == [
        ["a.jpg", "flip_left_right"],
        ["dogs/c.jpg", found[2][1]],
    ]
    assert found[2][1].startswith("rotate")
    assert "flip left right" in ran.stdout
    assert coyo("verify", tmp_path / "turned").returncode == 0
    (benchmark_folder / "a.jpg").unlink()
    assert "has changed since" in coyo("verify", tmp_path / "turned").stderr


def test_subsets_of_a_pool_are_evaluation_sets(tmp_path: Path) -> None:
    hashes = [written(BASE ^ (0xFF << (8 * k))) for k in range(6)]
    pool = write_pool(tmp_path / "pool.parquet", id=range(10, 16), image_phash=hashes)
    assert coyo("filter", pool, "id >= 14", "-o", tmp_path / "held-out").returncode == 0
    ran = coyo(
        "dedupe", pool, "-o", tmp_path / "train", "--against", tmp_path / "held-out", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["found"] == {"14": 1, "15": 1}
    assert read_ids(tmp_path / "train") == [10, 11, 12, 13]


def test_many_rows_and_many_files_give_the_same_for_any_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, 30_000, dtype=np.uint64)
    wanted = hashes[::100] ^ (np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64))
    for part, rows in enumerate(np.array_split(np.arange(len(hashes)), 3)):
        write_pool(
            tmp_path / "pool" / f"{part}.parquet",
            id=rows,
            image_phash=[written(value) for value in hashes[rows].tolist()],
        )
    against = hashes_file(tmp_path / "eval.parquet", *wanted.tolist())
    for threads in (1, 3):
        decontaminate_pool(
            tmp_path / "pool", tmp_path / f"out{threads}", against=against, radius=1,
            threads=threads, flat="near",
        )  # fmt: skip
    assert set(range(0, 30_000, 100)) <= set(removed(tmp_path / "out1"))
    for name in ("removed.parquet", "part-00000.parquet"):
        one, three = ((tmp_path / f"out{threads}" / name).read_bytes() for threads in (1, 3))
        assert one == three


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--against", "val", "--by", "url"], "--by has no meaning there"),
        (["--against", "val", "--keep", "id", "--normalize"], "--keep, --normalize has no meaning"),
        (["--augment"], "Name them with --against"),
        (["--against", "nowhere"], "nowhere"),
        (["--against", "eval.parquet", "--augment"], "folder"),
        (["--against", "eval.parquet", "--radius", "20"], "not one of 0 to 12"),
        (["--against", "empty"], "empty"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    write_pool(tmp_path / "pool.parquet", id=[1], image_phash=[written(BASE)])
    hashes_file(tmp_path / "eval.parquet", BASE)
    (tmp_path / "empty").mkdir()
    before = names_in(tmp_path)
    ran = coyo("dedupe", "pool.parquet", "-o", "out", *options, cwd=tmp_path)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert names_in(tmp_path) == before


def test_pools_without_hashes_or_with_double_ids_are_refused(tmp_path: Path) -> None:
    against = hashes_file(tmp_path / "eval.parquet", BASE)
    none = write_pool(tmp_path / "none.parquet", id=[1], url=["a"])
    cases: list[tuple[Path, type[CoyoError]]] = [(none, ColumnError)]
    doubled = write_pool(
        tmp_path / "doubled.parquet", id=[1, 1, 2], image_phash=[written(~BASE & (2**64 - 1))] * 3
    )
    cases.append((doubled, SourceError))
    for pool, kind in cases:
        with pytest.raises(kind):
            decontaminate_pool(pool, tmp_path / "out", against=against)
    with pytest.raises(RecipeError, match="not one of exact, near"):
        decontaminate_pool(doubled, tmp_path / "out", against=against, flat="maybe")
    assert not (tmp_path / "out").exists()
