"""Terms on what attention gives each token of an image.

What belongs here: maths only; where tokens are found is `dfqkit.teacher.attention`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full

#: Deviations of the kernel that the integral goes beyond the outermost similarities.
_BEYOND = 3.0


def similarity_entropy(tokens: Tensor, bandwidth: float = 0.05, points: int = 32) -> Tensor:
    """Return minus the differential entropy of the similarities between an image's tokens, the mean over images.

    Source: the patch similarity metric of Li, Ma, Chen, Xiao, Gu, "Patch Similarity Aware Data-Free Quantization for
    Vision Transformers", ECCV 2022. Cosine similarities s_m of all pairs of tokens have the density f(x) = mean_m
    N(x; s_m, bandwidth^2); the entropy is -int f ln f. Tokens of noise are all alike, those of foreground and
    background are of many similarities.

    Differs from the authors' code, whose kernel of width 0.01 is read at ten points: the integral has enough points to
    be one and goes three widths beyond the outermost similarities; a pair counts once, and no token is its own pair.

    Args:
        tokens: (N, tokens, dim), at least two tokens.
        bandwidth: Standard deviation of the kernel, above 0.
        points: Places of the integral; fewer than a range of 2 / bandwidth needs make it coarse.

    Returns:
        Scalar in nats, at least -ln(2 + 6 * bandwidth). Lower is better: similarities of all sizes.
    """
    unit = F.normalize(full(tokens), dim=2, eps=1e-6)
    count = unit.shape[1]
    row, column = torch.triu_indices(count, count, 1, device=unit.device)
    pairs = (unit @ unit.mT)[:, row, column]
    low, high = pairs.detach().amin(1, keepdim=True), pairs.detach().amax(1, keepdim=True)
    low, high = low - _BEYOND * bandwidth, high + _BEYOND * bandwidth
    places = low + (high - low) * torch.linspace(0, 1, points, dtype=pairs.dtype, device=pairs.device)
    kernel = (-0.5 * ((places[:, :, None] - pairs[:, None]) / bandwidth).square()).exp()
    density = kernel.mean(2) / (bandwidth * math.sqrt(2 * math.pi))
    return torch.trapezoid(density * (density + 1e-12).log(), places, dim=1).mean()
