"""Pictures and texts to embeddings, of a whole data set or a few: what all uses of a model share.

In fp32, and BatchNorm as it was saved, unless asked otherwise, so the same directory gives the same
embeddings here and in plain transformers. Left out: anything that looks at the embeddings.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coyo_align.batch import Feed, cut, to_floats
from coyo_align.checkpoint import load_checkpoint
from coyo_align.config import Output, Precision
from coyo_align.device import pick_device, ran_out_of_memory, torch_threads
from coyo_align.errors import AlignError
from coyo_align.input.children import cores
from coyo_align.input.data import Pairs
from coyo_align.input.decode_worker import REASONS
from coyo_align.input.images import Pixels, preprocess_of
from coyo_align.input.pictures import InTars
from coyo_align.input.stream import stream
from coyo_align.model import Align, fold_batchnorm
from coyo_align.tokenizer import encode
from coyo_align.using.items import file_pairs, why_unusable

Embeddings = NDArray[np.float32]
Ints = NDArray[np.int64]
Side = Literal["image", "text"]
OnEmbed = Callable[[int], None]
"""Called after every batch with the rows it had."""
OnProgress = Callable[[int, int], None]
"""Called with the pictures and texts embedded so far, and how many there are."""
OnBad = Callable[[Path, str], None]
"""Called with a picture that can't be used, and why."""

_TEXTS = 8_192
"""Captions that are sorted by length together: enough that batches have hardly any padding."""
_IN_CACHE = 400_000
"""Pixels that a CPU computes at a time. Its caches, and memory that malloc gives out again instead
of new pages, make B0 at 224 pixels 1.7 times as fast as with 64 pictures at once."""
_PER_WORKER = 16
"""Pictures that are worth one more decoding process, whose start takes half a second."""


