"""Texts around a class name, for zero-shot classification.

A class is the mean of its texts' unit embeddings, scaled to unit length again, as CLIP has it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coyo_align.errors import AlignError

DEFAULT_TEMPLATE = "a photo of a {}."
"""CLIP's, section 3.1.4 of the paper."""


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The texts of one class, one a template.

    Raises:
        AlignError: a template has no ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise AlignError(
                f"The template {template!r} has no {{}} for the class name; "
                f"write it like {DEFAULT_TEMPLATE!r}."
            )
    return [template.replace("{}", name) for template in templates]


def class_vectors(texts: NDArray[np.float32], templates: int) -> NDArray[np.float32]:
    """The unit vector of each class, (classes, width).

    Args:
        texts: (classes * templates, width) unit vectors, those of one class one after the other.
        templates: how many there are of each.
    """
    if templates == 1:
        return texts
    mean = texts.reshape(-1, templates, texts.shape[1]).mean(axis=1)
    vectors: NDArray[np.float32] = mean / np.maximum(
        np.linalg.norm(mean, axis=1, keepdims=True), 1e-6
    )
    return vectors


# Learning Transferable Visual Models From Natural Language Supervision (CLIP, 2021): the 80 of
# notebooks/Prompt_Engineering_for_ImageNet.ipynb in github.com/openai/CLIP, in its order.
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.",
    "graffiti of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a painting of the {}.", "a painting of a {}.", "a pixelated photo of the {}.",
    "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.",
    "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.",
    "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.",
    "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.",
    "a photo of a nice {}.", "a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.",
    "art of a {}.", "a sketch of the {}.", "a embroidered {}.", "a pixelated photo of a {}.",
    "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.",
    "a photo of the weird {}.", "the cartoon {}.", "art of the {}.", "a drawing of the {}.",
    "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.",
    "a dark photo of a {}.", "itap of a {}.", "graffiti of the {}.", "a toy {}.",
    "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.", "a tattoo of the {}.",
)  # fmt: skip
