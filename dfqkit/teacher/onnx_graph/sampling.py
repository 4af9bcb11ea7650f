"""Operators that change how fine maps are: pooling, resizing, sampling.

What belongs here: the places that each output reads, as ONNX counts them, and what of torch reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - its usual name

from dfqkit.teacher.onnx_graph.building import Building, Value, known, refuse
from dfqkit.teacher.onnx_graph.layers import padded, window
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit.teacher.onnx_graph.table import Given, fixed, needed, optional, sizes_in, translates

_GIVE_TORCH = "Give the torch module that the file was made from."


@translates("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = tuple(range(2, x.rank))
    if node.kind == "GlobalMaxPool":
        return to.call(torch.amax, x, dim=axes, keepdim=True)
    return to.call(F.adaptive_avg_pool2d, x, 1) if x.rank == 4 else to.call(torch.mean, x, dim=axes, keepdim=True)


@translates("MaxPool", "AveragePool")
def _pool(node: Operator, given: Given, to: Building) -> Value:
    x, kernel = needed(node, given, 0), list(node.get("kernel_shape"))
    if len(kernel) not in (1, 2) or len([name for name in node.outputs if name]) > 1:
        raise refuse(node, "pools over more than two axes, or gives places beside values", _GIVE_TORCH)
    sizes = x.examples[0].shape[2:]
    stride, dilation, pads = window(node, sizes, kernel)
    ceil = bool(node.get("ceil_mode", 0))
    axes = len(kernel)
    even = pads[:axes] == pads[axes:] and all(2 * pad <= width for pad, width in zip(pads, kernel * 2, strict=True))
    if node.kind == "MaxPool":
        x, padding = (x, tuple(pads[:axes])) if even else padded(x, [*pads], to, -math.inf)
        function: Any = F.max_pool2d if axes == 2 else F.max_pool1d
        return to.call(function, x, tuple(kernel), tuple(stride), padding, tuple(dilation), ceil)
    if any(step != 1 for step in dilation):
        raise refuse(node, f"pools with dilation {dilation}", _GIVE_TORCH)
    function = F.avg_pool2d if axes == 2 else F.avg_pool1d
    include = bool(node.get("count_include_pad", 0))
    if even:
        return to.call(function, x, tuple(kernel), tuple(stride), tuple(pads[:axes]), ceil, include)
    x, _ = padded(x, pads, to)
    pooled = to.call(function, x, tuple(kernel), tuple(stride), 0, ceil, True)
    if include:
        return pooled
    # How much of each window is no padding: a map of numbers that only the sizes decide.
    flat = [side[axis] for axis in reversed(range(axes)) for side in (pads[:axes], pads[axes:])]
    share = function(F.pad(torch.ones(1, 1, *sizes), flat), tuple(kernel), tuple(stride), 0, ceil, True)
    return to.call(torch.mul, pooled, known(1 / share, f"{node.name}_share"))


@translates("Resize", "Upsample")
def _resize(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    sizes, scales = _target(node, given, x)
    have = x.examples[0].shape[2:]
    mode = node.get("mode", "nearest")
    old = node.kind == "Upsample" or node.opset < 11
    way = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    if node.get("antialias", 0) or way == "tf_crop_and_resize":
        raise refuse(node, f"resizes by {'antialias' if node.get('antialias', 0) else way}", _GIVE_TORCH)
    if tuple(sizes) == tuple(have):
        return x
    if mode == "nearest":
        rounding = "floor" if old else node.get("nearest_mode", "round_prefer_floor")
        return _nearest(x, [_places(*each, way) for each in zip(have, sizes, scales, strict=True)], rounding, to)
    if mode == "cubic" and x.rank == 4 and way in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if float(node.get("cubic_coeff_a", -0.75)) != -0.75 or node.get("exclude_outside", 0):
            raise refuse(node, "resizes by a cubic other than a = -0.75", _GIVE_TORCH)
        return to.call(F.interpolate, x, size=tuple(sizes), mode="bicubic", align_corners=way == "align_corners")
    if mode != "linear" or x.rank != 4:
        raise refuse(node, f"resizes {len(have)} axes by mode '{mode}' and '{way}'", _GIVE_TORCH)
    exact = all(math.isclose(scale, want / size) for size, want, scale in zip(have, sizes, scales, strict=True))
    if exact and (way == "align_corners" or (way in ("half_pixel", "pytorch_half_pixel") and 1 not in sizes)):
        return to.call(F.interpolate, x, *_by(have, sizes), "bilinear", way == "align_corners")
    for axis, each in enumerate(zip(have, sizes, scales, strict=True)):
        matrix = _linear(each[0], _places(*each, way))
        if axis == 0:
            x = to.call(torch.matmul, known(matrix, f"{node.name}_rows"), x)
        else:
            x = to.call(torch.matmul, x, known(matrix.t().contiguous(), f"{node.name}_columns"))
    return x


def _target(node: Operator, given: Given, x: Value) -> tuple[list[int], list[float]]:
    """Return sizes and scales behind the channels."""
    have = list(x.examples[0].shape)
    place = {"Upsample": 1, "Resize": 1 if node.opset < 11 else 2}[node.kind]
    sizes = optional(given, 3) if node.kind == "Resize" and node.opset >= 11 else None
    axes = [axis % x.rank for axis in node.get("axes", range(x.rank))]
    if sizes is not None and sizes.examples[0].numel():
        asked = dict(zip(axes, sizes_in(node, sizes), strict=True))
        wanted = [asked.get(axis, have[axis]) for axis in range(2, x.rank)]
        if all(isinstance(each, int) for each in wanted):
            found = [int(each) for each in wanted if isinstance(each, int)]
            return found, [want / size for want, size in zip(found, have[2:], strict=True)]
    factors = fixed(node, given, place, "scales")
    if factors is None or not factors.numel():
        raise refuse(node, "has neither sizes nor scales that are known", _GIVE_TORCH)
    by = dict(zip(axes, factors.double().tolist(), strict=True))
    scales = [by.get(axis, 1.0) for axis in range(2, x.rank)]
    return [math.floor(size * scale + 1e-6) for size, scale in zip(have[2:], scales, strict=True)], scales


def _by(have: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Return the sizes, or, where float32 holds them exactly, the factors, which serve other sizes too."""
    factors = tuple(want / size for size, want in zip(have, sizes, strict=True))
    return (None, factors) if all(each * 16 % 1 == 0 for each in factors) else (tuple(sizes), None)


