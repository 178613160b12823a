"""A whole data set to embeddings: what evaluation compares, and what scoring a pool will read.

fp32 throughout and BatchNorm as it was saved, so the same directory gives the same embeddings
here and in plain transformers. Left out: anything that looks at the embeddings.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coyo_align.batch import Feed, cut
from coyo_align.checkpoint import load_checkpoint
from coyo_align.device import pick_device, torch_threads
from coyo_align.errors import AlignError
from coyo_align.input.data import Pairs
from coyo_align.input.images import Pixels, preprocess_of
from coyo_align.input.stream import stream
from coyo_align.model import Align
from coyo_align.tokenizer import encode

Embeddings = NDArray[np.float32]
Ints = NDArray[np.int64]
OnEmbed = Callable[[int], None]
"""Called after every batch with the rows it had."""
OnProgress = Callable[[int, int], None]
"""Called with the pictures and texts embedded so far, and how many there are."""


@torch.inference_mode()
def embed_texts(
    model: Align, feed: Feed, rows: Ints, batch_size: int, on_embed: OnEmbed
) -> Embeddings:
    """Unit vectors of the captions in these rows, (rows, width).

    Captions of like length go through together, which saves most of the padding.

    Raises:
        AlignError: an embedding is not a number.
    """
    model.eval()
    by_length = np.argsort(feed.tokens.lengths[rows], kind="stable")
    found: Embeddings | None = None
    for batch in cut(by_length, batch_size):
        part = model.embed_texts(*feed.texts(rows[batch])).cpu().numpy()
        if found is None:
            found = np.empty((len(rows), part.shape[1]), dtype=np.float32)
        found[batch] = part
        on_embed(len(batch))
    if found is None:
        raise ValueError("no rows to embed")
    return finite(found, "caption")


def finite(embeddings: Embeddings, of: str) -> Embeddings:
    """Return the embeddings of pictures or captions, if all are numbers; else ``AlignError``."""
    bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
    if bad:
        raise AlignError(
            f"{bad} of {len(embeddings)} {of} embeddings are not finite: the weights are damaged, "
            "or training diverged. Train again with a lower learning rate."
        )
    return embeddings


@dataclass(frozen=True)
class Seen:
    """Pictures that were embedded; those with equal pixels, as the model sees them, are one.

    Attributes:
        rows: of the pairs, those of the rows asked for whose pictures decode.
        embeddings: (rows, width) unit vectors.
        digests: of the pixels.
        picture_of: (rows,) the number of the picture.
        first: (pictures,) the first place among ``rows`` that has it.
    """

    rows: Ints
    embeddings: Embeddings
    digests: list[bytes]
    picture_of: Ints
    first: Ints


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
        self._model = Align(self._checkpoint.hf).to(self._place).eval()
        self._batch_size = batch_size
        self._threads = threads
        self._on_progress = on_progress
        self._done = self._total = 0

    def expect(self, rows: int) -> None:
        """Say how many pictures and texts will come, for the progress."""
        self._total = rows

    def pictures(self, pairs: Pairs, rows: Ints) -> Seen:
        """Embed the pictures in these rows, each decoded once.

        Raises:
            AlignError: none of them decodes, or an embedding is not a number.
        """
        good, found, digests = [rows[:0]], [], []
        batches = ((batch, None) for batch in cut(rows, self._batch_size))
        with (
            torch_threads(self._threads),
            torch.inference_mode(),
            closing(stream(pairs, batches)) as pictures,
        ):
            for batch, pixels in pictures:
                if not len(batch):
                    continue
                digests += [sha256(picture).digest() for picture in pixels]
                found.append(self._embed(pixels))
                good.append(np.array(batch))
                self._embedded(len(batch))
        if not found:
            raise AlignError(f"None of the {len(rows)} pictures decodes: {pairs.skipped}.")
        picture_of, first = number_alike(digests)
        embeddings = finite(np.concatenate(found), "picture")
        return Seen(np.concatenate(good), embeddings, digests, picture_of, first)

    def pixels(self, pixels: Pixels) -> Embeddings:
        """Embed pictures that are decoded already, (pictures, width).

        Args:
            pixels: (pictures, height, width, 3) bytes in the geometry of ``preprocess``.

        Raises:
            AlignError: an embedding is not a number.
        """
        with torch_threads(self._threads), torch.inference_mode():
            return finite(self._embed(pixels), "picture")

    @property
    def temperature(self) -> float:
        """What plain ALIGN divides cosines by to get its logits."""
        return float(self._checkpoint.hf.temperature)

    def _embed(self, pixels: Pixels) -> Embeddings:
        floats = self._feed([]).to_floats(torch.from_numpy(pixels).to(self._place))
        embeddings: Embeddings = self._model.embed_images(floats).cpu().numpy()
        return embeddings

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, (texts, width)."""
        feed = self._feed(texts)
        with torch_threads(self._threads):
            return embed_texts(
                self._model, feed, np.arange(len(texts)), self._batch_size, self._embedded
            )

    def _feed(self, texts: Sequence[str]) -> Feed:
        tokens = encode(self._checkpoint.tokenizer, texts)
        pad_id = self._checkpoint.tokenizer.pad_token_id
        return Feed(tokens, self.preprocess, pad_id, self._place)

    def _embedded(self, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def number_alike(keys: Iterable[Hashable]) -> tuple[Ints, Ints]:
    """Number equal keys alike: the group of each place, and the first place of each group."""
    groups: dict[Hashable, int] = {}
    group_of = []
    first = []
    for place, key in enumerate(keys):
        if key not in groups:
            groups[key] = len(groups)
            first.append(place)
        group_of.append(groups[key])
    return np.asarray(group_of, dtype=np.int64), np.asarray(first, dtype=np.int64)
