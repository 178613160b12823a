"""Hugging Face directories in and out: weights as safetensors, processor and tokenizer beside them.

A pickle file runs code when it is opened, so only safetensors are read, and no code that a
directory brings along is trusted. Left out: the
state of a run that goes on, which is ``state``'s.
"""

import json
from collections.abc import Iterator
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
    EfficientNetImageProcessorPil,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from coyo_align.config import MAX_TOKENS, ON_HUB
from coyo_align.errors import AlignError
from coyo_align.tokenizer import cut_at


@dataclass(frozen=True)
class Checkpoint:
    """What an ALIGN directory holds: a plain AlignModel, its image processor and tokenizer."""

    hf: Any
    image_processor: EfficientNetImageProcessorPil
    tokenizer: PreTrainedTokenizerBase


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
    _check(directory)
    try:
        with _quiet():
            hf, loading = AlignModel.from_pretrained(
                directory,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            processor = EfficientNetImageProcessorPil.from_pretrained(
                directory, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise AlignError(
            f"{directory} can't be loaded as an ALIGN checkpoint: {error}\n"
            "It needs config.json, model.safetensors, the tokenizer and the preprocessor files, "
            "as AlignModel and AlignProcessor save them."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise AlignError(
            f"The weights in {directory} lack {len(missing)} tensors of its own config, "
            f"{missing[0]} among them. Give a complete checkpoint."
        )
    if tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        raise AlignError(
            f"The tokenizer in {directory} has no [PAD] or no [MASK] token. Give the BERT "
            "tokenizer that the checkpoint was trained with."
        )
    length = min(MAX_TOKENS, hf.config.text_config.max_position_embeddings)
    return Checkpoint(hf, processor, cut_at(tokenizer, length))


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
        with _quiet():
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


def _check(directory: Path) -> None:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AlignError(
            f"{directory} is not a Hugging Face model directory: no readable config.json with a "
            "model_type. Give the directory of a run, or of an ALIGN checkpoint."
        ) from None
    if kind != "align":
        raise AlignError(
            f"{directory} holds a model of type {kind!r}, not 'align'. Give an ALIGN checkpoint."
        )
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        # Without one transformers goes on with a vocabulary of five special tokens.
        raise AlignError(
            f"{directory} holds no tokenizer: neither tokenizer.json nor vocab.txt. Copy the files "
            "of the tokenizer that the checkpoint was trained with into it."
        )
    if not any(directory.glob("*.safetensors")):
        found = sorted(path.name for path in directory.glob("*.bin")) or ["no weights"]
        raise AlignError(
            f"{directory} has no .safetensors file but {', '.join(found)}. Pickled weights run "
            "code when opened and are refused; convert them with save_pretrained."
        )


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write what AlignModel, AlignProcessor and the zero-shot pipeline load unchanged."""
    # channels_last is an order in memory for the training machine; files are stored plainly.
    checkpoint.hf.to(memory_format=torch.contiguous_format)
    with _quiet():
        checkpoint.hf.save_pretrained(directory)
        AlignProcessor(checkpoint.image_processor, checkpoint.tokenizer).save_pretrained(directory)


@contextmanager
def _quiet() -> Iterator[None]:
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
