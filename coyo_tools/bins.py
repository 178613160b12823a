"""Fixed histogram bins for COYO's columns, the same for every pool, so that two pools compare.

Edges stand where recipes cut and people round. Columns that are no score but derived from two
(``min_side``, ``aspect_ratio``, macros of sql/macros.sql) have bins too. A value outside all bins
is counted as under or over, never dropped.
"""

import itertools
from dataclasses import dataclass

from coyo_tools.columns import ALIGN_SIMILARITY, BY_NAME

MIN_SIDE = "min_side"
ASPECT_RATIO = "aspect_ratio"
DERIVED = {
    MIN_SIDE: "shorter side, pixels",
    ASPECT_RATIO: "longer side over shorter side",
}
OWN = {ALIGN_SIMILARITY: "cosine, an ALIGN of one's own"}
"""Columns that `coyo score` adds and no pool is said to lack."""


@dataclass(frozen=True)
class Bins:
    """Bins between neighbouring ``edges``: each has its lower edge, the last one both.

    With ``open_end`` the last bin has no upper edge. ``whole`` says that values are integers, which
    matters to labels alone; ``even`` that all bins are equally wide, so that they can be drawn as
    one curve.
    """

    edges: tuple[float, ...]
    open_end: bool = False
    whole: bool = True
    even: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Each bin in words: ``3–5``, ``0.25–0.3``, ``6 or more``."""
        if not self.whole:
            return tuple(f"{low:g}–{high:g}" for low, high in itertools.pairwise(self.edges))
        named = []
        last = len(self.edges) - 2
        for number, (low, high) in enumerate(itertools.pairwise(self.edges)):
            top = int(high) if number == last else int(high) - 1
            if number == last and self.open_end:
                named.append(f"{int(low)} or more")
            else:
                named.append(f"{int(low)}–{top}" if top > low else f"{int(low)}")
        return tuple(named)


def _even(low: float, high: float, count: int) -> Bins:
    width = (high - low) / count
    edges = tuple(round(low + number * width, 6) for number in range(count + 1))
    return Bins(edges, whole=False, even=True)


# 200 is COYO's own limit, 256 to 1024 are what models are trained at.
_SIDES = Bins((1, 200, 256, 320, 400, 512, 640, 768, 1024, 1536, 2048, 4096, 65_535))
# ALIGN's text tower takes 64 tokens, CLIP's 77.
_TOKENS = Bins((0, 3, 6, 9, 12, 16, 21, 31, 51, 65, 78, 129, 257, 2000))
_SIMILARITY = _even(-0.2, 0.6, 32)
# Nearly all of COYO is close to 0.
_NSFW = Bins((0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1), whole=False)

BINS: dict[str, Bins] = {
    "width": _SIDES,
    "height": _SIDES,
    MIN_SIDE: _SIDES,
    # Between squares, 4:3, 3:2 and 16:9; 3 is COYO's own limit.
    ASPECT_RATIO: Bins((1, 1.05, 1.2, 1.3, 1.4, 1.55, 1.7, 1.85, 2, 2.5, 3, 5, 10), whole=False),
    "text_length": Bins((0, 6, 16, 26, 41, 61, 81, 101, 151, 201, 301, 501, 1000)),
    "word_count": Bins((0, 3, 5, 7, 9, 11, 16, 21, 31, 51, 101, 257, 1000)),
    "num_tokens_bert": _TOKENS,
    "num_tokens_gpt": _TOKENS,
    "num_faces": Bins((0, 1, 2, 3, 6, 1000), open_end=True),
    "clip_similarity_vitb32": _SIMILARITY,
    "clip_similarity_vitl14": _SIMILARITY,
    # Two towers trained on little data can have cosines anywhere.
    ALIGN_SIMILARITY: _even(-1, 1, 40),
    "nsfw_score_opennsfw2": _NSFW,
    "nsfw_score_gantman": _NSFW,
    "watermark_score": _even(0, 1, 20),
    "aesthetic_score_laion_v2": _even(1, 10, 36),
}


def meaning_of(name: str) -> str:
    """Say what a column with bins means."""
    told = DERIVED | OWN
    return told[name] if name in told else BY_NAME[name].meaning
