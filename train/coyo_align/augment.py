"""What keeps a small data set from being learned by heart: random crops and masked words.

Both work on the whole batch at once, after decoding. No mirror image: captions say left and right.
No colour change: captions say red. Left out: anything that needs the original picture; the crop
works on pixels already resized.
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


def mask_tokens(
    ids: Tensor, mask: Tensor, share: float, mask_id: int, generator: torch.Generator
) -> Tensor:
    """Replace a random share of each caption's tokens by [MASK], its first token excepted.

    The first token, [CLS], is where the embedding is read.

    Args:
        ids: (batch, tokens) token ids.
        mask: true where a token stands.
        share: 0 returns ``ids``.
        mask_id: of the tokenizer.
        generator: on the CPU, as for ``random_crop``.
    """
    if share <= 0:
        return ids
    chosen = torch.rand(ids.shape, generator=generator).to(ids.device) < share
    chosen[:, 0] = False
    return ids.masked_fill(chosen & mask, mask_id)
