"""What every run begins with, whatever its task: its directory, its samples, a model to be called.

Everything here is decided by the settings and the data, so that a run that goes on after a stop
begins with the same. Left out: the loop, which is ``finetune``, and the tasks.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from coyo_align.batch import BatchPlan
from coyo_align.config import TrainConfig
from coyo_align.distributed import World, share_of_batch
from coyo_align.errors import AlignError
from coyo_align.input.children import cores
from coyo_align.input.data import (
    OnLoad,
    Pairs,
    load_pairs,
    needs,
    nothing_left,
    read_ids,
    read_texts,
)
from coyo_align.input.images import Preprocess
from coyo_align.input.index import Index, Pack, build_index
from coyo_align.input.pictures import Decoded
from coyo_align.metrics import read_finished
from coyo_align.model import Align
from coyo_align.vit import Vit

SETTINGS = "train_config.json"


def begin(config: TrainConfig) -> None:
    """Write down what is begun, unless it was begun before.

    Raises:
        AlignError: the directory holds another run, or another model.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    settings = config.output / SETTINGS
    if settings.exists():
        before = json.loads(settings.read_text(encoding="utf-8"))
        now = config.recipe()
        if read_finished(config.output):  # its data can't be compared any more
            now |= {name: config.as_json()[name] for name in ("shards", "ids", "captions")}
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise AlignError(
                f"{config.output} holds a run with another {', '.join(changed)}. Give the settings "
                "as they were to go on with it, or a new directory."
            )
    elif (config.output / "config.json").exists():
        raise AlignError(f"{config.output} holds a model already. Give a new directory.")
    else:
        half = settings.with_suffix(".half")
        half.write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
        half.replace(settings)


def load(
    config: TrainConfig,
    preprocess: Preprocess,
    what: str,
    on_load: OnLoad | None,
    *,
    fields: Sequence[str] = (),
    pack: Pack | None = None,
) -> Pairs:
    """The samples of a run; without ``pack`` those that have captions, with it those it takes.

    Raises:
        AlignError: there are none, or too few of ``what`` for a batch.
    """
    pairs = load_pairs(
        config.shards,
        preprocess,
        config.ids,
        captions=config.captions,
        cache=config.cache,
        workers=config.workers,
        threads=config.threads,
        fields=fields,
        need_caption=pack is None,
        pack=pack,
        on_load=on_load,
    )
    _refuse_too_few(config, len(pairs), what)
    return pairs


def count_samples(
    config: TrainConfig, what: str, *, fields: Sequence[str] = (), pack: Pack | None = None
) -> Index:
    """The same, as far as the tars' headers tell."""
    wanted = None if config.ids is None else read_ids(config.ids)
    workers = config.workers or cores()
    index = build_index(
        config.shards,
        wanted,
        fields,
        pack is None,
        workers,
        lambda _share: None,
        pack,
        captions=None if config.captions is None else read_texts(config.captions),
    )
    if not len(index):
        need = needs(pack is None, pack)
        raise AlignError(
            nothing_left(config.shards, config.ids, index.skipped, index.missing_ids, need)
        )
    _refuse_too_few(config, len(index), what)
    return index


def _refuse_too_few(config: TrainConfig, count: int, what: str) -> None:
    if count < config.batch_size:
        raise AlignError(
            f"The batch size {config.batch_size} is larger than the {count} {what} in "
            f"{config.shards}. Choose a batch size of at most {count}."
        )


def unseen(captions: Sequence[str]) -> Pairs:
    """Samples whose pictures nobody will look at."""
    rows = np.arange(len(captions))
    return Pairs(Decoded(np.empty((0, 1, 1, 3), np.uint8), rows), list(captions), rows, {}, 0)


def noise(rows: int, preprocess: Preprocess, captions: list[str]) -> Pairs:
    """Samples with noise for pictures."""
    shape = (rows, preprocess.height, preprocess.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Pairs(Decoded(pixels, np.arange(rows)), captions, np.arange(rows), {}, 0)


def batch_plan(config: TrainConfig, world: World, *, with_images: bool = True) -> BatchPlan:
    """What a batch is made of.

    Raises:
        AlignError: it can't be shared out or parted.
    """
    if config.accumulate > 1 and world.size > 1:
        raise AlignError("accumulate works in one process; with several, each takes its share.")
    return BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        share=share_of_batch(config.batch_size, world),
        parts=config.accumulate,
        smallest_crop=config.smallest_crop,
        with_images=with_images,
        workers=config.workers,
    )


def ready_model(config: TrainConfig, model: Align | Vit, world: World, device: torch.device) -> Any:
    """Make a model ready for its steps; returns it as it is to be called."""
    on_gpu = device.type == "cuda"
    model.train()
    if config.checkpoint_activations:
        model.checkpoint_activations()
    if on_gpu if config.compile is None else config.compile:
        model.compile_towers()
    if world.size == 1:
        return model
    with warnings.catch_warnings():  # the argument has another name from torch 2.13 on
        warnings.simplefilter("ignore", FutureWarning)
        device_ids = [device.index] if on_gpu else None
        return DistributedDataParallel(model, device_ids, broadcast_buffers=False)
