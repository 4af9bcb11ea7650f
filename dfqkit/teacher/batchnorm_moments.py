"""Mean and variance per channel, cheap enough to be read at every BatchNorm in every step.

What belongs here: the moments, alone or together with the normalisation that follows, and their gradients. On the CPU
`torch.var_mean` over batch and positions is not vectorised: for a ResNet-20 it took more time than half a pass of the
network. Sums and norms are; and the gradient of all that is read at a BatchNorm is affine in its input, so that layer
and moments together cost what the layer's own backward does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

#: Squared mean over variance from which E[x^2] - E[x]^2 in float32 loses more than the digits it is trusted for.
_CANCELLING = 100.0

_Backward = TypeVar("_Backward", bound=Callable[..., Any])
_once_differentiable = cast("Callable[[_Backward], _Backward]", once_differentiable)  # typed in later torch alone


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and biased variance (C,), float32, of float32 or bfloat16 (N, C, ...); both differentiable, once."""
    mean, variance = _Moments.apply(x)
    return mean, variance


def can_join(layer: _BatchNorm, x: Tensor) -> bool:
    """Return whether `normalised_with_moments` may stand in for this layer: plain, frozen, in eval mode."""
    frozen = not any(parameter.requires_grad for parameter in layer.parameters())
    known = x.dtype in (torch.float32, torch.bfloat16)
    return type(layer).forward is _BatchNorm.forward and frozen and not layer.training and known


def running_statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance that training left in a layer; whoever asks has chosen layers that keep them."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    return mean, variance


def normalised_with_moments(layer: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the layer returns, and `channel_moments` of its input; see `can_join`."""
    y, mean, variance = _Joined.apply(x, layer)
    return y, mean, variance


class _Moments(torch.autograd.Function):
    """Both at once, because their gradient together is a * x + b with one a and one b per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _computed(x)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        a, b = _affine(x, mean, of_mean, of_variance)
        return _scaled(x, a, b)


class _Joined(torch.autograd.Function):
    """A BatchNorm in eval mode and the moments: the gradient is scale * g + a * x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _computed(x)
        weight, (centre, spread) = layer.weight, running_statistics(layer)
        scale = (spread + layer.eps).rsqrt()
        ctx.save_for_backward(x, mean, scale if weight is None else scale * weight)
        y = torch.batch_norm(x, weight, layer.bias, centre, spread, False, 0.0, layer.eps, False)
        return y, mean, variance

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale = ctx.saved_tensors
        a, b = _affine(x, mean, of_mean, of_variance)
        if x.dtype != torch.float32:  # a * x and b nearly cancel, so that they are added up before they are rounded
            return _scaled(x, a, b).add_(_scaled(of_y, scale, torch.zeros_like(b))), None
        gradient = _scaled(of_y, scale, b).addcmul_(x, a.view(-1, *(1,) * (x.dim() - 2)))
        return gradient, None


def _computed(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()  # bfloat16 holds values, but neither sums nor squares of many
    if x.device.type == "cpu" and x.dim() > 2 and x.dtype == torch.float32:
        if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            return torch.batch_norm_update_stats(x, None, None, 0.0)  # vectorised over the channels, and in two passes
        flat, count = x.flatten(2), x.numel() // x.shape[1]
        mean = flat.sum(2).double().sum(0) / count
        squares = torch.linalg.vector_norm(flat, dim=2).double().square().sum(0) / count
        variance = squares - mean.square()
        if bool((mean.square() <= _CANCELLING * variance).all()):
            return mean.float(), variance.float()
    exact, centre = torch.var_mean(x, dim=[dim for dim in range(x.dim()) if dim != 1], correction=0)
    return centre, exact


def _affine(x: Tensor, mean: Tensor, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor]:
    count = x.numel() // len(mean)
    a = of_variance * (2 / count)
    return a, of_mean / count - a * mean


def _scaled(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Factor * x + offset per channel, by the one kernel that does both in one pass over memory."""
    zero, one = torch.zeros_like(factor), torch.ones_like(factor)
    return torch.batch_norm(x, factor, offset, zero, one, False, 0.0, 0.0, False)
