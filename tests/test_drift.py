"""Copies of real figures are recognised, replacements too; docs/drift.md has the tables."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from making import encoded, picture

from coyo_tools.download import DownloadSettings

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "drift.py"


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("drift", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "drift", module)  # its worker processes look there
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec.loader.exec_module(module)
    return module


def test_what_is_measured_is_what_a_download_does(drift: ModuleType) -> None:
    assert DownloadSettings().max_drift == drift.CHOSEN


def test_changes_change_something_and_copies_stay_near(drift: ModuleType, tmp_path: Path) -> None:
    """Without the shared figures, on one drawn picture."""
    file = tmp_path / "one.jpg"
    file.write_bytes(encoded(picture(1, (400, 300)), "JPEG", quality=90))
    moved = drift.distances_of(file)
    by_group: dict[str, list[int]] = {}
    for change, bits in zip(drift.CHANGES, moved, strict=True):
        by_group.setdefault(change.group, []).append(bits)
    for group in drift.SAME:
        assert max(by_group[group]) <= drift.CHOSEN, group
    assert min(by_group["turned"]) > drift.CHOSEN


def test_copies_and_replacements_are_told_apart_and_the_page_says_so(
    drift: ModuleType,
    shared: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shared / "openstax_alt_text"
    measured: dict[str, object] = {}
    for name in ("print_copies", "print_replaced"):
        original = getattr(drift, name)

        def keep(*values, _name=name, _print=original):  # type: ignore[no-untyped-def]
            measured[_name] = values[0]
            _print(*values)

        monkeypatch.setattr(drift, name, keep)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
    drift.main()

    copies, replaced = measured["print_copies"], measured["print_replaced"]
    assert isinstance(copies, dict)
    assert isinstance(replaced, dict)
    same = drift.total(copies, drift.SAME)
    assert same.sum() >= 500 * 10
    assert drift.within(same, drift.CHOSEN) >= 0.99
    for group in drift.SAME:
        assert drift.within(drift.total(copies, (group,)), drift.CHOSEN) >= 0.99, group
    for name, apart in replaced.items():
        assert np.sum(apart) > 200, name
        assert 1 - drift.within(apart, drift.CHOSEN) >= 0.99, name

    page = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.strip().split("\n\n### ")
    assert len(tables) == 4
    for table in tables:
        assert table in page, "run benchmarks/drift.py and copy its tables"
