"""Hugging Face directories in and out: weights as safetensors, processor and tokenizer beside them.

A pickle file runs code when it is opened, so only safetensors are read, and no code that a
directory brings along is trusted. Of three kinds of model: ALIGN, ViT with a classifier, and CLIP,
which is read only. Left out: the state of a run that goes on, which is ``state``'s.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AlignModel,
    AlignProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    EfficientNetImageProcessorPil,
    PreTrainedTokenizerBase,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import logging as hf_logging

from coyo_align.config import MAX_TOKENS, ON_HUB
from coyo_align.errors import AlignError
from coyo_align.input.images import preprocess_of
from coyo_align.tokenizer import cut_at


@dataclass(frozen=True)
class Checkpoint:
    """What an ALIGN directory holds: a plain AlignModel, its image processor and tokenizer."""

    hf: Any
    image_processor: EfficientNetImageProcessorPil
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Classifier:
    """What a ViT directory holds: a plain ViTForImageClassification and its image processor."""

    hf: Any
    image_processor: ViTImageProcessorPil


@dataclass(frozen=True)
class Clip:
    """What a CLIP directory holds: a plain CLIPModel, its image processor and tokenizer."""

    hf: Any
    image_processor: CLIPImageProcessorPil
    tokenizer: PreTrainedTokenizerBase


ALIGN, VIT, CLIP = "align", "vit", "clip"
"""What ``kind_of`` says of the models that are known here: their config's ``model_type``."""
_NAMES = {ALIGN: "an ALIGN", VIT: "a ViT", CLIP: "a CLIP"}
_WEIGHTS: dict[str, Any] = {
    "use_safetensors": True,
    "local_files_only": True,
    "trust_remote_code": False,
    "dtype": torch.float32,
    "output_loading_info": True,
}
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_HEAD = ("classifier.weight", "classifier.bias")


def load_checkpoint(model: str | Path) -> Checkpoint:
    """Load an ALIGN model with its own processor and tokenizer, in fp32 on the CPU.

    Args:
        model: a directory, or ``owner/name[@revision]`` on the Hugging Face hub, whose json, text
            and safetensors files are downloaded unless they are in its cache.

    Raises:
        AlignError: it is no ALIGN checkpoint, has no safetensors, they don't fit its config, or
            the hub hasn't it.
    """
    directory = locate(model)
    expect_kind(directory, ALIGN)
    _has_tokenizer(directory)
    with _loading(directory, ALIGN):
        hf, loading = AlignModel.from_pretrained(directory, **_WEIGHTS)
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        processor = EfficientNetImageProcessorPil.from_pretrained(directory, local_files_only=True)
    _complete(directory, loading["missing_keys"])
    if tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        raise AlignError(
            f"The tokenizer in {directory} has no [PAD] or no [MASK] token. Give the BERT "
            "tokenizer that the checkpoint was trained with."
        )
    length = min(MAX_TOKENS, hf.config.text_config.max_position_embeddings)
    return Checkpoint(hf, processor, cut_at(tokenizer, length))


def load_classifier(model: str | Path, classes: int | None = None) -> Classifier:
    """Load a ViT that names classes, with its own processor, in fp32 on the CPU.

    Args:
        model: a directory, or ``owner/name[@revision]`` on the Hugging Face hub.
        classes: how many classes it is to be fine-tuned on. If the checkpoint has no head, or one
            of another number of classes, it gets a new one of zeros, from which the ViT paper
            fine-tunes (Dosovitskiy et al. 2021, section 3.2). None takes the model as it is.

    Raises:
        AlignError: it is no ViT checkpoint, has no safetensors, they don't fit its config, it has
            no classes, or the hub hasn't it.
    """
    directory = locate(model)
    processor = load_vit_processor(directory)
    wanted = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with _loading(directory, VIT):
        hf, loading = ViTForImageClassification.from_pretrained(directory, **wanted, **_WEIGHTS)
    preprocess, size = preprocess_of(processor), hf.config.image_size
    if [preprocess.height, preprocess.width] != ([size, size] if isinstance(size, int) else size):
        raise AlignError(
            f"The ViT in {directory} is made for pictures of {size} pixels, but its image "
            f"processor makes {preprocess.height} x {preprocess.width}. Give the processor's size "
            "that the model was trained with."
        )
    other = {name for name, *_ in loading["mismatched_keys"]}
    absent = set(loading["missing_keys"]) | other
    if classes is None and absent >= set(_HEAD):
        raise AlignError(
            f"The ViT in {directory} names no classes: its weights have no classifier. Train one "
            "on labelled pictures with coyo train --task labels, or give a checkpoint that was."
        )
    _complete(directory, absent - set(_HEAD) if classes is not None else absent)
    if absent:
        torch.nn.init.zeros_(hf.classifier.weight)
        torch.nn.init.zeros_(hf.classifier.bias)
    return Classifier(hf, processor)