def _places(size: int, want: int, scale: float, way: str) -> NDArray[np.float64]:
    """Return where each place of an axis reads, as ONNX's ``coordinate_transformation_mode`` says."""
    index = np.arange(want, dtype=np.float64)
    if way == "align_corners":
        return index * (size - 1) / max(1, want - 1)
    if way == "asymmetric":
        return index / scale
    if way == "pytorch_half_pixel" and want == 1:
        return np.zeros(1)
    if way == "half_pixel_symmetric":
        adjusted = want / (scale * size)
        return size / 2 * (1 - adjusted) + (index + 0.5) / scale - 0.5
    return (index + 0.5) / scale - 0.5


def _nearest(x: Value, places: Sequence[NDArray[np.float64]], rounding: str, to: Building) -> Value:
    rounded: Any = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda each: np.ceil(each - 0.5),
        "round_prefer_ceil": lambda each: np.floor(each + 0.5),
    }[rounding]
    have = x.examples[0].shape[2:]
    index = [np.clip(rounded(each), 0, size - 1).astype(int) for each, size in zip(places, have, strict=True)]
    sizes = [len(each) for each in index]
    usual = [np.floor(np.arange(want) * (size / want)) for size, want in zip(have, sizes, strict=True)]
    if all(np.array_equal(*pair) for pair in zip(index, usual, strict=True)):
        return to.call(F.interpolate, x, *_by(have, sizes), "nearest")
    for axis, each in enumerate(index, 2):
        x = to.call(torch.index_select, x, axis, known(torch.from_numpy(each)))
    return x


def _linear(size: int, places: NDArray[np.float64]) -> torch.Tensor:
    """Return the matrix (wanted, size) of linear interpolation between neighbours, the border repeated."""
    places = np.clip(places, 0, size - 1)
    low = np.floor(places).astype(int)
    high, part = np.minimum(low + 1, size - 1), places - low
    matrix = np.zeros((len(places), size))
    np.add.at(matrix, (np.arange(len(places)), low), 1 - part)
    np.add.at(matrix, (np.arange(len(places)), high), part)
    return torch.from_numpy(matrix).float()


@translates("GridSample")
def _grid_sample(node: Operator, given: Given, to: Building) -> Value:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "bilinear"), node.get("mode", "bilinear"))
    corners = bool(node.get("align_corners", 0))
    x, grid = needed(node, given, 0), needed(node, given, 1)
    return to.call(F.grid_sample, x, grid, mode, node.get("padding_mode", "zeros"), corners)
