"""Where quantizers go, as each target wants it."""

from __future__ import annotations

import operator
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from torch import fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import float_layers
from dfqkit.students.placement import Plan, plan, quantized_graph
from dfqkit.students.student import calibrate_student
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import RecipeError, TargetError
from dfqkit_export.measure.metrics import sqnr_db
from dfqkit_export.tasks import task_of
from tests._messages import raises_naming
from tests._toys import IMAGE, TOYS, images, toy_graph


def planned(
    name: str, target: str = "onnxruntime", bits: str = "w4a4", **options: object
) -> tuple[fx.GraphModule, Plan]:
    graph = toy_graph(name)
    return graph, plan(graph, QuantConfig(bits=bits, **options), get_target(target), IMAGE)  # type: ignore[arg-type]


def modules(graph: fx.GraphModule) -> dict[str, nn.Module]:
    return dict(graph.named_modules())


def nodes_of(graph: fx.GraphModule, *kinds: type[nn.Module]) -> list[fx.Node]:
    found = modules(graph)
    return [n for n in graph.graph.nodes if n.op == "call_module" and isinstance(found[str(n.target)], kinds)]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", TOYS)
def test_logits_stay_float_and_the_input_is_quantized(name: str, target: str) -> None:
    graph, decided = planned(name, target)
    output = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    assert output.name not in decided.activations
    assert decided.activations["image"].bits == 8
    assert decided.activations["image"].signed


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", TOYS)
def test_a_convolution_and_its_relu_are_not_separated(name: str, target: str) -> None:
    graph, decided = planned(name, target)
    for relu in nodes_of(graph, nn.ReLU, nn.ReLU6):
        before = relu.args[0]
        if len(before.users) == 1 and (before in nodes_of(graph, nn.Conv2d) or before.target is torch.add):
            assert before.name not in decided.activations
            if relu.name in decided.activations:
                assert not decided.activations[relu.name].signed


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", TOYS)
def test_every_weighted_layer_reads_quantized_values(name: str, target: str) -> None:
    graph, decided = planned(name, target)
    for layer in nodes_of(graph, nn.Conv2d, nn.Linear):
        source = layer.args[0]
        while source.name not in decided.activations:
            moves = source.op == "call_function" or isinstance(modules(graph)[str(source.target)], nn.MaxPool2d)
            assert moves, f"{layer} reads {source} unquantized"
            assert source.target not in (torch.add, torch.mul, torch.cat)
            source = source.args[0]


def test_onnxruntime_quantizes_both_inputs_and_the_output_of_an_addition() -> None:
    graph, decided = planned("residual")
    additions = [n for n in graph.graph.nodes if n.target is torch.add]
    assert len(additions) == 2
    for addition in additions:
        for source in addition.args:
            through = source if source.name in decided.activations else source.args[0]
            assert through.name in decided.activations
        (relu,) = addition.users
        assert relu.name in decided.activations


def test_tensorrt_quantizes_only_the_skip_of_an_addition() -> None:
    graph, decided = planned("residual", "tensorrt")
    first, second = (n for n in graph.graph.nodes if n.target is torch.add)
    assert "a2_0" not in decided.activations  # fuses with the addition
    assert "relu" in decided.activations  # the skip, through max pooling
    main = max(second.args, key=list(graph.graph.nodes).index)
    (skip,) = (n for n in second.args if n is not main)
    assert main.name not in decided.activations
    assert skip.name in decided.activations
    assert first.name not in decided.activations


def test_bits() -> None:
    graph, decided = planned("residual", bits="w3a4")
    weights = decided.weights
    assert weights == {n: 8 if n in ("stem.0", "head.fc") else 3 for n in weights}
    bits = {n: a.bits for n, a in decided.activations.items()}
    assert bits["image"] == 8
    assert bits["relu"] == 4  # read by a convolution and, as it is, by an addition
    assert bits["a2_0"] == 8  # read by an addition only
    assert bits["global_pool"] == 8  # read by the last layer
    assert len(nodes_of(graph, nn.Conv2d)) + 1 == len(weights)


def test_arithmetic_on_the_input_does_not_hide_the_first_layer() -> None:
    _, decided = planned("input_transform", bits="w3a4")
    assert decided.weights == {"stem.0": 8, "left.0": 3, "right.0": 3, "head.fc": 8}
    assert decided.activations["cat"].bits == 8  # read by the first layer


def test_bits_without_exceptions() -> None:
    _, decided = planned("residual", bits="w3a4", first_last=None, elementwise=None)
    assert set(decided.weights.values()) == {3}
    assert {a.bits for a in decided.activations.values()} == {4}


def test_standalone_norms_keep_the_bits_of_the_edge() -> None:
    _, decided = planned("preactivation", bits="w3a4")
    assert decided.weights == {"stem": 8, "norm1": 8, "conv": 3, "norm2": 8, "head.fc": 8}


