"""The contrastive loss of CLIP and ALIGN, in fp32 and with the smoothing one asks for.

AlignModel's own loss has a label smoothing of .1 built in, and under bf16 autocast its logits are
bf16: at a temperature of .015 that is an error of up to half a unit. Left out: other losses, and
gathering embeddings from other processes.
"""

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    images: Tensor, texts: Tensor, temperature: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of picking each picture's text and each text's picture in the batch.

    The InfoNCE of CLIP (Radford et al. 2021, figure 3) with a temperature that divides, as in
    ALIGN (Jia et al. 2021, section 4.1).

    Args:
        images: (batch, width) unit vectors.
        texts: (batch, width) unit vectors, row by row the texts of the pictures.
        temperature: positive scalar.
        label_smoothing: share of the target given to all rows alike.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = images.float() @ texts.float().T / temperature.float()
        target = torch.arange(len(logits), device=logits.device)
        by_image = functional.cross_entropy(logits, target, label_smoothing=label_smoothing)
        by_text = functional.cross_entropy(logits.T, target, label_smoothing=label_smoothing)
        return (by_image + by_text) / 2
