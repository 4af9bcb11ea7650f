"""A QDQ model under the knife.

What belongs here: `File`, look-ups by layer and edits of one layer, in ONNX and numpy alone. What is done with
it is `_faults`'.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_LAYERS = ("Conv", "Gemm", "MatMul")


class File:
    """A QDQ model under the knife: look-ups by layer, and edits that touch no other layer's initializers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self._copies = 0

    @property
    def layers(self) -> list[onnx.NodeProto]:
        """Weighted layers whose weights are codes, in the file's order."""
        return [n for n in self.graph.node if n.op_type in _LAYERS and self.weight(n) is not None]

    @property
    def middle(self) -> onnx.NodeProto:
        """A layer half-way through that has a quantized output and a bias."""
        found = [n for n in self.layers if self.pair_after(n) and self.bias(n) is not None]
        return found[len(found) // 2]

    def initializer(self, name: str) -> onnx.TensorProto | None:
        return next((t for t in self.graph.initializer if t.name == name), None)

    def value(self, name: str) -> np.ndarray:
        tensor = self.initializer(name)
        assert tensor is not None, name
        return numpy_helper.to_array(tensor)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((n for n in self.graph.node if tensor in n.output), None)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [n for n in self.graph.node if tensor in n.input]

    def weight(self, layer: onnx.NodeProto) -> onnx.NodeProto | None:
        """The DequantizeLinear (of codes) that makes a layer's weight."""
        node = self.producer(layer.input[1])
        while node is not None and node.op_type in ("Transpose", "Reshape"):
            node = self.producer(node.input[0])
        usable = node is not None and node.op_type == "DequantizeLinear" and self.initializer(node.input[0]) is not None
        return node if usable else None

    def bias(self, layer: onnx.NodeProto) -> onnx.NodeProto | None:
        node = self.producer(layer.input[2]) if len(layer.input) > 2 else None
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def pair_after(self, layer: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The QuantizeLinear behind a layer (past its activation) and every DequantizeLinear that reads it."""
        tensor = layer.output[0]
        for _ in range(2):
            readers = self.readers(tensor)
            quantizers = [n for n in readers if n.op_type == "QuantizeLinear"]
            if quantizers:
                return [quantizers[0], *self.dequantizers(quantizers[0])]
            if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
                return []
            tensor = readers[0].output[0]
        return []

    def dequantizers(self, quantizer: onnx.NodeProto) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []
        for node in self.readers(quantizer.output[0]):
            found += [node] if node.op_type == "DequantizeLinear" else self.dequantizers(node)
        return found

    def put(self, node: onnx.NodeProto, index: int, value: np.ndarray) -> None:
        """Give one input of one node a value of its own."""
        self._copies += 1
        name = f"{node.input[index]}.own{self._copies}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        node.input[index] = name

    def put_scale(self, nodes: list[onnx.NodeProto], value: float) -> None:
        for node in nodes:
            old = self.value(node.input[1])
            self.put(node, 1, np.full(old.shape, value, old.dtype))

    def reweigh(self, layer: onnx.NodeProto, codes: np.ndarray, scale: np.ndarray) -> None:
        """Give a layer other codes and scales, and its bias codes the scale that goes with them."""
        weight, bias = self.weight(layer), self.bias(layer)
        assert weight is not None
        old = self.value(weight.input[1])
        self.put(weight, 0, codes.astype(self.value(weight.input[0]).dtype))
        self.put(weight, 1, scale.astype(old.dtype))
        if len(weight.input) > 2 and scale.shape != old.shape:
            self.put(weight, 2, np.zeros(scale.shape, self.value(weight.input[2]).dtype))
        if bias is not None:
            self.rescale_bias(bias, scale.astype(np.float64) / old)

    def rescale_bias(self, bias: onnx.NodeProto, factor: np.ndarray) -> None:
        codes, scale = self.value(bias.input[0]), self.value(bias.input[1])
        wanted = scale.astype(np.float64) * factor
        self.put(bias, 1, np.broadcast_to(wanted, scale.shape).astype(scale.dtype))
        self.put(bias, 0, np.clip(np.rint(codes * (scale / wanted)), -(2**31), 2**31 - 1).astype(codes.dtype))

    def per_channel(self, layer: onnx.NodeProto, values: np.ndarray) -> np.ndarray:
        """Shape values (channels,) so that they broadcast against the codes of a layer."""
        weight = self.weight(layer)
        assert weight is not None
        codes = self.value(weight.input[0])
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        shape = [1] * codes.ndim
        shape[axis] = -1
        return values.reshape(shape) if values.size > 1 else values.reshape([1] * codes.ndim)

    def codes_scale(self, layer: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        weight = self.weight(layer)
        assert weight is not None
        return self.value(weight.input[0]).astype(np.int64), self.value(weight.input[1]).astype(np.float64)
