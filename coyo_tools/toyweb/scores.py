"""The model scores of a row, drawn from distributions shaped like COYO's.

No model runs here: a score is drawn according to what was planted, with enough overlap that no
threshold is perfect. Scores of a picture (faces, NSFW, watermark, aesthetic) are the same for two
rows with the same bytes; similarity depends on the text too. Limits are COYO's own.
"""

import re
from dataclasses import dataclass

import numpy as np

from coyo_tools.toyweb.seeds import generator

_NSFW_LIMIT = 0.4999


@dataclass(frozen=True)
class PictureScores:
    """Scores that depend on a picture's bytes alone."""

    nsfw_opennsfw2: float
    nsfw_gantman: float
    watermark: float
    aesthetic: float


def picture_scores(
    seed: int, picture: int, copy: int, *, watermarked: bool, nsfw: bool
) -> PictureScores:
    """Draw the scores of a picture, or of its ``copy``-th re-encoded or resized copy (0: itself).

    Copies score like their original up to a small error.
    """
    rng = generator(seed, "picture-scores", picture)
    if nsfw:
        open2, gantman = rng.uniform(0.2, 0.49, 2)
    else:
        open2, gantman = rng.exponential(0.008), rng.exponential(0.02)
    mark = rng.uniform(0.6, 0.98) if watermarked else 0.01 + 0.29 * rng.beta(1.2, 3.0)
    aesthetic = rng.normal(4.35, 0.6) if watermarked else rng.normal(4.85, 0.7)
    if copy:
        error = generator(seed, "copy-scores", picture, copy).normal(0, 1, 4)
        scale = 0.02 if nsfw else 0.001
        open2, gantman = open2 + scale * error[0], gantman + scale * error[1]
        mark, aesthetic = mark + 0.01 * error[2], aesthetic + 0.08 * error[3]
    low, high = (0.58, 0.99) if watermarked else (0.003, 0.33)
    return PictureScores(
        nsfw_opennsfw2=float(np.clip(open2, 0.2 if nsfw else 1e-5, _NSFW_LIMIT)),
        nsfw_gantman=float(np.clip(gantman, 0.2 if nsfw else 1e-5, _NSFW_LIMIT)),
        watermark=float(np.clip(mark, low, high)),
        aesthetic=float(np.clip(aesthetic, 1.2, 8.0)),
    )


def similarities(rng: np.random.Generator, *, right: bool, likeness: float) -> tuple[float, float]:
    """Draw the cosine similarities of ViT-B/32 and ViT-L/14, which agree but not wholly.

    Args:
        rng: the row's own generator.
        right: whether the caption is the picture's own.
        likeness: for a wrong caption, how much of it happens to be true, 0 to 1.
    """
    shared, own_b, own_l = rng.normal(0, 1, 3)
    error_b = 0.8 * shared + 0.6 * own_b
    error_l = 0.8 * shared + 0.6 * own_l
    if right:
        b32, l14 = 0.31 + 0.025 * error_b, 0.27 + 0.03 * error_l
    else:
        b32 = 0.16 + 0.07 * likeness + 0.042 * error_b
        l14 = 0.12 + 0.07 * likeness + 0.045 * error_l
    return float(np.clip(b32, -0.08, 0.59)), float(np.clip(l14, -0.17, 0.58))


_PIECE = re.compile(r"\w+|[^\w\s]")


def token_counts(text: str) -> tuple[int, int]:
    """Estimate the numbers of BERT and GPT-2 tokens: words, signs, and one more per long word."""
    pieces = _PIECE.findall(text)
    long = sum((len(piece) - 1) // 8 for piece in pieces)
    digits = sum(len(piece) // 3 for piece in pieces if piece.isdigit())
    return len(pieces) + long + digits, len(pieces) + 2 * long + digits + len(pieces) // 8
