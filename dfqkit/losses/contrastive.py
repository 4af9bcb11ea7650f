"""Terms between the features of an image and the features of other images: diversity."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full

# A feature shorter than this counts as zero: bounds the gradient, which else grows with the inverse of the length.
_SHORTEST = 1e-8


def info_nce(
    local: Tensor,
    global_: Tensor,
    temperature: float,
    cached_local: Tensor | None = None,
    cached_global: Tensor | None = None,
) -> Tensor:
    """Tell each image's local view from all others by its global view.

    With rows l = [local; cached_local] and columns g = [global; cached_global] of length 1, the loss of a row is
    -ln( exp(l_i . g_i / tau) / sum_j exp(l_i . g_j / tau) ); returned is its mean over the current rows plus, with a
    cache, its mean over the cached rows, so that thousands of cached rows do not drown the current batch.

    Source: Fang et al. (2021, CMI), the contrastive term as their code has it. No gradient passes to the global views.
    Cached rows keep theirs: a projection head learns from them too.

    Args:
        local: Features of one view (N, D), of any length.
        global_: Features of the other view of the same images (N, D).
        temperature: tau > 0.
        cached_local: Features of earlier images (M, D).
        cached_global: The other view of the same earlier images (M, D).

    Returns:
        Scalar in nats, at least 0; ln N when all similarities are equal and there is no cache. Lower is better.

    Raises:
        ValueError: When only one of the caches is given.
    """
    if (cached_local is None) != (cached_global is None):
        given = "cached_local" if cached_global is None else "cached_global"
        message = f"The cache needs both views of its images; found only {given}. Give both, or neither."
        raise ValueError(message)
    columns = _unit(global_.detach())
    if cached_local is None or cached_global is None:
        return _diagonal(_unit(local), columns, temperature, first=0)
    columns = torch.cat([columns, _unit(cached_global.detach())])
    current = _diagonal(_unit(local), columns, temperature, first=0)
    return current + _diagonal(_unit(cached_local), columns, temperature, first=len(local))


def _diagonal(rows: Tensor, columns: Tensor, temperature: float, first: int) -> Tensor:
    """Cross-entropy of the similarities, row i belonging to column ``first`` + i."""
    similarity = rows @ columns.T / temperature
    return F.cross_entropy(similarity, torch.arange(first, first + len(rows), device=rows.device))


def cosine_margin(features: Tensor, centre: Tensor, lower: float, upper: float) -> Tensor:
    """Keep images of a class apart, yet near: hinges on d = 1 - cos(feature, centre) outside [lower, upper].

    mean_n max(0, lower - d_n) + mean_n max(0, d_n - upper). Source: the marginal distance constraint of Zhong et al.
    (2022, IntraQ), whose centre is the running mean of the features of earlier images of the class.

    Args:
        features: (N, D).
        centre: (D,), or (N, D) for one centre an image.
        lower: Smallest cosine distance that is free, within [0, 2].
        upper: Largest cosine distance that is free, within [lower, 2].

    Returns:
        Scalar within [0, 2]. Lower is better: 0 once every distance lies within the margin.
    """
    distance = 1 - (_unit(features) * _unit(centre)).sum(-1)
    return F.relu(lower - distance).mean() + F.relu(distance - upper).mean()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(full(x), dim=-1, eps=_SHORTEST)
