"""Rows of the pairs to tensors on the device: the only place where bytes become floats.

Left out: augmentation, which training adds afterwards, and prefetching.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coyo_align.images import Pixels, Preprocess
from coyo_align.tokenizer import Tokens, pad


@dataclass(frozen=True)
class Feed:
    """Pictures and captions of a data set, ready to be asked for by row."""

    images: Pixels
    tokens: list[Tokens]
    preprocess: Preprocess
    pad_id: int
    device: torch.device

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """Pixel values as the model wants them: (rows, 3, height, width) fp32, channels last."""
        return self.to_floats(torch.from_numpy(np.take(self.images, rows, axis=0)).to(self.device))

    def to_floats(self, pixels: Tensor) -> Tensor:
        """Rescale (rows, height, width, 3) bytes on the device to what ``pixels`` gives."""
        scale = torch.tensor(self.preprocess.scale, device=self.device).view(1, 3, 1, 1)
        offset = torch.tensor(self.preprocess.offset, device=self.device).view(1, 3, 1, 1)
        return torch.addcmul(offset, pixels.permute(0, 3, 1, 2).float(), scale)

    def texts(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Token ids and their mask, both (rows, the longest text of these rows)."""
        ids, mask = pad([self.tokens[row] for row in rows], self.pad_id)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut row numbers into batches of ``size``, the last one as long as what is left."""
    return [order[start : start + size] for start in range(0, len(order), size)]
