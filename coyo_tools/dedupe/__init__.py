"""Deduplicate a pool: of rows that are the same picture, text or link, the best one stays."""

from coyo_tools.dedupe.against import DEFAULT_RADIUS, decontaminate_pool
from coyo_tools.dedupe.removal import (
    REMOVED,
    DecontaminateResult,
    DedupeResult,
    DuplicateGroup,
    SemanticResult,
    refuse_settings,
    size_bins,
)
from coyo_tools.dedupe.semantic import (
    EMBEDDINGS_ROLE,
    LEAST_TYPICAL,
    SEMANTIC_STAGE,
    check_semantic,
    dedupe_by_meaning,
)
from coyo_tools.dedupe.stage import check_dedupe, dedupe_pool

__all__ = [
    "DEFAULT_RADIUS",
    "EMBEDDINGS_ROLE",
    "LEAST_TYPICAL",
    "REMOVED",
    "SEMANTIC_STAGE",
    "DecontaminateResult",
    "DedupeResult",
    "DuplicateGroup",
    "SemanticResult",
    "check_dedupe",
    "check_semantic",
    "decontaminate_pool",
    "dedupe_by_meaning",
    "dedupe_pool",
    "refuse_settings",
    "size_bins",
]
