"""Ranges of what activation functions read end where the error behind them is least."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfqkit.config.quant import QuantConfig
from dfqkit.students.calibration import calibrate
from dfqkit.students.capture import float_graph
from dfqkit.students.quantizers import activation_proxy
from dfqkit.students.student import build_student
from dfqkit_export.backends import get_target
from tests._toys import IMAGE, Head, images, randomise

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: functional.leaky_relu(x, 1e-3),
    "leaky module": nn.LeakyReLU(1e-3),
    "gelu": nn.GELU(),
}


class Net(nn.Module):
    """A layer whose outputs reach far below 0, and a function behind it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), Head(8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.function(self.first(x)))))


def _range(function: Callable[[Tensor], Tensor], scales: str) -> tuple[float, float, float]:
    """Return both ends of the range behind the first layer, and the mean squared error behind the function."""
    model = randomise(Net(function))
    with torch.no_grad():
        model.first.weight.mul_(4)
        model.first.bias.sub_(2)
    config = QuantConfig.model_validate({"scales": scales, "activation_range": "percentile", "percentile": 100})
    student = build_student(float_graph(model, IMAGE), config, get_target("onnxruntime"), IMAGE)
    x = images(16)
    calibrate(student, [x], IMAGE, learnable=scales == "float")
    quantizer = student.get_submodule("quant.first")
    proxy, values = activation_proxy(quantizer), model.first(x).detach()
    scale, zero = proxy.scale().item(), proxy.zero_point().item()
    error = (function(quantizer(values)) - function(values)).square().mean().item()
    return -zero * scale, (255 - zero) * scale, error


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_half_that_hardly_counts_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high, error = _range(FUNCTIONS[name], "float")
    monkeypatch.setattr("dfqkit.students.calibration.narrow_ranges", lambda *_: None)
    whole_low, whole_high, whole_error = _range(FUNCTIONS[name], "float")
    assert whole_low < -4
    assert low > 0.8 * whole_low
    assert high > 0.6 * whole_high
    assert error < 0.75 * whole_error


def test_powers_of_two_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _range(FUNCTIONS["leaky_relu"], "power_of_two")
    monkeypatch.setattr("dfqkit.students.calibration.narrow_ranges", lambda *_: None)
    assert _range(FUNCTIONS["leaky_relu"], "power_of_two") == found
