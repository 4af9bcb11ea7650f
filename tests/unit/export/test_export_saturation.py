"""The bound on sums of two products against what kernels without VNNI compute, layer by layer, in emulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends.saturation import LEAST, MOST, bound, met, rows_of_pairs
from dfqkit_export.comparison.portability import FAMILIES
from dfqkit_export.comparison.portability.environment import environment_of
from dfqkit_export.comparison.portability.proving import _start
from dfqkit_export.errors import RuntimeUnavailableError

LAYERS, SIZE = 240, 5
#: (input channels, kernel); 0 for a matrix product.
KINDS = ((1, 3), (3, 3), (3, 5), (4, 1), (5, 3), (8, 3), (16, 1), (32, 3), (7, 0), (64, 0))


def _weights(rng: np.random.Generator, kind: tuple[int, int], spread: float) -> NDArray[np.int8]:
    shape = (8, kind[0]) if kind[1] == 0 else (8, kind[0], kind[1], kind[1])
    return np.clip(np.rint(rng.normal(size=shape) * spread), -127, 127).astype(np.int8)


def _inputs(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """For each channel and sign an image in which nothing is read but the pair with the worst sum."""
    pairs, images = rows_of_pairs(codes), []
    kernel, channels = codes.shape[2:], codes.shape[1]
    for sign in (1, -1):
        for row in np.maximum(sign * pairs, 0):
            columns = np.zeros(row.size, np.uint8)
            worst = int(row.sum(1).max(initial=0) and row.sum(1).argmax())
            columns[2 * worst : 2 * worst + 2] = np.where(row[worst] > 0, 255, 0)
            image = np.zeros((channels, *[SIZE] * len(kernel)), np.uint8)
            image[(..., *(slice(0, n) for n in kernel))] = np.moveaxis(
                columns[: codes[0].size].reshape(*kernel, channels), -1, 0
            )
            images.append(image)
    return np.stack(images)


def _columns(x: NDArray[np.uint8], codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """What each position reads, channels last: (n, positions, C_in x kernel)."""
    if codes.ndim == 2:
        return x.reshape(len(x), 1, -1).astype(np.int64)
    windows = sliding_window_view(x, codes.shape[2:], axis=(2, 3)).transpose(0, 2, 3, 4, 5, 1)
    return windows.reshape(len(x), windows.shape[1] * windows.shape[2], -1).astype(np.int64)


@pytest.mark.slow
def test_the_bound_misses_no_layer_that_saturates(tmp_path: Path) -> None:
    try:
        environment = environment_of(FAMILIES["avx2"])
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    nodes, ends, feed, cases = [], [], {}, []
    stored = {"one": np.float32(1), "zero": np.uint8(0), "top": np.uint8(255), "w.zero": np.int8(0)}
    for number in range(LAYERS):
        codes = _weights(rng, KINDS[number % len(KINDS)], spread=rng.uniform(15, 60))
        x, name = _inputs(codes), f"w{number}"
        ends.append(helper.make_tensor_value_info(f"x{number}", TensorProto.UINT8, x.shape))
        feed[f"x{number}"] = x
        cases.append((codes, x))
        if codes.ndim == 2:
            stored[name] = np.ascontiguousarray(codes.T)
            nodes.append(helper.make_node("MatMulInteger", [f"x{number}", name], [f"y{number}"]))
            continue
        stored[name] = codes
        for sign, edge in ((1, MOST), (-1, LEAST)):  # codes begin where 16 bits end
            stored[f"bias{sign}"] = np.full(len(codes), -edge, np.int32)
            names = [f"x{number}", "one", "zero", name, "one", "w.zero", "one", "zero" if sign > 0 else "top"]
            nodes.append(
                helper.make_node("QLinearConv", [*names, f"bias{sign}"], [f"y{number}{'+' if sign > 0 else '-'}"])
            )
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.INT32, None) for node in nodes]
    for node, output in zip(nodes, outputs, strict=True):
        output.type.tensor_type.elem_type = TensorProto.INT32 if node.op_type == "MatMulInteger" else TensorProto.UINT8
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "layers", ends, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    request = {"model": str(tmp_path / "m.onnx"), "exposed": "", "batches": 1, "open_batches": 0, "tensors": []}
    (tmp_path / "request.json").write_text(json.dumps({**request, "exact": False}))
    arrays: dict[str, Any] = feed
    np.savez(tmp_path / "feed-0.npz", **arrays)
    _start(environment, tmp_path)
    with np.load(tmp_path / "out-0.npz") as found:
        answers = {node.output[0]: found[str(place)] for place, node in enumerate(nodes)}
    told = []
    for number, (codes, x) in enumerate(cases):
        columns, rows = _columns(x, codes), np.moveaxis(codes, 1, -1).reshape(len(codes), -1).astype(np.int64)
        sums = np.moveaxis(columns @ rows.T, 2, 1)
        expected = {f"y{number}": sums}
        if codes.ndim > 2:
            expected = {f"y{number}+": np.clip(sums - MOST, 0, 255), f"y{number}-": np.clip(sums - LEAST + 255, 0, 255)}
        wrong = any((right.reshape(answers[name].shape) != answers[name]).any() for name, right in expected.items())
        on_these = met(codes, columns.reshape(-1, columns.shape[2])) > 0
        told.append((bool(bound(codes, 0, 255).channels.any()), on_these, bool(wrong)))
    assert [predicted for predicted, _, _ in told] == [wrong for _, _, wrong in told]  # no miss, no false alarm
    assert [on_these for _, on_these, _ in told] == [wrong for _, _, wrong in told]
    assert LAYERS // 4 < sum(wrong for _, _, wrong in told) < LAYERS - LAYERS // 10
