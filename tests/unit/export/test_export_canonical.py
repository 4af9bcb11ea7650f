"""The canonical form on operators that work on another layout, and that it computes what the file does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.gate.regions import compare_structures
from dfqkit_export.gate.structure import Structure, read_structure
from dfqkit_export.onnxfile.canonical import canonical

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
SHAPE = (4, 6, 5)
Tensors = dict[str, Any]


def network(nodes: Sequence[onnx.NodeProto], tensors: Tensors, *, batch: int | str = "n") -> onnx.ModelProto:
    """Of an input x (n, 4, 6, 5) to y, of any shape."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *SHAPE])
    graph = helper.make_graph(nodes, "g", [entry], [helper.make_empty_tensor_value_info("y")], stored)
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def turned(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same from x with its channels last, h, to l, which is turned back."""
    there = helper.make_node("Transpose", ["x"], ["h"], perm=LAST)
    return [there, *nodes, helper.make_node("Transpose", ["l"], ["y"], perm=FIRST)]


def form(model: onnx.ModelProto) -> Structure:
    return read_structure(canonical(model), ["y"])


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def computed(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a model's canonical form computes; the model is of a batch of x's size."""
    found = canonical(model)
    stored = list(found.initializer)
    for k, node in enumerate(found.node):
        for item in [item for item in node.attribute if node.op_type == "Reshape" and item.name == "to"]:
            stored.append(numpy_helper.from_array(np.array(item.ints, np.int64), f"to{k}"))
            node.attribute.remove(item)
            node.input[1:] = [f"to{k}"]
    for value in found.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(found.node, "form", found.input, found.output, stored)
    return run(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), x)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)


