"""For every rule of the checker, a model that breaks it and its neighbour that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.unit.export._qdq_models import Net, ort, trt

Make = Callable[[bool], onnx.ModelProto]
F32, I64, I8, U8 = np.float32, np.int64, np.int8, np.uint8


@dataclass(frozen=True)
class Fixture:
    """`make(True)` gives the model that breaks the rule, `make(False)` its neighbour."""

    rule: str
    target: str
    make: Make

    @property
    def name(self) -> str:
        return self.make.__name__.removeprefix("make_")


FIXTURES: list[Fixture] = []


def fixture(rule: str, target: str = "tensorrt-rtx") -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        FIXTURES.append(Fixture(rule, target, make))
        return make

    return register


def one_conv(n: Net, x: str, **conv: Any) -> onnx.ModelProto:
    """Quantize, convolve, and leave the output as the style wants it."""
    h = n.conv(x, **conv)
    return n.model(n.qdq(h, "out") if n.style == "ort" else h)


def varied(
    name: str, rule: str, target: str, bad: dict[str, Any], good: dict[str, Any], *, weights: bool = False
) -> None:
    """Enter one convolution whose input's, or whose weights', quantizer has what breaks a rule, or what does not."""

    @fixture(rule, target)
    def make(wrong: bool) -> onnx.ModelProto:
        n, own = trt() if target.startswith("tensorrt") else ort(), bad if wrong else good
        return one_conv(n, n.qdq("x", "in"), weights=own) if weights else one_conv(n, n.qdq("x", "in", **own))

    make.__name__ = f"make_{name}"


def scales(odd: float) -> dict[str, Any]:
    return {"scale": np.array([0.01, 0.02, odd, 0.01])}


RTX, ORT = "tensorrt-rtx", "onnxruntime"
EACH_CHANNEL: dict[str, Any] = {"scale": [0.02, 0.03, 0.04], "axis": 1}
POSITIVE = {"zero": 0, "range": (0, 127)}
FULL, SEVEN_BITS = {"range": (-127, 127)}, {"range": (-63, 63)}
varied("uint8_activations", "E1", "tensorrt", {"dtype": U8}, {"dtype": I8})
varied("uint8_weights", "E1", RTX, {"dtype": U8, **POSITIVE}, {"dtype": I8, **POSITIVE}, weights=True)
varied("zero_point_not_0", "E2", RTX, {"zero": 3}, {"zero": 0})
varied("scale_of_zero", "E3", RTX, scales(0.0), scales(0.01), weights=True)
varied("negative_scale", "E3", RTX, {"scale": -0.1}, {"scale": 0.1})
varied("scale_not_a_number", "E3", RTX, {"scale": np.nan}, {"scale": 0.1})
varied("too_few_scales", "E3", RTX, {"scale": np.full(3, 0.01)}, {"scale": np.full(4, 0.01)}, weights=True)
varied("infinite_scale", "E3", ORT, {"scale": np.inf}, {"scale": 0.02})
varied("uint8_read_as_int8", "W2", RTX, {"dtype": U8}, {"dtype": I8})
varied("scale_of_rank_1", "W3", RTX, {"scale": [0.02]}, {"scale": 0.02})
varied("channel_scales", "W4", RTX, EACH_CHANNEL, {})
varied("wrong_axis", "W5", RTX, {"axis": 1}, {"axis": 0}, weights=True)
varied("vanishing_scale", "W14", RTX, scales(1e-40), scales(1e-30), weights=True)
varied("clip_of_int8", "O7", ORT, {"clip": (-8, 7), "zero": 0, "dtype": I8}, {"clip": (120, 135)})
varied("channel_scales_of_activations", "O13", ORT, EACH_CHANNEL, {})
varied("unsigned_weights", "O15", ORT, {"dtype": U8}, {"dtype": I8}, weights=True)
varied("full_range_of_weights", "O17", "onnxruntime-avx2", FULL, SEVEN_BITS, weights=True)
varied("full_range_of_weights", "O17", ORT, FULL, SEVEN_BITS, weights=True)
varied("full_range_of_weights", "V2", "openvino", FULL, SEVEN_BITS, weights=True)
varied("codes_of_four_bits", "N1", "onnxruntime-qnn", {"zero": 0, "clip": (0, 15)}, {"zero": 0})

# --- errors ---------------------------------------------------------------------------------------------------------


@fixture("E1")
def make_int16_activations(bad: bool) -> onnx.ModelProto:
    n = trt()
    return n.model(n.conv(n.qdq("x", "in", dtype=np.int16 if bad else I8)), opset=21, ir=10)


@fixture("E2")
def make_zero_point_not_constant(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    if bad:
        del n.initializers["in.zero"]
        n.inputs.append(helper.make_tensor_value_info("in.zero", TensorProto.INT8, []))
    return one_conv(n, x)


@fixture("E3")
def make_scale_as_input(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    if bad:
        del n.initializers["in.scale"]
        n.inputs.append(helper.make_tensor_value_info("in.scale", TensorProto.FLOAT, []))
    return one_conv(n, x)


@fixture("E4")
def make_int32_bias(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    n.style = "ort" if bad else "trt"
    return n.model(n.conv(x))


@fixture("E5")
def make_clip_of_weight_codes(bad: bool) -> onnx.ModelProto:
    n = trt()
    return one_conv(n, n.qdq("x", "in"), weights={"clip": (-120, 120)} if bad else {})


@fixture("E5")
def make_transposed_weight_codes(bad: bool) -> onnx.ModelProto:
    n = trt()
    codes = n.const("codes", n.rng.integers(-9, 9, (3, 3, 3, 4)).astype(I8))
    scale = [n.const("scale", 0.01, F32), n.const("zero", 0, I8)]
    if bad:
        codes = n.node("Transpose", [codes], "move", perm=[3, 2, 0, 1])
    weight = n.node("DequantizeLinear", [codes, *scale], "w.DQ")
    if not bad:
        weight = n.node("Transpose", [weight], "move", perm=[3, 2, 0, 1])
    return one_conv(n, n.qdq("x", "in"), weight=weight)


@fixture("E6")
def make_custom_domain(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.node("Quant", ["x"], "extra", domain="qonnx.custom_op.general") if bad else n.relu("x")
    return one_conv(n, n.qdq(x, "in"))


@fixture("E6")
def make_integer_operator(bad: bool) -> onnx.ModelProto:
    n = trt(shape=(3, 8, 8))
    if not bad:
        return one_conv(n, n.qdq("x", "in"))
    params = n.params("in", 0.02, 0, I8)
    codes = n.node("QuantizeLinear", ["x", *params], "in.Q")
    weight = n.const("w", n.rng.integers(-9, 9, (4, 3, 3, 3)).astype(I8))
    n.node("ConvInteger", [codes, weight], "conv")
    return n.model(n.node("Cast", ["conv:0"], "float", to=TensorProto.FLOAT))


@fixture("E6", "onnxruntime")
def make_unknown_operator(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.node("Gelu" if not bad else "Quant", ["x"], "extra", domain="com.microsoft" if not bad else "qonnx")
    return one_conv(n, n.qdq(x, "in"))


@fixture("E7")
def make_refused_operator(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.conv(n.qdq("x", "in"))
    return n.model(n.node("Det" if bad else "Relu", [x], "last"), rank=2 if bad else 4)


@fixture("E8")
def make_new_opset(bad: bool) -> onnx.ModelProto:
    n = trt()
    return n.model(n.conv(n.qdq("x", "in")), opset=26 if bad else 25, ir=11)


@fixture("E9")
def make_int4_weights(bad: bool) -> onnx.ModelProto:
    n = trt()
    codes = n.raw("codes", TensorProto.INT4 if bad else TensorProto.INT8, (4, 3, 3, 3), [1.0] * 108)
    weight = n.node("DequantizeLinear", [codes, n.const("ws", [0.1] * 4, F32)], "w.DQ", axis=0)
    return n.model(n.conv(n.qdq("x", "in"), weight=weight), opset=21, ir=10)


@fixture("E9")
def make_float8_activations(bad: bool) -> onnx.ModelProto:
    n = trt()
    kind = TensorProto.FLOAT8E4M3FN if bad else TensorProto.INT8
    params = [n.const("s", 0.02, F32), n.raw("z", kind, (), [0])]
    x = n.node("DequantizeLinear", [n.node("QuantizeLinear", ["x", *params], "Q"), *params], "DQ")
    codes = n.raw("codes", kind, (4, 3, 3, 3), [1.0] * 108)
    weight = n.node("DequantizeLinear", [codes, n.const("ws", 0.1, F32)], "w.DQ")
    return n.model(n.conv(x, weight=weight), opset=19, ir=9)


@fixture("E10")
def make_codes_into_conv(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    return one_conv(n, n.nodes[0].output[0] if bad else x)


# --- warnings -------------------------------------------------------------------------------------------------------


@fixture("W1")
def make_no_zero_point(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    if bad:
        for node in n.nodes:
            del node.input[2:]
    return one_conv(n, x)


@fixture("W6")
def make_float_weight(bad: bool) -> onnx.ModelProto:
    n = trt()
    weight = n.const("w.float", n.rng.normal(size=(4, 3, 3, 3)).astype(F32))
    return one_conv(n, n.qdq("x", "in"), weight=weight if bad else n.qdq(weight, "w"))


@fixture("W7")
def make_pair_before_relu(bad: bool) -> onnx.ModelProto:
    n = trt()
    h = n.conv(n.qdq("x", "in"))
    h = n.qdq(n.relu(n.qdq(h, "mid") if bad else h), "behind")
    return n.model(n.conv(h, "conv2", 4, 4))


@fixture("W7")
def make_pair_on_main_branch(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq(n.relu(n.conv(n.qdq("x", "in"), "stem")), "a")
    h = n.conv(x, "conv", 4, 4)
    return n.model(n.relu(n.node("Add", [n.qdq(h, "main") if bad else h, x], "add"), "last"))


@fixture("W8")
def make_float_residual(bad: bool) -> onnx.ModelProto:
    n = trt()
    r = n.relu(n.conv(n.qdq("x", "in"), "stem"))
    x = n.qdq(r, "a")
    return n.model(n.relu(n.node("Add", [n.conv(x, "conv", 4, 4), r if bad else x], "add"), "last"))


@fixture("W9")
def make_clip_of_codes(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = "x"
    if not bad:
        x = n.node("Clip", ["x", n.const("low", -0.16, F32), n.const("high", 0.14, F32)], "clip")
    return one_conv(n, n.qdq(x, "in", clip=(-8, 7) if bad else None))


@fixture("W10")
def make_other_scale_behind(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    n.nodes[-1].input[1] = n.const("other", 0.03 if bad else 0.02, F32)
    return one_conv(n, x)


@fixture("W10")
def make_requantized(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    return one_conv(n, n.qdq(x, "again", scale=0.05) if bad else x)


@fixture("W11")
def make_norm_behind_conv(bad: bool) -> onnx.ModelProto:
    n = trt()
    h = n.conv(n.qdq("x", "in"))
    return n.model(norm(n, h) if bad else h)


def norm(n: Net, h: str) -> str:
    values = [[1.1, -0.9, 1.2, 0.8], [0.1, 0.2, -0.1, 0.0], [0.2, -0.2, 0.1, 0.3], [1.5, 0.7, 2.0, 1.0]]
    names = [n.const(name, value, F32) for name, value in zip(("gamma", "beta", "mean", "var"), values, strict=True)]
    return n.node("BatchNormalization", [h, *names], "bn")


@fixture("W12")
def make_float64(bad: bool) -> onnx.ModelProto:
    n = trt()
    h = n.conv(n.qdq("x", "in"))
    if bad:
        h = n.node("Cast", [n.node("Cast", [h], "wide", to=TensorProto.INT64)], "back", to=TensorProto.FLOAT)
    return n.model(h)


@fixture("W13")
def make_dynamic_sizes(bad: bool) -> onnx.ModelProto:
    n = trt(shape=(3, "H", "W") if bad else (3, 8, 8))
    return one_conv(n, n.qdq("x", "in"))


@fixture("W15")
def make_quantized_transposed_conv(bad: bool) -> onnx.ModelProto:
    n = trt()
    h = n.conv(n.qdq("x", "in"))
    weight = n.weight("w", (4, 3, 3, 3), axis=1) if bad else n.const("w", n.rng.normal(size=(4, 3, 3, 3)).astype(F32))
    return n.model(n.node("ConvTranspose", [n.qdq(h, "mid") if bad else h, weight], "up"))


@fixture("W16")
def make_listed_initializers(bad: bool) -> onnx.ModelProto:
    n = trt()
    h = n.conv(n.qdq("x", "in"))
    if bad:
        n.inputs.append(helper.make_tensor_value_info("conv.bias", TensorProto.FLOAT, [4]))
    return n.model(h)


@fixture("W17")
def make_repeated_pair(bad: bool) -> onnx.ModelProto:
    n = trt()
    x = n.qdq("x", "in")
    return one_conv(n, n.qdq(x, "again") if bad else x)


@fixture("W18")
def make_parameters_from_nodes(bad: bool) -> onnx.ModelProto:
    n = trt()
    scale, zero = n.const("s", 0.02, F32), n.const("z", 0, I8)
    if bad:
        scale = n.node("Constant", [], "scale", value=numpy_helper.from_array(np.array(0.02, F32)))
        zero = n.node("Cast", [n.node("Constant", [], "zero", value_int=0)], "cast", to=TensorProto.INT8)
    codes = n.node("QuantizeLinear", ["x", scale, zero], "Q")
    return one_conv(n, n.node("DequantizeLinear", [codes, scale, zero], "DQ"))


@fixture("W19")
def make_float_model(bad: bool) -> onnx.ModelProto:
    n = trt()
    weight = n.const("w.float", n.rng.normal(size=(4, 3, 3, 3)).astype(F32)) if bad else n.weight("w", (4, 3, 3, 3))
    return one_conv(n, "x" if bad else n.qdq("x", "in"), weight=weight)


# --- ONNX Runtime ---------------------------------------------------------------------------------------------------


@fixture("O1", "onnxruntime")
def make_float_input(bad: bool) -> onnx.ModelProto:
    n = ort()
    return one_conv(n, "x" if bad else n.qdq("x", "in"))


@fixture("O1", "onnxruntime")
def make_split_input(bad: bool) -> onnx.ModelProto:
    n = ort(shape=(4, 8, 8))
    n.node("Split", [n.qdq("x", "in")], "split", outputs=["a", "b"], axis=1)
    return one_conv(n, "a" if bad else n.qdq("a", "again"), ins=2)


@fixture("O2", "onnxruntime")
def make_float_weights(bad: bool) -> onnx.ModelProto:
    n = ort()
    weight = n.const("w.float", n.rng.normal(size=(4, 3, 3, 3)).astype(F32)) if bad else n.weight("w", (4, 3, 3, 3))
    return one_conv(n, n.qdq("x", "in"), weight=weight)


@fixture("O3", "onnxruntime")
def make_float_bias_of_gemm(bad: bool) -> onnx.ModelProto:
    n = ort(shape=(4,))
    return n.model(n.gemm(n.qdq("x", "in"), bias=n.const("float", np.ones(5, F32)) if bad else None), rank=2)


@fixture("O4", "onnxruntime")
def make_float_output(bad: bool) -> onnx.ModelProto:
    n = ort()
    h = n.conv(n.qdq("x", "in"))
    return n.model(n.qdq(n.node("LeakyRelu", [h if bad else n.qdq(h, "mid")], "act"), "out"))


@fixture("O5", "onnxruntime")
def make_int8_behind_relu(bad: bool) -> onnx.ModelProto:
    n = ort()
    h = n.relu(n.conv(n.qdq("x", "in")))
    h = n.qdq(h, "mid", zero=0, dtype=I8) if bad else n.qdq(h, "mid", clip=(0, 127))
    return one_conv(n, h, name="conv2", ins=4)


@fixture("O6", "onnxruntime")
def make_int8_with_two_readers(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in", zero=0, dtype=I8) if bad else n.qdq("x", "in")
    a, b = n.qdq(n.conv(x), "a"), n.qdq(n.conv(x, "conv2"), "b")
    return n.model(n.qdq(n.node("Add", [a, b], "add"), "out"))


@fixture("O8", "onnxruntime")
def make_codes_of_16_bits(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in", dtype=np.uint16, zero=2**15) if bad else n.qdq("x", "in")
    return n.model(n.qdq(n.conv(x), "out"), opset=21, ir=10)


@fixture("O8", "onnxruntime")
def make_weights_of_4_bits(bad: bool) -> onnx.ModelProto:
    n = ort()
    codes = n.raw("codes", TensorProto.INT4 if bad else TensorProto.INT8, (4, 3, 3, 3), [1.0] * 108)
    weight = n.node("DequantizeLinear", [codes, n.const("ws", np.linspace(0.005, 0.02, 4), F32)], "w.DQ", axis=0)
    return n.model(n.qdq(n.conv(n.qdq("x", "in"), weight=weight), "out"), opset=21, ir=10)


@fixture("O9", "onnxruntime")
def make_reduce_mean(bad: bool) -> onnx.ModelProto:
    n = ort(shape=(4, 8, 8))
    x = n.qdq("x", "in")
    h = n.node("ReduceMean", [x], "mean", axes=[2, 3]) if bad else n.node("GlobalAveragePool", [x], "mean")
    return n.model(n.qdq(h, "out"))


@fixture("E11", "onnxruntime")
def make_bias_of_another_call(bad: bool) -> onnx.ModelProto:
    n = ort()
    return one_conv(n, n.qdq("x", "in"), bias=n.bias("conv", 4, input_scale=0.05 if bad else 0.02))


@fixture("E11", "onnxruntime-avx2")
def make_bias_with_the_weights_scale(bad: bool) -> onnx.ModelProto:
    n = ort(shape=(4,))
    scale = np.linspace(0.005, 0.02, 5)
    if bad:
        scale[3] *= 1.00001
    return n.model(n.gemm(n.qdq("x", "in"), weights={"range": (-63, 63)}, bias=n.bias("fc", 5, scale)), rank=2)


@fixture("O10", "onnxruntime")
def make_pool_quantized_behind_flatten(bad: bool) -> onnx.ModelProto:
    n = ort(shape=(4, 8, 8))
    h = n.node("GlobalAveragePool", [n.qdq("x", "in")], "pool")
    return n.model(n.qdq(n.node("Flatten", [h if bad else n.qdq(h, "mid")], "flatten"), "out"), rank=2)


@fixture("O11", "onnxruntime")
def make_output_quantized_twice(bad: bool) -> onnx.ModelProto:
    n = ort()
    h = n.conv(n.qdq("x", "in"))
    a = n.qdq(h, "a")
    return n.model(n.qdq(n.node("Add", [a, n.qdq(h, "b", scale=0.04) if bad else a], "add"), "out"))


@fixture("O12", "onnxruntime")
def make_clip_inside_the_range(bad: bool) -> onnx.ModelProto:
    n = ort()
    h = n.node("Clip", [n.conv(n.qdq("x", "in")), n.const("low", 0, F32), n.const("high", 6, F32)], "relu6")
    return n.model(n.qdq(h, "out", zero=0, scale=0.03 if bad else 6 / 256))


@fixture("O14", "onnxruntime")
def make_transposed_conv(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in")
    if not bad:
        return one_conv(n, x)
    return n.model(n.qdq(n.node("ConvTranspose", [x, n.weight("w", (3, 4, 3, 3), axis=1)], "up"), "out"))


@fixture("O16", "onnxruntime")
def make_operator_without_kernel(bad: bool) -> onnx.ModelProto:
    n = ort()
    h = n.node("HardSigmoid" if bad else "Sigmoid", [n.qdq("x", "in")], "gate")
    return n.model(n.qdq(h, "out", zero=0))


@fixture("O18", "onnxruntime")
def make_ties_of_additions(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in")
    first, second = (n.qdq(n.conv(x, name), f"{name}.out", scale=0.25) for name in ("one", "two"))
    return n.model(n.qdq(n.node("Add", [first, second], "add"), "sum", scale=0.5 if bad else 0.501953125))


@fixture("W20", "onnxruntime")
def make_boxes_and_scores_on_one_grid(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in")
    boxes = n.qdq(n.conv(x, "boxes"), "boxes.out", scale=2.5)
    scores = n.qdq(n.node("Sigmoid", [n.qdq(n.conv(x, "scores"), "scores.out")], "probability"), "p", scale=1 / 255)
    joined = n.node("Concat", [boxes, scores], "joined", axis=1)
    return n.model(n.qdq(joined, "all", scale=2.5) if bad else joined)


@fixture("W20", "openvino")
def make_products_of_scores_on_a_grid_of_boxes(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in")
    boxes = n.qdq(n.conv(x, "boxes"), "boxes.out", scale=2.5)
    sides = [n.node("Sigmoid", [n.conv(x, name)], f"{name}.p") for name in ("objectness", "scores")]
    joined = n.node("Concat", [boxes, n.node("Mul", sides, "product")], "joined", axis=1)
    return n.model(n.qdq(joined, "all", scale=2.5) if bad else joined)


@fixture("W20", "openvino")
def make_inputs_of_one_scale(bad: bool) -> onnx.ModelProto:
    n = ort()
    x = n.qdq("x", "in")
    boxes = n.qdq(n.conv(x, "boxes"), "boxes.out", scale=2.5)
    scores = n.node("Sigmoid", [n.qdq(n.conv(x, "scores"), "scores.out")], "probability")
    scores = n.qdq(scores, "p", scale=2.5 if bad else 1 / 255)
    return n.model(n.node("Concat", [boxes, scores], "joined", axis=1))


@fixture("V1", "openvino")
def make_float_weights_for_openvino(bad: bool) -> onnx.ModelProto:
    n = trt()
    weight = n.const("w.float", n.rng.normal(size=(4, 3, 3, 3)).astype(F32)) if bad else n.weight("w", (4, 3, 3, 3))
    return one_conv(n, n.qdq("x", "in"), weight=weight)
