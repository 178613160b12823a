"""Makes what the training benchmark reads: JPEG shards with captions, and models to start from.

Pictures are benchmarks/make_pictures.py's, as large as ``coyo download`` keeps them, so that they
cost a decoder what photographs cost. Captions have the lengths of alt texts (half of them ten words
or fewer, a tenth more than 25) and words as frequent as in a language; the first three tell of the
picture's light, colour and shape, so that there is something to learn.
"""

import functools
import io
import json
import os
import tarfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from make_pictures import draw
from PIL import Image

_COLOURS = {
    "grey": (120, 120, 120), "red": (165, 95, 95), "green": (95, 160, 95), "blue": (95, 95, 165),
    "yellow": (160, 155, 90), "purple": (145, 95, 155), "turquoise": (90, 155, 155),
    "brown": (125, 100, 75),
}  # fmt: skip
_SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "er")]
_WORDS = 4000


def make_shards(folder: Path, count: int, longest: int, seed: int = 0) -> Path:
    """Return a directory of shards, drawn if it isn't there.

    Args:
        folder: to put it in.
        count: of pictures.
        longest: the longer side in pixels.
        seed: of pictures and captions.
    """
    shards = folder / f"shards-{count}-{longest}-{seed}"
    if shards.exists():
        return shards
    half = shards.with_suffix(".partial")
    half.mkdir(parents=True, exist_ok=True)
    tars = max(8, count // 512)
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        drawn = pool.imap(functools.partial(_sample, seed, longest), range(count), chunksize=8)
        for tar_number in range(tars):
            with tarfile.open(half / f"{tar_number:05}.tar", "w") as tar:
                for number in range(tar_number * count // tars, (tar_number + 1) * count // tars):
                    for name, data in zip(("jpg", "txt", "json"), next(drawn), strict=True):
                        info = tarfile.TarInfo(f"{number:09}.{name}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return half.rename(shards)


def _sample(seed: int, longest: int, number: int) -> tuple[bytes, bytes, bytes]:
    data, _ = draw(seed, number)
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (longest, longest))
        small = picture.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=90)
    return (
        stream.getvalue(),
        _caption(small, seed, number).encode(),
        json.dumps({"id": number}).encode(),
    )


def _caption(picture: Image.Image, seed: int, number: int) -> str:
    rng = np.random.default_rng([seed, 11, number])
    mean = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float64).mean((0, 1))
    light = ("dark", "dim", "bright")[int(np.digitize(mean.mean(), (105, 130)))]
    tint = mean - mean.mean() + 120
    colour = min(_COLOURS, key=lambda name: float(np.abs(tint - _COLOURS[name]).sum()))
    shape = ("tall", "square", "wide")[int(np.digitize(picture.width / picture.height, (0.9, 1.2)))]
    words = int(np.clip(round(np.exp(rng.normal(np.log(10), 0.75))), 1, 150))
    # Zipf's law: the chance of a word falls with its rank.
    ranks = (np.exp(rng.random(words) * np.log(_WORDS)) - 1).astype(int)
    return " ".join(([light, colour, shape] + [_word(rank) for rank in ranks])[: max(3, words)])


@functools.cache
def _word(rank: int) -> str:
    rng = np.random.default_rng([12, rank])
    return "".join(rng.choice(_SYLLABLES, 1 + int(rng.integers(1, 4))))


def make_start(
    folder: Path, shards: Path, model: str, side: int, seed: int = 0, *, dropout: bool = True
) -> Path:
    """Return a Hugging Face directory with a fresh model, tokenizer and processor.

    All sides of a comparison load it, so that they begin with the same weights.
    """
    import torch
    from coyo_align.checkpoint import Checkpoint, save_checkpoint
    from coyo_align.config import SHAPES
    from coyo_align.input.images import image_processor
    from coyo_align.model import build, set_dropout
    from coyo_align.tokenizer import train_tokenizer

    start = folder / f"start-{model}-{side}-{seed}{'' if dropout else '-nodrop'}"
    if start.exists():
        return start
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([row.caption for row in rows_of(shards)], SHAPES[model].vocabulary)
    # The table of words is as large as for a real vocabulary, whatever was found here.
    hf = build(SHAPES[model], side, SHAPES[model].vocabulary, tokenizer.pad_token_id)
    if not dropout:
        set_dropout(hf, 0.0, 0.0)
    half = start.with_suffix(".partial")
    save_checkpoint(half, Checkpoint(hf, image_processor(side), tokenizer))
    return half.rename(start)


@dataclass(frozen=True)
class Row:
    """Where a sample's picture stands, and its caption."""

    tar: Path
    offset: int
    size: int
    caption: str


def rows_of(shards: Path) -> list[Row]:
    """Return the samples of a directory of shards, in their order."""
    rows = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            place = (0, 0)
            for member in tar:
                if member.name.endswith(".jpg"):
                    place = (member.offset_data, member.size)
                elif member.name.endswith(".txt"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    rows.append(Row(path, *place, stream.read().decode()))
    return rows