def test_signs() -> None:
    _, decided = planned("squeeze_excite")
    signed = {n: a.signed for n, a in decided.activations.items()}
    assert not signed["sigmoid"]
    assert not signed["silu_gate"]
    assert signed["mul"]  # x * sigmoid(x) is negative for negative x
    assert signed["down"]
    _, decided = planned("option_a")
    (pad,) = (a for n, a in decided.activations.items() if n.startswith("pad"))
    assert not pad.signed
    assert not decided.activations["global_pool"].signed


@pytest.mark.parametrize(
    ("name", "kinds"), [("shuffle", {"getitem"}), ("option_a", {"pad"}), ("input_transform", {"select"})]
)
def test_behind_operators_that_only_move_values_the_same_quantizer_serves(name: str, kinds: set[str]) -> None:
    graph, decided = planned(name)
    shared = {n: a.shares for n, a in decided.activations.items() if a.shares}
    assert {n.split("_")[0] for n in shared} == kinds
    student = quantized_graph(graph, QuantConfig(bits="w4a4"), get_target("onnxruntime"), IMAGE)
    for node, source in shared.items():
        calls = [n for n in student.graph.nodes if n.op == "call_module" and n.target == f"quant.{source}"]
        assert node in {n.args[0].name for n in calls}
        assert not hasattr(student.quant, node)


def test_the_student_is_made_of_brevitas_layers_and_leaves_the_graph_alone() -> None:
    graph = toy_graph("residual")
    before = {n: v.clone() for n, v in graph.state_dict().items()}
    rng = torch.get_rng_state()
    student = quantized_graph(graph, QuantConfig(), get_target("onnxruntime"), IMAGE)
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(isinstance(m, qnn.QuantIdentity) for m in graph.modules())
    assert all(torch.equal(before[n], v) for n, v in graph.state_dict().items())
    for name, module in modules(graph).items():
        if isinstance(module, nn.Conv2d | nn.Linear):
            twin = student.get_submodule(name)
            assert isinstance(twin, qnn.QuantConv2d | qnn.QuantLinear)
            assert torch.equal(twin.weight, module.weight)
            assert torch.equal(twin.bias, module.bias)
    assert student(images(2)).shape == (2, IMAGE.classes)


@pytest.mark.parametrize("name", TOYS)
def test_every_target_uses_its_own_types(name: str) -> None:
    graph = toy_graph(name)
    for target, signed in (("onnxruntime", False), ("tensorrt", True)):
        student = quantized_graph(graph, QuantConfig(), get_target(target), IMAGE)
        quantizers = [m for m in student.modules() if isinstance(m, qnn.QuantIdentity)]
        assert quantizers
        assert all(bool(q.act_quant.is_signed) == signed for q in quantizers)


def test_getitem_of_sizes_is_no_tensor() -> None:
    graph, decided = planned("shuffle")
    sizes = [n for n in graph.graph.nodes if "sym_size" in n.name or n.target in (operator.mul, operator.floordiv)]
    assert sizes
    assert not {n.name for n in sizes} & set(decided.activations)


def test_a_scheme_the_target_cannot_run_is_refused_first() -> None:
    narrow = get_target("onnxruntime")
    limited = type(narrow)(
        **{
            **{f: getattr(narrow, f) for f in narrow.__dataclass_fields__},
            "weights": type(narrow.weights)(bits=(8,), signed=True, symmetric=True, granularity="per_channel"),
        }
    )
    graph = toy_graph("shuffle")
    with raises_naming(TargetError, "4-bit weights", "8 bits"):
        quantized_graph(graph, QuantConfig(bits="w4a8"), limited, IMAGE)


class Heads(nn.Module):
    """Two levels of raw heads, joined, decoded to corners and probabilities, and put into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(IMAGE.shape[0], 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.boxes = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.fine(x))
        levels = [fine, torch.relu(self.coarse(fine))]
        boxes = torch.cat([head(level).flatten(2) for head, level in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([head(level).flatten(2) for head, level in zip(self.scores, levels, strict=True)], 2)
        first, second = boxes.chunk(2, 1)
        return torch.cat([first + second, second * torch.sigmoid(first), torch.sigmoid(scores)], 1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_raw_heads_are_quantized_and_what_decodes_them_stays_in_float(target: str) -> None:
    graph = float_graph(Heads().eval(), IMAGE, task_of({"name": "generic", "names": ["all"]}))
    decided = plan(graph, QuantConfig(bits="w8a8"), get_target(target), IMAGE)
    heads = {str(n.target): n.name for n in nodes_of(graph, nn.Conv2d)}
    assert set(decided.weights) == set(heads)
    quantized = {name for name in decided.activations if "relu" not in name and name != "image"}
    raw = {name for path, name in heads.items() if "boxes" in path or "scores" in path}
    assert quantized == (raw if target == "onnxruntime" else set())
    assert {name for name in decided.floats if name.startswith("cat")} == {"cat", "cat_1", "cat_2"}
    assert all("decoded" in reason for reason in decided.floats.values())


class Maps(nn.Module):
    """A map that is an answer, one of which two answers are made, and numbers of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.own, self.both = nn.Conv2d(IMAGE.shape[0], 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.whole = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.body(x))
        both = self.both(x)
        return self.own(x), both[:, :4], torch.sigmoid(both[:, 4:]), self.whole(x.mean((2, 3), keepdim=True)).flatten(1)


