"""CLIP's two towers to unit vectors, for the scores that COYO's own columns hold.

COYO's ``clip_similarity_vitb32`` and ``clip_similarity_vitl14`` are cosines of OpenAI's CLIP. The
interface is that of ``Embedder`` as far as scoring needs it; fp32 throughout. Left out: training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from coyo_align.batch import Feed, cut, to_floats
from coyo_align.checkpoint import load_clip
from coyo_align.device import pick_device, torch_threads
from coyo_align.embed import Embeddings, finite
from coyo_align.input.images import Pixels, preprocess_of
from coyo_align.model import unit
from coyo_align.tokenizer import encode


class ClipEmbedder:
    """A CLIP checkpoint on its device, that turns texts and pictures into unit vectors."""

    def __init__(self, model: Path, threads: int | None = None, device: str | None = None) -> None:
        """Load a checkpoint.

        Args:
            model: any CLIP directory.
            threads: of torch, None for the machine's.
            device: None for CUDA where there is one, else the CPU.

        Raises:
            AlignError: the checkpoint or the device can't be used.
        """
        self._place = pick_device(device)
        self._clip = load_clip(model)
        self.preprocess = preprocess_of(self._clip.image_processor)
        self._model = self._clip.hf.to(self._place).eval()
        self._threads = threads

    @torch.inference_mode()
    def pixels(self, pixels: Pixels) -> Embeddings:
        """Embed decoded pictures, (pictures, width).

        Args:
            pixels: (pictures, height, width, 3) bytes in the geometry of ``preprocess``.

        Raises:
            AlignError: an embedding is not a number.
        """
        with torch_threads(self._threads):
            there = torch.from_numpy(pixels).to(self._place)
            floats = to_floats(there, self.preprocess, self._place)
            found = unit(self._model.get_image_features(floats).pooler_output)
        return finite(found.cpu().numpy(), "picture")

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 256) -> Embeddings:
        """Embed texts, (texts, width), cut at CLIP's length; those of like length together.

        Raises:
            AlignError: an embedding is not a number.
        """
        feed = self._feed(texts)
        width = self._model.config.projection_dim
        found = np.empty((len(texts), width), dtype=np.float32)
        with torch_threads(self._threads):
            for rows in cut(np.argsort(feed.tokens.lengths, kind="stable"), batch_size):
                ids, mask = feed.texts(rows)
                features = self._model.get_text_features(ids, attention_mask=mask.long())
                found[rows] = unit(features.pooler_output).cpu().numpy()
        return finite(found, "caption")

    def _feed(self, texts: Sequence[str]) -> Feed:
        tokenizer = self._clip.tokenizer
        # What stands behind a text is never looked at: attention goes backwards only.
        pad_id = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        return Feed(encode(tokenizer, texts), self.preprocess, pad_id, self._place)
