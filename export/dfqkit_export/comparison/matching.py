"""Which layer of one file is which of another, whoever wrote them.

What belongs here: matching layers by name, and by their order and the shapes of their weights where names differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

import onnx

from dfqkit_export.onnxfile.canonical.opened import opened
from dfqkit_export.onnxfile.graph import SourceGraph

Key = tuple[str, tuple[int, ...]]

BY_NAME = "by name"
BY_POSITION = "by position: weighted layers with equal weight shapes, in the files' order, and additions between them"


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Layers of two files that stand for each other.

    Attributes:
        pairs: (name in A, name in B), in A's order.
        how: By what they were matched, in words.
        only_a: Layers of A without a partner.
        only_b: Layers of B without a partner.
    """

    pairs: tuple[tuple[str, str], ...]
    how: str
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def match_layers(a: onnx.ModelProto, b: onnx.ModelProto) -> Matching:
    """Match the layers of two models that have a name.

    Names decide where every weighted layer of the smaller model finds one of its name, kind and weight shape in the
    other. Otherwise names count for nothing: both sequences of (kind, weight shape) are aligned.
    """
    first, second = _keys(a), _keys(b)
    pairs = [(name, name) for name, key in first.items() if second.get(name) == key]
    weighted = min(sum(_weighted(key) for key in keys.values()) for keys in (first, second))
    named = sum(_weighted(first[name]) for name, _ in pairs)
    how = BY_NAME
    if named < weighted or not pairs:
        pairs, how = _aligned(first, second), BY_POSITION
    taken_a, taken_b = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return Matching(
        pairs=tuple(pairs),
        how=how,
        only_a=tuple(name for name in first if name not in taken_a),
        only_b=tuple(name for name in second if name not in taken_b),
    )


def _aligned(first: dict[str, Key], second: dict[str, Key]) -> list[tuple[str, str]]:
    names_a, names_b = list(first), list(second)
    blocks = SequenceMatcher(None, list(first.values()), list(second.values()), autojunk=False).get_matching_blocks()
    return [(names_a[block.a + step], names_b[block.b + step]) for block in blocks for step in range(block.size)]


def _weighted(key: Key) -> bool:
    return key[0] != "Add"


def _keys(model: onnx.ModelProto) -> dict[str, Key]:
    model = opened(model)
    graph = SourceGraph(model.graph)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {layer.name: _key(layer, graph, dims) for layer in graph.layers() if layer.name}


def _key(layer: onnx.NodeProto, graph: SourceGraph, dims: dict[str, tuple[int, ...]]) -> Key:
    shape = dims.get(graph.weight_initializer(layer) or "", ())
    if layer.op_type in ("Gemm", "MatMul"):
        # One writer stores the matrix transposed, another does not.
        return "linear", tuple(sorted(shape))
    return layer.op_type, shape
