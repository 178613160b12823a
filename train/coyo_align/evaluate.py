"""What a checkpoint can do: find captions and pictures, name classes, know its neighbours.

Every figure has beside it what blind guessing would score on the same data, and the interval it
would have with other pictures (``bootstrap``). Rules, chosen so that nothing flatters a model:

- Pictures with equal pixels (as the model sees them) are one picture with several captions, and
  any of them is a hit, as with COCO's five. Every caption is a query, as in the literature.
- Equal captions can't be told apart: each is right for every picture that has one of them.
- A tie counts as lost: a right answer stands behind every wrong one that is as near. A model that
  embeds everything alike comes out last, not first.
- What can't be used is counted with its reason.

Left out: the arithmetic, which ``retrieval``, ``nearest`` and ``bootstrap`` do on arrays alone, and
comparing two models.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coyo_align.bootstrap import Interval, class_mean, interval, share_interval
from coyo_align.captions import FIELDS, find_pictures, read_captions
from coyo_align.data import OnLoad, Pairs, load_pairs
from coyo_align.embed import Embedder
from coyo_align.errors import AlignError
from coyo_align.labels import CLS, label_text, read_labels, resolve_labels
from coyo_align.nearest import K, chance_of_vote, neighbours, vote
from coyo_align.retrieval import Ints, Scores, first_right_ranks, score
from coyo_align.templates import DEFAULT_TEMPLATE, fill

_BLOCK = 1024


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions, and what they were measured on.

    ``found_by`` says how the pictures of a captions file were found in the shards, and
    ``lost_captions`` why captions of it were not used.
    """

    image_to_text: Scores
    text_to_image: Scores
    n_images: int
    n_texts: int
    skipped: dict[str, int]
    missing_ids: int
    found_by: str | None = None
    lost_captions: dict[str, int] | None = None


@dataclass(frozen=True)
class Figure:
    """A share between 0 and 1, its 95 % interval, and what chance scores."""

    value: float
    ci: Interval
    chance: float


@dataclass(frozen=True)
class Gallery:
    """The labelled pictures that neighbours were looked for in.

    ``shared`` counts the pictures asked about that are in it too, pixel for pixel: each finds
    itself. ``missing_classes`` are those of the pictures asked about that it has no picture of.
    """

    n_images: int
    shared: int
    missing_classes: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class ClassScores:
    """Shares of pictures put into their class, and what they were measured on."""

    figures: dict[str, Figure]
    n_images: int
    classes: int
    classes_without_images: int
    skipped: dict[str, int]
    missing_ids: int
    gallery: Gallery | None = None


def evaluate_retrieval(
    embedder: Embedder,
    shards: Path,
    ids: Path | None = None,
    *,
    captions: Path | None = None,
    split: str | None = None,
    threads: int | None = None,
    on_load: OnLoad | None = None,
) -> RetrievalScores:
    """Score a checkpoint on the pairs of a shards directory.

    Args:
        embedder: the checkpoint.
        shards: directory with the tars.
        ids: parquet file or directory with the ids to use, None for all.
        captions: a file that has them, see ``captions``; None for those in the shards.
        split: of that file.
        threads: of the decoder, None for the machine's.
        on_load: progress of decoding.

    Raises:
        AlignError: files can't be used or don't fit, or there are fewer than two pictures.
    """
    file = None if captions is None else read_captions(captions, split)
    pairs = load_pairs(
        shards,
        embedder.preprocess,
        ids,
        threads=threads,
        fields=() if file is None else FIELDS,
        need_caption=file is None,
        on_load=on_load,
    )
    picture_of, rows = equal_pictures(pairs)
    if file is None:
        texts, found_by, lost = pairs.captions, None, None
        skipped = pairs.skipped
    else:
        found = find_pictures(file, pairs.fields, pairs.ids, picture_of)
        texts, found_by, lost = found.captions, found.by, found.lost
        without = int((~np.isin(picture_of, found.pictures)).sum())
        skipped = pairs.skipped | ({"no caption in the file": without} if without else {})
        used, picture_of = np.unique(found.pictures, return_inverse=True)
        rows = rows[used]
    if len(rows) < 2:
        raise AlignError(
            f"{shards} has only {len(rows)} usable picture with captions, copies not counted: "
            "retrieval needs at least 2 to choose from."
        )
    text_of, first_texts = _groups(texts)
    embedder.expect(len(rows) + len(first_texts))
    images = embedder.pictures(pairs, rows)
    sentences = embedder.texts(pairs, [texts[row] for row in first_texts])
    right = np.unique(np.stack([picture_of, text_of], axis=1), axis=0)
    captions_of = np.bincount(text_of)  # equal captions are embedded once, and asked each time
    return RetrievalScores(
        image_to_text=score(images, sentences, right, candidate_counts=captions_of),
        text_to_image=score(sentences, images, right[:, ::-1], text_of, picture_of),
        n_images=len(rows),
        n_texts=len(texts),
        skipped=skipped,
        missing_ids=pairs.missing_ids,
        found_by=found_by,
        lost_captions=lost,
    )


