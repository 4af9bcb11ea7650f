"""Blocks learned one after the other: nearer to the float network than nearest codes, and the file is the student."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students import reconstruction
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.integer_student import IntegerStudent
from dfqkit.students.nodes import called
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import weight_codes
from dfqkit.students.placement import quantized_graph
from dfqkit.students.reconstruction import (
    Rounding,
    _Soft,
    blocks,
    dropped,
    reconstruct,
    rectified,
    undecided,
    unrectified,
)
from dfqkit.students.student import calibrate_student, restore, rounded_layers, snapshot
from dfqkit_export.backends import get_target
from dfqkit_export.backends.opening import open_session
from tests._toys import IMAGE, images, toy_graph

TARGET = get_target("onnxruntime")


SCHEME: dict[str, Any] = {"bits": "w3a4", "scales": "float", "activation_range": "percentile", "weight_range": "max"}


def calibrated(graph: fx.GraphModule, **more: Any) -> fx.GraphModule:
    config = QuantConfig(**{**SCHEME, **more})
    student = quantized_graph(graph, config, TARGET, IMAGE)
    calibrate_student(student, list(images(64).split(16)), config, IMAGE, reference=graph)
    return student


def apart(student: Any, graph: fx.GraphModule, seed: int = 1) -> float:
    x = images(64, seed=seed)
    with torch.no_grad():
        return float((student(x) - graph(x)).square().mean() / graph(x).var())


def test_how_far_a_weight_is_rounded_up_is_the_formula_and_its_inverse() -> None:
    v = np.linspace(-6, 6, 25)
    stretched = 1.2 / (1 + np.exp(-v)) - 0.1  # equation 23 with the paper's zeta 1.1 and gamma -0.1
    found = rectified(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(found, np.minimum(np.maximum(stretched, 0), 1), atol=1e-12)
    assert found[0] == 0
    assert found[-1] == 1, "ends are reached, not only neared"
    inside = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(rectified(unrectified(inside)), inside)
    assert unrectified(torch.tensor(0.5)) == 0


@pytest.mark.parametrize("exponent", [2.0, 7.5, 20.0])
def test_what_is_undecided_is_the_formula(exponent: float) -> None:
    values = np.random.default_rng(0).random(50)
    wanted = math.fsum(1 - abs(2 * value - 1) ** exponent for value in values)  # equation 24
    assert float(undecided(torch.from_numpy(values), exponent)) == pytest.approx(wanted, abs=1e-9)
    assert float(undecided(torch.tensor([0.0, 1.0]), exponent)) == 0


def test_values_skip_quantizers_half_of_the_time() -> None:
    found = dropped(torch.ones(20_000), torch.zeros(20_000), torch.Generator().manual_seed(1))
    assert set(found.tolist()) == {0.0, 1.0}
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_rounding_starts_at_the_codes_there_are_and_leaves_them_by_one_at_most(rounding: str) -> None:
    graph = toy_graph("residual")
    student = calibrated(graph, weight_rounding=rounding)
    for name, layer in student.named_modules():
        if isinstance(layer, Layer):
            before = weight_codes(layer)[0].int()
            variables = Rounding(layer, graph.get_submodule(name).weight)
            variables.decide()
            assert torch.equal(weight_codes(layer)[0].int(), before)
            variables.variable.data.neg_()
            variables.decide()
            moved = weight_codes(layer)[0].int() - before
            assert int(moved.abs().max()) == 1, "an up for a down, but where the grid ends"


def cut(graph: fx.GraphModule) -> list[list[str]]:
    """The layers of each block."""
    modules = dict(graph.named_modules())
    return [[str(n.target) for n in block.nodes if isinstance(called(n, modules), Layer)] for block in blocks(graph)]


def test_blocks_read_one_value_and_give_one_and_hold_every_layer_once() -> None:
    for name in ("residual", "depthwise", "option_a", "shuffle", "squeeze_excite"):
        student = quantized_graph(toy_graph(name), QuantConfig(), TARGET, IMAGE)
        counted = Counter(layer for layers in cut(student) for layer in layers)
        assert set(counted.values()) == {1}, name
        assert len(counted) == sum(isinstance(module, Layer) for module in student.modules())
        for block in blocks(student):
            read = {each for node in block.nodes for each in node.all_input_nodes} - set(block.nodes)
            assert {each.name for each in read if "sym_size" not in each.name} == {block.entry.name}
            used = {user for node in block.nodes[:-1] for user in node.users}
            assert used <= set(block.nodes), "nothing leaves it on the way"


class Viewing(nn.Module):
    """Takes the batch's size from its input, early, for a view at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        x = self.first(x).relu()
        return self.fc(self.second(x).relu().view(count, -1))


