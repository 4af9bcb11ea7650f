from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.openvino import OPENVINO
from dfqkit_export.backends.openvino.session import OpenVinoSession
from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError

Write = Callable[..., Path]


def images(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)


def test_a_missing_runtime_says_which_extra_to_install(residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None)
    assert "[openvino]'" in OPENVINO.missing()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install '.*\[openvino\]'") as caught:
        OpenVinoSession(residual_net())
    assert caught.value.exit_code == 3


class TestSession:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dfqkit[openvino]'")

    def test_results_outlive_the_next_call(self, residual_net: Write) -> None:
        session = OpenVinoSession(residual_net(), threads=1)
        first = session.run(images(1))
        kept = first.copy()
        session.run(images(2)[1:])
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.skipif(saturates(this_processor()), reason="OpenVINO's sums of 8-bit products saturate without VNNI")
    def test_it_agrees_with_onnxruntime(self, residual_net: Write) -> None:
        path, x = residual_net(), images(64)
        ort, openvino = OrtSession(path, threads=1).run(x), OpenVinoSession(path, threads=1).run(x)
        assert np.mean(ort.argmax(1) == openvino.argmax(1)) >= 0.95
        assert np.abs(ort - openvino).max() <= 0.05 * np.abs(ort).max()

    def test_inner_outputs_are_found_by_name(self, residual_net: Write) -> None:
        session = OpenVinoSession(residual_net(), threads=1)
        assert session.output_name == "fc.out"
        assert session.input_shape == (None, 3, 8, 8)
        np.testing.assert_array_equal(session.outputs(images(2))[0], session.run(images(2)))
        with pytest.raises(ArtefactError, match="no output 'nope'"):
            session.outputs(images(1), ["nope"])

    @pytest.mark.parametrize("keep", [0, 20, -40])
    def test_truncated_models_are_refused(
        self, residual_net: Write, capfd: pytest.CaptureFixture[str], keep: int
    ) -> None:
        path = residual_net()
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ArtefactError, match=path.name):
            OpenVinoSession(path)
        assert capfd.readouterr().err == ""

    def test_what_openvino_does_not_know_is_refused_in_its_words(self, residual_net: Write) -> None:
        path = residual_net()
        model = onnx.load(str(path))
        model.graph.node[-1].op_type = "Frobnicate"
        onnx.save(model, str(path))
        with pytest.raises(ArtefactError, match=r"not accepted by OpenVINO: .*Frobnicate"):
            OpenVinoSession(path)

    def test_models_with_two_inputs_are_refused(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        path = b.save(tmp_path / "m.onnx", b.node("Add", ["x", "x"], "add"))
        model = onnx.load(str(path))
        model.graph.input.append(model.graph.input[0])
        model.graph.input[1].name = "y"
        model.graph.node[0].input[1] = "y"
        onnx.save(model, str(path))
        with pytest.raises(ArtefactError, match=r"2 input\(s\)"):
            OpenVinoSession(path)

    def test_threads_are_checked(self, residual_net: Write) -> None:
        with pytest.raises(ArtefactError, match="Threads must be at least 1"):
            OpenVinoSession(residual_net(), threads=0)


class TestPrecision:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dfqkit[openvino]'")

    def test_a_residual_net_runs_on_integers(self, residual_net: Write) -> None:
        realised = realised_precision(residual_net(), "openvino")
        found = [(layer.name, layer.precision, layer.executed_as) for layer in realised.layers]
        assert found == [
            ("conv1", "int8", "Convolution"),
            ("conv2", "int8", "Convolution"),
            ("add", "int8", "Eltwise"),
            ("fc", "int8", "FullyConnected"),
        ]
        assert realised.float_ops == ()
        assert (realised.integer_ops, realised.integer_macs) == (1.0, 1.0)
        assert realised.nodes["Convolution"] == 2

    def test_what_onnxruntime_cannot_fuse_does_not_matter(self, residual_net: Write) -> None:
        path = residual_net(relu_zero_point=128, float_bias=True)
        assert realised_precision(path).integer_ops == 0.5
        assert realised_precision(path, "openvino").integer_ops == 1.0

    def test_a_float_file_is_float(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        b.constant("w", np.ones((4, 3, 1, 1), np.float32))
        path = b.save(tmp_path / "m.onnx", b.node("Relu", [b.node("Conv", ["x", "w"], "conv")], "relu"))
        realised = realised_precision(path, "openvino")
        assert realised.integer_ops == 0.0
        assert realised.float_ops == (("Convolution", "conv"),)
        assert "input 'x' has no DequantizeLinear (it is a float tensor)" in realised.layers[0].detail

    def test_nodes_without_names_are_told_apart(self, residual_net: Write) -> None:
        path = residual_net()
        model = onnx.load(str(path))
        for node in model.graph.node:
            node.name = ""
        onnx.save(model, str(path))
        realised = realised_precision(path, "openvino")
        assert [layer.precision for layer in realised.layers] == ["int8"] * 4
        assert len({layer.name for layer in realised.layers}) == 4


def weight(
    b: Any, name: str, shape: tuple[int, ...], dtype: str = "int8", zero_point: int = 0, clip: bool = False
) -> str:
    low = 100 if dtype == "uint8" else -7
    codes = b.constant(f"{name}.codes", b.rng.integers(low, low + 14, shape).astype(dtype))
    parameters = [
        b.constant(f"{name}.scale", np.array(0.01, np.float32)),
        b.constant(f"{name}.zero_point", np.array(zero_point, dtype)),
    ]
    if clip:
        limits = [b.constant(f"{name}.{end}", np.array(value, dtype)) for end, value in (("low", -7), ("high", 7))]
        codes = b.node("Clip", [codes, *limits], f"{name}.clip")
    return str(b.node("DequantizeLinear", [codes, *parameters], f"{name}.DQ"))


def conv(b: Any, x: str, inputs: int = 3, op: str = "Conv", **settings: Any) -> str:
    shape = (inputs, 4, 3, 3) if op == "ConvTranspose" else (4, inputs, 3, 3)
    return str(b.node(op, [x, weight(b, "w", shape, **settings)], "layer"))


def relu_between(b: Any, zero_point: int) -> str:
    return conv(b, b.node("Relu", [b.qdq("x", "in", zero_point=zero_point)], "relu"))


def sigmoid_between(b: Any) -> str:
    return conv(b, b.node("Sigmoid", [b.qdq("x", "in", zero_point=128)], "sigmoid"))


def concat_between(b: Any, scale: float) -> str:
    one, other = b.qdq("x", "one", zero_point=128), b.qdq("x", "other", zero_point=128, scale=scale)
    return conv(b, b.node("Concat", [one, other], "concat", axis=1), inputs=6)


def channel_scales(b: Any, scales: tuple[float, ...]) -> str:
    parameters = [
        b.constant("s", np.array(scales if len(scales) > 1 else scales[0], np.float32)),
        b.constant("z", np.full(3, 128, np.uint8) if len(scales) > 1 else np.array(128, np.uint8)),
    ]
    codes = b.node("QuantizeLinear", ["x", *parameters], "Q", axis=1)
    return conv(b, b.node("DequantizeLinear", [codes, *parameters], "DQ", axis=1))


def float_weight(b: Any) -> str:
    b.constant("w", b.rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    return str(b.node("Conv", [b.qdq("x", "in", zero_point=128), "w"], "layer"))


def two_activations(b: Any) -> str:
    return str(b.node("MatMul", [b.qdq("x", "one", zero_point=128), b.qdq("x", "two", zero_point=128)], "layer"))


def layer(b: Any, x_zero_point: int = 128, **settings: Any) -> str:
    return conv(b, b.qdq("x", "in", zero_point=x_zero_point), **settings)


FLOAT: dict[str, tuple[Callable[[Any], str], str]] = {
    "clip on the weight": (lambda b: layer(b, clip=True), "'w.clip' clips the codes"),
    "asymmetric weight": (lambda b: layer(b, zero_point=3), "zero point other than 0"),
    "uint8 weight": (lambda b: layer(b, dtype="uint8", zero_point=107), "zero point other than 0"),
    "float weight": (float_weight, "weight 'w' has no DequantizeLinear"),
    "float input": (lambda b: conv(b, "x"), "input 'x' has no DequantizeLinear"),
    "transposed convolution": (lambda b: layer(b, op="ConvTranspose"), "takes only inputs with zero point 0"),
    "relu behind zero point": (lambda b: relu_between(b, 128), "Relu 'relu' follows"),
    "sigmoid": (sigmoid_between, "it comes from Sigmoid 'sigmoid'"),
    "concat of scales": (lambda b: concat_between(b, 0.03), "joins tensors of different scales"),
    "scale a channel": (lambda b: channel_scales(b, (0.01, 0.02, 0.03)), "quantize activations per tensor"),
    "16 bits": (lambda b: conv(b, b.qdq("x", "in", dtype="uint16", zero_point=999)), "is uint16"),
    "two activations": (two_activations, "multiplies two activations"),
}
INTEGER: dict[str, Callable[[Any], str]] = {
    "plain": layer,
    "symmetric input": lambda b: layer(b, x_zero_point=0),
    "transposed convolution": lambda b: layer(b, x_zero_point=0, op="ConvTranspose"),
    "relu behind zero point 0": lambda b: relu_between(b, 0),
    "concat of one scale": lambda b: concat_between(b, 0.02),
    "one scale": lambda b: channel_scales(b, (0.01,)),
    "int8 input": lambda b: conv(b, b.qdq("x", "in", dtype="int8")),
}


@pytest.mark.parametrize("case", FLOAT)
def test_each_reason_for_float_is_found(tmp_path: Path, qdq: Any, case: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dfqkit[openvino]'")
    build, words = FLOAT[case]
    b = qdq()
    path = b.save(tmp_path / "m.onnx", b.qdq(build(b), "out", zero_point=128))
    found = {item.name: item for item in realised_precision(path, "openvino").layers}["layer"]
    assert found.precision == "float"
    assert words in found.detail


@pytest.mark.parametrize("case", INTEGER)
def test_the_neighbours_of_the_reasons_are_integer(tmp_path: Path, qdq: Any, case: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dfqkit[openvino]'")
    b = qdq()
    path = b.save(tmp_path / "m.onnx", b.qdq(INTEGER[case](b), "out", zero_point=128))
    found = {item.name: item for item in realised_precision(path, "openvino").layers}["layer"]
    assert (found.precision, found.detail) == ("int8", "")