N = helper.make_node
CASES: dict[str, tuple[list[onnx.NodeProto], Tensors, list[onnx.NodeProto], Tensors]] = {
    "slice": (
        [N("Slice", ["x", "a", "b", "c", "d"], ["y"])],
        {"a": ints(1, -1), "b": ints(2**62, -9), "c": ints(-2, 1), "d": ints(2, -1)},
        [N("Slice", ["h", "a", "b", "c", "d"], ["l"])],
        {"a": ints(3, 1), "b": ints(-5, 6), "c": ints(3, 1), "d": ints(-1, 2)},
    ),
    "pad": (
        [N("Pad", ["x", "p"], ["y"])],
        {"p": ints(0, 1, 2, 3, 0, 4, 5, 6)},
        [N("Pad", ["h", "p", "", "a"], ["l"])],
        {"p": ints(1, 2, 3, 4, 5, 6), "a": ints(-1, 1, 2)},
    ),
    "pad of all axes": (
        [N("Pad", ["x", "p"], ["y"], mode="reflect")],
        {"p": ints(0, 0, 2, 3, 0, 0, 1, 0)},
        [N("Pad", ["h", "p"], ["l"], mode="reflect")],
        {"p": ints(0, 2, 3, 0, 0, 1, 0, 0)},
    ),
    "concat": (
        [N("Relu", ["x"], ["r"]), N("Concat", ["x", "r", "k"], ["y"], axis=1)],
        {"k": floats(3, 2, 6, 5)},
        [N("Relu", ["h"], ["r"]), N("Concat", ["h", "r", "k"], ["l"], axis=-1)],
        {"k": floats(3, 2, 6, 5).transpose(LAST)},
    ),
    "a number for each channel": (
        [N("Mul", ["x", "k"], ["m"]), N("PRelu", ["m", "s"], ["y"])],
        {"k": floats(4, 1, 1), "s": floats(4, 1, 1)},
        [N("Mul", ["k", "h"], ["m"]), N("PRelu", ["m", "s"], ["l"])],
        {"k": floats(4), "s": floats(1, 1, 1, 4)},
    ),
    "softmax": ([N("Softmax", ["x"], ["y"], axis=1)], {}, [N("Softmax", ["h"], ["l"], axis=-1)], {}),
    "reduction": (
        [N("ReduceMax", ["x", "a"], ["m"]), N("Sub", ["x", "m"], ["y"])],
        {"a": ints(1, 3)},
        [N("ReduceMax", ["h", "a"], ["m"]), N("Sub", ["h", "m"], ["l"])],
        {"a": ints(-2, -1)},
    ),
    "gate": (
        [N("GlobalAveragePool", ["x"], ["g"]), N("Sigmoid", ["g"], ["s"]), N("Mul", ["x", "s"], ["y"])],
        {},
        [N("ReduceMean", ["h", "a"], ["g"]), N("Sigmoid", ["g"], ["s"]), N("Mul", ["h", "s"], ["l"])],
        {"a": ints(1, 2)},
    ),
    "resize": (
        [N("Resize", ["x", "", "f"], ["y"], mode="nearest")],
        {"f": np.array([1, 1, 2, 3], np.float32)},
        [N("Resize", ["h", "", "f"], ["l"], mode="nearest")],
        {"f": np.array([1, 2, 3, 1], np.float32)},
    ),
    "quantized": (
        [N("QuantizeLinear", ["x", "s", "z"], ["q"]), N("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"s": floats(), "z": np.uint8(3)},
        [N("QuantizeLinear", ["h", "s", "z"], ["q"]), N("DequantizeLinear", ["q", "s", "z"], ["l"])],
        {"s": floats(), "z": np.uint8(3)},
    ),
    "quantized with a scale for each channel": (
        [N("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1), N("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
         N("Relu", ["d"], ["y"])],
        {"s": floats(4), "z": np.full(4, 100, np.uint8)},
        [N("QuantizeLinear", ["h", "s", "z"], ["q"], axis=-1), N("DequantizeLinear", ["q", "s", "z"], ["d"], axis=3),
         N("Relu", ["d"], ["l"])],
        {"s": floats(4), "z": np.full(4, 100, np.uint8)},
    ),
    "parts": (
        [N("Slice", ["x", "o", "b", "i"], ["p"]), N("Slice", ["x", "b", "e", "i"], ["r"]), N("Add", ["p", "r"], ["y"])],
        {"o": ints(0), "b": ints(2), "e": ints(4), "i": ints(1)},
        [N("Split", ["h", "w"], ["p", "r"], axis=3), N("Add", ["p", "r"], ["l"])],
        {"w": ints(2, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_works_on_channels_that_come_last_has_the_same_form(name: str) -> None:
    plain, tensors, other, others = CASES[name]
    x = np.random.default_rng(1).normal(0, 2, (3, *SHAPE)).astype(np.float32)
    both = [network(plain, tensors, batch=3), network(turned(other), others, batch=3)]
    wanted = run(both[0], x)
    assert np.allclose(run(both[1], x), wanted, atol=1e-6)
    assert form(both[0]).shape == form(both[1]).shape
    for model in both:
        assert np.allclose(computed(model, x), wanted, atol=1e-6)
    if name != "concat":  # what is joined to each batch has its size
        assert form(network(plain, tensors)).shape == form(network(turned(other), others)).shape


def test_an_axis_that_was_mixed_up_is_told() -> None:
    plain, tensors, other, others = CASES["slice"]
    wrong = network(turned(other), others | {"c": ints(1, 3), "a": ints(2, 1)})
    assert list(compare_structures(form(network(plain, tensors)), form(wrong)))


@pytest.mark.parametrize("end", [4, 16, 20000])
def test_what_is_cut_off_a_large_batch_alone_is_no_identity(end: int) -> None:
    cut = network([N("Slice", ["x", "a", "b", "c"], ["y"])], {"a": ints(0), "b": ints(end), "c": ints(0)})
    whole = network([N("Identity", ["x"], ["y"])], {})
    assert list(compare_structures(form(whole), form(cut)))


def test_places_and_parts_are_slices() -> None:
    one = network([N("Gather", ["x", "i"], ["y"], axis=1)], {"i": np.int64(-1)})
    other = network(
        [N("Split", ["x"], ["a", "b", "c", "d"], axis=1, num_outputs=4), N("Squeeze", ["d", "i"], ["y"])],
        {"i": ints(1)},
    )
    assert form(one).shape == form(other).shape


def test_what_cannot_be_opened_is_said() -> None:
    blocked = N("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc", name="c")
    tensors = {"w": floats(8, 4, 1, 1)}
    plain, other = network([N("Conv", ["x", "w"], ["y"], name="c")], tensors), network([blocked], tensors)
    other.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    (change,) = compare_structures(form(plain), form(other))
    assert all(word in change.text for word in ("com.microsoft.nchwc.Conv", "cannot be compared"))