def test_a_size_taken_early_keeps_no_cut_away() -> None:
    torch.manual_seed(0)
    graph = float_graph(Viewing(), IMAGE)
    student = calibrated(graph)
    assert cut(student) == [["first"], ["second"], ["fc"]]
    before = apart(student, graph)
    reconstruct(student, graph, [images(40)], 30)  # no multiple of a step's images
    assert apart(student, graph) < before


@pytest.mark.parametrize("most", [8, 1])
def test_every_layer_is_a_block_where_a_part_has_too_many(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student = quantized_graph(toy_graph("residual"), QuantConfig(), TARGET, IMAGE)
    monkeypatch.setattr(reconstruction, "MOST_LAYERS", most)
    assert (max(map(len, cut(student))) > 1) == (most > 1)


@pytest.mark.parametrize(("name", "scales"), [("residual", "float"), ("depthwise", "power_of_two")])
def test_answers_are_nearer_than_with_nearest_codes(name: str, scales: str) -> None:
    graph = toy_graph(name)
    student = calibrated(graph, scales=scales)
    ranges = {key: value for key, value in snapshot(student).items() if key.startswith("quant.")}
    before, fresh = apart(student, graph), apart(student, graph, 5)
    calls: list[None] = []
    reconstruct(student, graph, list(images(64).split(16)), 40, advance=lambda: calls.append(None))
    assert apart(student, graph) < 0.85 * before
    assert apart(student, graph, 5) < 0.85 * fresh, "on images that it was not learned on"
    after = snapshot(student)
    assert any(not torch.equal(value, after[key]) for key, value in ranges.items()) == (scales == "float")
    config = QuantConfig(reconstruct=40)
    assert len(calls) == rounded_layers(graph, config) > 0
    assert rounded_layers(graph, config.model_copy(update={"weight_rounding": "gptq"})) == 2 * len(calls)


def test_a_block_gives_less_error_than_with_nearest_codes_or_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen = toy_graph("residual"), list[float]()
    measured, student = _Soft.error, calibrated(graph)

    def see(soft: _Soft, values: Any) -> float:
        seen.append(measured(soft, values))
        return seen[-1]

    monkeypatch.setattr(_Soft, "error", see)
    before = snapshot(student)
    reconstruct(student, graph, [images(64)], 20)
    assert len(seen) == 2 * len(blocks(student))
    assert min(after / first for first, after in zip(seen[::2], seen[1::2], strict=True)) < 0.9
    restore(student, before, QuantConfig(**SCHEME))
    monkeypatch.setattr(_Soft, "error", lambda *_: 1.0)
    reconstruct(student, graph, [images(64)], 2)
    after = snapshot(student)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_scheme_asks_for_it_the_same_bytes_come_again_and_the_file_is_the_student(tmp_path: Path) -> None:
    graph = toy_graph("residual")
    student, again = (calibrated(graph, bits="w4a4", reconstruct=10) for _ in range(2))
    ours, theirs, plain = snapshot(student), snapshot(again), snapshot(calibrated(graph, bits="w4a4"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not all(torch.equal(ours[key], plain[key]) for key in ours)
    codes = {name: weight_codes(m)[0] for name, m in student.named_modules() if isinstance(m, Layer)}
    freeze(student)
    assert all(torch.equal(codes[name], weight_codes(student.get_submodule(name))[0]) for name in codes)
    write_qdq(student, TARGET, tmp_path / "model.onnx", metadata={})
    x = images(16, seed=3)
    with torch.no_grad():
        wanted = IntegerStudent(student).run(x)
    found = open_session("onnxruntime", tmp_path / "model.onnx", threads=1).run(x.numpy())
    assert torch.equal(torch.from_numpy(found), wanted)
