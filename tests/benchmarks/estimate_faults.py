"""Quantized files made worse on purpose, in the ways in which real ones go wrong, from mild to bad.

What belongs here: what a fault does to an ONNX file. `estimate_study` chooses where and how strong, and measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
Fault = Callable[["File", int, float, np.random.Generator], None]


class File:
    """An ONNX file whose tensors can be replaced, and its weighted layers and quantizers by number."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        readers = {name: node for node in graph.node for name in node.input}
        self.quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in readers]

    def codes(self, layer: int, slot: int) -> tuple[onnx.NodeProto, Array]:
        """The dequantizer of a layer's weight (slot 1) or bias (slot 2), and its integer codes."""
        node = self.maker[self.layers[layer % len(self.layers)].input[slot]]
        return node, numpy_helper.to_array(self.tensors[node.input[0]]).copy()

    def replace(self, node: onnx.NodeProto, slot: int, values: Array) -> None:
        """Give one node a constant of its own, since exporters share equal ones."""
        name = f"{node.name}.fault.{slot}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.model.graph.initializer.append(tensor)
        self.tensors[name] = tensor
        node.input[slot] = name

    def constant(self, node: onnx.NodeProto, slot: int) -> Array:
        """A node's constant input."""
        return numpy_helper.to_array(self.tensors[node.input[slot]]).copy()


def _quantizer(file: File, index: int, factor: float) -> None:
    quantize = file.quantizers[index % len(file.quantizers)]
    wide = quantize.output[0]
    pair = [node for node in file.model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == wide]
    clips = [node for node in file.model.graph.node if node.op_type == "Clip" and node.input[0] == wide]
    pair += [
        node
        for clip in clips
        for node in file.model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] == clip.output[0]
    ]
    scale = file.constant(quantize, 1) * np.float32(factor)
    for node in (quantize, *pair):
        file.replace(node, 1, scale)


def scale_up(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """An activation's scale too large: coarse steps."""
    _quantizer(file, index, strength)


def scale_down(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """An activation's scale too small: values are cut off."""
    _quantizer(file, index, 1.0 / strength)


def bias_dropped(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """A share of a layer's bias is lost."""
    node, codes = file.codes(index, 2)
    file.replace(node, 0, np.rint(codes * (1.0 - strength)).astype(codes.dtype))


def weight_noise(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """A layer's weights are not quite those of the teacher, as in an older checkpoint."""
    node, codes = file.codes(index, 1)
    noisy = codes + rng.normal(0.0, strength * codes.std(), codes.shape)
    file.replace(node, 0, np.clip(np.rint(noisy), -127, 127).astype(codes.dtype))


def weight_noise_everywhere(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """The same in all layers."""
    for layer in range(len(file.layers)):
        weight_noise(file, layer, strength, rng)


def fewer_bits(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """A layer's weights lose so many of their low bits."""
    node, codes = file.codes(index, 1)
    step = 2.0**strength
    file.replace(node, 0, np.clip(np.rint(codes / step) * step, -128, 127).astype(codes.dtype))


def rounded_down(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """The same, rounded down in place of to the nearest."""
    node, codes = file.codes(index, 1)
    step = 2.0**strength
    file.replace(node, 0, (np.floor(codes / step) * step).astype(codes.dtype))


def per_tensor(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """A layer's weights on one scale for all channels, with `strength` low bits fewer."""
    node, codes = file.codes(index, 1)
    scale = file.constant(node, 1).astype(np.float64)
    shape = (-1,) + (1,) * (codes.ndim - 1)
    values = codes * scale.reshape(shape)
    step = np.abs(values).max() / 127.0 * 2.0**strength
    file.replace(
        node, 0, np.clip(np.rint(np.rint(values / step) * step / scale.reshape(shape)), -128, 127).astype(np.int8)
    )


def folded_wrong(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """Each of a layer's channels has a gain that is off by about `strength`."""
    node, _ = file.codes(index, 1)
    scale = file.constant(node, 1)
    file.replace(node, 1, (scale * np.exp(rng.normal(0.0, strength, scale.shape))).astype(np.float32))


def channels_swapped(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """`strength` pairs of a layer's output channels have each other's weights."""
    node, codes = file.codes(index, 1)
    chosen = rng.permutation(len(codes))[: 2 * int(strength)]
    codes[chosen] = codes[np.roll(chosen, 1)]
    file.replace(node, 0, codes)


def colours_swapped(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """Red and blue the other way round."""
    node, codes = file.codes(0, 1)
    file.replace(node, 0, codes[:, ::-1])


def input_off(file: File, index: int, strength: float, rng: np.random.Generator) -> None:
    """The first layer sees its input with a gain that is off by `strength`."""
    node, _ = file.codes(0, 1)
    file.replace(node, 1, file.constant(node, 1) * np.float32(1.0 + strength))


# Fault and the strengths it is used with.
FAULTS: dict[str, tuple[Fault, tuple[float, ...]]] = {
    "scale-up": (scale_up, (2.0, 8.0, 24.0)),
    "scale-down": (scale_down, (2.0, 3.0, 5.0)),
    "bias-dropped": (bias_dropped, (0.5, 1.0)),
    "weight-noise": (weight_noise, (0.1, 0.3, 0.6)),
    "weight-noise-everywhere": (weight_noise_everywhere, (0.04, 0.08, 0.12)),
    "fewer-bits": (fewer_bits, (4.0, 5.0, 6.0)),
    "rounded-down": (rounded_down, (2.0, 3.0, 4.0)),
    "per-tensor": (per_tensor, (1.0, 3.0, 4.0)),
    "folded-wrong": (folded_wrong, (0.1, 0.25, 0.5)),
    "channels-swapped": (channels_swapped, (1.0, 2.0)),
    "colours-swapped": (colours_swapped, (1.0,)),
    "input-off": (input_off, (0.2, 0.5)),
}