def evaluate_classification(
    embedder: Embedder,
    shards: Path,
    labels: str,
    ids: Path | None = None,
    *,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    label_field: str = CLS,
    threads: int | None = None,
    on_load: OnLoad | None = None,
) -> ClassScores:
    """Score zero-shot classification: which class's texts is a picture nearest to.

    Args:
        embedder: the checkpoint.
        shards: directory with the tars.
        labels: a file of class names or a list of them, see ``read_labels``.
        ids: parquet file or directory with the ids to use, None for all.
        templates: texts with ``{}`` where the class name goes.
        label_field: field of the samples' json that has the label; ``cls`` is the .cls file.
        threads: of the decoder, None for the machine's.
        on_load: progress of decoding.

    Raises:
        AlignError: files can't be used or don't fit, or no sample has a label.
    """
    names = read_labels(labels)
    prompts = [text for name in names for text in fill(templates, name)]
    pairs = _labelled(embedder, shards, ids, label_field, threads, on_load)
    rows, classes, skipped = _use_labels(pairs, names, label_field, shards)
    embedder.expect(len(rows) + len(prompts))
    texts = embedder.texts(pairs, prompts).reshape(len(names), len(templates), -1).mean(axis=1)
    texts /= np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-6)
    images = embedder.pictures(pairs, rows)
    right = np.stack([np.arange(len(rows)), classes], axis=1)
    ranks = first_right_ranks(images, texts, right, np.ones(len(names), np.int64))
    clusters = equal_pictures(pairs)[0][rows]
    figures = {}
    for k in (1, 5):
        chance = min(1.0, k / len(names))
        hits = ranks <= k
        figures[f"top-{k}"] = Figure(float(hits.mean()), share_interval(hits, clusters), chance)
    figures["mean per class"] = _over_classes(ranks <= 1, classes, clusters, 1 / len(names))
    return ClassScores(
        figures=figures,
        n_images=len(rows),
        classes=len(names),
        classes_without_images=len(names) - len(np.unique(classes)),
        skipped=skipped,
        missing_ids=pairs.missing_ids,
    )


