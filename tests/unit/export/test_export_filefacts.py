"""What a file is stored as, against files whose every number is known."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.quantization import QuantFacts, WeightFacts
from dfqkit_export.onnxfile.summary import file_facts, layer_facts
from tests.unit.export.test_export_modelfile import tiny

F32 = np.float32

Stored = dict[str, NDArray[np.generic]]
RNG = np.random.default_rng(3)
CODES = RNG.integers(-7, 8, (4, 3, 3, 3)).astype(np.int8)
CODES[0, 0, 0, 0] = -7


def model(nodes: list[onnx.NodeProto], stored: Stored, *, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "facts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)])
    made.producer_name, made.producer_version = "somebody", "7"
    made.metadata_props.add(key="note", value="hello")
    return made


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), outputs.split()[0], **attributes)


STORED: Stored = {
    "s": np.float32(0.5), "z": np.uint8(3), "so": np.float32(0.25), "zo": np.uint8(0),
    "codes": CODES, "ws": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "wz": np.zeros(4, np.int8),
    "bias": np.arange(4, dtype=np.int32), "bs": np.full(4, 0.05, np.float32), "bz": np.zeros(4, np.int32),
    "low": np.uint8(0), "high": np.uint8(15),
}  # fmt: skip
NODES = [
    node("QuantizeLinear", "x s z", "xq"),
    node("DequantizeLinear", "xq s z", "xd"),
    node("MaxPool", "xd", "pooled", kernel_shape=[2, 2]),
    node("DequantizeLinear", "codes ws wz", "w", axis=0),
    node("DequantizeLinear", "bias bs bz", "b", axis=0),
    node("Conv", "pooled w b", "conv"),
    node("Relu", "conv", "relu"),
    node("QuantizeLinear", "relu so zo", "q"),
    node("Clip", "q low high", "clipped"),
    node("DequantizeLinear", "clipped so zo", "y"),
]


def test_one_layer() -> None:
    (layer,) = layer_facts(model(NODES, STORED))
    scales = hashlib.sha256(b"(4,)" + STORED["ws"].tobytes()).hexdigest()
    codes = hashlib.sha256(b"(4, 3, 3, 3)" + CODES.tobytes()).hexdigest()
    assert (layer.name, layer.op, layer.bias, layer.residual) == ("conv", "Conv", "int32", None)
    assert layer.weight == WeightFacts(
        dtype="int8", bits=4, granularity="per_channel", zero_point=0, scales_sha256=scales, codes_sha256=codes
    )
    assert layer.input == QuantFacts(dtype="uint8", bits=8, granularity="per_tensor", scale=0.5, zero_point=3)
    assert layer.output == QuantFacts(dtype="uint8", bits=4, granularity="per_tensor", scale=0.25, zero_point=0)
    json.dumps(asdict(layer))


def test_the_frame() -> None:
    facts = file_facts(model(NODES, STORED))
    assert (facts.opset, facts.domains, facts.producer, facts.metadata) == (
        18,
        {"own": 1},
        "somebody 7",
        {"note": "hello"},
    )
    assert facts.inputs == ("x: float32 (N, 3, 8, 8)",)
    assert facts.outputs == ("y: float32",)
    assert (facts.nodes, facts.quantize, facts.dequantize) == (10, 2, 4)
    assert facts.parameters == sum(np.asarray(value).size for value in STORED.values())
    json.dumps(facts.to_dict())


@pytest.mark.parametrize(
    ("codes", "zero", "bits"),
    [
        (np.array([-8, 7], np.int8), 0, 4),
        (np.array([-7, 7], np.int8), 0, 4),
        (np.array([-9, 0], np.int8), 0, 5),
        (np.array([0, 0], np.int8), 0, 1),
        (np.array([-1, 0], np.int8), 0, 1),
        (np.array([-127, 127], np.int8), 0, 8),
        (np.array([-64, 63], np.int8), 0, 7),
        (np.array([0, 255], np.uint8), 128, 8),
        (np.array([121, 135], np.uint8), 128, 4),
    ],
)
def test_bits_are_those_the_codes_fill(codes: NDArray[np.generic], zero: int, bits: int) -> None:
    weight = np.resize(codes, (4, 3, 3, 3)).astype(codes.dtype)
    stored = {**STORED, "codes": weight, "ws": np.float32(0.1), "wz": np.array(zero, codes.dtype)}
    (layer,) = layer_facts(model(NODES, stored))
    assert layer.weight is not None
    assert (layer.weight.dtype, layer.weight.bits) == (str(codes.dtype), bits)
    assert (layer.weight.granularity, layer.weight.zero_point) == ("per_tensor", zero)


def test_float_weights_with_q_and_dq_have_the_codes_of_stored_ones() -> None:
    """The form in which other exporters keep weights."""
    values = CODES * STORED["ws"].reshape(4, 1, 1, 1)  # type: ignore[operator]
    nodes = [*NODES[:3], node("QuantizeLinear", "floats ws wz", "codes", axis=0), *NODES[3:]]
    stored = {**{name: value for name, value in STORED.items() if name != "codes"}, "floats": values.astype(np.float32)}
    assert layer_facts(model(nodes, stored))[0].weight == layer_facts(model(NODES, STORED))[0].weight


def test_a_float_clip_in_front_of_q_narrows_the_bits() -> None:
    stored = {**STORED, "low": np.float32(-2.0), "high": np.float32(1.75)}
    stored |= {"zo": np.int8(0)}
    nodes = [*NODES[:6], node("Clip", "conv low high", "cut"), node("QuantizeLinear", "cut so zo", "q")]
    nodes += [node("DequantizeLinear", "q so zo", "y")]
    (layer,) = layer_facts(model(nodes, stored))
    assert layer.output == QuantFacts(dtype="int8", bits=4, granularity="per_tensor", scale=0.25, zero_point=0)


def test_a_float_layer() -> None:
    values = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
    (layer,) = layer_facts(model([node("Conv", "x w", "y")], {"w": values}))
    assert layer.weight == WeightFacts(
        dtype="float32", bits=32, codes_sha256=hashlib.sha256(b"(4, 3, 3, 3)" + values.tobytes()).hexdigest()
    )
    assert not layer.weight.quantized
    assert (layer.bias, layer.input, layer.output) == ("none", None, None)


def test_an_addition_has_two_inputs() -> None:
    nodes = [*NODES[:2], node("QuantizeLinear", "x so zo", "q2"), node("DequantizeLinear", "q2 so zo", "d2")]
    (layer,) = layer_facts(model([*nodes, node("Add", "xd d2", "y")], STORED))
    assert (layer.op, layer.weight) == ("Add", None)
    assert layer.input is not None
    assert layer.residual is not None
    assert (layer.input.scale, layer.residual.scale) == (0.5, 0.25)
    assert layer.output is None


def test_per_channel_activations_and_absent_zero_points() -> None:
    stored = {**STORED, "s": np.array([0.5, 0.25, 1.0], np.float32)}
    nodes = [node("QuantizeLinear", "x s", "xq", axis=1), node("DequantizeLinear", "xq s", "xd", axis=1), *NODES[2:]]
    (layer,) = layer_facts(model(nodes, stored))
    assert layer.input == QuantFacts(dtype="uint8", bits=8, granularity="per_channel", scale=1.0, zero_point=0)


class TestGraph:
    """What `SourceGraph` answers on files that are written in other ways."""

    def test_what_a_branch_reads_is_read_by_the_node_that_holds_it(self) -> None:
        def branch(op: str, tensor: str) -> onnx.GraphProto:
            out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)
            return helper.make_graph([helper.make_node(op, [tensor], [out.name])], op, [], [out])

        nodes = [
            helper.make_node("Neg", ["x"], ["a"], "neg"),
            helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("Relu", "a"), else_branch=branch("Abs", "x")),
        ]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
        graph = SourceGraph(helper.make_graph(nodes, "g", inputs, [], [numpy_helper.from_array(np.array(True), "c")]))
        assert [node.name for node in graph.readers("a")] == ["if"]
        assert [node.name for node in graph.readers("x")] == ["neg", "if"]
        assert "y" in graph.activations

    def test_the_type_of_codes_is_stated_in_three_ways(self) -> None:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s"], ["a"], "default"),
            helper.make_node("QuantizeLinear", ["x", "s"], ["b"], "stated", output_dtype=TensorProto.INT8),
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"], "zero"),
            *(helper.make_node("DequantizeLinear", [name, "s"], [f"{name}d"], f"{name}d") for name in "abc"),
        ]
        stored = [numpy_helper.from_array(np.array(value), name) for name, value in (("s", F32(1)), ("z", np.int16(0)))]
        graph = SourceGraph(helper.make_graph(nodes, "g", [], [], stored))
        assert [graph.code_type(node) for node in nodes] == ["uint8", "int8", "int16"] * 2

    def test_constants_behind_nodes(self) -> None:
        nodes = [
            helper.make_node("Constant", [], ["c"], value_float=0.5),
            helper.make_node("Identity", ["c"], ["same"]),
            helper.make_node("Cast", ["c"], ["whole"], to=TensorProto.INT32),
            helper.make_node("Cast", ["c"], ["odd"], to=99),
            helper.make_node("Cast", ["c"], ["text"], to=TensorProto.STRING),
        ]
        graph = SourceGraph(
            helper.make_graph(nodes, "g", [], [], [helper.make_tensor("t", TensorProto.STRING, [], [b"a"])])
        )
        assert graph.constant("same") == F32(0.5)
        assert graph.constant("whole") == 0
        assert [graph.constant(name) for name in ("odd", "text", "t", "nowhere")] == [None] * 4


@pytest.mark.parametrize("points", [0, 3])
def test_zero_points_that_do_not_fit_are_the_checkers_question(points: int) -> None:
    model = tiny()
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "weight_zero")
    zero.CopyFrom(numpy_helper.from_array(np.zeros(points, np.int8), "weight_zero"))
    (layer,) = layer_facts(model)
    assert layer.weight is not None
    assert (layer.weight.dtype, layer.weight.bits) == ("int8", 8)


def test_blocks_of_weights_have_zero_points_of_their_own() -> None:
    codes = np.array([[3, 4, 100, 101], [3, 4, 100, 101]], np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=1, block_size=2),
        helper.make_node("MatMul", ["x", "wd"], ["y"], "fc"),
    ]
    stored = {"w": codes, "s": np.ones((2, 2), F32), "z": np.array([[3, 100], [3, 100]], np.uint8)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    (layer,) = layer_facts(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert layer.weight is not None
    assert layer.weight.bits == 2  # 0 and 1 around the zero points: one bit and the sign's


def test_unknown_types_are_said() -> None:
    model = tiny()
    model.graph.output[0].type.tensor_type.elem_type = 99
    assert file_facts(model).outputs[0].startswith("y: an unknown type")


def test_large_weights_are_not_copied_over_and_over() -> None:
    codes = np.zeros((2048, 4096), np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"], "fc"),
    ]
    stored = {"w": codes, "s": np.array(1, F32), "z": np.array(0, np.int8)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4096])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    tracemalloc.start()
    layer_facts(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * codes.nbytes
