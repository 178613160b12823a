"""Classify: the stage that lets ``coyo_align`` name what is on pictures; it writes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coyo_tools.errors import SourceError, TrainingError
from coyo_tools.handover import align_errors

if TYPE_CHECKING:
    from coyo_align.using.classify import Classified


@dataclass(frozen=True)
class ClassifySettings:
    """What pictures are asked.

    Attributes:
        labels: names like ``cat,dog``; needed by an ALIGN, not by a ViT.
        labels_file: a text file with one name a line, in their place.
        templates: texts with ``{}`` where the name goes.
        imagenet_templates: CLIP's 80 in their place.
        batch_size: pictures at a time.
        device: of torch, None for what is there.
        processes: that decode, None for one per core.
        threads: of torch.
    """

    labels: str | None = None
    labels_file: Path | None = None
    templates: tuple[str, ...] = ()
    imagenet_templates: bool = False
    batch_size: int = 64
    device: str | None = None
    processes: int | None = None
    threads: int | None = None

    def asked(self) -> str | None:
        """Return the labels as ``coyo_align`` reads them.

        Raises:
            TrainingError: there are two of what there can be one of.
            SourceError: there is no such file.
        """
        if self.templates and self.imagenet_templates:
            raise TrainingError("Both `--template` and `--imagenet-templates` are given.")
        if self.labels_file is None:
            return self.labels
        if self.labels is not None:
            raise TrainingError("Both `--labels` and `--labels-file` are given.")
        if not self.labels_file.is_file():
            raise SourceError(
                f"There is no file {self.labels_file}.", "Give a text file with one name a line."
            )
        return str(self.labels_file)


def classify_pictures(
    model: str | Path, images: Sequence[Path], settings: ClassifySettings | None = None
) -> "Classified":
    """Say of picture files which class they are of, with probabilities.

    Args:
        model: an ALIGN or a ViT with a classifier: a run, a directory, or a name on the hub.
        images: files, and folders whose pictures are meant.
        settings: the classes and the rest.

    Raises:
        CoyoError: model, pictures or labels are at fault, or the training extra is missing.
    """
    settings = settings or ClassifySettings()
    labels = settings.asked()
    with align_errors("coyo classify"):
        from coyo_align.scoring.templates import IMAGENET_TEMPLATES
        from coyo_align.using.classify import classify

        return classify(
            model,
            images,
            labels,
            IMAGENET_TEMPLATES if settings.imagenet_templates else settings.templates,
            batch_size=settings.batch_size,
            workers=settings.processes,
            threads=settings.threads,
            device=settings.device,
        )
