"""Tiny models for the tests of the deployment half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class QdqBuilder:
    """Write a small QDQ graph operator by operator; every method returns the name of its output tensor."""

    def __init__(self, input_shape: tuple[int, int, int] = (3, 8, 8)) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.input_shape = input_shape
        self.rng = np.random.default_rng(0)

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], name: str = "", *, suffix: str = "out", **attributes: object) -> str:
        output = f"{name or f'{op}{len(self.nodes)}'}.{suffix}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def qdq(self, x: str, name: str, *, scale: float = 0.02, zero_point: int = 0, dtype: str = "uint8") -> str:
        parameters = [
            self.constant(f"{name}.scale", np.array(scale, np.float32)),
            self.constant(f"{name}.zero_point", np.array(zero_point, dtype)),
        ]
        codes = self.node("QuantizeLinear", [x, *parameters], f"{name}.Q")
        return self.node("DequantizeLinear", [codes, *parameters], f"{name}.DQ")

    def _parameters(self, name: str, shape: tuple[int, ...], *, float_bias: bool) -> list[str]:
        out = shape[0]
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        weight = self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.weight_int8", codes),
                self.constant(f"{name}.weight_scale", np.full(out, 0.01, np.float32)),
                self.constant(f"{name}.weight_zero_point", np.zeros(out, np.int8)),
            ],
            f"{name}.weight_DQ",
            axis=0,
        )
        if float_bias:
            return [weight, self.constant(f"{name}.bias", self.rng.normal(size=out).astype(np.float32))]
        bias = self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.bias_int32", self.rng.integers(-99, 99, out).astype(np.int32)),
                self.constant(f"{name}.bias_scale", np.full(out, 0.01 * 0.02, np.float32)),
                self.constant(f"{name}.bias_zero_point", np.zeros(out, np.int32)),
            ],
            f"{name}.bias_DQ",
            axis=0,
        )
        return [weight, bias]

    def conv(self, x: str, name: str, channels: tuple[int, int]) -> str:
        parameters = self._parameters(name, (channels[1], channels[0], 3, 3), float_bias=False)
        return self.node("Conv", [x, *parameters], name, pads=[1, 1, 1, 1])

    def gemm(self, x: str, name: str, features: tuple[int, int], *, float_bias: bool = False) -> str:
        parameters = self._parameters(name, (features[1], features[0]), float_bias=float_bias)
        return self.node("Gemm", [x, *parameters], name, transB=1)

    def save(self, path: Path, output: str, *, rank: int = 4) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input_shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


@pytest.fixture
def qdq() -> type[QdqBuilder]:
    return QdqBuilder


@pytest.fixture
def residual_net(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes conv-relu, conv, residual add, pool, classifier; all of it fuses by default."""

    def write(*, relu_zero_point: int = 0, float_bias: bool = False, name: str = "net.onnx") -> Path:
        b = QdqBuilder()
        x = b.qdq("x", "input", zero_point=128)
        r = b.qdq(b.node("Relu", [b.conv(x, "conv1", (3, 4))], "relu1"), "act1", zero_point=relu_zero_point)
        c = b.qdq(b.conv(r, "conv2", (4, 4)), "act2", scale=0.03, zero_point=128)
        a = b.qdq(b.node("Relu", [b.node("Add", [r, c], "add")], "relu2"), "act3", scale=0.05)
        g = b.qdq(b.node("GlobalAveragePool", [a], "pool"), "act4")
        f = b.qdq(b.node("Flatten", [g], "flatten"), "act5")
        return b.save(tmp_path / name, b.gemm(f, "fc", (4, 10), float_bias=float_bias), rank=2)

    return write
