"""The graph while it is rewritten: nodes and constants by name, and tensors that stand for others.

What belongs here: look-ups and edits that know no operator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dfqkit_export.onnxfile.graph import OWN_DOMAINS, attribute
from dfqkit_export.onnxfile.skeleton import raw_bytes, values_of

#: A rewriting of one node: whether it did anything.
Rule = Callable[["WorkGraph", onnx.NodeProto], bool]
#: Turns of maps: channels last, and first again.
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_SMALL, _BATCH = 4096, 10007


class WorkGraph:
    """A graph under rewriting. Nodes are copies; constants are the file's own tensors, never copied.

    Attributes:
        nodes: In no order once rewriting has begun; those that nothing reads are dropped at the end.
        constants: Tensors by name.
        shapes: Of tensors, as far as known, with the batch as any other number.
        opset: Of ONNX's own operators.
        fixed: Whether the file says how many images are at the input.
        batch: How many; a prime that no other size is likely to be where that is open.
        block: Channels in a block of maps in blocks; 0 where nobody knows.
    """

    def __init__(self, graph: onnx.GraphProto, opsets: Sequence[onnx.OperatorSetIdProto], *, block: int = 0) -> None:
        self.opsets, self.block = opsets, block
        self.opset: int = next((entry.version for entry in opsets if entry.domain in OWN_DOMAINS), 1)
        self.constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.constants]
        self.outputs: list[str] = [value.name for value in graph.output]
        self.shapes: dict[str, tuple[int, ...]] = {}
        sizes = self.inputs[0].type.tensor_type.shape.dim if self.inputs else []
        self.fixed = bool(sizes) and sizes[0].dim_value > 0
        self.batch: int = sizes[0].dim_value if self.fixed else _BATCH
        self.nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.NodeProto] = {}
        self._other: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._count = 0
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            self._take(copy)

    def _take(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self._made.update(dict.fromkeys(filter(None, node.output), node))

    def resolved(self, tensor: str) -> str:
        """Return the tensor that stands for this one."""
        seen = tensor
        while seen in self._other:
            seen = self._other[seen]
        return seen

    def stand_for(self, old: str, new: str) -> bool:
        """Let `new` be read wherever `old` is."""
        new = self.resolved(new)
        if new == old:
            return False
        self._other[old] = new
        if old in self.shapes:
            self.shapes.setdefault(new, self.shapes[old])
        return True

    def resolve(self) -> None:
        """Let every node read what stands for what it read."""
        for node in self.nodes:
            for place, name in enumerate(node.input):
                if name in self._other:
                    node.input[place] = self.resolved(name)
        self.outputs = [self.resolved(name) for name in self.outputs]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor."""
        return self._made.get(self.resolved(tensor))

    def made_by(self, tensor: str, *ops: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor where it is one of these operators, of ONNX's own."""
        node = self.producer(tensor)
        return node if node is not None and node.op_type in ops and not node.domain else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is stored."""
        return self.resolved(tensor) in self.constants

    def computed_from_constants(self, tensor: str) -> bool:
        """Whether it is stored, or codes that are stored behind a DequantizeLinear."""
        maker = self.made_by(tensor, "DequantizeLinear")
        return self.is_constant(tensor if maker is None else maker.input[0])

    def value(self, tensor: str, most: int | None = _SMALL) -> NDArray[Any] | None:
        """Return a constant's value where it has at most so many numbers."""
        stored = self.constants.get(self.resolved(tensor))
        if stored is None or stored.data_type == onnx.TensorProto.STRING:
            return None
        if most is not None and int(np.prod(stored.dims, dtype=np.int64)) > most:
            return None
        return values_of(stored)

    def scalar(self, tensor: str) -> float | None:
        """Return a constant that is one number."""
        value = self.value(tensor) if tensor else None
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def digest(self, tensor: str) -> str:
        """Return what tells a constant from others: type, shape and values, however they are stored."""
        tensor = self.resolved(tensor)
        if tensor not in self._digests:
            stored = self.constants[tensor]
            made = hashlib.sha256(f"{stored.data_type} {list(stored.dims)}".encode())
            if stored.data_type == onnx.TensorProto.STRING:
                made.update(b"\0".join(stored.string_data))
            else:
                made.update(raw_bytes(stored) or np.ascontiguousarray(values_of(stored)).tobytes())
            self._digests[tensor] = made.hexdigest()
        return self._digests[tensor]

    def data_type(self, tensor: str) -> int:
        """Return the element type of a constant; 0 of what is none."""
        stored = self.constants.get(self.resolved(tensor))
        return stored.data_type if stored is not None else 0

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors are one, or constants of equal numbers, of one number in any rank."""
        first, second = self.resolved(first), self.resolved(second)
        if first == second:
            return True
        if not (self.is_constant(first) and self.is_constant(second)):
            return False
        a, b = self.value(first), self.value(second)
        if a is None or b is None:
            return self.digest(first) == self.digest(second)
        return (
            a.dtype == b.dtype
            and (a.shape == b.shape or a.size == b.size == 1)
            and bool((a.ravel() == b.ravel()).all())
        )

    def constant(self, value: NDArray[Any]) -> str:
        """Store a constant and return its name."""
        name = self.fresh()
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def fresh(self) -> str:
        """Return a name that no tensor has."""
        self._count += 1
        return f"dfqkit:{self._count}"

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        like: str = "",
    ) -> str:
        """Add a node with one output, of the shape of `like`, and return that output."""
        out = self.fresh()
        self._take(helper.make_node(op, [self.resolved(i) for i in inputs], [out], name=name, **(attributes or {})))
        if like in self.shapes:
            self.shapes[out] = self.shapes[like]
        return out

    def copied(self, node: onnx.NodeProto, first: str) -> str:
        """Add a copy of a node of one output that reads another tensor first, and return its output."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        out = self.fresh()
        copy.input[0] = self.resolved(first)
        del copy.output[:]
        copy.output.append(out)
        self._take(copy)
        if node.output[0] in self.shapes:
            self.shapes[out] = self.shapes[node.output[0]]
        return out

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return a tensor's shape where it is known."""
        tensor = self.resolved(tensor)
        if tensor in self.constants:
            return tuple(self.constants[tensor].dims)
        return self.shapes.get(tensor)

    def rank(self, tensor: str) -> int | None:
        """Return a tensor's rank where its shape is known."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def open_size(self, size: int) -> bool:
        """Whether a size is another for other batches."""
        return not self.fixed and size > 0 and size % self.batch == 0


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give a node an attribute, or take it away with None."""
    for item in [item for item in node.attribute if item.name == name]:
        node.attribute.remove(item)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def plain_attributes(node: onnx.NodeProto, *leave: str) -> dict[str, Any]:
    """Return a node's attributes by name, but for some."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute if item.name not in leave}


def ints(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return an attribute that is a list of integers."""
    found = attribute(node, name, None)
    return None if found is None else [int(value) for value in found]
