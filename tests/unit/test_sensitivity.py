"""What tensors' errors do to the outputs, and ranges that are chosen by it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.placement import plan, quantized_graph
from dfqkit.students.quantizers import range_of
from dfqkit.students.sensitivity import Imitated, choose_ranges, costly
from dfqkit.students.student import calibrate_student, load_student, save_student
from dfqkit.tasks import torch_task
from dfqkit_export.backends import get_target
from dfqkit_export.tasks.generic import Generic
from tests._toys import IMAGE, Head, images, randomise

TARGET = get_target("onnxruntime")
WHOLE = QuantConfig.model_validate({"scales": "float", "activation_range": "outputs", "weight_range": "max"})


class Net(nn.Module):
    """A layer one of whose channels is far larger than the others, and is hardly looked at."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), Head(8)
        randomise(self)
        with torch.no_grad():
            self.first.weight[0] *= 20
            self.second.weight[:, 0] *= weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def made(model: nn.Module, config: QuantConfig = WHOLE, *, measuring: bool = True, **more: Any) -> tuple[Any, Imitated]:
    """A calibrated student, and what it imitates."""
    if more:
        more["replan"] = partial(plan, float_graph(model, IMAGE), config, TARGET, IMAGE)
    graph = float_graph(model, IMAGE)
    imitated = Imitated(graph=graph, task=torch_task(Generic(names=("output",))))
    student = quantized_graph(graph, config, TARGET, IMAGE)
    given = {"imitated": imitated} if measuring else {}
    calibrate_student(student, [images(16, 3)], config, IMAGE, **more, **given)
    return student, imitated


def apart(model: nn.Module, student: nn.Module) -> float:
    x = images(64, 9)
    with torch.no_grad():
        return (student(x) - model(x)).square().mean().item()


def test_a_range_is_cut_where_what_it_holds_moves_no_output() -> None:
    model = Net(1e-4)
    whole, chosen = (made(model, measuring=way)[0] for way in (False, True))
    first, cut = (range_of(student.quant.relu)[1] for student in (whole, chosen))
    assert cut < 0.5 * first
    assert apart(model, chosen) < 0.4 * apart(model, whole)


def test_a_range_stays_where_its_peaks_count() -> None:
    model = Net(1.0)
    whole, chosen = (made(model, measuring=way)[0] for way in (False, True))
    assert range_of(chosen.quant.relu)[1] > 0.75 * range_of(whole.quant.relu)[1]
    assert apart(model, chosen) < 1.1 * apart(model, whole)


def test_a_power_of_two_never_ends_above_six_in_the_place_of_relu6() -> None:
    class Clipped(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.relu6(self.second(functional.relu6(self.first(x)))))

    student, _ = made(Clipped(1e-4), WHOLE.model_copy(update={"scales": "power_of_two"}))
    ends = [range_of(module)[1] for name, module in student.quant.named_children() if "relu" in name]
    assert len(ends) == 2
    assert max(ends) <= 6


def test_choosing_again_changes_nothing_and_leaves_no_gradient() -> None:
    student, imitated = made(Net(1.0))
    before = {name: range_of(module) for name, module in student.quant.named_children()}
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in student.parameters())
    assert before["image"] == pytest.approx(range_of(made(Net(1.0), measuring=False)[0].quant.image))
    choose_ranges(student, [images(16, 3)], imitated)
    after = {name: range_of(module) for name, module in student.quant.named_children()}
    assert after.keys() == before.keys()
    assert all(after[name][1] <= before[name][1] + 1e-6 for name in before if name != "image")


def test_the_costly_tensor_is_named_and_stays_in_float(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit.students.sensitivity.MOST", 0.4)
    monkeypatch.setattr("dfqkit.students.sensitivity._KEPT", math.inf)
    model = Net(1e-2)
    config = WHOLE.model_copy(update={"activation_range": "percentile", "percentile": 100.0})
    student, imitated = made(model, config)
    found = costly(student, [images(16, 5)], imitated, 0.5)
    assert list(found) == ["relu"]
    assert 0.5 < found["relu"] <= 1
    kept, _ = made(model, config.model_copy(update={"costly_in_float": 0.5}), held_out=[images(16, 5)])
    assert "relu" in kept.meta["dropped"]
    assert "outputs" in kept.meta["kept"]["relu"]
    assert apart(model, kept) < 0.5 * apart(model, student)
    save_student(kept, tmp_path / "student.safetensors")
    again = quantized_graph(float_graph(model, IMAGE), config, TARGET, IMAGE)
    load_student(again, tmp_path / "student.safetensors", config)
    assert apart(kept, again) == 0


def test_no_more_than_a_share_of_the_tensors_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    student, imitated = made(Net(1.0))
    monkeypatch.setattr("dfqkit.students.sensitivity._KEPT", math.inf)
    assert not costly(student, [images(16, 5)], imitated, 1e-9)  # four tensors, of which a tenth is none


def test_where_the_answers_are_kept_nothing_is_left_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    student, imitated = made(Net(1.0))
    monkeypatch.setattr("dfqkit.students.sensitivity.MOST", 1.0)
    kept = imitated.kept(images(16, 5), student(images(16, 5)))
    monkeypatch.setattr("dfqkit.students.sensitivity._KEPT", kept)
    assert not costly(student, [images(16, 5)], imitated, 1e-9)
    monkeypatch.setattr("dfqkit.students.sensitivity._KEPT", kept + 1e-6)
    assert costly(student, [images(16, 5)], imitated, 1e-9)