def evaluate_knn(
    embedder: Embedder,
    shards: Path,
    gallery: Path,
    ids: Path | None = None,
    *,
    labels: str | None = None,
    label_field: str = CLS,
    threads: int | None = None,
    on_load: OnLoad | None = None,
) -> ClassScores:
    """Score the image tower alone: is a picture's nearest labelled neighbour of its class.

    Args:
        embedder: the checkpoint.
        shards: directory with the tars.
        gallery: directory with the tars of the labelled neighbours.
        ids: parquet file or directory with the ids of ``shards`` to use, None for all.
        labels: the classes, see ``read_labels``; None for those of the gallery.
        label_field: field of the samples' json that has the label; ``cls`` is the .cls file.
        threads: of the decoder, None for the machine's.
        on_load: progress of decoding.

    Raises:
        AlignError: files can't be used or don't fit, or no sample has a label.
    """
    names = None if labels is None else read_labels(labels)
    known = _labelled(embedder, gallery, None, label_field, threads, on_load)
    if names is None:
        names = sorted({text for value in known.fields[label_field] if (text := label_text(value))})
    there, voters, gallery_skipped = _use_labels(known, names, label_field, gallery)
    pairs = _labelled(embedder, shards, ids, label_field, threads, on_load)
    rows, classes, skipped = _use_labels(pairs, names, label_field, shards)
    embedder.expect(len(there) + len(rows))
    candidates, queries = embedder.pictures(known, there), embedder.pictures(pairs, rows)
    clusters = equal_pictures(pairs)[0][rows]
    found, cosines = neighbours(queries, classes, candidates, voters)
    shares = np.bincount(voters, minlength=len(names)) / len(voters)
    nearest = voters[found[:, 0]] == classes
    votes = vote(classes, voters[found], cosines)
    chance, chance_per_class = chance_of_vote(classes, voters, found, cosines)
    asked = np.unique(classes)
    seen = set(_digests(known, there))
    return ClassScores(
        figures={
            "1-NN": Figure(
                float(nearest.mean()),
                share_interval(nearest, clusters),
                float(shares[classes].mean()),
            ),
            "1-NN mean per class": _over_classes(
                nearest, classes, clusters, float(shares[asked].mean())
            ),
            f"{K}-NN": Figure(float(votes.mean()), share_interval(votes, clusters), chance),
            f"{K}-NN mean per class": _over_classes(votes, classes, clusters, chance_per_class),
        },
        n_images=len(rows),
        classes=len(names),
        classes_without_images=len(names) - len(asked),
        skipped=skipped,
        missing_ids=pairs.missing_ids,
        gallery=Gallery(
            n_images=len(there),
            shared=sum(digest in seen for digest in _digests(pairs, rows)),
            missing_classes=int((shares[asked] == 0).sum()),
            skipped=gallery_skipped,
        ),
    )


def equal_pictures(pairs: Pairs) -> tuple[Ints, Ints]:
    """Number pictures with equal pixels alike: of each row, and the first row of each picture."""
    return _groups(_digests(pairs, np.arange(len(pairs))))


def _digests(pairs: Pairs, rows: Ints) -> Iterable[bytes]:
    for start in range(0, len(rows), _BLOCK):
        for pixels in np.take(pairs.images, rows[start : start + _BLOCK], axis=0):
            yield sha256(pixels).digest()


def _groups(keys: Iterable[Hashable]) -> tuple[Ints, Ints]:
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


def _labelled(
    embedder: Embedder,
    shards: Path,
    ids: Path | None,
    label_field: str,
    threads: int | None,
    on_load: OnLoad | None,
) -> Pairs:
    return load_pairs(
        shards,
        embedder.preprocess,
        ids,
        threads=threads,
        fields=(label_field,),
        need_caption=False,
        on_load=on_load,
    )


def _use_labels(
    pairs: Pairs, names: Sequence[str], label_field: str, shards: Path
) -> tuple[Ints, Ints, dict[str, int]]:
    """The rows with a class, their classes, and all that was skipped."""
    values = pairs.fields[label_field]
    classes, lost = resolve_labels(values, names)
    rows = np.flatnonzero(classes >= 0)
    if not len(rows):
        shown = ", ".join([*map(repr, names[:3]), *(["..."] if len(names) > 3 else [])])
        where = "a .cls file" if label_field == CLS else f"{label_field!r} in its json"
        seen = next((text for value in values if (text := label_text(value))), None)
        raise AlignError(
            f"No sample in {shards} has one of the {len(names):,} classes ({shown}) as its label: "
            + (f"none has {where}." if seen is None else f"the first has {seen!r} as {where}.")
        )
    return rows, classes[rows], dict(Counter(pairs.skipped) + Counter(lost))


def _over_classes(hits: NDArray[np.bool_], classes: Ints, clusters: Ints, chance: float) -> Figure:
    mean = class_mean(hits, classes)
    value = float(mean(np.ones((1, len(hits))))[0])
    if hits.all() or not hits.any():
        return Figure(value, share_interval(hits, clusters), chance)
    return Figure(value, interval(mean, clusters), chance)
