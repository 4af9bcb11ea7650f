"""Tiny QDQ models, written node by node: the fixtures of the checker's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A model in the making; every method that adds a node returns the name of its output tensor.

    `style` "trt" quantizes activations to int8 with zero point 0 and keeps biases float; "ort" quantizes them to uint8
    and biases to int32.
    """

    def __init__(self, style: str = "trt", shape: tuple[Any, ...] = (3, 8, 8)) -> None:
        self.style = style
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.rng = np.random.default_rng(0)
        self.batch: Any = "N"
        self.input_type = TensorProto.FLOAT

    def const(self, name: str, value: NDArray[Any] | float, dtype: Any = None) -> str:
        array = np.asarray(value) if dtype is None else np.asarray(value, dtype)
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def raw(self, name: str, elem_type: int, shape: tuple[int, ...], values: list[float]) -> str:
        """Add an initializer of a type that numpy does not have."""
        self.initializers[name] = helper.make_tensor(name, elem_type, shape, values)
        return name

    def node(self, op: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        outputs = attributes.pop("outputs", [f"{name}:0"])
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return str(outputs[0])

    def params(self, name: str, scale: Any, zero_point: Any, dtype: Any) -> list[str]:
        scale = np.asarray(scale, np.float32)
        zero = np.broadcast_to(np.asarray(zero_point), scale.shape).astype(dtype)
        return [self.const(f"{name}.scale", scale), self.const(f"{name}.zero", zero)]

    def qdq(
        self,
        x: str,
        name: str,
        *,
        scale: Any = 0.02,
        zero: int | None = None,
        dtype: Any = None,
        clip: Any = None,
        **kw: Any,
    ) -> str:
        """Add a Q/DQ pair, with an integer Clip between them where `clip` gives bounds."""
        relu = bool(self.nodes) and self.nodes[-1].op_type in ("Relu", "Sigmoid") and self.nodes[-1].output[0] == x
        dtype = dtype or (np.int8 if self.style == "trt" else np.uint8)
        if zero is None:
            zero = 0 if self.style == "trt" or relu else 128
        params = self.params(name, scale, zero, dtype)
        codes = self.node("QuantizeLinear", [x, *params], f"{name}.Q", **kw)
        if clip is not None:
            bounds = [
                self.const(f"{name}.{end}", np.asarray(v, dtype)) for end, v in zip(("low", "high"), clip, strict=True)
            ]
            codes = self.node("Clip", [codes, *bounds], f"{name}.clip")
        return self.node("DequantizeLinear", [codes, *params], f"{name}.DQ", **kw)

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        axis: int | None = 0,
        scale: Any = None,
        dtype: Any = np.int8,
        **kw: Any,
    ) -> str:
        """Add stored codes with a DequantizeLinear; `axis` None for one scale of rank 0."""
        if scale is None:
            scale = 0.01 if axis is None else np.linspace(0.005, 0.02, shape[axis])
        zero = kw.get("zero", 128 if dtype == np.uint8 else 0)
        low, high = kw.get("range", (-63, 63))
        codes = (self.rng.integers(low, high + 1, shape) + zero).astype(dtype)
        codes_name = self.const(f"{name}.codes", codes)
        if "clip" in kw:
            bounds = [self.const(f"{name}.{end}", v, dtype) for end, v in zip(("low", "high"), kw["clip"], strict=True)]
            codes_name = self.node("Clip", [codes_name, *bounds], f"{name}.clip")
        attributes = {} if axis is None else {"axis": axis}
        return self.node(
            "DequantizeLinear", [codes_name, *self.params(name, scale, zero, dtype)], f"{name}.DQ", **attributes
        )

    def bias(self, name: str, size: int, weight_scale: Any = None, input_scale: float = 0.02) -> str:
        if self.style == "trt":
            return self.const(f"{name}.bias", self.rng.normal(size=size).astype(np.float32))
        scale = np.asarray(np.linspace(0.005, 0.02, size) if weight_scale is None else weight_scale, np.float32)
        codes = self.const(f"{name}.bias_codes", self.rng.integers(-999, 999, size).astype(np.int32))
        params = self.params(f"{name}.bias", np.broadcast_to(scale * np.float32(input_scale), (size,)), 0, np.int32)
        return self.node("DequantizeLinear", [codes, *params], f"{name}.bias_DQ", axis=0)

    def conv(self, x: str, name: str = "conv", ins: int = 3, outs: int = 4, **kw: Any) -> str:
        weight = kw.pop("weight", None) or self.weight(f"{name}.w", (outs, ins, 3, 3), **kw.pop("weights", {}))
        bias = kw.pop("bias", None) or self.bias(name, outs)
        return self.node("Conv", [x, weight, bias], name, pads=[1, 1, 1, 1], **kw)

    def gemm(self, x: str, name: str = "fc", ins: int = 4, outs: int = 5, **kw: Any) -> str:
        weight = self.weight(f"{name}.w", (outs, ins), **kw.pop("weights", {}))
        return self.node("Gemm", [x, weight, kw.pop("bias", None) or self.bias(name, outs)], name, transB=1)

    def relu(self, x: str, name: str = "relu") -> str:
        return self.node("Relu", [x], name)

    def model(
        self, output: str, *, opset: int = 17, ir: int = 8, out_type: int = TensorProto.FLOAT, rank: int = 4
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("x", self.input_type, [self.batch, *self.shape]), *self.inputs],
            [helper.make_tensor_value_info(output, out_type, [None] * rank)],
            list(self.initializers.values()),
        )
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def trt(**kw: Any) -> Net:
    return Net("trt", **kw)


def ort(**kw: Any) -> Net:
    return Net("ort", **kw)
