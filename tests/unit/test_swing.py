"""Swing convolution: strided convolutions see moved maps while the context lasts, and the model is as it was after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfqkit.synthesis.methods.genie.swing import SwingConvolutions
from tests._hooks import hooks_on
from tests._toys import IMAGE, images, toy


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strided(kernel: int = 1, stride: int | tuple[int, int] = 2) -> nn.Conv2d:
    with torch.random.fork_rng():
        conv = nn.Conv2d(1, 1, kernel, stride=stride, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
    return conv


def windows(x: Tensor) -> list[Tensor]:
    """All nine windows of the map padded by one reflected pixel."""
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    _, _, height, width = x.shape
    return [padded[:, :, down : down + height, right : right + width] for down in range(3) for right in range(3)]


def test_it_is_a_random_window_of_the_reflected_map() -> None:
    conv, x = strided(), torch.rand(2, 1, 6, 5, generator=rng(5))
    expected = [conv(window) for window in windows(x)]
    found = set()
    with SwingConvolutions(conv, rng()):
        for _ in range(100):
            y = conv(x)
            matches = [index for index, wanted in enumerate(expected) if torch.equal(y, wanted)]
            assert len(matches) == 1
            found.update(matches)
    assert found == set(range(9))


def test_gradients_are_those_of_the_reflected_window() -> None:
    conv, x = strided(3), torch.rand(2, 1, 6, 6, generator=rng(5), requires_grad=True)
    weight = torch.rand(2, 1, 2, 2, generator=rng(6))
    with SwingConvolutions(conv, rng(1)):
        (got,) = torch.autograd.grad((conv(x) * weight).sum(), x)
    expected = []
    for index in range(9):
        value = (conv(windows(x)[index]) * weight).sum()
        expected += torch.autograd.grad(value, x)
    assert sum(torch.allclose(got, gradient, atol=1e-6) for gradient in expected) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2)])
def test_small_maps(size: tuple[int, int]) -> None:
    conv, x = strided(), torch.rand(1, 1, *size, generator=rng(5))
    with SwingConvolutions(conv, rng()):
        seen = [conv(x) for _ in range(30)]
    assert all(y.shape == conv(x).shape for y in seen)
    moved = any(not torch.equal(y, conv(x)) for y in seen)
    assert moved == (max(size) > 1)


def test_only_strided_convolutions_swing() -> None:
    x = torch.rand(1, 1, 6, 6, generator=rng(5))
    still, one_way = strided(stride=1), strided(stride=(2, 1))
    with SwingConvolutions(nn.Sequential(still), rng()) as swing:
        assert not swing.layers
        assert all(torch.equal(still(x), still(x.clone())) for _ in range(5))
    with SwingConvolutions(nn.Sequential(one_way), rng()) as swing:
        assert list(swing.layers) == ["0"]
        assert len({tuple(one_way(x).flatten().tolist()) for _ in range(20)}) > 1


def test_a_teacher_is_bitwise_itself_afterwards() -> None:
    model, x = toy("residual"), images(4, image=IMAGE)
    before = model(x)
    swing = SwingConvolutions(model, rng())
    assert list(swing.layers) == ["b1.0", "down.0"]
    with swing:
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), before)
    with pytest.raises(KeyError), swing:
        raise KeyError
    assert not hooks_on(model)


def test_its_generator_decides() -> None:
    model, x = toy("residual"), images(4, image=IMAGE)
    state, outputs = torch.get_rng_state(), []
    for seed in (0, 0, 1, 2):
        with SwingConvolutions(model, rng(seed)):
            outputs.append(torch.stack([model(x) for _ in range(3)]))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(state, torch.get_rng_state())
