"""Codes of one layer's weights, chosen together so that its outputs are least in error: the mathematics, no network.

What belongs here: moments of a layer's inputs, and what codes follow from them. Which inputs these are is `layerwise`.

Sources: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023 (arXiv 2210.17323), section 3.3 and algorithm 1: columns are rounded one after the other, those
to come take up the error. The target is what the float layer gives for the float network's inputs, as in GPFQ (Lybrand
and Saab, 2021) and Qronos (Zhang et al., 2025): the least squares solution for it takes the weights' place.

Differs from GPTQ: moments are centred, and the bias takes the means, so that weights need not serve an offset; columns
go by falling variance (GPTQ's code has that as an option); 30 % of the mean variance is added to the diagonal instead
of 1 %, since some dozens of made images tell so much less than 128 real ones; when all are rounded, single codes are
changed as long as that lowers the error (coordinate descent, as in QuantEase, Behdin et al., 2023), and each channel's
scale is the best of several before, and the least squares one after.

Why not Brevitas 0.13's `gptq_mode`, `gpfq_mode` or Qronos: the first has no correction of inputs, the others take all
positions of all images; all three keep the bias, add the damping of language models, which overfits here (FD-MobileNet
0.5x, W4A8: divergence of the answers 0.22 at 1 %, 0.17 at 30 %), and run the network from its start again for each
layer, where `layerwise` runs each layer once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: What is added to the diagonal of the inputs' covariance, of its mean: against what few images tell by chance.
DAMPING = 0.3
#: Columns that are rounded before what is left of the others is brought up to date.
_BLOCK = 64
#: What a channel's scale is multiplied with, to see which multiple is best.
_RATIOS = (1.0, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35)
#: Times that all codes are looked at again, each time before the scale is fitted, and times that it is.
_SWEEPS, _FITS = 4, 3


@dataclass(kw_only=True)
class Moments:
    """Sums over positions of what a layer reads in the quantized network and in the float one, by group of channels.

    Attributes:
        quantized: Sum of the quantized network's inputs, (groups, columns).
        exact: The same of the float network's.
        second: Sum of products of the quantized network's inputs with themselves, (groups, columns, columns).
        cross: The same of the float network's (rows) with the quantized one's.
        count: Positions.
    """

    quantized: Tensor
    exact: Tensor
    second: Tensor
    cross: Tensor
    count: int = 0

    @classmethod
    def none(cls, groups: int, columns: int, device: torch.device) -> Moments:
        """Return those of no position."""
        mean = torch.zeros((groups, columns), dtype=torch.float64, device=device)
        square = torch.zeros((groups, columns, columns), dtype=torch.float64, device=device)
        return cls(quantized=mean, exact=mean.clone(), second=square, cross=square.clone())

    def add(self, quantized: Tensor, exact: Tensor) -> None:
        """Add positions: (groups, columns, positions) each."""
        self.count += quantized.shape[2]
        self.quantized += quantized.sum(2, dtype=torch.float64)
        self.exact += exact.sum(2, dtype=torch.float64)
        self.second += (quantized @ quantized.mT).double()
        self.cross += (exact @ quantized.mT).double()

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean inputs of the quantized network and of the float one, (groups, columns)."""
        return self.quantized / self.count, self.exact / self.count

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Return the covariance of the quantized inputs, damped, and that of the float ones with them, as damped.

        Damped alike, they are a ridge that holds the solution near the weights as they were, not near 0.
        """
        quantized, exact = self.means()
        second = self.second / self.count - quantized[:, :, None] * quantized[:, None]
        cross = self.cross / self.count - exact[:, :, None] * quantized[:, None]
        mean = second.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
        ridge = DAMPING * mean[:, None, None] * torch.eye(second.shape[1], dtype=second.dtype, device=second.device)
        return (second + second.mT) / 2 + ridge, cross + ridge


def corrected(weight: Tensor, second: Tensor, cross: Tensor) -> Tensor:
    """Return the weights (groups, rows, columns) that give for quantized inputs what ``weight`` gives for float ones.

    Args:
        weight: The float layer's.
        second: Covariance of the quantized inputs, positive definite.
        cross: Covariance of float inputs (rows) with quantized ones.
    """
    return torch.cholesky_solve((weight @ cross).mT, torch.linalg.cholesky(second)).mT


def gptq(weight: Tensor, second: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return codes of weights, column by column, the error of each made up for by the columns to come.

    Args:
        weight: (groups, rows, columns).
        second: Covariance of the inputs, (groups, columns, columns), positive definite.
        scale: Of each row, (groups, rows), above 0.
        low: The lowest code.
        high: The highest.

    Returns:
        Codes as float, within ``low`` to ``high``, of the shape of ``weight``.

    Example:
        >>> covariance = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
        >>> codes = gptq(torch.tensor([[[0.4, 0.4]]]), covariance, torch.ones(1, 1), -8, 7)
        >>> codes.tolist()  # rounded each on its own, both were 0
        [[[0.0, 1.0]]]
    """
    order = second.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    left = weight.gather(2, order[:, None].expand_as(weight))
    sorted_ = second.gather(1, order[:, :, None].expand_as(second)).gather(2, order[:, None].expand_as(second))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(sorted_)), upper=True)
    codes, columns = torch.empty_like(left), left.shape[2]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty_like(left[:, :, start:stop])
        for column in range(start, stop):
            codes[:, :, column] = (left[:, :, column] / scale).round().clamp(low, high)
            error = (left[:, :, column] - codes[:, :, column] * scale) / factor[:, column, column, None]
            left[:, :, column:stop] -= error[:, :, None] * factor[:, None, column, column:stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return codes.gather(2, order.argsort(dim=1)[:, None].expand_as(codes))


def descended(codes: Tensor, weight: Tensor, second: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return codes of which none can be changed alone with less error, or those after some sweeps; args as of `gptq`.

    The error of no row is larger than it was.
    """
    codes, diagonal = codes.clone(), second.diagonal(dim1=1, dim2=2)
    slope = (weight - codes * scale[:, :, None]) @ second
    for _ in range(_SWEEPS):
        before = codes.clone()
        for column in range(codes.shape[2]):
            wanted = codes[:, :, column] + slope[:, :, column] / diagonal[:, column, None] / scale
            step = (wanted.round().clamp(low, high) - codes[:, :, column]) * scale
            if bool(step.any()):
                codes[:, :, column] += (step / scale).round()
                slope -= step[:, :, None] * second[:, None, column]
        if torch.equal(codes, before):
            break
    return codes


def output_error(codes: Tensor, weight: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Return the mean squared error of each row's outputs, (groups, rows); args as of `gptq`."""
    error = weight - codes * scale[:, :, None]
    return ((error @ second) * error).sum(2)


def least_error(  # noqa: PLR0913 - those of `gptq`
    weight: Tensor,
    second: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    shortened: Callable[[Tensor], Tensor] | None,
    *,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return codes and the scales that go with them, (groups, rows), of the least error found; args as of `gptq`.

    Args:
        weight: As of `gptq`, as are those that follow.
        second: As of `gptq`.
        scale: What the search begins with.
        low: As of `gptq`.
        high: As of `gptq`.
        shortened: Makes scales that may be had of any; None where ``scale`` is to stay.
        shared: Whether all rows have one scale, which is then the best for their errors' sum.
    """
    energy = ((weight @ second) * weight).sum(2).clamp_min(torch.finfo(torch.float32).tiny)

    def told(of_rows: Tensor) -> Tensor:
        return (of_rows / energy).sum().expand_as(of_rows) if shared else of_rows

    tried = [scale] if shortened is None else [shortened(scale * ratio) for ratio in _RATIOS]
    codes, scale = gptq(weight, second, tried[0], low, high), tried[0]
    least = output_error(codes, weight, second, scale)
    for other in tried[1:]:
        found = gptq(weight, second, other, low, high)
        error = output_error(found, weight, second, other)
        better = told(error) < told(least)
        codes, scale = torch.where(better[:, :, None], found, codes), torch.where(better, other, scale)
        least = torch.where(better, error, least)
    codes = descended(codes, weight, second, scale, low, high)
    for _ in range(_FITS):
        if shortened is None:
            break
        fitted = told(((codes @ second) * weight).sum(2)) / told(((codes @ second) * codes).sum(2))
        other = torch.where(fitted > 0, shortened(fitted.clamp_min(torch.finfo(torch.float32).tiny)), scale)
        least = output_error(codes, weight, second, scale)
        scale = torch.where(told(output_error(codes, weight, second, other)) < told(least), other, scale)
        codes = descended(codes, weight, second, scale, low, high)
    return codes, scale
