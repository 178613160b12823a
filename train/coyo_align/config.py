"""What a training run is told, and the shapes of the models it can start from.

Frozen and without torch, so that a command line can read the defaults without waiting for it.
What is left out: anything that only one module needs stays a constant of that module.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coyo_align.errors import AlignError

Tower = Literal["image", "text"]

MAX_TOKENS = 64
"""Captions are cut here: ALIGN's own text length, and what AlignProcessor pads to."""


@dataclass(frozen=True)
class CompactShape:
    """An ALIGN small enough for a CPU: the dimensions that AlignConfig needs.

    A stage is (output channels, kernel size, stride, expansion, blocks). Widths are real ones
    (multiples of 8), not multiplied by a width coefficient.
    """

    image_size: int
    stem_width: int
    stages: tuple[tuple[int, int, int, int, int], ...]
    vocabulary: int
    text_width: int
    text_layers: int
    text_heads: int
    text_inner: int
    text_dropout: float


SHAPES: dict[str, CompactShape] = {
    # The first stage halves the picture again: at 32 by 32 the depthwise layers cost a CPU more
    # than all the rest together (measured: 405 instead of 747 images a second on two cores).
    "compact": CompactShape(
        image_size=64,
        stem_width=16,
        stages=((16, 3, 2, 1, 1), (24, 3, 1, 3, 1), (48, 3, 2, 3, 2), (96, 3, 2, 4, 2)),
        vocabulary=3000,
        text_width=128,
        text_layers=2,
        text_heads=4,
        text_inner=256,
        text_dropout=0.1,
    ),
}
"""Models that are trained from scratch, by the name that ``--model`` takes."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run: same configuration, same data, same weights on a CPU.

    ``samples`` is the budget in image-text pairs seen, rounded up to whole batches, so that runs
    on sets of different sizes are compared at the same compute.

    The defaults are for a model from scratch on some thousands of pairs, where learning by heart is
    the danger: masked words and strong decay each raised recall on held-out books. ``make_config``
    has others for a checkpoint.
    """

    shards: Path
    output: Path
    samples: int
    ids: Path | None = None
    model: str = "compact"
    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_share: float = 0.1
    weight_decay: float = 1.0
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    temperature: float | None = None
    """Where the temperature starts: None for .07 from scratch, the checkpoint's own otherwise."""
    smallest_crop: float = 0.5
    """Share of the picture's area that the random crop keeps at least; 1 turns it off."""
    masked_tokens: float = 0.3
    """Share of a caption's tokens that are hidden from the text tower, anew each time."""
    freeze: tuple[Tower, ...] = ()
    image_size: int | None = None
    """Side in pixels, for the models from scratch: None for the model's own."""
    device: str | None = None
    """None for CUDA where there is one, else the CPU."""
    threads: int | None = None
    """Of torch and of the decoder; None for what torch takes. Bits depend on it."""
    log_every: int = 10

    def as_json(self) -> dict[str, Any]:
        """The settings as they stand in ``train_config.json``, paths as text."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        del settings["output"]  # where the file stands, and often a name of the time of writing
        return settings


# Weights that have learned already are moved gently, and saw whole captions when they were made.
_FOR_CHECKPOINTS = {
    "learning_rate": 1e-5, "weight_decay": 0.1, "smallest_crop": 0.9, "masked_tokens": 0.0,
}  # fmt: skip


def make_config(**chosen: Any) -> TrainConfig:
    """Make a configuration whose defaults fit its ``model``: from scratch, or a checkpoint."""
    if chosen.get("model", TrainConfig.model) not in SHAPES:
        chosen = _FOR_CHECKPOINTS | chosen
    return TrainConfig(**chosen)


def check(config: TrainConfig) -> None:
    """Refuse settings that can't work, before anything slow happens.

    Raises:
        AlignError: names the setting, its value, and what it may be.
    """
    for name, good, allowed in (
        ("samples", config.samples >= 1, "1 or more"),
        ("batch_size", config.batch_size >= 2, "2 or more: the loss compares within a batch"),
        ("learning_rate", config.learning_rate > 0, "above 0, such as 0.001"),
        ("warmup_share", 0 <= config.warmup_share <= 1, "between 0 and 1"),
        ("weight_decay", config.weight_decay >= 0, "0 or more"),
        ("clip_norm", config.clip_norm > 0, "above 0"),
        ("label_smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
        ("temperature", config.temperature is None or config.temperature > 0, "above 0"),
        ("smallest_crop", 0 < config.smallest_crop <= 1, "above 0 and at most 1"),
        ("masked_tokens", 0 <= config.masked_tokens < 1, "at least 0 and below 1"),
        ("freeze", set(config.freeze) < {"image", "text"}, "image or text, not both"),
        ("image_size", config.image_size is None or config.image_size >= 32, "32 or more"),
        ("threads", config.threads is None or config.threads >= 1, "1 or more"),
        ("log_every", config.log_every >= 1, "1 or more"),
    ):
        if not good:
            raise AlignError(f"{name} is {getattr(config, name)!r}, but must be {allowed}.")
    if config.model not in SHAPES:
        if not Path(config.model).is_dir():
            raise AlignError(
                f"No model {config.model!r}: it is neither one of {', '.join(SHAPES)} nor a local "
                "directory with an ALIGN checkpoint."
            )
        if config.image_size is not None:
            raise AlignError(
                f"image_size is {config.image_size}, but a checkpoint brings its own; leave it out."
            )