@torch.inference_mode()
def embed_texts(
    model: Align,
    feed: Feed,
    rows: Ints,
    batch_size: int,
    on_embed: OnEmbed,
    output: Output = "embeddings",
) -> Embeddings:
    """Unit vectors of the captions in these rows, or another output, (rows, width).

    Captions of like length go through together, which saves most of the padding.

    Raises:
        AlignError: an embedding is not a number.
    """
    model.eval()
    by_length = np.argsort(feed.tokens.lengths[rows], kind="stable")
    found: Embeddings | None = None
    for batch in cut(by_length, batch_size):
        part = model.embed_texts(*feed.texts(rows[batch]), output).cpu().numpy()
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
    """A model on its device, that turns texts and pictures into vectors.

    For example ``Embedder("run").texts(["a dog", "a cat"])``, (2, width).
    """

    def __init__(
        self,
        run: str | Path,
        batch_size: int = 256,
        threads: int | None = None,
        device: str | None = None,
        on_progress: OnProgress | None = None,
        *,
        output: Output = "embeddings",
        precision: Precision = "fp32",
        workers: int | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            run: a run, any ALIGN directory, or ``owner/name[@revision]`` on the hub.
            batch_size: pictures or texts at a time; changes time and memory only.
            threads: of torch, None for the machine's.
            device: None for CUDA where there is one, else the CPU.
            on_progress: called with what has been embedded and what there is to embed.
            output: ``embeddings`` are unit vectors. ``raw`` are the same before they are
                normalised, what ``get_image_features`` and ``get_text_features`` give. ``hidden``
                are the towers' own: of a picture the pooled output, which is the raw one; of a text
                the last state of [CLS], before the projection.
            precision: of the towers; bf16 is faster where the hardware has it, and changes the
                third digit.
            workers: decoding processes, None for what the pairs were loaded with.

        Raises:
            AlignError: the model or the device can't be used.
        """
        if output not in get_args(Output) or precision not in get_args(Precision):
            raise ValueError(f"output {output!r}, precision {precision!r}")
        self._place = pick_device(device)
        self._checkpoint = load_checkpoint(run)
        self.preprocess = preprocess_of(self._checkpoint.image_processor)
        self._model = Align(self._checkpoint.hf)
        self.widths = _widths(self._checkpoint.hf, output)
        """Numbers in the vector of a picture (``image``) and a text (``text``)."""
        fold_batchnorm(self._model)
        self._model.to(self._place).eval()
        self._model.hf.vision_model.to(memory_format=torch.channels_last)
        self.output = output
        self.batch_size = batch_size
        self._threads = threads
        self._workers = workers
        self._bf16 = precision == "bf16"
        self._on_progress = on_progress
        self._done = self._total = 0
        on_cpu = self._place.type == "cpu"
        side = self.preprocess.height * self.preprocess.width
        self._at_once = max(1, _IN_CACHE // side) if on_cpu else batch_size

    def expect(self, rows: int) -> None:
        """Say how many pictures and texts will come, for the progress."""
        self._total = rows

    def pictures(self, pairs: Pairs, rows: Ints) -> Seen:
        """Embed the pictures in these rows, each decoded once.

        Raises:
            AlignError: none of them decodes, or an embedding is not a number.
        """
        good, found, digests = [rows[:0]], [], []
        for batch, pixels, vectors in self._stream(pairs, cut(rows, self.batch_size)):
            digests += [sha256(picture).digest() for picture in pixels]
            found.append(vectors)
            good.append(batch)
        if not sum(map(len, good)):
            raise AlignError(f"None of the {len(rows)} pictures decodes: {pairs.skipped}.")
        picture_of, first = number_alike(digests)
        return Seen(np.concatenate(good), np.concatenate(found), digests, picture_of, first)

    def batches(self, pairs: Pairs, batches: Iterable[Ints]) -> Generator[tuple[Ints, Embeddings]]:
        """Embed the pictures of each batch of rows, decoded ahead; memory stays that of a batch.

        Args:
            pairs: what the rows are of.
            batches: rows, at most ``batch_size`` each; iterated in another thread.

        Yields:
            For every batch those of its rows whose pictures decode, and their vectors, (rows,
            width). What does not decode is counted in ``pairs.skipped``.

        Raises:
            AlignError: a vector is not a number, or should have length 1 and is zero.
        """
        with closing(self._stream(pairs, batches)) as found:
            for rows, _, vectors in found:
                yield rows, _directed(vectors) if self.output == "embeddings" else vectors

    def pixels(self, pixels: Pixels) -> Embeddings:
        """Embed pictures that are decoded already, (pictures, width).

        Args:
            pixels: (pictures, height, width, 3) bytes in the geometry of ``preprocess``.

        Raises:
            AlignError: a vector is not a number.
        """
        with torch_threads(self._threads):
            return finite(self._embed(pixels).cpu().numpy(), "picture")

    @property
    def temperature(self) -> float:
        """What plain ALIGN divides cosines by to get its logits."""
        return float(self._checkpoint.hf.temperature)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, (texts, width)."""
        if isinstance(texts, str):
            raise TypeError("texts are a list of texts, not one text")
        feed = self._feed(texts)
        with torch_threads(self._threads), self._autocast():
            return embed_texts(
                self._model, feed, np.arange(len(texts)), self.batch_size, self._embedded,
                self.output,
            )  # fmt: skip

    def text_batches(self, texts: Sequence[str]) -> Iterator[Embeddings]:
        """Embed texts some thousand at a time, in order; the rest takes no memory meanwhile."""
        for start in range(0, len(texts), _TEXTS):
            yield self.texts(texts[start : start + _TEXTS])

    def images(
        self, paths: Sequence[Path], on_bad: OnBad | None = None
    ) -> tuple[list[Path], Embeddings]:
        """Embed loose picture files, those that can be used: their paths, and (paths, width).

        Args:
            paths: JPEG, PNG or WEBP.
            on_bad: called with each of the others, and why it can't be used.

        Raises:
            AlignError: none can be used; says why of the first. Or a vector is not a number.
        """
        paths = [Path(path) for path in paths]
        bad = {path: why for path in paths if (why := why_unusable(path))}
        usable = [path for path in paths if path not in bad]
        good: list[Ints] = [np.empty(0, np.int64)]
        found: list[Embeddings] = []
        if usable:
            workers = min(self._workers or cores(), -(-len(usable) // _PER_WORKER))
            pairs = file_pairs(usable, self.preprocess, workers)
            usable = [Path(key) for key in pairs.fields["key"]]
            for rows, vectors in self.batches(pairs, cut(np.arange(len(pairs)), self.batch_size)):
                good.append(rows)
                found.append(vectors)
            bad |= {usable[row]: why for row, why in why_bad(pairs, range(len(pairs))).items()}
        kept = np.concatenate(good)
        if not len(kept):
            first = f" {paths[0]}: {bad.get(paths[0])}." if paths else ""
            raise AlignError(f"None of {len(paths):,} pictures can be used.{first}")
        if on_bad is not None:
            for path, why in bad.items():
                on_bad(path, why)
        return [usable[row] for row in kept], np.concatenate(found)

    def _stream(
        self, pairs: Pairs, batches: Iterable[Ints]
    ) -> Generator[tuple[Ints, Pixels, Embeddings]]:
        """Rows, pixels and vectors of each batch; a GPU is given the next one before it is asked.

        The pixels hold until the next is asked for.
        """
        asked = ((batch, None) for batch in batches)
        waiting: tuple[Ints, Pixels, Tensor] | None = None
        with (
            torch_threads(self._threads),
            closing(stream(pairs, asked, self._workers, longest=self.batch_size)) as pictures,
        ):
            for rows, pixels in pictures:
                vectors = self._embed(pixels)
                if waiting is not None:
                    yield self._finished(*waiting)
                waiting = np.array(rows), pixels, vectors
            if waiting is not None:
                yield self._finished(*waiting)

    @torch.inference_mode()
    def _embed(self, pixels: Pixels) -> Tensor:
        if not len(pixels):
            return torch.empty(0, self.widths["image"])
        try:
            with self._autocast():
                slices = cut(np.arange(len(pixels)), self._at_once)
                return torch.cat([self._slice(pixels[part[0] : part[-1] + 1]) for part in slices])
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise AlignError(
                f"Memory ran out with {len(pixels)} pictures at a time. Give a smaller batch size."
            ) from error

    def _slice(self, pixels: Pixels) -> Tensor:
        there = torch.from_numpy(pixels).to(self._place)
        floats = to_floats(there, self.preprocess, self._place)
        return self._model.embed_images(floats, self.output)

    def _finished(
        self, rows: Ints, pixels: Pixels, vectors: Tensor
    ) -> tuple[Ints, Pixels, Embeddings]:
        found = finite(vectors.cpu().numpy(), "picture")
        self._embedded(len(rows))
        return rows, pixels, found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._place.type, torch.bfloat16, enabled=self._bf16)

    def _feed(self, texts: Sequence[str]) -> Feed:
        tokens = encode(self._checkpoint.tokenizer, texts)
        pad_id = self._checkpoint.tokenizer.pad_token_id
        return Feed(tokens, self.preprocess, pad_id, self._place)

    def _embedded(self, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _widths(hf: Any, output: Output) -> dict[Side, int]:
    """How many numbers the vectors of either tower have.

    Raises:
        AlignError: those of pictures and texts are to be compared, and have not as many.
    """
    image = int(hf.vision_model.encoder.blocks[-1].projection.project_conv.out_channels)
    text = int(hf.text_projection.out_features)
    if output == "hidden":
        return {"image": image, "text": int(hf.config.text_config.hidden_size)}
    if image != text:
        raise AlignError(
            f"The model's picture embeddings have {image} numbers and its text embeddings {text}: "
            f"its projection_dim has to be {image}, as wide as the image tower ends."
        )
    return {"image": image, "text": text}


def _directed(vectors: Embeddings) -> Embeddings:
    zeros = int((~vectors.any(axis=1)).sum())
    if zeros:
        raise AlignError(
            f"{zeros} of {len(vectors)} picture embeddings are zero and have no direction: the "
            "model is untrained, or its BatchNorm statistics were never estimated."
        )
    return vectors


def why_bad(pairs: Pairs, rows: Iterable[int]) -> dict[int, str]:
    """Those of the rows whose pictures were found not to decode, and why."""
    bad = pairs.images.bad if isinstance(pairs.images, InTars) else {}
    return {row: REASONS[bad[row]] for row in rows if row in bad}


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
