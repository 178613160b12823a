"""What keeps a small data set from being learned by heart: random crops and masked words.

Chance is drawn for a whole batch before it is shared out, as plain numbers; what is done with them
happens on the device. So the same seed gives the same crops in any number of processes.

No mirror image: captions say left and right. No colour change: captions say red. Left out: anything
that needs the original picture; the crop works on pixels already resized.
"""

import torch
from torch import Tensor
from torch.nn import functional


def draw_windows(rows: int, smallest: float, generator: torch.Generator) -> Tensor | None:
    """Draw which window of each picture is kept.

    Args:
        rows: pictures.
        smallest: the least share of the area that is kept, in (0, 1]; 1 returns None. Sides are
            drawn separately, so that proportions vary as they do between pictures.
        generator: on the CPU.

    Returns:
        (rows, 2, 3) matrices for ``crop``.
    """
    if smallest >= 1:
        return None
    draw = torch.rand(4, rows, generator=generator)
    least = smallest**0.5
    width, height = least + (1 - least) * draw[:2]
    shift_x, shift_y = (2 * draw[2:] - 1) * (1 - torch.stack([width, height]))
    theta = torch.zeros(rows, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = shift_x, shift_y
    return theta


def crop(pixels: Tensor, windows: Tensor) -> Tensor:
    """Cut out a window of each picture and stretch it to the full size again.

    Args:
        pixels: (batch, channels, height, width), floating point.
        windows: of ``draw_windows``, on the same device.
    """
    grid = functional.affine_grid(windows, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def draw_masks(rows: int, length: int, share: float, generator: torch.Generator) -> Tensor | None:
    """Draw which tokens are hidden: (rows, length), true for a random share of them.

    The first token, [CLS], is spared, because the embedding is read there. A share of 0 returns
    None.
    """
    if share <= 0:
        return None
    chosen = torch.rand(rows, length, generator=generator) < share
    chosen[:, 0] = False
    return chosen
