"""Drawing in random order without repeats, as training images, class labels and given images are drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def apportioned(shares: Tensor, count: int) -> Tensor:
    """Return ``count`` numbers below K in order, int64 (count,), each as often as its share (K,) of 1 by largest rest.

    Source: Hamilton's method; of equal rests the lower number gains.
    """
    quotas = shares.double() * count
    each = quotas.floor().long()
    rests = torch.argsort(quotas - each, descending=True, stable=True)
    each[rests[: count - int(each.sum())]] += 1
    return torch.arange(len(shares), device=shares.device).repeat_interleave(each)


class Deck:
    """Numbers below ``size``, or ``items`` (size,) int64, in random order, every one once before any comes again.

    ``size`` may be raised while some are still to be dealt. ``rest``, what comes next, and ``rng`` are its whole state.
    """

    def __init__(self, size: int, rng: torch.Generator, items: Tensor | None = None) -> None:
        self.size, self.rng, self.items = size, rng, items
        self.rest = torch.zeros(0, dtype=torch.int64, device=rng.device)

    def deal(self, n: int) -> Tensor:
        """Return the next ``n`` of them, int64 (n,)."""
        if n > len(self.rest) and not self.size:
            message = f"Asked for {n} items of none."
            raise ValueError(message)
        while len(self.rest) < n:
            more = torch.randperm(self.size, generator=self.rng, device=self.rng.device)
            self.rest = torch.cat([self.rest, more if self.items is None else self.items[more]])
        dealt, self.rest = self.rest[:n], self.rest[n:]
        return dealt
