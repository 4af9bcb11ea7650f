"""Equalization keeps the function of any network, scales what it knows, and says what it left alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from brevitas.graph.equalize import EqualizeGraph
from torch import Tensor, nn
from torch.nn import functional

from dfqkit.students.capture import float_graph
from dfqkit.students.equalizing import equalize, equalize_values
from tests._toys import IMAGE, Head, images, randomise, toy_graph

Middle = Callable[["Chain", Tensor], Tensor]


class Chain(nn.Module):
    """Layers of very different channels, with something in the middle."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.gate, self.narrow = nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.tokens, self.grouped = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head, self.middle = Head(8), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.last(self.middle(self, self.first(x)))))


def chain(middle: Middle) -> nn.Module:
    model = randomise(Chain(middle))
    with torch.no_grad():
        model.first.weight.mul_(torch.logspace(-2, 2, 8).reshape(8, 1, 1, 1))
    return model


PASSED: dict[str, Middle] = {
    "module and function of one activation": lambda net, x: torch.relu(net.act(x)) + functional.relu(net.act(x)),
    "one layer twice": lambda net, x: net.act(net.gate(net.act(net.gate(net.act(x))))),
    "a gate": lambda net, x: net.act(x) * torch.sigmoid(net.gate(functional.adaptive_avg_pool2d(net.act(x), 1))),
    "a factor": lambda net, x: 2 * net.act(x),
    "pools": lambda _, x: functional.avg_pool2d(functional.max_pool2d(torch.relu(x), 2), 2),
    "a constant": lambda net, x: net.act(x) + 1.5,
    "hard-swish": lambda _, x: functional.hardswish(x),
    "swish, a factor and a constant": lambda _, x: 0.2 + 0.7 * functional.silu(x),
    "zeros around it": lambda _, x: functional.pad(torch.relu(x), (0, 1, 0, 1)),
    "a grid": lambda _, x: torch.relu(x)[:, :, ::2, ::2],
}
STOPPED: dict[str, Middle] = {
    "a gate of another value": lambda net, x: net.act(x) * torch.sigmoid(x),
    "a square": lambda net, x: net.act(x) * net.act(x),
    "ones around it": lambda _, x: functional.pad(torch.relu(x), (0, 1, 0, 1), value=1.0),
    "a sigmoid": lambda _, x: torch.sigmoid(x),
    "a cat": lambda net, x: torch.cat([net.act(x)[:, :4], x[:, 4:]], 1),
    "other channels": lambda _, x: x.reshape(x.shape[0], 8, -1).transpose(1, 2).reshape(x.shape[0], 8, 16, 16),
    "a linear layer along the width": lambda net, x: net.tokens(functional.max_pool2d(x, 2)),
    "groups": lambda net, x: net.grouped(net.act(x)),
    "a clamp": lambda _, x: x.clamp(0, 6),
}


@pytest.mark.parametrize("way", ["weights", "values"])
@pytest.mark.parametrize("middle", [*PASSED.values(), *STOPPED.values()], ids=[*PASSED, *STOPPED])
def test_the_function_stays(middle: Middle, way: str, caplog: pytest.LogCaptureFixture) -> None:
    graph, x = float_graph(chain(middle), IMAGE), images(4)
    with caplog.at_level(logging.WARNING, "dfqkit"):
        equalized = equalize(graph, 10) if way == "weights" else equalize_values(graph, 0.5, [x])
    with torch.no_grad():
        torch.testing.assert_close(equalized(x), graph(x), rtol=1e-4, atol=1e-4)
    spread, before = (ratio(net.get_submodule("first").weight) for net in (equalized, graph))
    if middle in PASSED.values():
        assert spread < before / 2
    else:
        assert spread == before
        assert "first" in caplog.text


def test_gates_whose_value_is_not_scaled_read_it_as_it_is() -> None:
    graph = float_graph(chain(lambda net, x: net.tokens(functional.hardswish(functional.max_pool2d(x, 2)))), IMAGE)
    equalized = equalize(graph, 10)
    assert [node.name for node in equalized.graph.nodes] == [node.name for node in graph.graph.nodes]


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_values_are_divided_by_a_power_of_their_share(exponent: float) -> None:
    model = chain(lambda _, x: torch.relu(x))
    graph, batches = float_graph(model, IMAGE), [images(4), images(3, seed=1)]
    before, after = graph.get_submodule("first"), equalize_values(graph, exponent, batches).get_submodule("first")
    with torch.no_grad():
        largest = torch.relu(before(torch.cat(batches))).amax((0, 2, 3))
    share = (largest / largest.max()).clamp_min(1e-3)
    wanted = before.weight * share.pow(-exponent).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(after.weight, wanted)
    torch.testing.assert_close(after.bias, before.bias * share.pow(-exponent))


def ratio(weight: Tensor) -> float:
    ranges = weight.detach().abs().flatten(1).amax(1)
    return float(ranges.max() / ranges.min())


@pytest.mark.parametrize("name", ["residual", "option_a", "channels_last", "shuffle"])
def test_the_numbers_are_those_of_brevitas_where_it_knows_the_network(name: str) -> None:
    graph = toy_graph(name)
    theirs = EqualizeGraph(iterations=10, merge_bias=False).apply(copy.deepcopy(graph))
    ours = equalize(graph, 10)
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), graph.parameters(), strict=True))
    for (place, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(mine, other), place


def test_weights_become_alike_through_relu6_as_far_as_nothing_more_reaches_its_bound() -> None:
    graph, batches = float_graph(chain(lambda _, x: functional.relu6(x)), IMAGE), [images(8), images(8, seed=1)]
    before = graph.get_submodule("first").weight
    assert torch.equal(equalize(graph, 10).get_submodule("first").weight, before)
    equalized = equalize(graph, 10, batches)
    after = equalized.get_submodule("first").weight
    with torch.no_grad():
        largest = functional.relu6(graph.get_submodule("first")(torch.cat(batches))).amax((0, 2, 3))
        for batch in batches:
            torch.testing.assert_close(equalized(batch), graph(batch), rtol=1e-4, atol=1e-4)
    factors = (after / before).flatten(1).mean(1)
    assert bool((factors >= 1 - 1e-5).all())
    assert bool((factors * largest <= 6 * (1 + 1e-5)).all())
    assert bool((factors[largest < 6] > 1.01).any())
    assert ratio(after) < ratio(before)
