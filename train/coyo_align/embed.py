"""A whole data set to embeddings: what evaluation compares, and what scoring a pool will read.

fp32 throughout and BatchNorm as it was saved, so the same directory gives the same embeddings
here and in plain transformers. Left out: anything that looks at the embeddings.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from coyo_align.batch import Feed, cut
from coyo_align.errors import AlignError
from coyo_align.model import Align

Embeddings = NDArray[np.float32]
OnEmbed = Callable[[int], None]
"""Called after every batch with the rows embedded so far."""


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
