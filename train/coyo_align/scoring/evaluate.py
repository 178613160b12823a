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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coyo_align.embed import Embedder, Seen, number_alike
from coyo_align.errors import AlignError
from coyo_align.input.data import OnLoad, Pairs, load_pairs
from coyo_align.scoring.bootstrap import Interval, class_mean, interval, share_interval
from coyo_align.scoring.captions import FIELDS, CaptionsFile, Found, find_pictures, read_captions
from coyo_align.scoring.labels import CLS, label_text, read_labels, resolve_labels
from coyo_align.scoring.nearest import K, chance_of_vote, neighbours, vote
from coyo_align.scoring.retrieval import Ints, Scores, first_right_ranks, score
from coyo_align.scoring.templates import DEFAULT_TEMPLATE, class_vectors, fill

OnOutcomes = Callable[[str, Ints, Ints], None]
"""Called for each way that queries are asked with its name, the rank of each query's first right
answer (of a vote 1 if it is right, else 2), and the number of the picture it is about. Two models
that are asked the same can be compared query by query."""


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
    on_outcomes: OnOutcomes | None = None,
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
        on_outcomes: told what became of every query.

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
    if file is None:
        found_by, lost = None, None
        rows = np.arange(len(pairs))
        embedder.expect(len(rows) + len(set(pairs.captions)))
        seen = embedder.pictures(pairs, rows)
        texts = [pairs.captions[row] for row in seen.rows]
        picture_of = seen.picture_of
        skipped = pairs.skipped
    else:
        found = find_pictures(file, pairs.fields, pairs.ids)
        rows = np.unique(np.concatenate(list(found.rows.values())))
        embedder.expect(len(rows) + len({text for some in file.captions.values() for text in some}))
        seen = embedder.pictures(pairs, rows)
        picture_of, texts, lost = _join(file, found, seen)
        found_by = found.by
        without = len(pairs) - len(rows)
        skipped = pairs.skipped | ({"no caption in the file": without} if without else {})
    used, picture_of = np.unique(picture_of, return_inverse=True)
    if len(used) < 2:
        raise AlignError(
            f"{shards} has only {len(used)} usable picture with captions, copies not counted: "
            "retrieval needs at least 2 to choose from."
        )
    images = seen.embeddings[seen.first[used]]
    text_of, first_texts = number_alike(texts)
    sentences = embedder.texts([texts[row] for row in first_texts])
    right = np.unique(np.stack([picture_of, text_of], axis=1), axis=0)
    captions_of = np.bincount(text_of)  # equal captions are embedded once, and asked each time
    tell = on_outcomes or _silent
    return RetrievalScores(
        image_to_text=score(
            images,
            sentences,
            right,
            candidate_counts=captions_of,
            on_ranks=partial(tell, "image_to_text"),
        ),
        text_to_image=score(
            sentences,
            images,
            right[:, ::-1],
            text_of,
            picture_of,
            on_ranks=partial(tell, "text_to_image"),
        ),
        n_images=len(used),
        n_texts=len(texts),
        skipped=skipped,
        missing_ids=pairs.missing_ids,
        found_by=found_by,
        lost_captions=lost,
    )


def _silent(_name: str, _ranks: Ints, _pictures: Ints) -> None:
    pass


