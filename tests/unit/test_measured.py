"""Tensors that only a measurement shows to be beyond 8 bits: found, left in float, stored with the student."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.measured import COLLAPSE, collapsing, leave_in_float, unlike
from dfqkit.students.nodes import called, source
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import float_layers
from dfqkit.students.placement import plan, quantized_graph
from dfqkit.students.quantizers import EndingBehind
from dfqkit.students.student import calibrate_student, load_student, save_student, snapshot
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.metrics import sqnr_db
from tests._islands import PLAIN, WIDTH, Between, apart
from tests._messages import raises_naming
from tests._toys import images, randomise

QUICK = QuantConfig(weight_range="max", activation_range="percentile")
TARGET = get_target("onnxruntime")
UNSEEN = images(32, 3, PLAIN)


def made(
    model: nn.Module, config: QuantConfig = QUICK, *, measured: bool = True
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A network's student, calibrated, and one just built."""
    graph = float_graph(model, PLAIN)
    student, fresh = (quantized_graph(graph, config, TARGET, PLAIN) for _ in range(2))
    held_out = [UNSEEN] if measured else []
    replan = partial(plan, graph, config, TARGET, PLAIN)
    calibrate_student(student, [images(32, 7, PLAIN)], config, PLAIN, held_out=held_out, replan=replan)
    return student, fresh


def left(model: nn.Module, student: nn.Module) -> float:
    with torch.no_grad():
        return sqnr_db(model(UNSEEN).numpy(), student(UNSEEN).numpy()) or 0.0


def test_what_a_quantizer_ended_at_six_ends_there_without_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        for each in (model[0], model[2]):
            each.weight.mul_(20)
    student = quantized_graph(float_graph(model, PLAIN), QUICK, TARGET, PLAIN)
    shown = images(32, 7, PLAIN)
    calibrate_student(student, [shown], QUICK, PLAIN)
    values = {name: module for name, module in student.named_modules() if isinstance(module, EndingBehind)}
    assert len(values) == 2
    before = student(shown)
    leave_in_float(student, [name for name, _ in student.quant.named_children() if name != "image"][:1])
    assert sum(isinstance(module, nn.ReLU6) for module in student.modules()) == 1
    assert sqnr_db(before.detach().numpy(), student(shown).detach().numpy()) > 25


def test_a_tensor_whose_grid_a_channel_uses_up_stays_in_float() -> None:
    model = apart(3000.0)
    assert left(model, made(model, measured=False)[0]) < COLLAPSE
    student, _ = made(model)
    assert left(model, student) > 27
    assert set(student.meta["dropped"]) == {"one"}
    assert "dB" in student.meta["kept"]["one"]
    assert set(float_layers(student, student.meta["kept"])) == {"second"}
    assert hasattr(student.quant, "image")
    assert hasattr(student.quant, "relu_1")


def test_the_layer_that_gives_a_float_tensor_through_its_relu_is_no_integer_one() -> None:
    student, _ = made(apart(0.0), measured=False)
    modules = dict(student.named_modules())
    relu = next(node for node in student.graph.nodes if isinstance(called(node, modules), nn.ReLU))
    assert float_layers(student, [relu.name]) == {str(source(relu).target): "its output stays in float"}


def test_a_network_without_such_a_tensor_is_left_alone() -> None:
    model = apart(0.0)
    plain, student = made(model, measured=False)[0], made(model)[0]
    assert not student.meta["kept"]
    before, after = snapshot(plain), snapshot(student)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bits_that_were_asked_for_are_not_taken_for_a_collapse() -> None:
    config = QUICK.model_copy(update={"bits": "w2a2"})
    model = apart(0.0)
    student, _ = made(model, config)
    assert left(model, student) < COLLAPSE
    assert not student.meta["kept"]


def test_where_every_tensor_costs_as_much_none_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    student, _ = made(apart(0.0))
    monkeypatch.setattr("dfqkit.students.measured.COLLAPSE", 200.0)
    assert not collapsing(student, [UNSEEN])


def test_the_decision_is_stored_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    student, fresh = made(apart(3000.0))
    save_student(student, tmp_path / "student.safetensors")
    load_student(fresh, tmp_path / "student.safetensors", QUICK)
    assert fresh.meta["kept"] == student.meta["kept"]
    with torch.no_grad():
        assert torch.equal(student(UNSEEN), fresh(UNSEEN))
    save_student(fresh, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "student.safetensors").read_bytes()


@pytest.mark.parametrize("noted", ['{"nothing": "of this name"}', '{"one"', "[3]"])
def test_a_damaged_decision_is_refused(noted: str, tmp_path: Path) -> None:
    student, fresh = made(apart(3000.0))
    path = tmp_path / "student.safetensors"
    save_student(student, path)
    with safe_open(path, framework="pt") as file:
        (key,) = file.metadata()
        assert list(json.loads(file.metadata()[key])) == ["one"]
    save_file({name: value.contiguous() for name, value in snapshot(student).items()}, path, {key: noted})
    with raises_naming(ArtefactError, "student.safetensors"):
        load_student(fresh, path, QUICK)


def test_the_file_of_such_a_student_computes_what_it_does(tmp_path: Path) -> None:
    model = apart(3000.0)
    student, _ = made(model)
    freeze(student)
    write_qdq(student, TARGET, tmp_path / "model.onnx", metadata={})
    found = OrtSession(tmp_path / "model.onnx").run(UNSEEN.numpy())
    with torch.no_grad():
        assert (sqnr_db(student(UNSEEN).numpy(), found) or 200) > 60
        assert (sqnr_db(model(UNSEEN).numpy(), found) or 0) > 27


def joined(factor: float) -> nn.Module:
    """A network that joins two branches, the second so many times smaller, and reads each with half of its channels."""
    with torch.random.fork_rng(devices=[]):
        net = randomise(Between(lambda net, x: torch.cat([net.one(x), net.two(x)], 1), 2 * WIDTH))
    with torch.no_grad():
        net.two.weight /= factor
        net.two.bias /= factor
        net.second.weight[: WIDTH // 2, WIDTH:] = 0
        net.second.weight[WIDTH // 2 :, :WIDTH] = 0
        net.second.weight[:, WIDTH:] *= factor
    return net


def test_parts_of_unlike_ranges_do_not_share_a_grid() -> None:
    model = joined(300.0)
    assert left(model, made(model, measured=False)[0]) < 20
    student, _ = made(model)
    assert left(model, student) > 27
    assert "cat" in student.meta["dropped"]
    for word in ("codes", "'two'", "dB"):
        assert word in student.meta["kept"]["cat"]


def test_parts_of_like_ranges_share_one() -> None:
    student, _ = made(joined(2.0))
    assert not unlike(student, [UNSEEN])
    assert not student.meta["kept"]
