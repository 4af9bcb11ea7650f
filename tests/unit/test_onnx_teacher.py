"""ONNX files as teachers: what each operator becomes gives the same as in ONNX Runtime, for any batch size."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from dfqkit.students.capture import float_graph
from dfqkit.teacher.load import load_teacher
from dfqkit.teacher.onnx_graph import elementwise
from dfqkit.teacher.onnx_graph.importing import import_onnx
from dfqkit.teacher.onnx_graph.table import OPERATORS
from dfqkit.teacher.structure import provides
from dfqkit_export.errors import TeacherError
from tests._messages import raises_naming
from tests._onnx_files import file, module_of, op, spec, weights

IMAGE = spec(3, 8, 8)


def kinds(module: nn.Module) -> list[str]:
    return [type(each).__name__ for each in module.modules()]


def called(module: Any) -> list[str]:
    return [getattr(n.target, "__name__", str(n.target)) for n in module.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 4, 2), (9, 3, 1), (8, 2, 3)])
def test_paddings_that_follow_the_size(tmp_path: Path, auto: str, size: int, kernel: int, stride: int) -> None:
    options: dict[str, Any] = {"auto_pad": auto, "strides": [stride] * 2, "kernel_shape": [kernel] * 2}
    nodes = [
        op("Conv", "x w", "c", **options),
        op("MaxPool", "x", "m", **options),
        op("AveragePool", "x", "a", **options),
    ]
    path = file(
        tmp_path / "net.onnx",
        nodes,
        {"w": weights(4, 3, kernel, kernel)},
        shape=("N", 3, size, size),
        outputs=("c", "m", "a"),
    )
    module_of(path, spec(3, size, size))


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]])
@pytest.mark.parametrize("ceil", [0, 1])
def test_averages_at_borders(tmp_path: Path, include: int, pads: list[int], ceil: int) -> None:
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil}
    path = file(tmp_path / "net.onnx", [op("AveragePool", "x", "y", count_include_pad=include, **options)])
    if ceil and pads != [1, 1, 1, 1]:
        return  # what the last window counts differs between versions of ONNX Runtime
    module_of(path, IMAGE)


def test_a_transposed_convolution_in_all_its_paddings(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"strides": [2, 2], "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 2], "kernel_shape": [3, 3], "pads": [0, 1, 1, 0]},
        {"strides": [2, 2], "kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 2], "kernel_shape": [3, 3], "output_shape": [24, 16]},
        {"strides": [2, 2], "kernel_shape": [3, 3], "dilations": [2, 2], "group": 3},
    ]
    names = [f"y{i}" for i in range(len(options))]
    nodes = [op("ConvTranspose", f"x w{i} b{i}", f"y{i}", **each) for i, each in enumerate(options)]
    stored = {f"w{i}": weights(3, 3 if each.get("group") else 4, 3, 3) for i, each in enumerate(options)}
    stored |= {f"b{i}": weights(9 if each.get("group") else 4, seed=1) for i, each in enumerate(options)}
    module = module_of(file(tmp_path / "net.onnx", nodes, stored, outputs=names), IMAGE)
    assert kinds(module).count("ConvTranspose2d") == len(options)


_THREE = {"three": 3.0, "six": 6.0, "sixth": 1 / 6, "zero": 0.0}
_HARD: dict[str, list[Any]] = {
    "paddle": [
        op("Add", "x three", "a"),
        op("Clip", "a zero six", "c"),
        op("Mul", "x c", "m"),
        op("Div", "m six", "y"),
    ],
    "torch": [
        op("Add", "three x", "a"),
        op("Clip", "a zero six", "c"),
        op("Div", "c six", "d"),
        op("Mul", "d x", "y"),
    ],
    "tensorflow": [
        op("Add", "x three", "a"),
        op("Clip", "a zero six", "c"),
        op("Mul", "c sixth", "d"),
        op("Mul", "x d", "y"),
    ],
    "hard_sigmoid": [op("HardSigmoid", "x", "h", alpha=1 / 6, beta=0.5), op("Mul", "x h", "y")],
    "operator": [op("HardSwish", "x", "y")],
}


@pytest.mark.parametrize("form", _HARD)
def test_hard_swish_however_it_is_written(tmp_path: Path, form: str) -> None:
    path = file(tmp_path / "net.onnx", [*_HARD[form][:-1], _HARD[form][-1]], _THREE, opset=14)
    module = module_of(path, IMAGE)
    assert {"hardswish", "hardsigmoid"} & set(called(module))
    assert not {"hardtanh", "relu6", "clamp"} & set(called(module))


def test_what_is_like_hard_swish_but_has_another_number_or_reader_is_none(tmp_path: Path) -> None:
    nodes = [op("Add", "x two", "a"), op("Clip", "a zero six", "c"), op("Mul", "x c", "m"), op("Div", "m six", "y")]
    module = module_of(file(tmp_path / "a.onnx", nodes, _THREE | {"two": 2.0}), IMAGE)
    assert "relu6" in called(module)
    module = module_of(file(tmp_path / "b.onnx", _HARD["paddle"], _THREE, outputs=("y", "c")), IMAGE)
    assert "relu6" in called(module)


@pytest.mark.parametrize("order", range(3))
def test_gelu_and_layer_norm_in_many_nodes_are_one(tmp_path: Path, order: int) -> None:
    stored = {"two": 2.0, "axis": [-1], "eps": 1e-5, "g": weights(8), "b": weights(8, seed=1), "half": 0.5, "one": 1.0}
    stored |= {"root": float(np.sqrt(2))}
    nodes = [
        op("ReduceMean", "x", "mean", axes=[-1]),
        op("Sub", "x mean", "d"),
        op("Pow", "d two", "sq") if order else op("Mul", "d d", "sq"),
        op("ReduceMean", "sq", "var", axes=[-1]),
        op("Add", "var eps", "ve"),
        op("Sqrt", "ve", "sd"),
        op("Div", "d sd", "n"),
        op("Mul", "n g", "s"),
        op("Add", "s b", "t"),
        op("Div", "t root", "e0"),
        op("Erf", "e0", "e1"),
        op("Add", "e1 one", "e2"),
    ]
    nodes += [
        [op("Mul", "t e2", "e3"), op("Mul", "e3 half", "y")],
        [op("Mul", "t half", "e3"), op("Mul", "e3 e2", "y")],
        [op("Mul", "e2 half", "e3"), op("Mul", "t e3", "y")],
    ][order]
    module = module_of(file(tmp_path / "net.onnx", nodes, stored), IMAGE)
    assert called(module) == ["gelu"]
    assert kinds(module).count("LayerNorm") == 1


def test_images_whose_channels_are_last(tmp_path: Path) -> None:
    nodes = [
        op("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        op("Conv", "t w", "c", auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        op("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    path = file(tmp_path / "net.onnx", nodes, {"w": weights(4, 3, 3, 3)}, shape=("N", 12, 8, 3))
    module_of(path, spec(3, 12, 8))


def test_arithmetic_on_shapes_follows_the_batch(tmp_path: Path) -> None:
    """As Paddle writes it: through Shape, Cast, Slice and Concat; and torch, through Gather and Unsqueeze."""
    nodes = [
        op("Shape", "x", "s64"),
        op("Cast", "s64", "s", to=6),
        op("Slice", "s zero one zero", "n"),
        op("Concat", "n rest", "target32", axis=0),
        op("Cast", "target32", "target", to=7),
        op("Reshape", "x target", "r"),
        op("Gather", "s64 index", "g"),
        op("Unsqueeze", "g zero", "u"),
        op("Concat", "u minus", "v", axis=0),
        op("Reshape", "r v", "y"),
    ]
    stored = {"zero": [0], "one": [1], "index": np.asarray(0, np.int64), "minus": [-1]}
    stored["rest"] = np.asarray([3, 64], np.int32)
    for batch in ("N", 1):
        module = module_of(file(tmp_path / f"{batch}.onnx", nodes, stored, shape=(batch, 3, 8, 8)), IMAGE)
        assert module(torch.zeros(5, 3, 8, 8)).shape == (5, 192)


_BATCH_OF_ONE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "shuffle": (
        [
            op("Reshape", "x five", "a"),
            op("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]),
            op("Reshape", "b four", "y"),
        ],
        {"five": [1, 2, 2, 8, 8], "four": [1, 4, 8, 8]},
    ),
    "rows": ([op("Transpose", "x", "a", perm=[0, 2, 3, 1]), op("Reshape", "a s", "y")], {"s": [1, -1, 2]}),
    "merged": ([op("Reshape", "x s", "a"), op("Gemm", "a w", "y")], {"s": [-1, 256], "w": weights(256, 5)}),
    "zero": ([op("Reshape", "x s", "y")], {"s": [0, 0, -1]}),
    "token": (
        [
            op("Reshape", "x s", "a"),
            op("Transpose", "a", "b", perm=[0, 2, 1]),
            op("Concat", "t b", "c", axis=1),
            op("Add", "c p", "y"),
        ],
        {"s": [1, 4, 64], "t": weights(1, 1, 4), "p": weights(1, 65, 4)},
    ),
    "attention": (
        [
            op("Reshape", "x s", "a"),
            op("Transpose", "a", "b", perm=[2, 0, 1]),
            op("Reshape", "b heads", "c"),
            op("Transpose", "c", "d", perm=[1, 2, 0]),
            op("Reshape", "d back", "y"),
        ],
        {"s": [1, 4, 64], "heads": [64, 2, 2], "back": [1, 4, 64]},
    ),
    "flatten": ([op("Flatten", "x", "y", axis=1)], {}),
    "squeeze": ([op("GlobalAveragePool", "x", "a"), op("Squeeze", "a", "y", axes=[2, 3])], {}),
    "expand": (
        [op("Expand", "t s", "e"), op("Reshape", "x r", "a"), op("Concat", "e a", "y", axis=2)],
        {"t": weights(1, 4, 1), "s": [1, 4, 2], "r": [1, 4, 64]},
    ),
    "part": ([op("Slice", "x a b c", "y")], {"a": [0, 2], "b": [1, 6], "c": [0, 3]}),
}


@pytest.mark.parametrize("form", _BATCH_OF_ONE)
def test_a_file_for_one_image_takes_any_number(tmp_path: Path, form: str) -> None:
    nodes, stored = _BATCH_OF_ONE[form]
    path = file(tmp_path / "net.onnx", nodes, stored, shape=(1, 4, 8, 8), opset=11, as_inputs=True)
    module = module_of(path, spec(4, 8, 8))
    torch.export.export(module, (torch.zeros(2, 4, 8, 8),), dynamic_shapes=({0: torch.export.Dim("N", max=99)},))


@pytest.mark.parametrize(
    ("scale", "mode", "way", "rounding"),
    [
        (scale, mode, way, rounding)
        for scale in (2.0, 0.5, 1.5)
        for mode, way, rounding in (
            ("nearest", "asymmetric", "floor"),
            ("nearest", "half_pixel", "round_prefer_floor"),
            ("nearest", "half_pixel", "round_prefer_ceil"),
            ("linear", "half_pixel", "floor"),
            ("linear", "asymmetric", "floor"),
            ("linear", "align_corners", "floor"),
            ("cubic", "half_pixel", "floor"),
        )
    ],
)
def test_resizing(tmp_path: Path, scale: float, mode: str, way: str, rounding: str) -> None:
    options = {"mode": mode, "coordinate_transformation_mode": way, "nearest_mode": rounding}
    stored = {"none": np.zeros(0, np.float32), "s": np.asarray([1, 1, scale, scale], np.float32)}
    module_of(file(tmp_path / "net.onnx", [op("Resize", "x none s", "y", **options)], stored), IMAGE)


def test_resizing_as_old_files_write_it_and_to_the_size_of_another(tmp_path: Path) -> None:
    stored = {"s": np.asarray([1, 1, 2, 2], np.float32), "two": [2], "four": [4], "nc": [0], "cn": [2]}
    path = file(tmp_path / "old.onnx", [op("Upsample", "x s", "y", mode="nearest")], stored, opset=9)
    assert "interpolate" in called(module_of(path, IMAGE))
    nodes = [
        op("MaxPool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
        op("Shape", "x", "sx"),
        op("Shape", "p", "sp"),
        op("Slice", "sx two four", "hw"),
        op("Slice", "sp nc cn", "n"),
        op("Concat", "n hw", "size", axis=0),
        op("Resize", "p _ _ size", "y", mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    ]
    module_of(file(tmp_path / "net.onnx", nodes, stored), IMAGE)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers(tmp_path: Path, kind: str, direction: str) -> None:
    ways, gates = 2 if direction == "bidirectional" else 1, 4 if kind == "LSTM" else 3
    stored = {
        "s": [0, 3, 64],
        "w": weights(ways, gates * 5, 64),
        "r": weights(ways, gates * 5, 5, seed=1),
        "b": weights(ways, gates * 10, seed=2),
        "back": [0, -1],
    }
    options = {"direction": direction, "hidden_size": 5}
    options |= {"linear_before_reset": 1} if kind == "GRU" else {}
    states = "h h" if kind == "LSTM" else "h"
    nodes = [
        op("Shape", "x", "sx"),
        op("Slice", "sx zero one", "n"),
        op("Concat", "ways n five", "hs", axis=0),
        op("ConstantOfShape", "hs", "h"),
        op("Reshape", "x s", "a"),
        op("Transpose", "a", "t", perm=[1, 0, 2]),
        op(kind, f"t w r b _ {states}", "v last", **options),
        op("Transpose", "v", "tv", perm=[2, 0, 1, 3]),
        op("Reshape", "tv back", "y"),
        op("Transpose", "last", "z", perm=[1, 0, 2]),
    ]
    stored |= {"zero": [0], "one": [1], "ways": [ways], "five": [5]}
    module = module_of(file(tmp_path / "net.onnx", nodes, stored, outputs=("y", "z"), opset=14), IMAGE)
    assert any(isinstance(each, nn.RNNBase) for each in module.modules())


def _one(kind: str, inputs: str = "x", stored: dict[str, Any] | None = None, opset: int = 13, **options: Any) -> Any:
    return kind, inputs, stored or {}, opset, options


@pytest.mark.parametrize(
    ("kind", "inputs", "stored", "opset", "options"),
    [
        *(
            _one(each)
            for each in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Softplus", "Softsign", "Erf", "Floor")
        ),
        *(
            _one(each)
            for each in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "GlobalMaxPool")
        ),
        _one("Mish", opset=18),
        _one("Gelu", opset=20, approximate="tanh"),
        _one("PRelu", "x s", {"s": weights(3, 1, 1)}),
        _one("PRelu", "x s", {"s": weights(3, 8, 8)}),
        _one("Clip", "x a b", {"a": -0.5, "b": 0.5}),
        _one("Clip", "x _ b", {"b": 0.5}),
        _one("Clip", opset=7, min=0.0, max=6.0),
        _one("Clip", opset=7, min=0.0),
        _one("Sub", "c x", {"c": 1.5}),
        _one("Sub", "x c", {"c": weights(3, 1, 1)}),
        _one("Div", "c x", {"c": 1.5}),
        _one("Div", "x c", {"c": 1.5}),
        _one("Pow", "x c", {"c": 2.0}),
        _one("Pow", "c x", {"c": 2.0}),
        _one("Min", "x c", {"c": 0.1}),
        _one("Mean", "x c x", {"c": weights(3, 1, 1)}),
        _one("Softmax", axis=1),
        _one("Softmax", opset=11),
        _one("Softmax", opset=11, axis=3),
        _one("LogSoftmax", opset=11, axis=2),
        _one("ReduceMean", axes=[2, 3]),
        _one("ReduceSum", "x a", {"a": [1]}, keepdims=0),
        _one("ReduceL2", axes=[1]),
        _one("ReduceMax", axes=[-1], keepdims=0),
        _one("ReduceProd", axes=[-1]),
        _one("ReduceSumSquare", axes=[1]),
        _one("ReduceLogSumExp", axes=[1]),
        _one("LpNormalization", axis=1),
        _one("LRN", size=3),
        _one("CumSum", "x a", {"a": np.asarray(3, np.int64)}),
        _one("Pad", "x p c", {"p": [0, 0, 1, 2, 0, 0, 3, 0], "c": 0.5}),
        _one("Pad", "x p", {"p": [0, 1, 0, 2, 0, 0, 0, 0]}),
        _one("Pad", "x p", {"p": [0, 0, 1, 2, 0, 0, 3, 0]}, mode="reflect"),
        _one("Pad", opset=7, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="edge"),
        _one("Slice", "x a b c s", {"a": [-1, 1], "b": [-99, 7], "c": [3, 2], "s": [-2, 3]}),
        _one("Slice", opset=9, starts=[1, 2], ends=[3, 99], axes=[1, 2]),
        _one("Gather", "x i", {"i": [2, 0]}, axis=1),
        _one("Gather", "x i", {"i": np.asarray(-1, np.int64)}, axis=1),
        _one("Gather", "x i", {"i": [[1, 2], [0, 5]]}, axis=3),
        _one("GatherND", "t i", {"i": [[2, 0], [1, 7]]}),
        _one("DepthToSpace", "t", {"t": 0}, blocksize=2, mode="DCR"),
        _one("DepthToSpace", "t", {"t": 0}, blocksize=2, mode="CRD"),
        _one("SpaceToDepth", blocksize=2),
        _one("Tile", "x r", {"r": [1, 2, 1, 3]}),
        _one("InstanceNormalization", "x g b", {"g": weights(3), "b": weights(3, seed=1)}),
        _one("LayerNormalization", "x g b", {"g": weights(8), "b": weights(8, seed=1)}, opset=17),
        _one("GroupNormalization", "x g b", {"g": weights(3), "b": weights(3, seed=1)}, opset=21, num_groups=1),
        _one("MatMul", "x w", {"w": weights(8, 5)}),
        _one("MatMul", "w x", {"w": weights(5, 8)}),
        _one("Einsum", "x w", {"w": weights(3, 5)}, equation="nchw,cd->ndhw"),
        _one("Where", "m x c", {"m": np.arange(8) % 2 == 0, "c": 1.0}),
        _one("Trilu", opset=14, upper=0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_operators(tmp_path: Path, kind: str, inputs: str, stored: dict[str, Any], opset: int, options: Any) -> None:
    nodes = [op(kind, inputs, "y", **options)]
    if kind == "DepthToSpace":
        nodes, stored = [op("Concat", "x x x x", "t", axis=1), *nodes], {}
    if kind == "GatherND":
        nodes = [
            op("Transpose", "x", "t", perm=[1, 2, 3, 0]),
            op(kind, inputs, "p"),
            op("Transpose", "p", "y", perm=[2, 0, 1]),
        ]
    module_of(file(tmp_path / "net.onnx", nodes, stored, opset=opset), IMAGE)


def test_what_gives_several_tensors(tmp_path: Path) -> None:
    nodes = [
        op("Split", "x", "a b", axis=3, split=[3, 5]),
        op("TopK", "x k", "t i", axis=1),
        op("ArgMax", "x", "m", axis=1),
        op("Cast", "m", "mf", to=1),
        op("Greater", "x zero", "g"),
        op("Cast", "g", "gf", to=1),
    ]
    path = file(tmp_path / "net.onnx", nodes, {"k": [2], "zero": 0.0}, outputs=("a", "b", "t", "mf", "gf"), opset=11)
    module_of(path, IMAGE)


def test_a_block_that_is_written_into(tmp_path: Path) -> None:
    places = np.stack(np.meshgrid([0], [1, 2], range(8), range(2, 5), indexing="ij"), -1).astype(np.int64)
    nodes = [op("Slice", "x a b c", "u"), op("Mul", "u u", "v"), op("ScatterND", "x i v", "y")]
    stored = {"a": [1, 2], "b": [3, 5], "c": [1, 3], "i": places}
    module_of(file(tmp_path / "net.onnx", nodes, stored, shape=(1, 3, 8, 8)), IMAGE)


def test_a_branch_of_which_the_condition_is_constant(tmp_path: Path) -> None:
    def body(kind: str) -> Any:
        made = [helper.make_tensor_value_info("r", 1, None)]
        return helper.make_graph([helper.make_node(kind, ["x"], ["r"])], kind, [], made)

    node = helper.make_node("If", ["yes"], ["y"], then_branch=body("Relu"), else_branch=body("Neg"))
    module = module_of(file(tmp_path / "net.onnx", [node], {"yes": np.asarray(True)}), IMAGE)
    assert called(module) == ["relu"]


def network(path: Path, *, scale: float = 1.0, **options: Any) -> Path:
    nodes = [
        op("Conv", "x net.0.weight", "a", pads=[1] * 4, kernel_shape=[3, 3]),
        op("BatchNormalization", "a net.1.weight net.1.bias net.1.running_mean net.1.running_var", "b"),
        op("Relu", "b", "c"),
        op("GlobalAveragePool", "c", "d"),
        op("Flatten", "d", "e"),
        op("MatMul", "e head.weight", "f"),
        op("Add", "f head.bias", "scores"),
    ]
    stored = {
        "net.0.weight": weights(8, 3, 3, 3) * scale,
        "net.1.weight": np.ones(8, np.float32),
        "net.1.bias": weights(8),
        "net.1.running_mean": weights(8, seed=2),
        "net.1.running_var": np.abs(weights(8, seed=3)) + 0.5,
        "head.weight": weights(8, 4),
        "head.bias": weights(4, seed=4),
    }
    return file(path, nodes, stored, outputs=("scores",), **options)


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), (1, 3, "h", "w"), (-1, 3, 8, 8)])
def test_a_file_is_a_teacher_with_layers_and_norms_at_its_own_names(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    path = network(tmp_path / "net.onnx", shape=shape)
    teacher = load_teacher(f"onnx:{path}", replace(IMAGE, classes=4))
    layers = dict(teacher.model.named_modules())
    assert isinstance(layers["net.1"], nn.BatchNorm2d)
    assert isinstance(layers["net.0"], nn.Conv2d)
    assert isinstance(layers["head"], nn.Linear)
    assert (teacher.name, teacher.weights_source) == ("net.onnx", "net.onnx")
    assert teacher.names is not None
    assert (teacher.names.inputs, teacher.names.outputs) == (("x",), ("scores",))
    assert provides(teacher) == {"batchnorm", "classes", "linear_head", "features"}
    graph = float_graph(teacher.model, teacher.image, teacher.task)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(x), teacher.model(x), rtol=1e-4, atol=1e-5)


def test_a_translation_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = network(tmp_path / "net.onnx")
    assert import_onnx(path, IMAGE).error < 1e-5
    monkeypatch.setitem(elementwise._UNARY, "Relu", F.silu)
    with raises_naming(TeacherError, "'scores'", "not what the file gives", "allowed 0.0001"):
        import_onnx(path, IMAGE)


def test_every_operator_of_the_table_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(OPERATORS) <= known


_REFUSED: dict[str, tuple[list[Any], dict[str, Any], tuple[str, ...]]] = {
    "unknown": ([op("Hardmax", "x", "y", name="deep/one")], {}, ("deep/one", "Hardmax", "opset 13", "onnxsim")),
    "values": ([op("NonZero", "x", "n"), op("Cast", "n", "y", to=1)], {}, ("NonZero", "extract_model")),
    "quantized": (
        [op("QuantizeLinear", "x s z", "q"), op("DequantizeLinear", "q s z", "y")],
        {"s": 0.1, "z": np.asarray(0, np.uint8)},
        ("quantized already", "DequantizeLinear", "float network"),
    ),
    "batch": ([op("Squeeze", "x a", "y")], {"a": [0]}, ("Squeeze", "batch", "axis 0")),
    "mixed": ([op("Reshape", "x s", "y")], {"s": [2, 96]}, ("Output 'y'", "[2, 96]")),
    "across": ([op("ReduceMean", "x", "y", axes=[0, 1])], {}, ("ReduceMean", "images of a batch")),
    "last": ([op("Transpose", "x", "y", perm=[1, 0, 2, 3])], {}, ("Output 'y'", "axis is not the batch")),
    "gates": (
        [op("Reshape", "x s", "a"), op("GRU", "a w r", "y", hidden_size=2)],
        {"s": [3, -1, 64], "w": weights(1, 6, 64), "r": weights(1, 6, 2)},
        ("GRU", "linear_before_reset"),
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_cannot_be_taken_over_is_said_with_its_node(tmp_path: Path, case: str) -> None:
    nodes, stored, words = _REFUSED[case]
    path = file(tmp_path / "net.onnx", nodes, stored, shape=(1, 3, 8, 8))
    with raises_naming(TeacherError, *words):
        import_onnx(path, IMAGE)


def test_images_of_another_size_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with raises_naming(TeacherError, "image.shape", "(N, 3, 8, 8)", "[3, 9, 9]"):
        import_onnx(network(tmp_path / "net.onnx"), spec(3, 9, 9))
    with raises_naming(TeacherError, "net.onnx", "NaN in net.0.weight", "before training diverged"):
        import_onnx(network(tmp_path / "net.onnx", scale=float("nan")), IMAGE)
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07 no network")
    with raises_naming(TeacherError, "bad.onnx"):
        load_teacher(f"onnx:{tmp_path / 'bad.onnx'}", IMAGE)
    with raises_naming(TeacherError, "absent.onnx", "not a file"):
        load_teacher(f"onnx:{tmp_path / 'absent.onnx'}", IMAGE)


def test_what_takes_bytes_normalises_them_itself(tmp_path: Path) -> None:
    model = onnx.load(file(tmp_path / "bytes.onnx", [op("Cast", "x", "f", to=1), op("Div", "f s", "y")], {"s": 255.0}))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "bytes.onnx")
    told = "bytes.onnx", "takes uint8 as they are", "mean (0.4, 0.5, 0.3)", "Give mean 0, std 1 and pixel_range 255"
    with raises_naming(TeacherError, *told):
        import_onnx(tmp_path / "bytes.onnx", replace(IMAGE, mean=(0.4, 0.5, 0.3)))
    import_onnx(tmp_path / "bytes.onnx", replace(IMAGE, mean=(0.0,) * 3, std=(1.0,) * 3, pixel_range=255))


_REAL = {
    "rfb320.onnx": (3, 240, 320),
    "nanodet_m.onnx": (3, 416, 416),
    "ch_PP-OCRv4_det_infer.onnx": (3, 224, 320),
    "ch_PP-OCRv4_rec_infer.onnx": (3, 48, 320),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": (3, 48, 192),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _REAL)
def test_real_files_give_the_same_as_in_onnx_runtime(name: str) -> None:
    installed = importlib.util.find_spec("rapidocr_onnxruntime")
    folders = [os.environ.get("DFQKIT_ASSETS", "."), os.environ.get("DFQKIT_ONNX_FILES", ".")]
    folders += (
        [str(Path(place) / "models") for place in (installed.submodule_search_locations or ())] if installed else []
    )
    path = next((file for folder in folders if (file := Path(folder) / name).is_file()), None)
    if path is None:
        pytest.skip(f"{name} is not here")
    found = import_onnx(path, replace(spec(*_REAL[name]), mean=(0.5,) * 3, std=(0.5,) * 3))
    assert found.error <= 1e-4
