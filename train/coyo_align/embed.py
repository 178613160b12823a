"""A whole data set to embeddings: what evaluation compares, and what scoring a pool will read.

fp32 throughout and BatchNorm as it was saved, so the same directory gives the same embeddings
here and in plain transformers. Left out: anything that looks at the embeddings.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coyo_align.batch import Feed, cut
from coyo_align.checkpoint import load_checkpoint
from coyo_align.data import Pairs
from coyo_align.device import pick_device, torch_threads
from coyo_align.errors import AlignError
from coyo_align.images import preprocess_of
from coyo_align.model import Align
from coyo_align.tokenizer import Tokens, encode

Embeddings = NDArray[np.float32]
OnEmbed = Callable[[int], None]
"""Called after every batch with the rows it had."""
OnProgress = Callable[[int, int], None]
"""Called with the pictures and texts embedded so far, and how many there are."""


@torch.inference_mode()
def embed_images(
    model: Align, feed: Feed, rows: NDArray[np.int64], batch_size: int, on_embed: OnEmbed
) -> Embeddings:
    """Unit vectors of the pictures in these rows, (rows, width).

    Raises:
        AlignError: an embedding is not a number.
    """
    model.eval()
    found = []
    for batch in cut(rows, batch_size):
        found.append(model.embed_images(feed.pixels(batch)).cpu().numpy())
        on_embed(len(batch))
    return _finite(np.concatenate(found), "picture")


@torch.inference_mode()
def embed_texts(
    model: Align, feed: Feed, rows: NDArray[np.int64], batch_size: int, on_embed: OnEmbed
) -> Embeddings:
    """Unit vectors of the captions in these rows, (rows, width).

    Captions of like length go through together, which saves most of the padding.

    Raises:
        AlignError: an embedding is not a number.
    """
    model.eval()
    lengths = np.asarray([len(feed.tokens[row]) for row in rows])
    by_length = np.argsort(lengths, kind="stable")
    found: Embeddings | None = None
    for batch in cut(by_length, batch_size):
        part = model.embed_texts(*feed.texts(rows[batch])).cpu().numpy()
        if found is None:
            found = np.empty((len(rows), part.shape[1]), dtype=np.float32)
        found[batch] = part
        on_embed(len(batch))
    if found is None:
        raise ValueError("no rows to embed")
    return _finite(found, "caption")


def _finite(embeddings: Embeddings, of: str) -> Embeddings:
    bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
    if bad:
        raise AlignError(
            f"{bad} of {len(embeddings)} {of} embeddings are not finite: the weights are damaged, "
            "or training diverged. Train again with a lower learning rate."
        )
    return embeddings


class Embedder:
    """A checkpoint on its device, that turns texts and the pictures of shards into unit vectors."""

    def __init__(
        self,
        run: Path,
        batch_size: int = 256,
        threads: int | None = None,
        device: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            run: a run, or any ALIGN directory.
            batch_size: pictures or texts at a time; changes time and memory only.
            threads: of torch, None for the machine's.
            device: None for CUDA where there is one, else the CPU.
            on_progress: called with what has been embedded and what there is to embed.

        Raises:
            AlignError: the run or the device can't be used.
        """
        self._place = pick_device(device)
        self._checkpoint = load_checkpoint(run)
        self.preprocess = preprocess_of(self._checkpoint.image_processor)
        self._model = Align(self._checkpoint.hf).to(self._place)
        self._batch_size = batch_size
        self._threads = threads
        self._on_progress = on_progress
        self._done = self._total = 0

    def expect(self, rows: int) -> None:
        """Say how many pictures and texts will come, for the progress."""
        self._total = rows

    def pictures(self, pairs: Pairs, rows: NDArray[np.int64]) -> Embeddings:
        """Embed the pictures in these rows, (rows, width)."""
        with torch_threads(self._threads):
            return embed_images(
                self._model, self._feed(pairs, []), rows, self._batch_size, self._embedded
            )

    def texts(self, pairs: Pairs, texts: Sequence[str]) -> Embeddings:
        """Embed texts, (texts, width); the pairs lend their shape only."""
        feed = self._feed(pairs, encode(self._checkpoint.tokenizer, texts))
        with torch_threads(self._threads):
            return embed_texts(
                self._model, feed, np.arange(len(texts)), self._batch_size, self._embedded
            )

    def _feed(self, pairs: Pairs, tokens: list[Tokens]) -> Feed:
        pad_id = self._checkpoint.tokenizer.pad_token_id
        return Feed(pairs.images, tokens, self.preprocess, pad_id, self._place)

    def _embedded(self, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)
