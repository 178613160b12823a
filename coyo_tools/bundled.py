"""Finds the shipped SQL and pipelines, in an installed wheel or in the checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def bundled(folder: str) -> Path:
    """Return the directory of shipped data called ``sql`` or ``pipelines``."""
    installed = _PACKAGE / "_data" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder
