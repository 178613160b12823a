"""What a training run is told, and the shapes of the models it can start from.

Frozen and without torch, so that a command line can read the defaults without waiting for it.
What is left out: anything that only one module needs stays a constant of that module.
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from coyo_align.errors import AlignError

Task = Literal["pairs", "labels"]
Part = Literal["image", "text", "batchnorm"]
Loss = Literal["infonce", "siglip"]
Schedule = Literal["cosine", "linear"]
Precision = Literal["bf16", "fp32"]
Output = Literal["embeddings", "raw", "hidden"]
"""Of the towers: unit vectors, the same before they are normalised, or before the projection."""

MAX_TOKENS = 64
"""Captions are cut here: ALIGN's own text length, and what AlignProcessor pads to."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of an ALIGN that is trained from scratch.

    Attributes:
        image_size: side of the pictures in pixels.
        width: EfficientNet's width coefficient, which multiplies channels (to multiples of 8).
        depth: EfficientNet's depth coefficient, which multiplies ``blocks``, rounded up.
        drop_path: chance that the last block's branch is dropped; earlier ones less, by place.
        vocabulary: entries of the tokenizer that is trained on the captions, at most.
        positions: the longest text the tower has places for.
        stages: (channels, kernel size, stride, expansion, blocks) before the coefficients.
    """

    image_size: int
    width: float
    depth: float
    drop_path: float
    vocabulary: int
    text_width: int
    text_layers: int
    text_heads: int
    text_inner: int
    text_dropout: float = 0.1
    positions: int = MAX_TOKENS
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (16, 3, 1, 1, 1),
        (24, 3, 2, 6, 2),
        (40, 5, 2, 6, 2),
        (80, 3, 2, 6, 3),
        (112, 5, 1, 6, 3),
        (192, 5, 2, 6, 4),
        (320, 3, 1, 6, 1),
    )
    """EfficientNet-B0's (Tan & Le 2019, table 1)."""


# BERT-mini of Turc et al. 2019, and what COYO-ALIGN calls BERT 4 x 256.
_MINI: dict[str, Any] = {"text_width": 256, "text_layers": 4, "text_heads": 4, "text_inner": 1024}
_BERT: dict[str, Any] = {"text_width": 768, "text_layers": 12, "text_heads": 12, "text_inner": 3072}

SHAPES: dict[str, Shape] = {
    # The first stage halves the picture again: at 32 by 32 the depthwise layers cost a CPU more
    # than all the rest together (measured: 405 instead of 747 images a second on two cores).
    "compact": Shape(
        image_size=64,
        width=0.5,
        depth=1.0,
        drop_path=0.0,
        vocabulary=3000,
        text_width=128,
        text_layers=2,
        text_heads=4,
        text_inner=256,
        stages=((32, 3, 2, 1, 1), (48, 3, 1, 3, 1), (96, 3, 2, 3, 2), (192, 3, 2, 4, 2)),
    ),
    "b0-mini": Shape(128, 1.0, 1.0, 0.1, 30522, **_MINI),
    # COYO-ALIGN's on CC3M and on COYO-700M (its README), without the projection it has behind the
    # image tower. The latter is align-base to the last dimension.
    "b3-mini": Shape(289, 1.2, 1.4, 0.2, 30522, **_MINI),
    "b7-base": Shape(289, 2.0, 3.1, 0.2, 30522, **_BERT, positions=512),
}
"""ALIGN models that are trained from scratch, by the name that ``--model`` takes."""


@dataclass(frozen=True)
class VitShape:
    """The dimensions of a ViT that is trained from scratch.

    Attributes:
        image_size: side of the pictures in pixels.
        patch: side of the squares a picture is cut into, in pixels.
    """

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    inner: int


VIT_SHAPES: dict[str, VitShape] = {
    # For a CPU, as compact is: 65 tokens, and a seventh of the weights of DeiT's ViT-Ti.
    "vit-tiny": VitShape(image_size=64, patch=8, width=128, layers=4, heads=4, inner=512),
    "vit-b16": VitShape(image_size=224, patch=16, width=768, layers=12, heads=12, inner=3072),
}
"""ViTs that are trained from scratch. B/16 is the paper's (Dosovitskiy et al. 2021, table 1)."""


def from_scratch(model: str) -> bool:
    """Whether this is the name of a shape, not of a checkpoint."""
    return model in SHAPES or model in VIT_SHAPES


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
    captions: Path | None = None
    """A parquet file or directory of parts whose texts stand in place of the tars' captions."""
    model: str = "compact"
    """A name of ``SHAPES`` or ``VIT_SHAPES``, a local directory, or ``owner/name[@revision]`` on
    the hub: an ALIGN for pairs, a ViT for labels."""
    task: Task = "pairs"
    """Pictures with captions, or with classes."""
    labels: str | None = None
    """Names of the classes: a file or a list, see ``read_labels``. None for numbers."""
    classes: int | None = None
    """How many there are, where they have no names: None for the highest number in the data + 1."""
    label_field: str = "labels"
    """Field of the samples' json: a list of class numbers with ``label_probs`` beside it, or one
    class; "cls" is the .cls file."""
    seed: int = 0
    batch_size: int = 128
    """Over all processes: what the loss compares."""
    accumulate: int = 1
    """Parts a batch is taken in to save memory, where that is exact."""
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    warmup_share: float = 0.1
    weight_decay: float = 1.0
    clip_norm: float = 1.0
    loss: Loss = "infonce"
    label_smoothing: float = 0.0
    """Of InfoNCE, or of labels."""
    temperature: float | None = None
    """Where the temperature starts: None for .07 from scratch, the checkpoint's own otherwise."""
    smallest_crop: float = 0.5
    """Share of the picture's area that the random crop keeps at least; 1 turns it off."""
    masked_tokens: float = 0.3
    """Share of a caption's tokens that are hidden from the text tower, anew each time."""
    text_dropout: float | None = None
    """None for the model's own."""
    drop_path: float | None = None
    """Stochastic depth of the image tower, at its last block; None for the model's own."""
    freeze: tuple[Part, ...] = ()
    lora: int | None = None
    """Rank of the low-rank updates; the towers' own weights then stay as they are."""
    ema: float | None = None
    """Decay of the averaged weights, which are the ones saved; None for no averaging."""
    image_size: int | None = None
    """Side in pixels, for the models from scratch: None for the model's own."""
    device: str | None = None
    """None for CUDA where there is one, else the CPU."""
    precision: Precision | None = None
    """Of the towers; None for bf16 on CUDA, fp32 on a CPU. Embeddings and loss are fp32."""
    compile: bool | None = None
    """torch.compile, tower by tower; None for on CUDA only: it pays after some minutes."""
    checkpoint_activations: bool = False
    """Compute the blocks again in the backward pass, for a third more time and far less memory."""
    fast_decode: bool = False
    """Three times as many pictures a second, with coarser edges than the ones that are used later;
    see ``images``."""
    cache: Path | None = None
    """Directory for decoded pictures, made once and used again."""
    workers: int | None = None
    """Decoding processes, None for the machine's cores. Results don't depend on them."""
    threads: int | None = None
    """Of torch; None for what torch takes. Bits depend on it."""
    log_every: int = 10
    checkpoint_every: int | None = None
    """Steps; None for every ten minutes."""
    tensorboard: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings as they stand in ``train_config.json``, paths as text."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        del settings["output"]  # where the file stands, and often a name of the time of writing
        return settings

    def recipe(self) -> dict[str, Any]:
        """The settings that decide what is learned: those a resumed run must share."""
        settings = json.loads(json.dumps(self.as_json()))
        return {name: value for name, value in settings.items() if name not in PACE}


PACE = frozenset(
    [
        "shards",
        "ids",
        "captions",
        "device",
        "compile",
        "checkpoint_activations",
        "cache",
        "workers",
        "threads",
        "log_every",
        "checkpoint_every",
        "tensorboard",
    ]
)
"""Settings of how a run is done. Data are compared by their content, not by their paths."""

# Weights that have learned already are moved gently, and saw whole captions when they were made.
_FOR_CHECKPOINTS = {
    "learning_rate": 1e-5, "weight_decay": 0.1, "smallest_crop": 0.9, "masked_tokens": 0.0,
}  # fmt: skip
# COYO-ViT's weight decay; a peak usual for small ViTs with AdamW. A checkpoint's classifier may be
# new, and needs more than 1e-5 to get anywhere.
_FOR_LABELS = {"learning_rate": 1e-3, "weight_decay": 0.1, "masked_tokens": 0.0}
_FOR_VIT_CHECKPOINTS = _FOR_LABELS | {"learning_rate": 5e-5}


def make_config(**chosen: Any) -> TrainConfig:
    """Make a configuration whose defaults fit its ``model``: from scratch, or a checkpoint.

    What is frozen sees its pictures or captions as they are, so that they are embedded only once.
    """
    if "image" in chosen.get("freeze", ()):
        chosen = {"smallest_crop": 1.0} | chosen
    if "text" in chosen.get("freeze", ()):
        chosen = {"masked_tokens": 0.0} | chosen
    scratch = from_scratch(chosen.get("model", TrainConfig.model))
    if chosen.get("task") == "labels":
        chosen = (_FOR_LABELS if scratch else _FOR_VIT_CHECKPOINTS) | chosen
    elif not scratch:
        chosen = _FOR_CHECKPOINTS | chosen
    return TrainConfig(**chosen)


