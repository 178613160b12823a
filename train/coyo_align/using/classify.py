"""Which class is a picture of: zero-shot by an ALIGN and names, or by a ViT and its own classes.

Zero-shot probabilities are those of transformers' zero-shot pipeline: the softmax of a picture's
cosines with the classes, divided by the model's temperature. They compare the given classes with
each other, so they sum to 1 whatever the picture shows.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coyo_align.batch import cut, to_floats
from coyo_align.checkpoint import ALIGN, VIT, kind_of, load_classifier, locate
from coyo_align.device import pick_device, torch_threads
from coyo_align.embed import Embedder, why_bad
from coyo_align.errors import AlignError
from coyo_align.input.images import Pixels, Preprocess, preprocess_of
from coyo_align.input.stream import stream
from coyo_align.scoring.labels import read_labels
from coyo_align.scoring.templates import DEFAULT_TEMPLATE, class_vectors, fill
from coyo_align.using.items import file_pairs, picture_files, why_unusable

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Classified:
    """Pictures and the probabilities of their classes.

    Attributes:
        files: the pictures that could be used, in the order given.
        labels: names of the classes.
        probabilities: (files, labels), each row summing to 1.
        refused: the other files, with why.
    """

    files: list[Path]
    labels: list[str]
    probabilities: Probabilities
    refused: dict[Path, str]

    def top(self, row: int, count: int) -> list[tuple[str, float]]:
        """The most probable classes of one picture, best first; of equal ones the first listed."""
        best = np.argsort(-self.probabilities[row], kind="stable")[:count]
        return [(self.labels[place], float(self.probabilities[row, place])) for place in best]


def classify(
    model: str | Path,
    images: Sequence[Path],
    labels: str | None = None,
    templates: Sequence[str] = (),
    *,
    batch_size: int = 64,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Classified:
    """Classify picture files.

    Args:
        model: a run, a directory or a name on the hub: of an ALIGN, or of a ViT with a classifier.
        images: files, and folders whose pictures are meant.
        labels: for an ALIGN the classes, see ``read_labels``; a ViT has its own.
        templates: for an ALIGN, texts with ``{}`` where the class name goes; default one.
        batch_size: pictures at a time.
        workers: decoding processes at most, None for one per core.
        threads: of torch, None for the machine's.
        device: None for CUDA where there is one, else the CPU.

    Raises:
        AlignError: the model can't be used, labels are missing or superfluous, or no picture is
            any good.
    """
    directory = locate(model)
    kind = kind_of(directory)
    if kind not in (ALIGN, VIT):
        raise AlignError(
            f"{directory} holds a model of type {kind!r}. Give an ALIGN, or a ViT with a "
            "classifier."
        )
    files = _files(images)
    if kind == VIT:
        if labels is not None or templates:
            raise AlignError(
                f"{directory} holds a ViT, which has classes of its own: leave out labels and "
                "templates, or give an ALIGN."
            )
        return _by_vit(directory, files, batch_size, workers, threads, device)
    if labels is None:
        raise AlignError(
            f"{directory} holds an ALIGN, which needs the classes: give them as labels, like "
            "cat,dog,horse."
        )
    names = read_labels(labels)
    templates = templates or (DEFAULT_TEMPLATE,)
    prompts = [text for name in names for text in fill(templates, name)]
    embedder = Embedder(directory, batch_size, threads, device)
    classes = class_vectors(embedder.texts(prompts), len(templates))

    def compare(pixels: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = embedder.pixels(pixels) @ classes.T / embedder.temperature
        return found

    return _run(files, embedder.preprocess, compare, names, batch_size, workers)


def _files(images: Sequence[Path]) -> list[Path]:
    if not images:
        raise AlignError("No picture is given. Name files, or folders of pictures.")
    found: list[Path] = []
    for path in images:
        found += picture_files(path) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _by_vit(
    directory: Path,
    files: Sequence[Path],
    batch_size: int,
    workers: int | None,
    threads: int | None,
    device: str | None,
) -> Classified:
    place = pick_device(device)
    classifier = load_classifier(directory)
    hf = classifier.hf.to(place).eval()
    preprocess = preprocess_of(classifier.image_processor)
    names = [str(hf.config.id2label.get(i, i)) for i in range(hf.config.num_labels)]

    @torch.inference_mode()
    def ask(pixels: Pixels) -> NDArray[np.float32]:
        with torch_threads(threads):
            floats = to_floats(torch.from_numpy(pixels).to(place), preprocess, place)
            found: NDArray[np.float32] = hf(floats).logits.float().cpu().numpy()
        return found

    return _run(files, preprocess, ask, names, batch_size, workers)


def _run(
    files: Sequence[Path],
    preprocess: Preprocess,
    logits_of: Callable[[Pixels], NDArray[np.float32]],
    names: list[str],
    batch_size: int,
    workers: int | None,
) -> Classified:
    pairs = file_pairs(files, preprocess, workers)
    keys = [Path(key) for key in pairs.fields["key"]]
    refused = {path: why for path in files if (why := why_unusable(path))}
    good, found = [], []
    batches = ((rows, None) for rows in cut(np.arange(len(keys)), batch_size))
    with closing(stream(pairs, batches)) as seen:
        for rows, pixels in seen:
            if len(rows):
                good += [keys[row] for row in rows]
                found.append(logits_of(pixels))
    refused |= {keys[row]: why for row, why in why_bad(pairs, range(len(pairs))).items()}
    if not found:
        first = [f"{path}: {refused[path]}" for path in files[:_NAMED]]
        more = f", and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
        raise AlignError(f"No picture can be used. {', '.join(first)}{more}.")
    logits = np.concatenate(found)
    if not np.isfinite(logits).all():
        raise AlignError(
            "The model gives figures that are not finite: its weights are damaged, or training "
            "diverged. Train again with a lower learning rate."
        )
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Classified(
        files=good,
        labels=names,
        probabilities=raised / raised.sum(axis=1, keepdims=True),
        refused={path: refused[path] for path in files if path in refused},
    )


_NAMED = 3
