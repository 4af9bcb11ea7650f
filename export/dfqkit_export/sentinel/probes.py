"""Probes: copies of a QDQ file that are worse in a known way, made without its teacher, data or torch.

What belongs here: what is changed in a file, and by how much. A probe stands for what can happen to a file: fewer bits
for its weights, ranges of its activations that do not fit. Who runs them, and what for, is `choice`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_CODES = frozenset({TensorProto.INT8, TensorProto.UINT8})
#: Activation scales change by these powers of two: clipped to half the range, left alone, a bit lost, two bits lost.
_FACTORS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is done to a copy.

    Attributes:
        kind: ``weights`` rounds the codes of each output channel again, to ``bits``; ``activations`` multiplies each
            activation's scale by a random one of 1/2, 1, 2 and 4.
        bits: Of the weights' codes, sign included, at least 2.
        seed: Of the random numbers; None rounds to the nearest code, otherwise rounding is stochastic.
    """

    kind: Literal["weights", "activations"]
    bits: int = 8
    seed: int | None = None


def probed(model: onnx.ModelProto, probe: Probe) -> onnx.ModelProto | None:
    """Return a changed copy of a model; None where the change finds nothing, or less than half of the weights.

    A file of 4-bit weights keeps its first and last layer at 8 bits: with these alone at 7, it would be none the worse.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change = _round_weights if probe.kind == "weights" else _scale_activations
    return copy if change(copy.graph, probe) else None


def _round_weights(graph: onnx.GraphProto, probe: Probe) -> bool:
    """Codes q of a channel with the largest magnitude M become round(q / d) d, d = M / (2^(bits - 1) - 1), if d > 1."""
    rng = None if probe.seed is None else np.random.default_rng(probe.seed)
    changed = total = 0
    for tensor, zero_point in _weights(graph):
        stored = numpy_helper.to_array(tensor)
        codes = stored.astype(np.float64) - zero_point
        axes = tuple(range(1, codes.ndim))
        step = np.abs(codes).max(axis=axes, keepdims=True) / (2 ** (probe.bits - 1) - 1)
        total += codes.size
        if step.max() <= 1:
            continue
        step = np.maximum(step, 1)
        places = codes / step
        rounded = np.rint(places) if rng is None else np.floor(places + rng.random(places.shape))
        limits = np.iinfo(stored.dtype)
        again = np.clip(np.rint(rounded * step) + zero_point, limits.min, limits.max).astype(stored.dtype)
        tensor.CopyFrom(numpy_helper.from_array(again, tensor.name))
        changed += codes.size
    return 2 * changed > total


def _scale_activations(graph: onnx.GraphProto, probe: Probe) -> bool:
    rng = np.random.default_rng(probe.seed)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    names = dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "QuantizeLinear")
    factors = {name: float(rng.choice(_FACTORS)) for name in names if name in initializers}
    _scale_biases(graph, initializers, factors)
    for name, factor in factors.items():
        scale: NDArray[np.floating] = numpy_helper.to_array(initializers[name])
        initializers[name].CopyFrom(numpy_helper.from_array((scale * factor).astype(scale.dtype), name))
    return bool(factors)


def _scale_biases(
    graph: onnx.GraphProto, initializers: Mapping[str, onnx.TensorProto], factors: Mapping[str, float]
) -> None:
    """Write integer biases in units of the new scales, which a runtime that fuses takes for granted."""
    producers = {name: node for node in graph.node for name in node.output}
    seen = set()
    for layer in graph.node:
        bias = producers.get(layer.input[2]) if layer.op_type in _LAYERS and len(layer.input) > 2 else None
        if bias is None or bias.op_type != "DequantizeLinear" or bias.output[0] in seen:
            continue
        before = producers.get(layer.input[0])
        while before is not None and before.op_type != "DequantizeLinear":
            before = producers.get(before.input[0])
        codes, scale = (initializers.get(name) for name in bias.input[:2])
        if before is None or codes is None or scale is None or codes.data_type != TensorProto.INT32:
            continue
        factor = factors.get(before.input[1], 1.0)
        again = np.rint(numpy_helper.to_array(codes) / factor).astype(np.int32)
        wider = (numpy_helper.to_array(scale) * factor).astype(np.float32)
        for place, values in ((0, again), (1, wider)):
            bias.input[place] = f"{bias.input[place]}.of.{bias.output[0]}"  # another layer may use the old one
            graph.initializer.append(numpy_helper.from_array(values, bias.input[place]))
        seen.add(bias.output[0])


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[onnx.TensorProto, int]]:
    """8-bit codes of weights and their zero point, where that is the same for all; each once."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    seen = set()
    for node in graph.node:
        tensor = initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.name in seen or tensor.data_type not in _CODES or len(tensor.dims) < 2:
            continue
        seen.add(tensor.name)
        zero_points = np.zeros(1)
        if len(node.input) > 2 and node.input[2]:
            if node.input[2] not in initializers:
                continue
            zero_points = numpy_helper.to_array(initializers[node.input[2]])
        if (zero_points == zero_points.flat[0]).all():
            yield tensor, int(zero_points.flat[0])
