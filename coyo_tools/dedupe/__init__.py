"""Deduplicate a pool: of rows that are the same picture, text or link, the best one stays."""

from coyo_tools.dedupe.against import DEFAULT_RADIUS, decontaminate_pool
from coyo_tools.dedupe.removal import (
    REMOVED,
    DecontaminateResult,
    DedupeResult,
    DuplicateGroup,
    refuse_settings,
    size_bins,
)
from coyo_tools.dedupe.stage import check_dedupe, dedupe_pool

__all__ = [
    "DEFAULT_RADIUS",
    "REMOVED",
    "DecontaminateResult",
    "DedupeResult",
    "DuplicateGroup",
    "check_dedupe",
    "decontaminate_pool",
    "dedupe_pool",
    "refuse_settings",
    "size_bins",
]
