"""The float side of feature losses: the same function, the same points, and hooks that go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from dfqkit.teacher.taps import FeatureTap
from dfqkit.training.objective import measuring_points, reference_graph
from dfqkit_export.errors import TeacherError
from tests._hooks import hooks_on
from tests._toys import TOYS, images, student, toy_graph


def values(graph: fx.GraphModule, inputs: Tensor) -> dict[str, Tensor]:
    """Every node's value, by interpretation instead of hooks."""
    found: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            found[n.name] = value
            return value

    with torch.no_grad():
        Recorder(graph).run(inputs)
    return found


@pytest.mark.parametrize("name", TOYS)
def test_the_reference_computes_what_the_float_graph_does(name: str) -> None:
    graph, quantized = toy_graph(name), student(name)
    nodes, state = [node.name for node in graph.graph.nodes], {k: v.clone() for k, v in graph.state_dict().items()}
    points = measuring_points(quantized)
    reference = reference_graph(graph, points)
    with torch.no_grad():
        assert torch.equal(reference(images(4)), graph(images(4)))
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert [node.name for node in graph.graph.nodes] == nodes
    assert all(torch.equal(state[k], v) for k, v in graph.state_dict().items())
    assert not hasattr(graph, "quant")


@pytest.mark.parametrize("name", TOYS)
def test_points_are_the_quantized_tensors_without_the_input(name: str) -> None:
    quantized = student(name)
    points = measuring_points(quantized)
    own = {key.removeprefix("quant.").partition(".")[0] for key, _ in quantized.named_modules() if key[:6] == "quant."}
    assert points
    assert len(points) == len(set(points))
    assert set(points) == own - {"image"}


@pytest.mark.parametrize("name", ["option_a", "shuffle"])
def test_features_are_what_leaves_each_point_at_its_first_call(name: str) -> None:
    """Option A and shuffle use a quantizer again behind pad and chunk, where it must not overwrite the point."""
    graph, quantized = toy_graph(name), student(name, "w4a4")
    points = measuring_points(quantized)
    calls = [str(n.target) for n in quantized.graph.nodes if n.op == "call_module" and str(n.target)[:6] == "quant."]
    assert len(calls) > len(set(calls))
    inputs = images(4)
    floats, quants = values(graph, inputs), values(quantized, inputs)
    first = {}
    for node in quantized.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("quant."):
            first.setdefault(str(node.target).removeprefix("quant."), node.name)
    reference = reference_graph(graph, points)
    with torch.no_grad(), FeatureTap(reference, points) as wanted, FeatureTap(quantized, points) as found:
        reference(inputs)
        quantized(inputs)
        assert set(wanted.features) == set(found.features) == set(points)
        for point in points:
            assert torch.equal(wanted.features[point], floats[point])
            assert torch.equal(found.features[point], quants[first[point]])


def test_each_forward_replaces_the_last_ones_features() -> None:
    graph, points = toy_graph("option_a"), measuring_points(student("option_a"))
    reference = reference_graph(graph, points)
    with torch.no_grad(), FeatureTap(reference, points) as tap:
        reference(images(4, 1))
        before = dict(tap.features)
        reference(images(2, 2))
        assert all(len(tensor) == 2 for tensor in tap.features.values())
        assert all(len(tensor) == 4 for tensor in before.values())


def test_hooks_go_even_after_an_exception_and_can_come_again() -> None:
    quantized = student("option_a")
    points = measuring_points(quantized)
    before, tap = hooks_on(quantized), FeatureTap(quantized, points)

    def fail() -> None:
        with tap:
            quantized(images(2))
            assert tap.features
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert hooks_on(quantized) == before
        assert not tap.features
    with pytest.raises(TeacherError), FeatureTap(quantized, [*points, "nowhere"]):
        pass
    assert hooks_on(quantized) == before


def test_gradients_pass_through_the_students_features() -> None:
    quantized = student("option_a", frozen=False)
    points = measuring_points(quantized)
    with FeatureTap(quantized, points) as tap:
        quantized(images(4))
        tap.features[points[0]].square().sum().backward()
    assert quantized.get_submodule("stem.0").weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
