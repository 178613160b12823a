"""COYO-700M's columns: names, types, ranges and meaning, as its dataset card gives them.

The one place that knows them. Ranges are those published in the card's statistics table; where
COYO enforced a limit by construction, the limit. They are for telling a wrong scale from a rare
value, so a value outside is reported and never dropped.
"""

import re
from dataclasses import dataclass

import pyarrow as pa

ID = "id"
URL = "url"
TEXT = "text"
IMAGE_PHASH = "image_phash"
ALIGN_SIMILARITY = "align_similarity"
"""What a model of one's own says where COYO has CLIP's word; none of COYO's columns."""
LABELS = "labels"
"""COYO-Labeled-300M's classes of a picture, where COYO-700M has a text."""


@dataclass(frozen=True)
class Column:
    """One column: COYO's name, its Arrow type, the closed range of its values, what it means."""

    name: str
    type: pa.DataType
    meaning: str
    low: float | None = None
    high: float | None = None


COYO_COLUMNS: tuple[Column, ...] = (
    Column(ID, pa.int64(), "unique row id (Spark monotonically_increasing_id)"),
    Column(URL, pa.string(), "the picture's address, <img src>"),
    Column(TEXT, pa.string(), "the alternative text, <img alt>"),
    Column("width", pa.int32(), "width of the original, pixels", 1, 65_535),
    Column("height", pa.int32(), "height of the original, pixels", 1, 65_535),
    Column(IMAGE_PHASH, pa.string(), "64-bit perceptual hash, 16 hex digits"),
    Column("text_length", pa.int32(), "characters of text", 0, 1000),
    Column("word_count", pa.int32(), r"matches of \w+ in text", 0, 1000),
    Column("num_tokens_bert", pa.int32(), "BERT word pieces in text", 0, 2000),
    Column("num_tokens_gpt", pa.int32(), "GPT-2 tokens in text", 0, 2000),
    Column("num_faces", pa.int32(), "faces found by SCRFD", 0, 1000),
    Column("clip_similarity_vitb32", pa.float32(), "cosine, CLIP ViT-B/32", -1, 1),
    Column("clip_similarity_vitl14", pa.float32(), "cosine, CLIP ViT-L/14", -1, 1),
    Column("nsfw_score_opennsfw2", pa.float32(), "OpenNSFW2 probability", 0, 1),
    Column("nsfw_score_gantman", pa.float32(), "GantMan NSFW probability", 0, 1),
    Column("watermark_score", pa.float32(), "COYO's own watermark probability", 0, 1),
    Column("aesthetic_score_laion_v2", pa.float32(), "LAION-Aesthetics V2, 1 to 10", 1, 10),
)

BY_NAME: dict[str, Column] = {column.name: column for column in COYO_COLUMNS}

# The least and greatest value and the mean on all of COYO-700M, from its dataset card; None where
# the card does not say.
PUBLISHED: dict[str, tuple[float | None, float | None, float]] = {
    "width": (200, 21_449, 622),
    "height": (200, 22_507, 541),
    "text_length": (6, 1000, 68.5),
    "word_count": (3, 323, 11.1),
    "num_tokens_bert": (None, None, 15.8),
    "num_tokens_gpt": (None, None, 17.2),
    "num_faces": (0, 736, 0.60),
    "clip_similarity_vitb32": (-0.081, 0.592, 0.291),
    "clip_similarity_vitl14": (-0.176, 0.582, 0.255),
    "nsfw_score_opennsfw2": (0.0, 0.4998, 0.0129),
    "watermark_score": (0.0, 1.0, 0.179),
    "aesthetic_score_laion_v2": (1.17, 8.08, 4.77),
}

COYO_SCHEMA: pa.Schema = pa.schema([(column.name, column.type) for column in COYO_COLUMNS])

_WORD = re.compile(r"\w+")


def text_length(text: str) -> int:
    """Count characters as COYO does: ``len(text)``, right for every row COYO published."""
    return len(text)


def word_count(text: str) -> int:
    r"""Count words as COYO does: matches of ``\w+``.

    Right for all nine published rows, where ``text.split()`` is right for six.

    >>> word_count("rock-n-roll, 1956")
    4
    """
    return len(_WORD.findall(text))
