"""Does a picture find its caption, and a caption its picture: retrieval among held-out pairs.

Recall@k is the share of queries with a right answer among the k nearest, the median rank is where
the first right one stands; each has beside it what blind guessing would score on the same pairs.

Rules, chosen so that nothing flatters a model:

- Pictures with equal pixels (as the model sees them) are one picture with several captions, and
  any of them is a hit, as with COCO's five. Every caption is a query, as in the literature.
- Equal captions can't be told apart: each is right for every picture that has one of them.
- A tie counts as lost: a right answer stands behind every wrong one that is as near. A model that
  embeds everything alike comes out last, not first.

Left out: classification, nearest neighbours, and intervals around the figures.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coyo_align.batch import Feed, cut
from coyo_align.checkpoint import load_checkpoint
from coyo_align.data import OnLoad, load_pairs
from coyo_align.device import pick_device, torch_threads
from coyo_align.embed import embed_images, embed_texts
from coyo_align.errors import AlignError
from coyo_align.images import preprocess_of
from coyo_align.model import Align
from coyo_align.retrieval import Scores, score
from coyo_align.tokenizer import encode

OnProgress = Callable[[int, int], None]
"""Called with the pictures and captions embedded so far, and how many there are."""


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions, and what they were measured on."""

    image_to_text: Scores
    text_to_image: Scores
    n_images: int
    n_texts: int
    skipped: dict[str, int]
    missing_ids: int


def evaluate_retrieval(
    run: Path,
    shards: Path,
    ids: Path | None = None,
    batch_size: int = 256,
    threads: int | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    on_load: OnLoad | None = None,
) -> RetrievalScores:
    """Score a run, or any ALIGN directory, on the pairs of a shards directory.

    Args:
        run: directory with the checkpoint.
        shards: directory with the tars.
        ids: parquet file or directory with the ids to use, None for all.
        batch_size: pictures or captions embedded at a time; changes time and memory only.
        threads: of torch and of the decoder, None for the machine's.
        device: None for CUDA where there is one, else the CPU.
        on_progress: progress of embedding.
        on_load: progress of decoding.

    Raises:
        AlignError: the run or the shards can't be used, or fewer than two pairs are left.
    """
    place = pick_device(device)
    checkpoint = load_checkpoint(run)
    preprocess = preprocess_of(checkpoint.image_processor)
    pairs = load_pairs(shards, preprocess, ids, threads=threads, on_load=on_load)
    if len(pairs) < 2:
        raise AlignError(
            f"Only {len(pairs)} usable pair in {shards}: retrieval needs at least 2 to choose from."
        )
    tokens = encode(checkpoint.tokenizer, pairs.captions)
    feed = Feed(pairs.images, tokens, preprocess, checkpoint.tokenizer.pad_token_id, place)
    image_of, first_images = _groups(
        sha256(picture.tobytes()).digest()
        for rows in cut(np.arange(len(pairs)), batch_size)
        for picture in pairs.images.take(rows)
    )
    text_of, first_texts = _groups(pairs.captions)

    done = 0
    total = len(first_images) + len(first_texts)

    def embedded(rows: int) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total)

    with torch_threads(threads):
        model = Align(checkpoint.hf).to(place)
        images = embed_images(model, feed, first_images, batch_size, embedded)
        texts = embed_texts(model, feed, first_texts, batch_size, embedded)
    right = np.unique(np.stack([image_of, text_of], axis=1), axis=0)
    captions = np.bincount(text_of)  # equal captions are embedded once and count as often as given
    return RetrievalScores(
        image_to_text=score(images, texts, right, candidate_counts=captions),
        text_to_image=score(texts, images, right[:, ::-1], query_counts=captions),
        n_images=len(first_images),
        n_texts=len(pairs),
        skipped=pairs.skipped,
        missing_ids=pairs.missing_ids,
    )


def _groups(keys: Iterable[Hashable]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number equal keys alike: the group of each row, and the first row of each group."""
    groups: dict[Hashable, int] = {}
    group_of = []
    first = []
    for row, key in enumerate(keys):
        if key not in groups:
            groups[key] = len(groups)
            first.append(row)
        group_of.append(groups[key])
    return np.asarray(group_of, dtype=np.int64), np.asarray(first, dtype=np.int64)
