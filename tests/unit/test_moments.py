"""Moments per channel: their values, their gradients, and the layer that they are computed with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqkit.teacher.batchnorm_moments import can_join, channel_moments, normalised_with_moments
from dfqkit.teacher.taps import BatchNormTap


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x.double(), dim=dims, correction=0)
    return mean, variance


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5), (2, 3, 2, 2, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (5.0, 1.0), (-300.0, 0.01), (7.0, 0.0)])
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, ...], shift: float, scale: float) -> None:
    x = noise(*shape) * scale + shift
    weights = noise(2, shape[1], seed=1)
    found, wanted = [], []
    for function, images, to in ((channel_moments, x, found), (exact, x.double(), wanted)):
        images = images.clone().requires_grad_(True)
        mean, variance = function(images)
        to += [mean, variance, *torch.autograd.grad((mean * weights[0] + variance * weights[1]).sum(), images)]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-300.0, 0.01)])
def test_channels_last_is_the_same(shift: float, scale: float) -> None:
    plain = noise(4, 3, 5, 6) * scale + shift
    found = []
    for function, x in ((channel_moments, plain.to(memory_format=torch.channels_last)), (exact, plain.double())):
        x = x.requires_grad_(True)
        mean, variance = function(x)
        found.append([mean, variance, *torch.autograd.grad((mean + 2 * variance).sum(), x)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_joined_with_the_layer_nothing_changes(affine: bool, dimensions: int) -> None:
    layer = (nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm1d)(3, affine=affine).eval().requires_grad_(False)
    layer.running_mean.copy_(torch.tensor([0.1, -0.5, 2.0]))
    layer.running_var.copy_(torch.tensor([0.3, 1.0, 4.0]))
    if affine:
        layer.weight.copy_(torch.tensor([1.5, -0.5, 0.2]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x = noise(*((5, 3, 4, 6) if dimensions == 2 else (5, 3))).requires_grad_(True)
    assert can_join(layer, x)
    y, mean, variance = normalised_with_moments(layer, x)
    assert torch.equal(y, layer(x))
    to_y, to_moments = noise(*y.shape, seed=2), noise(2, 3, seed=3)
    plain = [layer(x), *exact(x)]
    gradients = [
        torch.autograd.grad((a * to_y).sum() + (b * to_moments[0]).sum() + (c * to_moments[1]).sum(), x)[0]
        for a, b, c in ((y, mean, variance), plain)
    ]
    assert torch.allclose(*gradients, atol=1e-5)


class Doubling(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("case", ["own forward", "trainable", "double", "plain"])
def test_the_tap_leaves_every_layer_what_it_computes(case: str) -> None:
    layer = (Doubling(3) if case == "own forward" else nn.BatchNorm2d(3)).eval()
    layer.requires_grad_(case == "trainable")
    x = noise(4, 3, 5, 5).requires_grad_(True)
    if case == "double":
        layer, x = layer.double(), x.detach().double().requires_grad_(True)
    assert can_join(layer, x) == (case == "plain")
    model = nn.Sequential(layer)
    before = model(x)
    with BatchNormTap(model) as tap, BatchNormTap(model) as second:
        after = model(x)
        assert len(tap.statistics) == len(second.statistics) == 1
        assert torch.equal(tap.statistics[0].mean, second.statistics[0].mean)
    assert torch.equal(before, after)
    assert torch.allclose(tap.statistics[0].mean.double(), exact(x)[0], atol=1e-6)
    assert "forward" not in vars(layer)
    if case == "trainable":
        gradients = torch.autograd.grad(after.sum(), layer.parameters())
        assert all(g.abs().sum() > 0 for g in gradients)