def load_vit_processor(model: str | Path) -> ViTImageProcessorPil:
    """Load the image processor of a ViT alone.

    Raises:
        AlignError: it is no ViT checkpoint, or the hub hasn't it.
    """
    directory = locate(model)
    expect_kind(directory, VIT)
    with _loading(directory, VIT):
        return ViTImageProcessorPil.from_pretrained(directory, local_files_only=True)


def load_clip(model: str | Path) -> Clip:
    """Load a CLIP model with its own processor and tokenizer, in fp32 on the CPU.

    Args:
        model: a directory, or ``owner/name[@revision]`` on the Hugging Face hub.

    Raises:
        AlignError: it is no CLIP checkpoint, has no safetensors, they don't fit its config, its
            tokenizer doesn't end texts as its text tower expects, or the hub hasn't it.
    """
    directory = locate(model)
    expect_kind(directory, CLIP)
    _has_tokenizer(directory)
    with _loading(directory, CLIP):
        hf, loading = CLIPModel.from_pretrained(directory, **_WEIGHTS)
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        processor = CLIPImageProcessorPil.from_pretrained(directory, local_files_only=True)
    _complete(directory, loading["missing_keys"])
    text = hf.config.text_config
    last = tokenizer("")["input_ids"][-1:]
    # 2 is what older configs have for all; the text tower then looks for the highest token.
    if not last or last[0] != (
        tokenizer.eos_token_id if text.eos_token_id == 2 else text.eos_token_id
    ):
        raise AlignError(
            f"The tokenizer in {directory} ends a text with token {last}, but the text tower looks "
            f"for {text.eos_token_id}. Give the tokenizer that the checkpoint was trained with."
        )
    return Clip(hf, processor, cut_at(tokenizer, text.max_position_embeddings))


def locate(model: str | Path) -> Path:
    """The directory of a model, downloaded if it is named by its place on the hub.

    Raises:
        AlignError: the hub hasn't it.
    """
    if isinstance(model, Path) or Path(model).is_dir() or not ON_HUB.fullmatch(model):
        return Path(model)
    return _fetch(model)


def _fetch(name: str) -> Path:
    repository, _, revision = name.partition("@")
    try:
        with quietly():
            found = snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=["*.json", "*.txt", "*.safetensors"],
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AlignError(
            f"{name} could not be had from the hub: {first}\nGive a local directory, or check the "
            "name, the connection, and HF_TOKEN where the repository asks for it."
        ) from error
    return Path(found)


def kind_of(directory: Path) -> str:
    """The kind of model in a directory, its config's ``model_type``: ``align``, ``vit``, another.

    Raises:
        AlignError: it holds no readable config that says so.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = None
    if not isinstance(kind, str):
        raise AlignError(
            f"{directory} is not a Hugging Face model directory: no readable config.json with a "
            "model_type. Give the directory of a run, or of an ALIGN or ViT checkpoint."
        )
    return kind


def expect_kind(directory: Path, kind: str) -> None:
    """Raise ``AlignError`` unless a model of this kind is there, in safetensors."""
    if (found := kind_of(directory)) != kind:
        raise AlignError(
            f"{directory} holds a model of type {found!r}, not {kind!r}. Give {_NAMES[kind]} "
            "checkpoint."
        )
    if not any(directory.glob("*.safetensors")):
        weights = sorted(path.name for path in directory.glob("*.bin")) or ["no weights"]
        raise AlignError(
            f"{directory} has no .safetensors file but {', '.join(weights)}. Pickled weights run "
            "code when opened and are refused; convert them with save_pretrained."
        )


def _has_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        # Without one transformers goes on with a vocabulary of five special tokens.
        raise AlignError(
            f"{directory} holds no tokenizer: none of {', '.join(_TOKENIZERS)}. Copy the files of "
            "the tokenizer that the checkpoint was trained with into it."
        )


@contextmanager
def _loading(directory: Path, kind: str) -> Iterator[None]:
    """Load quietly; whatever transformers finds wrong is one error."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        tokenizer = "" if kind == VIT else ", the tokenizer"
        raise AlignError(
            f"{directory} can't be loaded as {_NAMES[kind]} checkpoint: {error}\nIt needs "
            f"config.json, model.safetensors{tokenizer} and the preprocessor files, as "
            "save_pretrained of its model and processor writes them."
        ) from error


def _complete(directory: Path, absent: Iterable[str]) -> None:
    if missing := sorted(absent):
        raise AlignError(
            f"The weights in {directory} lack {len(missing)} tensors of its own config, "
            f"{missing[0]} among them. Give a complete checkpoint."
        )


def save_checkpoint(directory: Path, checkpoint: Checkpoint | Classifier) -> None:
    """Write what the model's own classes and pipelines of transformers load unchanged."""
    # channels_last is an order in memory for the training machine; files are stored plainly.
    checkpoint.hf.to(memory_format=torch.contiguous_format)
    processor = checkpoint.image_processor
    with quietly():
        checkpoint.hf.save_pretrained(directory)
        if isinstance(checkpoint, Checkpoint):
            processor = AlignProcessor(processor, checkpoint.tokenizer)
        processor.save_pretrained(directory)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' progress bars and reports off the caller's terminal for a while."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