def _join(file: CaptionsFile, found: Found, seen: Seen) -> tuple[Ints, list[str], dict[str, int]]:
    """The picture of each caption, the captions, and why others have none."""
    number = dict(zip(seen.rows.tolist(), seen.picture_of.tolist(), strict=True))
    lost = Counter(file.skipped)
    picture_of: list[int] = []
    texts: list[str] = []
    for picture, captions in file.captions.items():
        rows = found.rows.get(picture, ())
        pictures = {number[row] for row in rows if row in number}
        if len(pictures) == 1:
            picture_of += [*pictures] * len(captions)
            texts += captions
        elif pictures:
            lost["several pictures have that name"] += len(captions)
        else:
            why = "picture does not decode" if rows else "picture not in the shards"
            lost[why] += len(captions)
    return np.asarray(picture_of, dtype=np.int64), texts, dict(lost)


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
    on_outcomes: OnOutcomes | None = None,
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
        on_outcomes: told what became of every query.

    Raises:
        AlignError: files can't be used or don't fit, or no sample has a label.
    """
    names = read_labels(labels)
    prompts = [text for name in names for text in fill(templates, name)]
    pairs = _labelled(embedder, shards, ids, label_field, threads, on_load)
    asked = _use_labels(pairs, names, label_field, shards)
    embedder.expect(len(asked.rows) + len(prompts))
    texts = class_vectors(embedder.texts(prompts), len(templates))
    images, classes = _see(embedder, pairs, asked)
    clusters = images.picture_of
    right = np.stack([np.arange(len(classes)), classes], axis=1)
    ranks = first_right_ranks(images.embeddings, texts, right, np.ones(len(names), np.int64))
    (on_outcomes or _silent)("class", ranks, clusters)
    return ClassScores(
        figures=class_figures(ranks, classes, clusters, len(names)),
        n_images=len(classes),
        classes=len(names),
        classes_without_images=len(names) - len(np.unique(classes)),
        skipped=_skipped(pairs, asked),
        missing_ids=pairs.missing_ids,
    )


def class_figures(ranks: Ints, classes: Ints, clusters: Ints, count: int) -> dict[str, Figure]:
    """Top-1, top-5, and top-1 as the mean over the classes there are.

    Args:
        ranks: (pictures,) of the right class among all.
        classes: (pictures,) the right ones.
        clusters: (pictures,) alike for equal ones.
        count: how many classes there are, which is what blind guessing chooses from.
    """
    figures = {}
    for k in (1, 5):
        hits = ranks <= k
        figures[f"top-{k}"] = Figure(
            float(hits.mean()), share_interval(hits, clusters), min(1.0, k / count)
        )
    figures["mean per class"] = _over_classes(ranks <= 1, classes, clusters, 1 / count)
    return figures


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
    on_outcomes: OnOutcomes | None = None,
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
        on_outcomes: told what became of every query.

    Raises:
        AlignError: files can't be used or don't fit, or no sample has a label.
    """
    names = None if labels is None else read_labels(labels)
    known = _labelled(embedder, gallery, None, label_field, threads, on_load)
    if names is None:
        names = sorted({text for value in known.fields[label_field] if (text := label_text(value))})
    there = _use_labels(known, names, label_field, gallery)
    pairs = _labelled(embedder, shards, ids, label_field, threads, on_load)
    asked = _use_labels(pairs, names, label_field, shards)
    embedder.expect(len(there.rows) + len(asked.rows))
    candidates, voters = _see(embedder, known, there)
    images, classes = _see(embedder, pairs, asked)
    clusters = images.picture_of
    found, cosines = neighbours(images.embeddings, classes, candidates.embeddings, voters)
    shares = np.bincount(voters, minlength=len(names)) / len(voters)
    nearest = voters[found[:, 0]] == classes
    votes = vote(classes, voters[found], cosines)
    for name, hits in (("1-NN", nearest), (f"{K}-NN", votes)):
        (on_outcomes or _silent)(name, np.where(hits, 1, 2), clusters)
    chance, chance_per_class = chance_of_vote(classes, voters, found, cosines)
    present = np.unique(classes)
    in_gallery = set(candidates.digests)
    return ClassScores(
        figures={
            "1-NN": Figure(
                float(nearest.mean()),
                share_interval(nearest, clusters),
                float(shares[classes].mean()),
            ),
            "1-NN mean per class": _over_classes(
                nearest, classes, clusters, float(shares[present].mean())
            ),
            f"{K}-NN": Figure(float(votes.mean()), share_interval(votes, clusters), chance),
            f"{K}-NN mean per class": _over_classes(votes, classes, clusters, chance_per_class),
        },
        n_images=len(classes),
        classes=len(names),
        classes_without_images=len(names) - len(present),
        skipped=_skipped(pairs, asked),
        missing_ids=pairs.missing_ids,
        gallery=Gallery(
            n_images=len(voters),
            shared=sum(digest in in_gallery for digest in images.digests),
            missing_classes=int((shares[present] == 0).sum()),
            skipped=_skipped(known, there),
        ),
    )


@dataclass(frozen=True)
class _Labelled:
    """Rows that have a class, their classes, and why others have none."""

    rows: Ints
    classes: Ints
    lost: dict[str, int]


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


def _use_labels(pairs: Pairs, names: Sequence[str], label_field: str, shards: Path) -> _Labelled:
    values = pairs.fields[label_field]
    classes, lost = resolve_labels(values, names)
    rows = np.flatnonzero(classes >= 0)
    if not len(rows):
        shown = ", ".join([*map(repr, names[:3]), *(["..."] if len(names) > 3 else [])])
        where = "a .cls file" if label_field == CLS else f"{label_field!r} in its json"
        seen = next((text for value in values if (text := label_text(value))), None)
        raise AlignError(
            f"No sample in {shards} has one of the {len(names):,} classes ({shown}) as its label: "
            + (
                f"none has {where}. Name the field that has the label."
                if seen is None
                else f"the first has {seen!r} as {where}."
            )
        )
    return _Labelled(rows, classes[rows], lost)


def _see(embedder: Embedder, pairs: Pairs, labelled: _Labelled) -> tuple[Seen, Ints]:
    """Embed the rows that have a class; those that decode, and their classes."""
    seen = embedder.pictures(pairs, labelled.rows)
    return seen, labelled.classes[np.searchsorted(labelled.rows, seen.rows)]


def _skipped(pairs: Pairs, labelled: _Labelled) -> dict[str, int]:
    return dict(Counter(pairs.skipped) + Counter(labelled.lost))


def _over_classes(hits: NDArray[np.bool_], classes: Ints, clusters: Ints, chance: float) -> Figure:
    mean = class_mean(hits, classes)
    value = float(mean(np.ones((1, len(hits))))[0])
    if hits.all() or not hits.any():
        return Figure(value, share_interval(hits, clusters), chance)
    return Figure(value, interval(mean, clusters), chance)
