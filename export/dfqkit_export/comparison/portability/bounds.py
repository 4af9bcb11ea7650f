"""What can be said of a file on processors that nobody has at hand: whether every operator is the same there by proof.

What belongs here: going over a graph with what is known of each operator's arithmetic. A proof is about the codes of
one file, all that can occur, and about the runtime's formulas, which are tested (`backends.onnxruntime.kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.backends.onnxruntime.grids import codes_at, codes_of_two
from dfqkit_export.backends.onnxruntime.kernels import ADDITIONS, parting_products
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.saturation import bounds, saturating_pairs, weight_rows
from dfqkit_export.comparison.portability.families import Family
from dfqkit_export.onnxfile.model import load_onnx

#: What only moves values, or takes the largest: alike everywhere in float, too.
_MOVE = frozenset(
    {"Clip", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
#: What makes no values of activations, or each value by one operation that every processor rounds alike.
_EXACT = frozenset({"Constant", "DequantizeLinear", "QuantizeLinear", "Shape", "GlobalAveragePool"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_MOST_SUM = 2**31 - 1


class Proof:
    """What of a file keeps it from being the same on every processor by proof.

    Attributes:
        open: What cannot be proven for any family, as clauses with the nodes' names.
    """

    def __init__(self, path: Path) -> None:
        """Read a file and ask the installed runtime what it runs in integers."""
        self._graph = QdqGraph(load_onnx(path), DEFAULT_TARGET)
        realised = realised_precision(path)
        in_float = [layer.name for layer in realised.layers if layer.precision != "int8"]
        in_float += [name for op, name in realised.float_ops if op not in _MOVE]
        self.open = [f"{name} runs in float" for name in dict.fromkeys(in_float)]
        self.open += list(self._unknown())

    def against(self, family: Family) -> list[str]:
        """Return why the file is not the same by proof in a family's kernels; nothing where it is."""
        found = list(self.open)
        if family.saturates:
            found += [f"{each.node}: {each.message}" for each in saturating_pairs(self._graph)]
        return found + list(self._parting_additions(family))

    def _unknown(self) -> Iterator[str]:
        for node in self._graph.nodes:
            name = self._graph.name(node)
            if node.op_type in _EXACT | _MOVE | _LAYERS or not self._graph.activations.intersection(node.input):
                continue
            if node.op_type == "Mul":
                codes = codes_of_two(node, self._graph)
                if codes is None or parting_products(*codes):
                    yield f"the product {name} rounds differently where operations are fused"
            elif node.op_type == "Concat":
                if len({self._grid(tensor) for tensor in (*node.input, node.output[0])}) != 1:
                    yield f"{name} brings tensors to another scale"
            elif node.op_type != "Add":
                yield f"nothing is known of {node.op_type} {name}"
        for layer, pairs in bounds(self._graph):
            rows = weight_rows(layer, self._graph)
            if rows is not None and abs(pairs.furthest) * rows[0].size > _MOST_SUM:
                yield f"sums of {self._graph.name(layer)} may leave 32 bits"

    def _parting_additions(self, family: Family) -> Iterator[str]:
        for node in self._graph.of_type("Add"):
            if sum(name in self._graph.activations for name in node.input) < 2:
                continue
            codes = codes_of_two(node, self._graph)
            tables = [] if codes is None else [ADDITIONS[kind](*codes) for kind in ("fused", family.addition)]
            if not tables:
                yield f"the scales of the addition {self._graph.name(node)} are not constant"
            elif count := int((tables[0] != tables[1]).sum()):
                yield f"the addition {self._graph.name(node)} gives other codes for {count} of {tables[0].size} pairs"

    def _grid(self, tensor: str) -> tuple[float, int] | None:
        made = self._graph.operand(tensor).dequantize
        node = made if made is not None else next(iter(self._graph.readers(tensor)), None)
        codes = codes_at(node, self._graph) if node is not None else None
        return (codes.scale, codes.zero) if codes else None
