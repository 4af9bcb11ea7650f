"""A model that is being repaired: stored tensors, nodes put in and taken out, and what a change leaves unused.

What belongs here: edits that know no rule. Tensors are never changed in place, because several nodes may share one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.target import Target
from dfqkit_export.onnxfile.graph import outer_names


class Editor:
    """A copy of a model, with edits that keep it valid.

    Attributes:
        model: The copy; every node has a unique name.
        graph: Its look-ups, as of the last edit.
    """

    def __init__(self, model: onnx.ModelProto, target: Target) -> None:
        """Copy a model, which is left alone."""
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._target = target
        taken: set[str] = set()
        for index, node in enumerate(self.model.graph.node):
            if not node.name or node.name in taken:
                node.name = f"{node.op_type}[{index}]"
            taken.add(node.name)
        self.graph = QdqGraph(self.model, target)

    def has(self, name: str) -> bool:
        """Return whether a node is still there."""
        return any(node.name == name for node in self.model.graph.node)

    def node(self, name: str) -> onnx.NodeProto:
        """Return a node that is there, as the one that a problem names when its repair begins."""
        found: onnx.NodeProto = next(node for node in self.model.graph.node if node.name == name)
        return found

    def store(self, stem: str, value: NDArray[Any]) -> str:
        """Add an initializer and return its name, which begins with `stem`."""
        name = self._free(stem)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        if not value.ndim:  # ascontiguousarray makes rank 1 of rank 0.
            del self.model.graph.initializer[-1].dims[:]
        return name

    def insert(self, op: str, inputs: list[str], *, behind: onnx.NodeProto, **attributes: Any) -> onnx.NodeProto:
        """Put a new node behind another one; nothing reads it yet."""
        name = self._free(f"{behind.name}_{op}")
        made: onnx.NodeProto = helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes)
        nodes = self.model.graph.node
        position = next(index for index, node in enumerate(nodes) if node.name == behind.name) + 1
        nodes.insert(position, made)
        stored: onnx.NodeProto = nodes[position]
        return stored

    def redirect(self, old: str, new: str, *, but: onnx.NodeProto | None = None) -> None:
        """Let all but one node that read a tensor, which is no output of the graph, read another instead."""
        for node in self.model.graph.node:
            if but is None or node.name != but.name:
                node.input[:] = [new if name == old else name for name in node.input]

    def finish(self) -> None:
        """Drop what nothing reads any more, and look at the graph anew."""
        graph = self.model.graph
        outputs = {value.name for value in graph.output}
        while True:
            used = outputs.union(*(node.input for node in graph.node), *map(outer_names, graph.node))
            unused = [node for node in graph.node if not used.intersection(node.output)]
            if not unused:
                break
            for node in unused:
                graph.node.remove(node)
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)
        del graph.value_info[:]  # Types inside may have changed; every tool infers them again.
        self.graph = QdqGraph(self.model, self._target)

    def _free(self, stem: str) -> str:
        taken = {tensor.name for tensor in self.model.graph.initializer} | {
            name for node in self.model.graph.node for name in (node.name, *node.output)
        }
        taken |= {value.name for value in (*self.model.graph.input, *self.model.graph.output)}
        name, count = stem, 1
        while name in taken or f"{name}_out" in taken:
            count += 1
            name = f"{stem}_{count}"
        return name


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Set a node's attribute, or remove it where the value is None."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