def test_a_map_that_is_an_answer_is_given_in_codes_and_two_that_share_a_layer_are_not(tmp_path: Path) -> None:
    names, target = ["own", "first", "second", "whole"], get_target("onnxruntime")
    graph = float_graph(Maps().eval(), IMAGE, task_of({"name": "generic", "names": names}))
    for bits in ("w8a8", "w4a4"):
        decided = plan(graph, QuantConfig(bits=bits, elementwise=None), target, IMAGE)
        answers = [item for item in decided.activations.values() if item.answers]
        assert [item.bits for item in answers] == [8]
        assert {"both", "whole"}.isdisjoint(decided.activations)
        assert "two outputs" in decided.floats["both"]
        assert {"own", "whole"}.isdisjoint(decided.floats)
    tensorrt = plan(graph, QuantConfig(bits="w8a8"), get_target("tensorrt"), IMAGE)
    assert not any(item.answers for item in tensorrt.activations.values())
    student = quantized_graph(graph, config := QuantConfig(bits="w8a8"), target, IMAGE)
    calibrate_student(student, [images(16)], config, IMAGE)
    freeze(student)
    assert "both" in float_layers(student, student.meta["floats"]) | student.meta["floats"]
    write_qdq(student, target, tmp_path / "model.onnx", metadata={})
    found = OrtSession(tmp_path / "model.onnx").run_all(images(4).numpy())
    assert list(found) == names
    with torch.no_grad():
        own = student(images(4))["own"].numpy()
    assert (sqnr_db(own, found["own"]) or 200) > 60
    assert len(np.unique(found["own"])) <= 256 < len(np.unique(found["first"]))
    precision = {
        layer.name.split("/")[0]: layer.precision for layer in realised_precision(tmp_path / "model.onnx").layers
    }
    assert (precision["own"], precision["both"]) == ("int8", "float")


class Distributions(Heads):
    """Distances as means of distributions, by a convolution with the numbers of the bins."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = nn.Conv2d(8, 1, 1, bias=False)
        self.sides = nn.Conv2d(8, 32, 1)
        with torch.no_grad():
            self.bins.weight.copy_(torch.arange(8.0).reshape(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.fine(x))
        sides = 3 * self.sides(features).flatten(2)
        sides = sides.reshape(len(x), 4, 8, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.bins(sides).flatten(1, 2), torch.sigmoid(self.scores[0](features).flatten(2))], 1)


def test_means_of_distributions_are_decoded_in_float_and_the_file_computes_them(tmp_path: Path) -> None:
    model, config, target = (
        Distributions().eval(),
        QuantConfig(bits="w8a8", weight_range="max"),
        get_target("onnxruntime"),
    )
    graph = float_graph(model, IMAGE, task_of({"name": "generic", "names": ["all"]}))
    decided = plan(graph, config, target, IMAGE)
    assert set(decided.weights) == {"fine", "sides", "scores.0"}
    assert "weighs a softmax" in decided.floats["bins"]
    student = quantized_graph(graph, config, target, IMAGE)
    calibrate_student(student, [images(16)], config, IMAGE)
    freeze(student)
    write_qdq(student, target, tmp_path / "model.onnx", metadata={})
    found = OrtSession(tmp_path / "model.onnx").run(images(4).numpy())
    with torch.no_grad():
        assert (sqnr_db(student(images(4)).numpy(), found) or 200) > 60
        assert (sqnr_db(model(images(4)).numpy(), found) or 0) > 25
    layers = realised_precision(tmp_path / "model.onnx").layers
    assert {layer.name.split("/")[0]: layer.precision for layer in layers}["bins"] == "float"
    assert [layer.precision for layer in layers].count("int8") == 3


def test_pooling_and_sums_of_maps_behind_the_last_layer_stay_in_integers() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(IMAGE.shape[0], 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.one(x))
            return torch.relu(x + self.two(x)).mean((2, 3))

    graph = float_graph(Trunk().eval(), IMAGE, task_of({"name": "embedding"}))
    decided = plan(graph, QuantConfig(bits="w8a8"), get_target("onnxruntime"), IMAGE)
    assert not decided.floats
    assert {"relu", "relu_1"} <= set(decided.activations)


def test_what_a_scheme_names_stays_in_float_and_says_so() -> None:
    graph, _ = planned("residual")
    layer, addition = nodes_of(graph, nn.Conv2d)[1], next(n for n in graph.graph.nodes if n.target is torch.add)
    _, decided = planned("residual", in_float=(str(layer.target), addition.name))
    assert {layer.name, addition.name} <= set(decided.kept)
    assert not {layer.name, addition.name} & set(decided.activations)
    assert all("quant.in_float" in decided.kept[name] for name in (layer.name, addition.name))
    with raises_naming(RecipeError, "quant.in_float", "'nothing'", "report"):
        planned("residual", in_float=("nothing",))
