"""How often a classifier names the right class of a picture, by the rules of ``evaluate``.

The right class is the sample's label; of a list of classes with probabilities, as COYO-Labeled has
them, the most probable. What is so measured there is agreement with the teacher that gave them.
Left out: how well the model's probabilities fit the teacher's, which is what its loss says.
"""

import json
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coyo_align.batch import cut, plain_pictures
from coyo_align.checkpoint import load_classifier
from coyo_align.device import pick_device, torch_threads
from coyo_align.embed import OnProgress, number_alike
from coyo_align.errors import AlignError
from coyo_align.input.data import OnLoad, load_pairs
from coyo_align.input.images import preprocess_of
from coyo_align.prepare import SETTINGS
from coyo_align.scoring.evaluate import ClassScores, OnOutcomes, class_figures
from coyo_align.scoring.labels import CLS
from coyo_align.targets import fields_of, reader, targets_of
from coyo_align.vit import Vit, names_of


@torch.inference_mode()
def evaluate_classifier(
    run: Path,
    shards: Path,
    ids: Path | None = None,
    *,
    label_field: str | None = None,
    batch_size: int = 256,
    threads: int | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    on_load: OnLoad | None = None,
    on_outcomes: OnOutcomes | None = None,
) -> ClassScores:
    """Score a ViT on the labelled pictures of a shards directory.

    Args:
        run: a run, or any ViT directory with a classifier.
        shards: directory with the tars.
        ids: parquet file or directory with the ids to use, None for all.
        label_field: field of the samples' json that has the label; ``cls`` is the .cls file. None
            for the one the run was trained on, else ``cls``.
        batch_size: pictures at a time; changes time and memory only.
        threads: of torch and the decoder, None for the machine's.
        device: None for CUDA where there is one, else the CPU.
        on_progress: called with the pictures done, and how many there are.
        on_load: progress of decoding.
        on_outcomes: told what became of every query, under the name class.

    Raises:
        AlignError: files can't be used or don't fit, no sample has a label, or none decodes.
    """
    place = pick_device(device)
    classifier = load_classifier(run)
    names = names_of(classifier.hf)
    count = classifier.hf.config.num_labels
    field = label_field or _trained_on(run)
    preprocess = preprocess_of(classifier.image_processor)
    pairs = load_pairs(
        shards,
        preprocess,
        ids,
        threads=threads,
        fields=fields_of(field),
        need_caption=False,
        pack=reader(field, names, count),
        on_load=on_load,
    )
    right = targets_of(pairs.packed, count).likeliest()
    model = Vit(classifier.hf).to(place).eval()
    rows, ranks, digests = [], [], []
    batches = cut(np.arange(len(pairs)), batch_size)
    with (
        torch_threads(threads),
        closing(plain_pictures(pairs, batches, preprocess, place)) as pictures,
    ):
        for batch, pixels, values in pictures:
            digests += [sha256(picture).digest() for picture in pixels]
            rows.append(np.array(batch))
            ranks.append(_ranks(model(values), torch.from_numpy(right[batch]).to(place)))
            if on_progress is not None:
                on_progress(sum(map(len, rows)), len(pairs))
    if not rows:
        raise AlignError(f"None of the {len(pairs)} pictures decodes: {pairs.skipped}.")
    classes = right[np.concatenate(rows)]
    clusters, _ = number_alike(digests)
    if on_outcomes is not None:
        on_outcomes("class", np.concatenate(ranks), clusters)
    return ClassScores(
        figures=class_figures(np.concatenate(ranks), classes, clusters, count),
        n_images=len(classes),
        classes=count,
        classes_without_images=count - len(np.unique(classes)),
        skipped=pairs.skipped,
        missing_ids=pairs.missing_ids,
    )


def _ranks(logits: Tensor, right: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each picture 1 + how many other classes are at least as likely as the right one."""
    if not logits.isfinite().all():
        raise AlignError(
            "The classifier's logits are not finite: the weights are damaged, or training "
            "diverged. Train again with a lower learning rate."
        )
    own = logits.gather(1, right[:, None])
    return (logits >= own).sum(dim=1).cpu().numpy()  # itself is the 1


def _trained_on(run: Path) -> str:
    """The field that a run's labels came from."""
    try:
        field = json.loads((run / SETTINGS).read_text(encoding="utf-8"))["label_field"]
    except (OSError, ValueError, KeyError, TypeError):
        return CLS
    return field if isinstance(field, str) else CLS
