"""Drift: what docs/drift.md says of copies and replacements of 500 real pictures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MAX_DRIFT = 8
# Some of each group that a download has to know again; `make slow` takes all.
QUICK = (
    "WebP, quality 80", "AVIF, quality 60", "JPEG, quality 60", "JPEG, quality 30", "× 0.5", "× 2",
    "longer side 200", "× 0.5, JPEG, quality 60",
)  # fmt: skip


@pytest.fixture(scope="module")
def drift() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drift", ROOT / "benchmarks" / "drift.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drift"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures(drift: ModuleType, shared: Path) -> Any:
    return drift.read_pictures(shared / "openstax_alt_text")


def test_copies_are_known_again_as_the_page_says(
    drift: ModuleType, pictures: Any, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [change for change in drift.CHANGES if change.name in QUICK]
    assert {change.group for change in changes} == set(drift.SAME)
    assert len(pictures.files) == 500
    moved = np.array([drift.distances_of(file, changes) for file in pictures.files])
    assert (moved <= MAX_DRIFT).mean() >= 0.99
    for place, change in enumerate(changes):
        assert (moved[:, place] <= MAX_DRIFT).mean() >= 0.99, change.name
        drift.print_shares(change.name, drift.counts(moved[:, place]))
        assert capsys.readouterr().out in page, "run benchmarks/drift.py and copy its tables"


def test_replacements_are_told_as_the_page_says(
    drift: ModuleType, pictures: Any, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    others = drift.replaced(pictures)
    for name, apart in others.items():
        assert 1 - drift.within(apart, MAX_DRIFT) >= 0.99, name
    # Each by the one that comes next, so that every picture counts once.
    apart = np.bitwise_count(pictures.hashes ^ np.roll(pictures.hashes, 1))
    assert (apart > MAX_DRIFT).mean() >= 0.99
    drift.print_replaced(others)
    assert capsys.readouterr().out.strip() in page, "run benchmarks/drift.py and copy its tables"


@pytest.mark.slow
def test_the_page_has_the_tables_and_the_curve_that_the_script_makes(
    drift: ModuleType, shared: Path, page: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = str(shared / "openstax_alt_text")
    figure = tmp_path / "drift.svg"
    monkeypatch.setattr(sys, "argv", ["drift.py", folder, "--figure", str(figure)])
    drift.main()
    tables = capsys.readouterr().out.strip().split("\n\n### ")
    assert len(tables) == 4
    for table in tables:
        assert table in page, "run benchmarks/drift.py and copy its tables"
    assert figure.read_bytes() == (ROOT / "docs" / "images" / "drift.svg").read_bytes()
