"""What scoring is asked for: the columns, what each is computed with, and what does not fit."""

from dataclasses import dataclass
from pathlib import Path

from coyo_tools.columns import ALIGN_SIMILARITY
from coyo_tools.errors import ColumnError, TrainingError
from coyo_tools.faces import HAAR
from coyo_tools.handover import align_errors, open_shards
from coyo_tools.manifest import digest_of
from coyo_tools.picture_scores import Wish

SHARDS_ROLE = "shards"
_CLIPS = {
    "clip_vitb32": "clip_similarity_vitb32", "clip_vitl14": "clip_similarity_vitl14",
}  # fmt: skip
_MODELLED = (ALIGN_SIMILARITY, *_CLIPS.values())
_TOKENIZERS = {"bert_tokenizer": "num_tokens_bert", "gpt_tokenizer": "num_tokens_gpt"}
SCORERS = ("model", *_CLIPS, *_TOKENIZERS)
"""The settings that name a model or a tokenizer."""


@dataclass(frozen=True)
class ScoreSettings:
    """Which columns are added, and how.

    Attributes:
        model: a run, an ALIGN directory or a name on the hub, for ``align_similarity``.
        clip_vitb32: a CLIP directory or a name on the hub, for ``clip_similarity_vitb32``.
        clip_vitl14: the same, for ``clip_similarity_vitl14``.
        faces: a detector for ``num_faces``, see ``faces``.
        sizes: add ``width`` and ``height``.
        phash: add ``image_phash``.
        text: add ``text_length`` and ``word_count``.
        bert_tokenizer: a directory or a name on the hub, for ``num_tokens_bert``.
        gpt_tokenizer: the same, for ``num_tokens_gpt``.
        replace: columns that may be there already, and are replaced.
        batch_size: rows embedded at a time.
        device: of torch, None for what is there.
        processes: that decode pictures, None for one per core.
    """

    model: str | None = None
    clip_vitb32: str | None = None
    clip_vitl14: str | None = None
    faces: str | None = None
    sizes: bool = False
    phash: bool = False
    text: bool = False
    bert_tokenizer: str | None = None
    gpt_tokenizer: str | None = None
    replace: tuple[str, ...] = ()
    batch_size: int = 256
    device: str | None = None
    processes: int | None = None

    @property
    def wish(self) -> Wish:
        """What is measured on the pictures themselves."""
        return Wish(self.sizes, self.phash, self.faces)

    @property
    def models(self) -> dict[str, str]:
        """The models asked for, by the column that each gives."""
        asked = {ALIGN_SIMILARITY: self.model}
        asked |= {column: getattr(self, option) for option, column in _CLIPS.items()}
        return {column: model for column, model in asked.items() if model}

    @property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizers asked for, by the column that each gives."""
        asked = {column: getattr(self, option) for option, column in _TOKENIZERS.items()}
        return {column: name for column, name in asked.items() if name}

    @property
    def sources(self) -> dict[str, str]:
        """What columns are computed with, models, detector and tokenizers, by column."""
        faces = {"num_faces": self.faces} if self.faces else {}
        return {**self.models, **faces, **self.tokenizers}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns asked for, in the order in which they are added."""
        texts = ("text_length", "word_count") if self.text else ()
        return (*self.models, *self.wish.columns, *texts, *self.tokenizers)

    def check(self, *, with_shards: bool) -> None:
        """Raise ``TrainingError`` if nothing is asked for, or what is doesn't go together."""
        if not self.columns:
            raise TrainingError(
                "Nothing is asked for.",
                "Ask for --model, --clip-vitb32, --clip-vitl14, --faces, --sizes, --phash, --text, "
                "--bert-tokenizer or --gpt-tokenizer.",
            )
        of_pictures = (*self.models, *self.wish.columns)
        if of_pictures and not with_shards:
            raise TrainingError(
                f"{of_pictures[0]} needs the pictures.", "Name their shards with --data."
            )
        for name in self.replace:
            if name not in self.columns:
                raise ColumnError(
                    f"--replace {name} names no column that is computed here.",
                    f"Computed are {', '.join(self.columns)}.",
                )


def is_source(role: str) -> bool:
    """Say whether an input of this role is what ``input_fingerprint`` knows."""
    return role in (SHARDS_ROLE, "num_faces", *_MODELLED, *_TOKENIZERS.values())


def input_fingerprint(role: str, path: str) -> str:
    """The fingerprint of a model, detector or tokenizer by the column it gives, or of shards.

    Raises:
        CoyoError: it can't be read.
    """
    if role == SHARDS_ROLE:
        return open_shards(Path(path)).fingerprint
    if role == "num_faces":
        if path == HAAR:
            import cv2

            return digest_of([HAAR, cv2.__version__])[:16]
        return digest_of([Path(path).read_bytes()])[:16]
    with align_errors("coyo score"):
        from coyo_align.checkpoint import locate
        from coyo_align.using.fingerprint import fingerprint_of
        from coyo_align.using.tokens import TokenCounter

        if role in _TOKENIZERS.values():
            return TokenCounter(path).fingerprint
        return fingerprint_of(locate(path))
