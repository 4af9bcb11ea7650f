"""Weights' codes that several nodes read, for sessions on processors without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends.onnxruntime import session
from dfqkit_export.backends.onnxruntime.session import EXACT_PRODUCTS, OrtSession
from dfqkit_export.onnxfile.separate import separate_codes, shares_codes, signed_weights, unsign_weights

X = np.random.default_rng(1).normal(size=(1, 8, 4, 4)).astype(np.float32)


def _two_layers(*, codes: bool = False, zero_point: bool = False, dequantized: bool = False) -> onnx.ModelProto:
    """Return two convolutions, one behind the other, that share what is named, and their scales in any case."""
    weights = np.random.default_rng(0).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    stored = {"s": np.float32(0.02), "z": np.uint8(128), "ws": np.full(8, 0.01, np.float32)}
    stored |= {"w": weights, "wz": np.zeros(8, np.int8), "w1": weights[::-1].copy(), "wz1": np.zeros(8, np.int8)}
    nodes, before = [], "x"
    for i in range(2):
        nodes.append(helper.make_node("QuantizeLinear", [before, "s", "z"], [f"q{i}"], f"Q{i}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"], f"D{i}"))
        names = ["w" if codes else f"w{i or ''}", "ws", "wz" if zero_point else f"wz{i or ''}"]
        if not (i and dequantized):
            nodes.append(helper.make_node("DequantizeLinear", names, [f"wd{i}"], f"W{i}", axis=0))
        nodes.append(helper.make_node("Conv", [f"d{i}", "wd0" if dequantized else f"wd{i}"], [f"c{i}"], f"C{i}"))
        before = f"c{i}"
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("c1", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _as_written(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": X})[0]
    return found


SHARED = [{"codes": True}, {"zero_point": True}, {"codes": True, "zero_point": True, "dequantized": True}]


@pytest.mark.parametrize("shared", SHARED)
def test_every_reader_gets_codes_of_its_own_and_nothing_else_changes(shared: dict[str, bool]) -> None:
    model = _two_layers(**shared)
    assert shares_codes(model)
    wanted = _as_written(model)
    separate_codes(model)
    onnx.checker.check_model(model, full_check=True)
    assert not shares_codes(model)
    assert np.array_equal(_as_written(model), wanted)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(EXACT_PRODUCTS, "1")
    onnxruntime.InferenceSession(model.SerializeToString(), options)


def test_what_is_separate_stays_as_it_is() -> None:
    model = _two_layers()
    before = model.SerializeToString(deterministic=True)
    assert not shares_codes(model)
    separate_codes(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("shared", SHARED)
def test_a_session_takes_a_file_that_shares_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: dict[str, bool], saturates: bool
) -> None:
    real = session.saturates(session.this_processor())
    monkeypatch.setattr(session, "saturates", lambda cpu: saturates or real)
    model = _two_layers(**shared)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert np.allclose(OrtSession(path).run(X), _as_written(model), atol=1e-5)


def test_weights_of_the_own_domain_become_unsigned() -> None:
    names = ["x", "s", "z", "w", "ws", "wz", "s", "z"]
    nodes = [
        helper.make_node("QLinearConv", names, [domain or "end"], domain=domain) for domain in ("com.microsoft", "")
    ]
    values = {"w": np.array([[[[-128]], [[127]]]], np.int8), "wz": np.array(-3, np.int8)}
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(v, n) for n, v in values.items()])
    model = helper.make_model(graph)
    unsign_weights(model)
    assert signed_weights(model) == []
    own, other = model.graph.node
    assert list(other.input) == names
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for place, name in ((3, "w"), (5, "wz")):
        assert stored[own.input[place]].dtype == np.uint8
        np.testing.assert_array_equal(stored[own.input[place]].astype(int) - 128, values[name])
