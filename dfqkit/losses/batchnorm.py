"""Terms between a batch's statistics and the running statistics of one BatchNorm layer.

Four published forms, whose weights do not transfer: the name of the form belongs in a config. Each function takes one
layer; the caller adds up or averages over layers, as its paper does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full, norm


def bn_kl(mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(running_mean, running_variance)), summed over the channels of one BatchNorm layer.

    Source: Choi et al. (2020), first term of L_psi: the generated batch first, the layer's running statistics second.
    Both variances are clamped at 1e-8.

    Args:
        mean: Batch mean (C,) of the layer's input.
        variance: Biased batch variance (C,), at least 0.
        running_mean: (C,).
        running_variance: (C,).

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    ratio = full(variance).clamp_min(1e-8) / full(running_variance).clamp_min(1e-8)
    shift = (full(mean) - full(running_mean)).square() / full(running_variance).clamp_min(1e-8)
    return 0.5 * (shift + ratio - torch.log(ratio) - 1).sum()


def bn_normals(mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """`bn_kl` a channel, both variances plus 0.1 % of the layer's mean running one, so that dead channels weigh little.

    Source: this project. Averages, where `bn_kl` adds up: layers of many channels weigh as others do.

    Args:
        mean: Batch mean (C,) of the layer's input.
        variance: Biased batch variance (C,), at least 0.
        running_mean: (C,).
        running_variance: (C,).

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    floor = 1e-3 * running_variance.mean()
    return bn_kl(mean, variance + floor, running_mean, running_variance + floor) / mean.numel()


def bn_l2(mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """||mean - running_mean||_2 + ||variance - running_variance||_2 of one layer: norms, not squared.

    Source: the feature term of Yin et al. (2020, DeepInversion) as their code has it (variances, not standard
    deviations); also CMI and FastDFKD. Where the statistics are met exactly the gradient is zero.

    Args:
        mean: Batch mean (C,) of the layer's input.
        variance: Biased batch variance (C,).
        running_mean: (C,).
        running_variance: (C,).

    Returns:
        Scalar, at least 0. Lower is better.
    """
    return norm(full(mean) - full(running_mean)) + norm(full(variance) - full(running_variance))


def bn_mse(mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """mean_c (mean - running_mean)^2 + mean_c (variance - running_variance)^2 of one layer.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020 (GDFQ), and the codes that follow it
    (Qimera, IntraQ, HAST, AdaDFQ, SynQ); they average over the layers.

    Args:
        mean: Batch mean (C,) of the layer's input.
        variance: Biased batch variance (C,).
        running_mean: (C,).
        running_variance: (C,).

    Returns:
        Scalar, at least 0. Lower is better.
    """
    return F.mse_loss(full(mean), full(running_mean)) + F.mse_loss(full(variance), full(running_variance))


def bn_std(
    mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor, *, eps: float = 1e-6
) -> Tensor:
    """mean_c (mean - running_mean)^2 + mean_c (std - running_std)^2 of one layer, each std = sqrt(variance + eps).

    Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, and Jeon et al., "Genie: Show Me
    the Data for Quantization", CVPR 2023; both add up the layers, and the same term of the input image against mean 0
    and variance 1. ``eps`` stands under both roots here, so that equal variances cost nothing and a dead channel has a
    finite gradient.

    Args:
        mean: Batch mean (C,) of the layer's input.
        variance: Biased batch variance (C,), at least 0.
        running_mean: (C,).
        running_variance: (C,).
        eps: Above 0.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    std, running_std = (full(variance) + eps).sqrt(), (full(running_variance) + eps).sqrt()
    return F.mse_loss(full(mean), full(running_mean)) + F.mse_loss(std, running_std)
