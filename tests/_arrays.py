"""Draws, float64 NumPy and one gradient step, for tests of loss terms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def logits(n: int = 6, k: int = 10, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw(n, k, seed=seed, scale=scale, dtype=dtype)


def array(x: Tensor) -> np.ndarray:
    return x.detach().numpy().astype(np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def descend(term: Callable[[Tensor], Tensor], x: Tensor, step: float = 0.1) -> Tensor:
    """``x`` after one step of gradient descent on ``term``."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(term(x), x)
    return (x - step * gradient).detach()
