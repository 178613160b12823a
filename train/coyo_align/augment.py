"""A random crop per picture, on the whole batch at once: the only augmentation here.

No mirror image: captions say left and right. No colour change: captions say red. Left out:
anything that needs the original picture; the crop works on pixels already resized.
"""

import torch
from torch import Tensor
from torch.nn import functional


def random_crop(pixels: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Cut out a window of each picture and stretch it to the full size again.

    Args:
        pixels: (batch, channels, height, width), floating point.
        smallest: the least share of the area that is kept, in (0, 1]; 1 returns ``pixels``. Sides
            are drawn separately, so that proportions vary as they do between pictures.
        generator: on the CPU; its state decides the windows, whatever the device of the pixels.
    """
    if smallest >= 1:
        return pixels
    draw = torch.rand(4, len(pixels), generator=generator)
    least = smallest**0.5
    width, height = least + (1 - least) * draw[:2]
    shift_x, shift_y = (2 * draw[2:] - 1) * (1 - torch.stack([width, height]))
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = shift_x, shift_y
    grid = functional.affine_grid(theta.to(pixels), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
