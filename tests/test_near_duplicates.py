"""pHash by labels: what docs/near_duplicates.md says of pictures that others labelled."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from coyo_tools.evaluation import EvaluationSet, read_evaluation
from coyo_tools.phash import TURNS, hamming

ROOT = Path(__file__).parents[1]
RADIUS = 4


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "near_duplicates"


@pytest.fixture(scope="module")
def labels(folder: Path) -> dict[str, dict[str, str]]:
    rows = pl.read_csv(folder / "manifest.csv", infer_schema=False).iter_rows(named=True)
    return {row["file"]: row for row in rows}


@pytest.fixture(scope="module")
def turned(folder: Path) -> EvaluationSet:
    """All pictures of the folder as an evaluation set, in all the ways they can lie."""
    return read_evaluation(folder, augment=True)


@pytest.fixture(scope="module")
def hashes(turned: EvaluationSet) -> dict[str, str]:
    """Every picture's hash as it is."""
    return {
        name: f"{int(hash_):016x}"
        for name, hash_, turn in zip(turned.names, turned.hashes, turned.turns, strict=True)
        if turn == 0
    }


def _originals(labels: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    return ((row["group"], file) for file, row in labels.items() if row["expected"] == "original")


def test_every_labelled_picture_has_the_hash_of_the_label(
    labels: dict[str, dict[str, str]], hashes: dict[str, str], turned: EvaluationSet
) -> None:
    assert {file: row["phash"] for file, row in labels.items()} == hashes
    refused = dict(turned.refused)
    assert set(refused) >= {"SOURCE.md", "manifest.csv", "openstax_pairs.csv"}
    assert all(why.startswith("not an image") for why in refused.values())


def test_every_file_marked_near_is_found_from_its_original(
    labels: dict[str, dict[str, str]], hashes: dict[str, str]
) -> None:
    originals = dict(_originals(labels))
    near = [file for file, row in labels.items() if row["expected"] == "near"]
    assert len(near) == 25
    for file in near:
        original = originals[labels[file]["group"]]
        assert hamming(hashes[file], hashes[original]) <= RADIUS, file


def test_nothing_is_found_from_another_groups_picture_least_of_all_a_distractor(
    labels: dict[str, dict[str, str]], hashes: dict[str, str]
) -> None:
    assert sum(row["expected"] == "distractor" for row in labels.values()) == 7
    for file, row in labels.items():
        for other, other_row in labels.items():
            if row["group"] != other_row["group"]:
                assert hamming(hashes[file], hashes[other]) > RADIUS, (file, other)


def test_turned_copies_are_found_with_augment_alone(
    labels: dict[str, dict[str, str]], hashes: dict[str, str], turned: EvaluationSet
) -> None:
    """Each by another turn of the original, and in no turn of any other picture."""
    copies = [file for file, row in labels.items() if row["expected"] == "not near by pHash"]
    names = np.array(turned.names)
    by_turn = set()
    for file in copies:
        bits = np.bitwise_count(turned.hashes ^ np.uint64(int(hashes[file], 16)))
        found = bits <= RADIUS
        groups = {labels[name]["group"] for name in names[found]}
        assert groups == {"bridge"}, file
        (hit,) = turned.turns[found & (names == "pdq/aaa-orig.jpg")]
        assert hit != 0, file
        by_turn.add(TURNS[hit])
        assert hamming(hashes[file], hashes["pdq/aaa-orig.jpg"]) > RADIUS
    assert by_turn == set(TURNS[1:])


def test_the_page_has_the_tables_that_the_script_prints(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / "benchmarks" / "near_duplicates.py"
    spec = importlib.util.spec_from_file_location("near_duplicates", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "near_duplicates", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(script), str(folder)])
    module.main()
    tables = capsys.readouterr().out.strip().split("\n\n### ")
    page = (ROOT / "docs" / "near_duplicates.md").read_text(encoding="utf-8")
    assert len(tables) == 6
    for table in tables:
        assert table in page, "run benchmarks/near_duplicates.py and copy its tables"
