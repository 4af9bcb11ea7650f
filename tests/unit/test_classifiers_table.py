"""The list of timm's classifiers, and what was found of them (recipes/architectures)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from dfqkit.students.onnx_file import write_qdq
from dfqkit_export.backends.opening import open_session
from tests._toys import Head, images, student
from tests.benchmarks.classifiers import (
    LEAST,
    NEAR,
    TIE,
    led_by,
    listed,
    own_target,
    page,
    settle,
    spread,
    state,
    waken,
)

FOUND = Path(__file__).parents[2] / "recipes" / "architectures" / "classifiers.json"
GOOD = {"file": 0.0, "rounding": 0.0, "same_class": True, "spread": 0.1}


def test_the_stored_rows_are_of_the_list_and_make_the_stored_page() -> None:
    rows: list[dict[str, Any]] = json.loads(FOUND.read_text(encoding="utf-8"))
    modules = [row["module"] for row in rows]
    assert modules == [module for module in listed() if module in modules]
    assert page(rows) == FOUND.with_suffix(".md").read_text(encoding="utf-8")
    assert not any(state(row, capture_only=False).isupper() for row in rows)


def test_the_list_has_every_network_once() -> None:
    names = [(name, json.dumps(more)) for name, _, more in listed().values()]
    assert len(set(names)) == len(names) == 112


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (GOOD, "holds"),
        (GOOD | {"file": 9e-5}, "holds"),
        (GOOD | {"file": 2e-4}, "FILE IS NOT STUDENT"),
        (GOOD | {"file": 2e-4, "rounding": 1e-4}, "holds"),
        (GOOD | {"file": 0.1, "steps": 1e-3, "led": 1e-5}, "holds"),
        (GOOD | {"file": 0.1, "steps": 1e-3, "led": 1e-3}, "FILE IS NOT STUDENT"),
        (GOOD | {"file": 0.1, "steps": 0.02, "led": 0.0}, "FILE IS NOT STUDENT"),
        (GOOD | {"same_class": False}, "FILE IS NOT STUDENT"),
        (GOOD | {"spread": 1e-3}, "IMAGES ARE NOT TOLD APART"),
        (GOOD | {"file": float("nan")}, "FILE IS NOT STUDENT"),
        ({"refused": "TeacherError: no", "inspect": "no"}, "refused"),
        ({"refused": "TeacherError: no", "inspect": ""}, "REFUSED, BUT INSPECT SAYS YES"),
        ({"died": "exit -9"}, "DIED"),
    ],
)  # fmt: skip
def test_what_became_of_a_network(row: dict[str, Any], found: str) -> None:
    assert state(row, capture_only=False) == found


def test_a_head_of_zeros_and_a_scale_near_zero_are_woken() -> None:
    first, scale, head, norm = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.LayerNorm(3)
    kept = first.weight.clone()
    nn.init.constant_(scale.weight, 1e-5)
    nn.init.zeros_(head.weight)
    assert waken(nn.Sequential(first, scale, head, norm)) == 2
    assert torch.equal(first.weight, kept)
    assert torch.equal(scale.weight, torch.full((4,), 0.5))
    assert torch.equal(norm.weight, torch.ones(3))
    assert bool(head.weight.any())


def test_a_file_that_rounds_otherwise_is_its_student_step_by_step(tmp_path: Path) -> None:
    """A weight of LayerNorm that is another in its last digits: values at a tie take the next code."""
    target, x, path = own_target(), images(64), tmp_path / "model.onnx"
    quantized = student("channels_last", target=target.name)
    write_qdq(quantized, target, path, metadata={})
    model = onnx.load(path)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    stored = next(value for value in model.graph.initializer if value.name == norm.input[1])
    weight = numpy_helper.to_array(stored)
    for change, same in ((0.0, True), (2e-5, True), (2e-3, False)):
        stored.CopyFrom(numpy_helper.from_array(weight * np.float32(1 + change), stored.name))
        onnx.save(model, path)
        output = torch.from_numpy(open_session("onnxruntime", path, threads=1).run(x.numpy()))
        with torch.no_grad():
            ours = quantized(x)
            steps, led = led_by(quantized, path, x, output)
        assert (steps == 0) == (change == 0)
        assert torch.equal(output, ours) or steps > 0  # which values lie at a tie is the processor's matter
        assert (steps <= TIE) == same
        assert led <= NEAR * float(ours.max() - ours.min())


def test_a_signal_that_dies_in_batchnorms_is_brought_back() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(5)], Head(3)).eval()
    x = images(8)
    for weight in (module.weight for module in net.modules() if isinstance(module, nn.Conv2d)):
        weight.data.mul_(0.1)
    assert spread(net, x) < LEAST
    settle(net, x)
    assert spread(net, x) > LEAST
    assert not any(module.training for module in net.modules())