def check(config: TrainConfig) -> None:
    """Refuse settings that can't work, before anything slow happens.

    Raises:
        AlignError: names the setting, its value, and what it may be.
    """
    shares = "at least 0 and below 1"
    for name, good, allowed in (
        ("samples", config.samples >= 1, "1 or more"),
        ("batch_size", config.batch_size >= 2, "2 or more: the loss compares within a batch"),
        ("task", config.task in get_args(Task), "pairs or labels"),
        ("classes", config.classes is None or config.classes >= 2, "2 or more"),
        ("accumulate", config.accumulate >= 1, "1 or more"),
        ("learning_rate", 0 < config.learning_rate < math.inf, "above 0, such as 0.001"),
        ("schedule", config.schedule in get_args(Schedule), "cosine or linear"),
        ("warmup_share", 0 <= config.warmup_share <= 1, "between 0 and 1"),
        ("weight_decay", 0 <= config.weight_decay < math.inf, "0 or more"),
        ("clip_norm", config.clip_norm > 0, "above 0"),
        ("loss", config.loss in get_args(Loss), "infonce or siglip"),
        ("label_smoothing", 0 <= config.label_smoothing < 1, shares),
        ("temperature", config.temperature is None or 0 < config.temperature <= 1, "in (0, 1]"),
        ("smallest_crop", 0 < config.smallest_crop <= 1, "above 0 and at most 1"),
        ("masked_tokens", 0 <= config.masked_tokens < 1, shares),
        ("text_dropout", config.text_dropout is None or 0 <= config.text_dropout < 1, shares),
        ("drop_path", config.drop_path is None or 0 <= config.drop_path < 1, shares),
        ("freeze", set(config.freeze) <= set(get_args(Part)), "image, text or batchnorm"),
        ("freeze", not {"image", "text"} <= set(config.freeze), "one tower at most"),
        ("lora", config.lora is None or config.lora >= 1, "1 or more"),
        ("ema", config.ema is None or 0 < config.ema < 1, "above 0 and below 1, such as 0.999"),
        ("image_size", config.image_size is None or config.image_size >= 32, "32 or more"),
        ("precision", config.precision in (None, *get_args(Precision)), "bf16 or fp32"),
        ("workers", config.workers is None or config.workers >= 1, "1 or more"),
        ("threads", config.threads is None or config.threads >= 1, "1 or more"),
        ("log_every", config.log_every >= 1, "1 or more"),
        (
            "checkpoint_every",
            config.checkpoint_every is None or config.checkpoint_every >= 1,
            "1 or more",
        ),
    ):
        if not good:
            raise AlignError(f"{name} is {getattr(config, name)!r}, but must be {allowed}.")
    if config.batch_size % config.accumulate:
        raise AlignError(
            f"A batch of {config.batch_size} can't be taken in {config.accumulate} equal parts. "
            "Choose an accumulate that divides the batch size."
        )
    if config.loss == "siglip" and config.label_smoothing:
        raise AlignError("label_smoothing is InfoNCE's; leave it out with the loss siglip.")
    _check_task(config)
    if not from_scratch(config.model):
        if not Path(config.model).is_dir() and not ON_HUB.fullmatch(config.model):
            raise AlignError(
                f"No model {config.model!r}: it is neither one of "
                f"{', '.join((*SHAPES, *VIT_SHAPES))}, nor a local directory with a checkpoint, "
                "nor a name on the hub such as kakaobrain/align-base."
            )
        if config.image_size is not None:
            raise AlignError(
                f"image_size is {config.image_size}, but a checkpoint brings its own; leave it out."
            )


def _check_task(config: TrainConfig) -> None:
    """Refuse what says nothing about the task, rather than ignore it."""
    if config.task == "pairs":
        if config.model in VIT_SHAPES:
            raise AlignError(
                f"{config.model} learns classes, not captions: train it with task labels "
                "(--task labels) on pictures that have labels."
            )
        for name in ("labels", "classes", "label_field"):
            if getattr(config, name) != getattr(TrainConfig, name):
                raise AlignError(f"{name} says nothing about pairs; it belongs to the task labels.")
        return
    if config.model in SHAPES:
        raise AlignError(
            f"{config.model} is an ALIGN, which learns captions. For labels choose a model of "
            f"{', '.join(VIT_SHAPES)}, or a ViT checkpoint."
        )
    if config.labels is not None and config.classes is not None:
        raise AlignError("labels names the classes and so counts them; leave classes out.")
    for name, nothing in _NOT_OF_LABELS.items():
        value = getattr(config, name)
        if value != nothing:
            raise AlignError(
                f"{name} is {value!r}, which says nothing about labels: a ViT has no captions, no "
                "temperature and one loss. Leave it out."
            )
    if odd := set(config.freeze) - {"image"}:
        raise AlignError(
            f"freeze names {', '.join(sorted(odd))}, which a ViT has not. Of a ViT the image tower "
            "can be frozen, so that only the classifier learns."
        )


_NOT_OF_LABELS = {
    "captions": None,
    "loss": "infonce", "temperature": None, "masked_tokens": 0.0, "text_dropout": None,
    "drop_path": None,
}  # fmt: skip
"""Settings of pairs, and their value where nobody has asked for anything."""

ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
