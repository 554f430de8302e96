"""What takes part in a training step: features that are active on rows of a batch, and what is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


class Active(NamedTuple):
    """The features that take part on each row of a batch."""

    indptr: Tensor
    """(n + 1,) int64 start of each row's entries."""

    ids: Tensor
    """(m,) int32 feature ids, ascending within a row."""

    acts: Tensor
    """(m,) float32 activations; 0 where a feature takes part without firing."""

    def rows(self) -> Tensor:
        """Give (m,) the row of each entry."""
        n = torch.arange(len(self.indptr) - 1, device=self.indptr.device)
        return n.repeat_interleave(self.indptr.diff())

    def where(self, keep: Tensor) -> Active:
        """Give the entries that a mask (m,) marks."""
        kept = functional.pad(keep.cumsum(0), (1, 0))
        return Active(kept[self.indptr], self.ids[keep], self.acts[keep])


class Missed(NamedTuple):
    """What a batch's reconstructions miss. Level l uses the features below `ends[l]`."""

    miss: Tensor
    """(levels, n, d_in) sum of reconstruction - x over level l and all above."""

    errors: Tensor
    """(levels, n) squares of each level's own reconstruction - x."""

    slopes: Tensor
    """(m,) half the derivative of all levels' squares by each activation."""

    ends: list[int]
    """One past the last feature of each level."""


class Aid(NamedTuple):
    """Entries beside the batch's own: silent features that learn what the others miss."""

    active: Active
    """Of some first rows of the batch."""

    miss: Tensor
    """(rows, d_in) what their reconstruction of the rest misses, times the weight of its loss."""

    slopes: Tensor
    """(m,) half the derivative of that loss by each activation."""
