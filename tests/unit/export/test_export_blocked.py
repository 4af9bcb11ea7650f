"""Float convolutions that ONNX Runtime's optimizer wrote for one processor, and such files that are broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends.onnxruntime.blocks import block_of
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.gate.change import Change
from dfqkit_export.gate.graph_diff import compare_signatures
from dfqkit_export.gate.signature import read_signature
from dfqkit_export.onnxfile.canonical.blocked import DOMAIN


def network() -> onnx.ModelProto:
    """Convolutions of all kinds: dense, of each channel alone, in two groups, with a sum and activations behind."""
    rng, nodes, stored = np.random.default_rng(0), [], []

    def conv(x: str, name: str, out: int, inner: int, size: int = 3, groups: int = 1, **more: Any) -> str:
        for part, shape in (("w", (out, inner, size, size)), ("b", (out,))):
            stored.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{name}.{part}"))
        inputs, pads = [x, f"{name}.w", f"{name}.b"], [size // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"{name}:0"], name=name, group=groups, pads=pads, **more))
        return f"{name}:0"

    def node(op: str, *inputs: str, **more: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{len(nodes)}"], name=f"{op}{len(nodes)}", **more))
        return str(nodes[-1].output[0])

    x = node("Sigmoid", conv(node("Relu", conv("x", "first", 12, 3)), "alone", 12, 1, groups=12))
    x = node("Relu", node("Add", conv(x, "left", 20, 12), conv(x, "right", 20, 12, size=1)))
    x = node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = node("Mul", *(conv(conv(x, f"wide{k}", 32, 20, size=1), f"pair{k}", 32, 16, groups=2) for k in (0, 1)))
    node("Flatten", node("GlobalAveragePool", x))
    nodes[-1].output[0] = "y"
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32]))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Return what the optimizer makes of it here."""
    folder = tmp_path_factory.mktemp("blocked")
    onnx.save(network(), str(folder / "plain.onnx"))
    OrtSession(folder / "plain.onnx", threads=1, optimized_path=folder / "made.onnx")
    return onnx.load(str(folder / "made.onnx"))


def changes(model: onnx.ModelProto, block: int | None = None) -> Sequence[Change]:
    found = read_signature(model, block=block_of(model) if block is None else block)
    return compare_signatures(read_signature(network()), found)


def ours(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    found = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, op)]
    if not found:
        pytest.skip("ONNX Runtime lays nothing out in blocks on this processor")
    return found


def test_it_is_the_same_network(blocked: onnx.ModelProto, tmp_path: Path) -> None:
    assert len(ours(blocked, "Conv")) == 8
    assert not [change for change in changes(blocked) if change.wrong or change.layer]


def filled_up(model: onnx.ModelProto) -> None:
    """Let a channel that is none be read: the last of those in a block, of the weights from 12 to 20 channels."""
    (weight,) = [t for t in model.graph.initializer if t.name == ours(model, "Conv")[2].input[1]]
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[values.reshape(-1) == 0] = 1.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def one_weight(model: onnx.ModelProto) -> None:
    (weight,) = [t for t in model.graph.initializer if t.name == ours(model, "Conv")[0].input[1]]
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def no_activation(model: onnx.ModelProto) -> None:
    (item,) = [item for item in ours(model, "Conv")[0].attribute if item.name == "activation"]
    ours(model, "Conv")[0].attribute.remove(item)


def fewer_channels(model: onnx.ModelProto) -> None:
    (item,) = [item for item in ours(model, "ReorderOutput")[0].attribute if item.name == "channels"]
    item.i -= 1


def left_in_blocks(model: onnx.ModelProto) -> None:
    """Let what works on maps read blocks."""
    step = ours(model, "ReorderOutput")[0]
    reader = next(node for node in model.graph.node if step.output[0] in node.input)
    reader.input[0] = step.input[0]


def taken_for_blocks(model: onnx.ModelProto) -> None:
    step = next(iter(ours(model, "ReorderInput")), None)
    if step is None:
        pytest.skip("the optimizer goes back to maps nowhere")
    reader = next(node for node in model.graph.node if step.output[0] in node.input)
    reader.input[0] = step.input[0]


@pytest.mark.parametrize(
    "fault", [filled_up, one_weight, no_activation, fewer_channels, left_in_blocks, taken_for_blocks]
)
def test_one_that_is_broken_is_told(fault: Callable[[onnx.ModelProto], None], blocked: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(blocked)
    fault(broken)
    assert [change for change in changes(broken) if change.wrong or change.layer]


def test_blocks_of_another_processor_are_not_taken_for_these(blocked: onnx.ModelProto) -> None:
    ours(blocked, "Conv")
    assert [change for change in changes(blocked, 24 - block_of(blocked)) if change.wrong or change.layer]
    assert [change for change in changes(blocked, 0) if "cannot be compared" in change.text]
