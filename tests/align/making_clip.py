"""A CLIP of 32 pixels with a tokenizer of single bytes, as `save_pretrained` writes one."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Save a CLIP with random weights, its processor and its tokenizer."""
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    vocab = {entry: number for number, entry in enumerate(entries)}
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        text_config={
            **shape, "vocab_size": len(vocab), "max_position_embeddings": 24,
            "bos_token_id": vocab[START], "eos_token_id": vocab[END], "pad_token_id": vocab[END],
        },
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(processor, CLIPTokenizer(vocab=vocab, merges=[])).save_pretrained(folder)
    return folder
