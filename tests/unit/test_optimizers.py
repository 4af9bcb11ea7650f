"""The schedule, and optimizers that go through flat tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dfqkit.synthesis.optimizers import cosine, on_device, optimizer_tensors, restore_optimizer, under

MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1, betas=(0.5, 0.999)),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def test_cosine() -> None:
    assert cosine(0.1, 0.0) == pytest.approx(0.1)
    assert cosine(0.1, 0.5) == pytest.approx(0.05)
    assert cosine(0.1, 1.0) == pytest.approx(0.0)
    assert cosine(0.1, 1.0, floor=0.05) == pytest.approx(0.005)
    assert cosine(0.1, 0.5, floor=0.5) == pytest.approx(0.075)
    assert cosine(0.1, 7.0) == cosine(0.1, 1.0)
    assert cosine(0.1, -1.0) == cosine(0.1, 0.0)


@pytest.mark.parametrize("kind", MAKERS)
def test_continuing_is_bitwise_the_same(kind: str) -> None:
    straight = nn.Linear(3, 2)
    optimizer = MAKERS[kind](straight)
    for _ in range(3):
        step(straight, optimizer)
    resumed = copy.deepcopy(straight)
    fresh = MAKERS[kind](resumed)
    kept = optimizer_tensors(optimizer)
    restore_optimizer(fresh, {name: value.clone() for name, value in kept.items()})
    for _ in range(3):
        step(straight, optimizer)
        step(resumed, fresh)
    assert torch.equal(straight.weight, resumed.weight)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_restored_from_stays_as_it_was(kind: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = MAKERS[kind](model)
    step(model, optimizer)
    state = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    before = {name: value.clone() for name, value in state.items()}
    other = nn.Linear(3, 2)
    fresh = MAKERS[kind](other)
    restore_optimizer(fresh, state)
    step(other, fresh)
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_an_optimizer_that_never_stepped_has_nothing_to_keep() -> None:
    model = nn.Linear(3, 2)
    optimizer = MAKERS["adam"](model)
    assert optimizer_tensors(optimizer) == {}
    restore_optimizer(optimizer, {})
    step(model, optimizer)


def test_on_device_leaves_the_count_of_steps() -> None:
    given = {"0.step": torch.tensor(3.0), "step": torch.tensor(1), "0.exp_avg": torch.ones(2), "steps": torch.ones(1)}
    found = on_device(given, torch.device("meta"))
    assert {name: value.device.type for name, value in found.items()} == {
        "0.step": "cpu", "step": "cpu", "0.exp_avg": "meta", "steps": "meta",
    }  # fmt: skip
    same = on_device(given, torch.device("cpu"))
    assert all(torch.equal(same[name], value) and same[name] is not value for name, value in given.items())
    assert not {v.data_ptr() for v in same.values()} & {v.data_ptr() for v in given.values()}


def test_under() -> None:
    state = {"a.x": torch.zeros(1), "a.y": torch.ones(1), "ab.x": torch.ones(2)}
    assert list(under(state, "a.")) == ["x", "y"]
