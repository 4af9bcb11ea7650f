"""float16 around the codes of a QDQ file: what changes, what does not, and what cannot be held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import TargetError
from dfqkit_export.onnxfile.half import with_float16


def net(bias: float = 0.3, scale: float = 0.25) -> onnx.ModelProto:
    """Q, DQ, Conv with a bias, Relu, and the image itself added."""
    arrays = {
        "s": np.float32(scale), "z": np.int8(0), "w": np.ones((3, 3, 1, 1), np.int8), "ws": np.float32(0.5),
        "b": np.full(3, bias, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "z"], ["wd"]),
        helper.make_node("Conv", ["d", "wd", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 4, 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_it_computes_what_numpy_does_with_float16_behind_the_codes(tmp_path: Path) -> None:
    made = with_float16(net())
    onnx.save(made, tmp_path / "m.onnx")
    images = np.random.default_rng(0).normal(0, 3, (5, 3, 4, 4)).astype(np.float32)
    codes = np.clip(np.rint(images / np.float32(0.25)), -128, 127)  # of the image in float32, as before
    half = np.float16(0.25) * codes.astype(np.float16)
    sums = (half.astype(np.float32) * 0.5).sum(1, keepdims=True).repeat(3, 1) + np.float32(np.float16(0.3))
    expected = np.maximum(sums, 0).astype(np.float16) + images.astype(np.float16)
    found = OrtSession(tmp_path / "m.onnx", threads=1, optimized=False).run(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2**-9, atol=2**-9)


def test_types_change_and_codes_and_ends_do_not() -> None:
    old, made = net(), with_float16(net())
    assert old == net()
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types == {
        "s": TensorProto.FLOAT16, "s_float32": TensorProto.FLOAT, "ws": TensorProto.FLOAT16,
        "b": TensorProto.FLOAT16, "w": TensorProto.INT8, "z": TensorProto.INT8,
    }  # fmt: skip
    ends = [*made.graph.input, *made.graph.output]
    assert [(end.name, end.type.tensor_type.elem_type) for end in ends] == [("x", 1), ("y", 1)]
    assert list(made.graph.node[1].input) == ["x", "s_float32", "z"]
    # In a strongly typed network a scale has the type of what it scales (NvInfer.h 10.3).
    assert [node.op_type for node in made.graph.node].count("Cast") == 2


@pytest.mark.parametrize("changes", [{"bias": 1e5}, {"scale": 1e-9}, {"scale": 3e-7}])
def test_what_float16_cannot_hold_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(TargetError, match="that float16 cannot hold"):
        with_float16(net(**changes))


def test_an_operator_that_wants_float32_is_told() -> None:
    scores = numpy_helper.from_array(np.ones((1, 1, 4), np.float32), "scores")
    node = helper.make_node("NonMaxSuppression", ["x", "scores"], ["y"])
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3]),
    ]
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], [scores])
    with pytest.raises(TargetError, match="takes no float16"):
        with_float16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
