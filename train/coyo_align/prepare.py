"""What a run begins with: pairs, model, processor and tokenizer, and the plan of its batches.

Everything here is decided by the settings and the data, so that a run that goes on after a stop
begins with the same. Left out: the loop, which is ``finetune``.
"""

import json
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch

from coyo_align.batch import BatchPlan, Feed
from coyo_align.checkpoint import Checkpoint, load_checkpoint
from coyo_align.config import MAX_TOKENS, SHAPES, TrainConfig
from coyo_align.distributed import World, share_batchnorm
from coyo_align.errors import AlignError
from coyo_align.estimate import Tower
from coyo_align.input.data import OnLoad, Pairs, load_pairs
from coyo_align.input.images import Preprocess, image_processor, preprocess_of
from coyo_align.metrics import read_finished
from coyo_align.model import Align, build, random_parts, set_dropout
from coyo_align.tokenizer import encode, train_tokenizer

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
            now |= {name: config.as_json()[name] for name in ("shards", "ids")}
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


def prepare(
    config: TrainConfig, device: torch.device, on_load: OnLoad | None
) -> tuple[Checkpoint, Pairs, Feed]:
    """The model with its processor and tokenizer, the pairs, and both joined."""
    shape = SHAPES.get(config.model)
    if shape is None:
        checkpoint = load_checkpoint(config.model)
        processor = checkpoint.image_processor
    else:
        processor = image_processor(config.image_size or shape.image_size)
    pairs = _load(config, preprocess_of(processor, fast=config.fast_decode), on_load)
    if shape is not None:
        checkpoint = load_or_build(config, pairs.captions)
    return checkpoint, pairs, feed_of(checkpoint, pairs.captions, device)


def load_or_build(config: TrainConfig, captions: Sequence[str]) -> Checkpoint:
    """The checkpoint that is fine-tuned, or an untrained one with a tokenizer of the captions."""
    shape = SHAPES.get(config.model)
    if shape is None:
        return load_checkpoint(config.model)
    side = config.image_size or shape.image_size
    tokenizer = train_tokenizer(captions, shape.vocabulary)
    hf = build(shape, side, len(tokenizer), tokenizer.pad_token_id)
    return Checkpoint(hf, image_processor(side), tokenizer)


def feed_of(checkpoint: Checkpoint, captions: Sequence[str], device: torch.device) -> Feed:
    """The captions and pictures as the checkpoint's tokenizer and processor make them."""
    return Feed(
        tokens=encode(checkpoint.tokenizer, captions),
        preprocess=preprocess_of(checkpoint.image_processor),
        pad_id=checkpoint.tokenizer.pad_token_id,
        device=device,
    )


def _load(config: TrainConfig, preprocess: Preprocess, on_load: OnLoad | None) -> Pairs:
    pairs = load_pairs(
        config.shards,
        preprocess,
        config.ids,
        cache=config.cache,
        workers=config.workers,
        threads=config.threads,
        on_load=on_load,
    )
    refuse_too_few(config, len(pairs), "usable pairs")
    return pairs


def refuse_too_few(config: TrainConfig, count: int, what: str) -> None:
    """Raise ``AlignError`` if so many of what there is don't fill a batch."""
    if count < config.batch_size:
        raise AlignError(
            f"The batch size {config.batch_size} is larger than the {count} {what} in "
            f"{config.shards}. Choose a batch size of at most {count}."
        )


def make_model(
    config: TrainConfig, checkpoint: Checkpoint, world: World, device: torch.device
) -> Align:
    """The model on its device, all of it made ready that decides what is learned."""
    if world.size > 1:
        share_batchnorm(checkpoint.hf, device)
    set_dropout(checkpoint.hf, config.text_dropout, config.drop_path)
    model = Align(checkpoint.hf, config.temperature, config.freeze, config.loss)
    if config.lora is not None:
        model.add_lora(config.lora)
    model.to(device)
    model.hf.vision_model.to(memory_format=torch.channels_last)
    model.train()
    if config.accumulate > 1 and (parts := random_parts(model)):
        raise AlignError(
            f"Taking a batch in {config.accumulate} parts would not give the gradients of the "
            f"whole, because of {', '.join(parts)}. Without accumulate, a smaller batch or "
            "checkpoint_activations saves memory."
        )
    return model


def plan_batches(
    config: TrainConfig, checkpoint: Checkpoint, share: slice, device: torch.device
) -> BatchPlan:
    """What a batch is made of; not what a frozen tower would make the same of every time."""
    on_gpu = device.type == "cuda"
    if config.accumulate > 1 and share.stop - share.start < config.batch_size:
        raise AlignError("accumulate works in one process; with several, each takes its share.")
    return BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        share=share,
        parts=config.accumulate,
        smallest_crop=config.smallest_crop,
        masked_tokens=config.masked_tokens,
        mask_id=checkpoint.tokenizer.mask_token_id,  # BERT's, which every ALIGN tokenizer has
        group=256 if on_gpu else 32,
        # A compiled tower is compiled anew for every length, and positions end at 64 or later.
        multiple=16 if on_gpu and checkpoint.tokenizer.model_max_length == MAX_TOKENS else 1,
        with_images=not ("image" in config.freeze and config.smallest_crop == 1),
        with_texts=not ("text" in config.freeze and config.masked_tokens == 0),
        workers=config.workers,
    )


def digest_of(pairs: Pairs) -> str:
    """A fingerprint of the pairs in their order; a run goes on with what it was begun with."""
    digest = sha256(np.ascontiguousarray(pairs.ids).tobytes())
    for caption in pairs.captions:
        digest.update(caption.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def known_towers(plan: BatchPlan) -> tuple[Tower, ...]:
    """The frozen towers whose embeddings are computed once."""
    needed: dict[Tower, bool] = {"image": plan.with_images, "text": plan.with_texts}
    return tuple(tower for tower, asked in needed.items() if not asked)
