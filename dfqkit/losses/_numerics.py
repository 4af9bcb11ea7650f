"""The number format and the norm that all terms share."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def full(x: Tensor) -> Tensor:
    """Half precision has too few bits for sums of squares and for logarithms of small probabilities."""
    return x.float() if x.dtype in _HALF else x


def norm(x: Tensor, dim: int | None = None) -> Tensor:
    """Euclidean norm whose gradient at zero is zero; written out as the root of a sum it would be infinite there."""
    result: Tensor = torch.linalg.vector_norm(x, dim=dim)
    return result
