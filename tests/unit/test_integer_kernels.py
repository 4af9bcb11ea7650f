"""Each kernel's formula against ONNX Runtime's own kernel, on scales at random and on those that make ties."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import util
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from dfqkit.students import integer_kernels as kernels
from dfqkit.students.integer_kernels import Grid
from dfqkit_export.backends.onnxruntime.kernels import fma
from dfqkit_export.backends.onnxruntime.session import EXACT_PRODUCTS

REPEATS = 25
#: Quotients of scales that put many results on ties, or a hair beside them.
TIES = (1, 0.5, 0.25, 0.75, 2, 1.5, 3, 1 / 3, 0.6, 1.25)
pytestmark = pytest.mark.parametrize("tied", [False, True])


def grid(rng: np.random.Generator, scale: float) -> Grid:
    return Grid(scale=torch.tensor(np.float32(scale)), zero=int(rng.integers(0, 256)), low=0, high=255)


def beside(rng: np.random.Generator, scale: float | Tensor, tied: bool) -> Grid:
    return grid(rng, float(scale) * (rng.choice(TIES) if tied else rng.uniform(0.3, 3)))


def codes(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape).astype(np.uint8)


def values(stored: NDArray[Any], of: Grid) -> Tensor:
    return of.values(torch.from_numpy(stored.astype(np.float32)))


def quantization(name: str, of: Grid) -> dict[str, NDArray[Any]]:
    return {f"{name}_scale": of.scale.numpy(), f"{name}_zero": np.array(of.zero, np.uint8)}


def ran(
    operator: str,
    named: Mapping[str, NDArray[Any]],
    given: tuple[str, ...],
    domain: str = "com.microsoft",
    **options: Any,
) -> NDArray[Any]:
    """What ONNX Runtime's operator gives; of the named tensors those not ``given`` are constants."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(named[name].dtype), named[name].shape)
        for name in given
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in named.items() if name not in given]
    node = helper.make_node(operator, list(named), ["out"], domain=domain, **options)
    output = helper.make_empty_tensor_value_info("out")
    graph = helper.make_graph([node], "one", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(EXACT_PRODUCTS, "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    return np.asarray(session.run(None, {name: named[name] for name in given})[0])


def same(found: Tensor, out: Grid, expected: NDArray[Any]) -> None:
    wrong = int((found.clamp(out.low, out.high).numpy() != expected).sum())
    assert not wrong, f"{wrong} of {expected.size}; {out}"


def layer(rng: np.random.Generator, tied: bool, x: Grid, *shape: int) -> tuple[Any, ...]:
    """Codes of weights, their scales, codes of a bias, and a grid that the sums fill."""
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    scale = np.float32(rng.uniform(0.001, 0.02)) * rng.choice(TIES, shape[0]).astype(np.float32)
    scale = scale if tied else rng.uniform(0.001, 0.02, shape[0]).astype(np.float32)
    bias = rng.integers(-9999, 9999, shape[0]).astype(np.int32)
    spread = 60 * float(np.prod(shape[1:])) ** 0.5
    out = beside(rng, x.scale * float(scale[0]) * 2 ** round(np.log2(spread)), tied)
    return weight, scale, bias, out


@pytest.mark.parametrize(("channels", "outputs", "kernel", "groups"), [(8, 16, 3, 1), (16, 16, 3, 16), (24, 13, 1, 1)])
def test_convolutions(tied: bool, channels: int, outputs: int, kernel: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        x = grid(rng, rng.uniform(0.001, 0.1))
        weight, scale, bias, out = layer(rng, tied, x, outputs, channels // groups, kernel, kernel)
        named = {"x": codes(rng, 2, channels, 9, 9), **quantization("x", x), "w": weight, "ws": scale}
        named |= {"wz": np.zeros(outputs, np.int8), **quantization("y", out), "b": bias}
        expected = ran("QLinearConv", named, ("x",), "", group=groups, pads=[kernel // 2] * 4)

        def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return nn.functional.conv2d(x, w, b, padding=kernel // 2, groups=groups)

        function = kernels.weighted(convolve, *map(torch.from_numpy, (weight, scale, bias)), x, out)
        same(function(values(named["x"], x)), out, expected)


@pytest.mark.parametrize("width", [64, 8192])  # the sums of the wide one do not fit float32
@pytest.mark.parametrize("gives_codes", [True, False])
def test_linear_layers(tied: bool, width: int, gives_codes: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(REPEATS):
        x = grid(rng, rng.uniform(0.001, 0.1))
        weight, scale, bias, out = layer(rng, tied, x, 10, width)
        weight = np.abs(weight) if width > 64 else weight
        out = beside(rng, out.scale * (width if width > 64 else 1) ** 0.5, tied)
        named = {"x": codes(rng, 9, width), **quantization("x", x), "w": weight, "ws": scale}
        named |= {"wz": np.zeros(10, np.int8), "b": bias} | (quantization("y", out) if gives_codes else {})
        expected = ran("QGemm", named, ("x",), transB=1)
        tensors = map(torch.from_numpy, (weight, scale, bias))
        function = kernels.weighted(nn.functional.linear, *tensors, x, out if gives_codes else None)
        found = function(values(named["x"], x))
        if gives_codes:
            same(found, out, expected)
        assert gives_codes or np.array_equal(found.numpy(), expected)


def test_products_of_matrices(tied: bool) -> None:
    rng = np.random.default_rng(2)
    for _ in range(REPEATS):
        a = grid(rng, rng.uniform(0.001, 0.1))
        b = beside(rng, a.scale, tied)
        out = beside(rng, a.scale * b.scale * 2**15, tied)
        named = {"a": codes(rng, 3, 7, 33), **quantization("a", a), "b": codes(rng, 3, 33, 5), **quantization("b", b)}
        expected = ran("QLinearMatMul", named | quantization("c", out), ("a", "b"), "")
        operands = values(named["a"], a), values(named["b"], b)
        same(kernels.product_of_matrices(a, b, out)(*operands), out, expected)
        order = ("a", "b", "a_scale", "b_scale", "a_zero", "b_zero")
        expected = ran("MatMulIntegerToFloat", {name: named[name] for name in order}, ("a", "b"))
        assert np.array_equal(kernels.product_of_matrices(a, b, None)(*operands).numpy(), expected)


@pytest.mark.parametrize(
    ("operator", "make"), [("QLinearAdd", kernels.addition), ("QLinearMul", kernels.product)], ids=["add", "mul"]
)
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (2, 3, 1, 1)], ids=["alike", "gate"])
def test_additions_and_products(
    tied: bool, operator: str, make: Callable[[Grid, Grid, Grid], kernels.Kernel], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    for _ in range(4 * REPEATS):
        a = grid(rng, rng.uniform(0.001, 0.1))
        b = beside(rng, a.scale, tied)
        out = beside(rng, a.scale * (b.scale * 64 if operator == "QLinearMul" else 1), tied)
        named = {"a": codes(rng, 2, 3, 7, 9), **quantization("a", a), "b": codes(rng, *shape), **quantization("b", b)}
        expected = ran(operator, named | quantization("c", out), ("a", "b"))
        same(make(a, b, out)(values(named["a"], a), values(named["b"], b)), out, expected)


@pytest.mark.parametrize("last", [0, 1])
def test_averages_of_all_places(tied: bool, last: int) -> None:
    rng = np.random.default_rng(4)
    for _ in range(REPEATS):
        x = grid(rng, rng.uniform(0.001, 0.1))
        out = beside(rng, x.scale, tied)
        named = {"x": codes(rng, 2, 400, 5, 8), **quantization("x", x)}
        turned = named["x"].transpose(0, 2, 3, 1).copy() if last else named["x"]
        both = named | {"x": turned} | quantization("y", out)
        expected = ran("QLinearGlobalAveragePool", both, ("x",), channels_last=last)
        expected = expected.transpose(0, 3, 1, 2) if last else expected
        same(kernels.average_of_all(x, out)(values(named["x"], x)), out, expected)


@pytest.mark.parametrize(("kernel", "stride", "padding", "counted"), [(2, 2, 0, 0), (3, 1, 1, 0), (3, 2, 1, 1)])
def test_averages(tied: bool, kernel: int, stride: int, padding: int, counted: int) -> None:
    rng, pool = np.random.default_rng(5), nn.AvgPool2d(kernel, stride, padding, count_include_pad=bool(counted))
    for _ in range(REPEATS):
        x = grid(rng, rng.uniform(0.001, 0.1))
        out = beside(rng, x.scale / 2, tied)
        named = {"x": codes(rng, 2, 5, 11, 13), **quantization("x", x), **quantization("y", out)}
        options = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        expected = ran("QLinearAveragePool", named, ("x",), count_include_pad=counted, **options)
        same(kernels.average(pool, out)(values(named["x"], x)), out, expected)


def test_multiplication_and_addition_round_once(tied: bool) -> None:
    math = ctypes.CDLL(util.find_library("m"))
    math.fmaf.restype, math.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-(2**24), 2**24, 20000).astype(np.float32) for _ in range(2))
    if tied:  # a product a hair beside half of the sum's last bit, which float64 cannot hold beside it
        a, b = 1 + np.float32(2) ** -rng.integers(17, 24, 20000), 1 - np.float32(2) ** -rng.integers(17, 24, 20000)
    c = (rng.integers(2**23, 2**24, 20000) * (np.float32(2) if tied else 2.0 ** rng.integers(-30, 60, 20000))).astype(
        np.float32
    )
    a, b = a.astype(np.float32), b.astype(np.float32)
    found = fma(a, b, c)
    expected = np.array([math.fmaf(*each) for each in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)], np.float32)
    assert np.array_equal(found, expected)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert not tied or not np.array_equal(twice, expected)
