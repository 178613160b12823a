"""The contrastive losses of CLIP and ALIGN (InfoNCE) and of SigLIP, and one for labels, in fp32.

AlignModel's own loss has a label smoothing of .1 built in, compares within one process only, and
under bf16 autocast its logits are bf16: at a temperature of .015 that is an error of up to half a
unit. Here each process compares its own rows with those of all, so that the mean of the processes'
losses, and of their gradients, is that of one process with the whole batch.
"""

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    temperature: Tensor,
    label_smoothing: float = 0.0,
    everyone: tuple[Tensor, Tensor, int] | None = None,
) -> Tensor:
    """Mean cross-entropy of picking each picture's text and each text's picture in the batch.

    The InfoNCE of CLIP (Radford et al. 2021, figure 3) with a temperature that divides, as in
    ALIGN (Jia et al. 2021, section 4.1).

    Args:
        images: (batch, width) unit vectors.
        texts: (batch, width) unit vectors, row by row the texts of the pictures.
        temperature: positive scalar.
        label_smoothing: share of the target given to all rows alike.
        everyone: images and texts of all processes, and the row where this one's begin.
    """
    all_images, all_texts, first = everyone or (images, texts, 0)
    with torch.autocast(images.device.type, enabled=False):
        target = torch.arange(first, first + len(images), device=images.device)
        by_image, by_text = (
            functional.cross_entropy(
                own.float() @ others.float().T / temperature.float(),
                target,
                label_smoothing=label_smoothing,
            )
            for own, others in ((images, all_texts), (texts, all_images))
        )
        return (by_image + by_text) / 2


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    temperature: Tensor,
    bias: Tensor,
    everyone: tuple[Tensor, Tensor, int] | None = None,
) -> Tensor:
    """Sum over all pairs of the batch of -log sigmoid(±(cosine / temperature + bias)), per picture.

    Zhai et al. 2023, algorithm 1: plus for a picture and its own text, minus for all others.

    Args:
        images: (batch, width) unit vectors.
        texts: (batch, width) unit vectors, row by row the texts of the pictures.
        temperature: positive scalar.
        bias: scalar, -10 at the start of training.
        everyone: as for ``contrastive_loss``.
    """
    _, all_texts, first = everyone or (images, texts, 0)
    with torch.autocast(images.device.type, enabled=False):
        logits = images.float() @ all_texts.float().T / temperature.float() + bias.float()
        sign = torch.full_like(logits, -1.0)
        own = torch.arange(len(images), device=images.device)
        sign[own, own + first] = 1.0
        return -functional.logsigmoid(sign * logits).sum() / len(images)


def soft_cross_entropy(
    logits: Tensor, classes: Tensor, probabilities: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy with distributions of which only the likeliest classes are known.

    The rest of a row's probability belongs to the classes that are not listed, and all of them are
    one: -sum p log q - (1 - sum p) log(1 - sum q) over the listed classes. By the chain rule it is
    the part of the full cross-entropy that doesn't depend on how the rest is spread. With one class
    of probability 1 it is the usual cross-entropy.

    Args:
        logits: (rows, classes).
        classes: (rows, entries) the listed ones; what fills a row up repeats one of them.
        probabilities: (rows, entries), 0 where filled up; a row adds up to at most 1, and to 1 if
            it lists every class.
        label_smoothing: share of the target given to all classes alike.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        logs = functional.log_softmax(logits, dim=1)
        rest = (1 - probabilities.sum(dim=1)).clamp_min(0)
        rest = torch.where(rest > _ROUNDING, rest, 0)
        listed = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, classes, value=True)
        elsewhere = logs.masked_fill(listed & (rest > 0)[:, None], -torch.inf).logsumexp(dim=1)
        loss = -(probabilities * logs.gather(1, classes)).sum(dim=1) - rest * elsewhere
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * logs.mean(dim=1)
        return loss.mean()


_ROUNDING = 1e-5
"""Of fifty probabilities in fp32 that add up to 1."""
