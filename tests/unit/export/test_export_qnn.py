"""Qualcomm's NPU by the vendor's own compiler and emulation, where onnxruntime-qnn is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import dfqkit
from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.placement import plan, quantized_graph
from dfqkit.students.student import calibrate_student
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime import qnn
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from tests._toys import IMAGE, images, randomise, toy_graph
from tests.unit.export._qdq_fixtures import FIXTURES

CASE = next(item for item in FIXTURES if item.rule == "N1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(CASE.make(False), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_without_the_package_it_says_how_to_install_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_qnn", None)
    with pytest.raises(RuntimeUnavailableError, match="onnxruntime_qnn is not installed"):
        qnn.realised_in_qnn(file)


def test_layers_are_read_from_the_graph_and_from_the_profile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor's stand-in leaves what version 2.7 does: a graph of QNN with types, and the runtime's profile."""
    types = {"in": 0x0408, "w": 0x0308, "out": 0x0408, "f": 0x0232}
    nodes = {
        "conv_token_3": {"type": "Conv2d", "input_names": ["in", "w"], "output_names": ["out"]},
        "norm": {"type": "LayerNorm", "input_names": ["f"], "output_names": ["f"]},
        "Quantize_1": {"type": "Quantize", "input_names": ["f"], "output_names": ["out"]},
    }
    graph = {"graph": {"nodes": nodes, "tensors": {name: {"data_type": kind} for name, kind in types.items()}}}

    class Stand:
        input_shape = (None, 3, 8, 8)
        _batch = 1

        def __init__(self, path: str, *, kept: Path) -> None:
            (kept / "QNNExecutionProvider_1.json").write_text(json.dumps(graph))
            (kept / "QNNExecutionProvider_1_tensor_log.json").write_text("{}")
            events = [("fc_kernel_time", "QGemm", "CPUExecutionProvider"), ("x", "QNN_1", "QNNExecutionProvider")]
            kept.joinpath("profile.json").write_text(json.dumps([
                {"cat": "Node", "name": name, "args": {"op_name": op, "provider": at}} for name, op, at in events
            ]))  # fmt: skip
            self._session = SimpleNamespace(end_profiling=lambda: str(kept / "profile.json"))

        def outputs(self, images: Any) -> None:
            assert images.shape == (1, 3, 8, 8)

    monkeypatch.setattr(qnn, "QnnSession", Stand)
    found = qnn.compiled("m.onnx")
    assert found == {
        "fc": ["QGemm", True], "conv": ["Conv2d", True], "norm": ["LayerNorm", False],
        "Quantize_1": ["Quantize", False],
    }  # fmt: skip
    monkeypatch.setattr(qnn, "onnxruntime", SimpleNamespace(QNN=SimpleNamespace(require=lambda: None)))
    monkeypatch.setattr(qnn, "call_isolated", lambda *_, **__: found)
    seen = qnn.realised_in_qnn(file)
    assert [(layer.name, layer.precision) for layer in seen.layers] == [("conv", "int8")]
    assert seen.float_ops == (("LayerNorm", "norm"),)


def test_activations_have_eight_bits_whatever_is_asked() -> None:
    graph = toy_graph("residual")
    bits = {
        name: min(
            each.bits for each in plan(graph, QuantConfig(bits="w4a4"), get_target(name), IMAGE).activations.values()
        )
        for name in ("onnxruntime", "onnxruntime-qnn")
    }
    assert bits == {"onnxruntime": 4, "onnxruntime-qnn": 8}


class TestVendor:
    """The vendor's word."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("onnxruntime_qnn")

    def test_the_rule_is_the_compilers(self, file: Path, tmp_path: Path) -> None:
        assert realised_precision(file, "onnxruntime-qnn").integer_ops == 1.0
        images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
        emulated, real = (open_session(name, file).run(images) for name in ("onnxruntime-qnn", "onnxruntime"))
        assert emulated.shape == real.shape
        assert np.abs(emulated - real).max() < 0.1 * np.abs(real).max()
        onnx.save(CASE.make(True), tmp_path / "bad.onnx")
        try:
            share = realised_precision(tmp_path / "bad.onnx", "onnxruntime-qnn").integer_ops
        except ArtefactError:
            return
        assert share == 0.0

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
    def test_convolutions_of_known_networks_are_integers(self, name: str, tmp_path: Path) -> None:
        from torchvision.models import get_model

        image = dfqkit.ImageSpec(shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.25,) * 3)
        config, target = QuantConfig(bits="w8a8", weight_range="max"), get_target("onnxruntime-qnn")
        made = quantized_graph(float_graph(randomise(get_model(name)), image), config, target, image)
        calibrate_student(made, [images(4, 1, image)], config, image)
        freeze(made)
        write_qdq(made, target, tmp_path / "m.onnx", metadata={})
        found = realised_precision(tmp_path / "m.onnx", "onnxruntime-qnn")
        assert {layer.precision for layer in found.layers} == {"int8"}
        assert found.nodes["Conv2d"] + found.nodes.get("DepthWiseConv2d", 0) > 19
