"""What stands beside the pictures of a batch: captions in groups of like length, or classes."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from coyo_align.augment import draw_masks
from coyo_align.config import MAX_TOKENS
from coyo_align.input.pictures import Rows
from coyo_align.targets import Targets
from coyo_align.tokenizer import TokenRows, pad

Group = tuple[Tensor, Tensor]
"""Of captions token ids and mask, (rows, tokens); of classes numbers and probabilities."""


class Beside(Protocol):
    """Gives each step what goes with its pictures."""

    def order(self, rows: Rows) -> Rows:
        """The order in which the rows of a batch are taken, as places among them."""
        ...

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """What chance decides for a whole batch, (batch_size, ...)."""
        ...

    def groups(self, rows: Rows, drawn: Tensor | None) -> list[Group]:
        """What goes with these rows, on the CPU."""
        ...


@dataclass(frozen=True)
class Captions:
    """Captions, sorted by length so that little is padded.

    Attributes:
        tokens: of all captions.
        pad_id: the token that fills up.
        mask_id: the token that hides one.
        masked_tokens: of ``draw_masks``.
        group: captions that go through the text tower together, and are padded to the longest of
            them. A tenth of all captions is several times as long as the median.
        multiple: padded lengths are multiples of this.
        needed: whether they are; not if their embeddings are known.
    """

    tokens: TokenRows
    pad_id: int
    mask_id: int
    masked_tokens: float
    group: int
    multiple: int
    needed: bool = True

    def order(self, rows: Rows) -> Rows:
        """By length."""
        return np.argsort(self.tokens.lengths[rows], kind="stable")

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Which tokens are hidden."""
        return draw_masks(batch_size, MAX_TOKENS, self.masked_tokens, generator)

    def groups(self, rows: Rows, drawn: Tensor | None) -> list[Group]:
        """Token ids and their mask, group by group."""
        groups: list[Group] = []
        for start in range(0, len(rows) if self.needed else 0, self.group):
            place = slice(start, start + self.group)
            ids, mask = pad([self.tokens[row] for row in rows[place]], self.pad_id, self.multiple)
            if drawn is not None:
                ids[drawn[place, : ids.shape[1]].numpy() & mask] = self.mask_id
            groups.append((torch.from_numpy(ids), torch.from_numpy(mask)))
        return groups


@dataclass(frozen=True)
class Labels:
    """Classes and their probabilities, all rows of a part in one group."""

    targets: Targets

    def order(self, rows: Rows) -> Rows:
        """As they come."""
        return np.arange(len(rows))

    def draw(self, _batch_size: int, _generator: torch.Generator) -> Tensor | None:
        """Nothing."""
        return None

    def groups(self, rows: Rows, _drawn: Tensor | None) -> list[Group]:
        """Class numbers and probabilities."""
        classes, probabilities = self.targets.of(rows)
        return [(torch.from_numpy(classes), torch.from_numpy(probabilities))]
