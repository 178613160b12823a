"""Deduplicate a pool: of rows that are the same picture, text or link, the best one stays."""

from coyo_tools.dedupe.against import DEFAULT_RADIUS, decontaminate_pool
from coyo_tools.dedupe.removal import (
    REMOVED,
    DecontaminateResult,
    DedupeResult,
    DuplicateGroup,
    size_bins,
)
from coyo_tools.dedupe.stage import dedupe_pool

__all__ = [
    "DEFAULT_RADIUS",
    "REMOVED",
    "DecontaminateResult",
    "DedupeResult",
    "DuplicateGroup",
    "decontaminate_pool",
    "dedupe_pool",
    "size_bins",
]
