"""Gradient steps in bfloat16: what they read, how far they are from float32, and that a report says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dfqkit.config.pools import PixelConfig
from dfqkit.config.registry import synthesizer_configs
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.batchnorm_moments import can_join, channel_moments, normalised_with_moments
from tests._toys import toy_teacher
from tests.unit.test_distill import distiller

_OTHERS = ("metadata", "psaq")
#: Without those that ask for records, or for attention, which the toy has not.
PIXELS = sorted(
    name for name, kind in synthesizer_configs().items() if issubclass(kind, PixelConfig) and name not in _OTHERS
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_of_bfloat16_are_those_of_the_same_values_in_float64(layout: torch.memory_format) -> None:
    """Sums in bfloat16 itself would be off by tens of percent: a mean of 40,000 values is what 8 bits cannot add up."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(6).eval().requires_grad_(False)
    layer.running_mean, layer.running_var = torch.randn(6), torch.rand(6) + 0.5
    x = (torch.randn(16, 6, 50, 50) * 0.3 + 4).to(torch.bfloat16).contiguous(memory_format=layout).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    assert can_join(layer, x)
    y, *moments = normalised_with_moments(layer, x)
    wanted = torch.var_mean(exact, dim=(0, 2, 3), correction=0)[::-1]
    for found, value in zip((*moments, *channel_moments(x)), wanted * 2, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)
    assert y.dtype == torch.bfloat16
    other = layer.double()(exact)
    torch.testing.assert_close(y.double(), other, rtol=2**-7, atol=2**-7)
    weights = torch.randn(3, 6)
    ours = (y.float() * weights[0].view(1, -1, 1, 1)).sum() / y.numel() + (torch.stack(moments) * weights[1:]).sum()
    theirs = (other * weights[0].view(1, -1, 1, 1)).sum() / y.numel() + (torch.stack(wanted) * weights[1:]).sum()
    (gradient,), (expected,) = torch.autograd.grad(ours, [x]), torch.autograd.grad(theirs, [exact])
    error = (gradient.double() - expected).norm() / expected.norm()
    assert error < 2**-7


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The number formats of what convolutions give."""
    original, found = nn.Conv2d._conv_forward, list[torch.dtype]()

    def watched(self: Any, x: torch.Tensor, *more: Any) -> torch.Tensor:
        y = original(self, x, *more)
        found.append(y.dtype)
        return y

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", watched)
    return found


@pytest.mark.parametrize("method", PIXELS)
def test_pixels_are_optimised_in_bfloat16_to_nearly_the_same_losses(method: str, asked: list[torch.dtype]) -> None:
    teacher = toy_teacher("residual")
    found = []
    for bf16 in (False, True):
        config = synthesizer_configs()[method].model_validate({"batch": 8, "steps": 4, "bf16": bf16})
        made = build_synthesizer(config, teacher, derive(0, "x"), Demand(training=8, fresh=0))
        asked.clear()
        found.append([made.synthesize([]) for _ in range(4)])
        assert set(asked) == {torch.bfloat16 if bf16 else torch.float32}
    assert found[0] != found[1]
    for plain, half in zip(*found, strict=True):
        assert half == pytest.approx(plain, rel=0.1, abs=0.05)


def test_students_learn_in_bfloat16_and_are_judged_in_float32() -> None:
    setting: dict[str, Any] = {"batch": 8, "steps": 4, "judge_every": 2}
    plain, half = distiller(**setting), distiller(**setting, bf16=True)
    terms = [[each.run_step() for _ in range(4)] for each in (plain, half)]
    assert terms[0] != terms[1]
    for one, other in zip(*terms, strict=True):
        assert other == pytest.approx(one, rel=0.1, abs=0.05)
    assert half.judged[0] == plain.judged[0]
    assert {value.dtype for value in half.best.values() if value.is_floating_point()} == {torch.float32}
