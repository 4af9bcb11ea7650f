"""Float operators on maps in blocks of channels, which ONNX Runtime's optimizer writes for the CPU it ran on.

What belongs here: the operators of `com.microsoft.nchwc` as ONNX's own on plain maps, each between the operators that
turn blocks into maps and maps into blocks, and these taken out in pairs. How many channels a block has is the CPU's and
not the file's (`WorkGraph.block`). Channels that fill the last block are left out where their weights are zeros for
whoever reads them; what cannot be told stays as it is. Layouts: `MlasReorderFilterOIHWBiBo` and `...OIHWBo` in
onnxruntime/core/mlas/lib/reorder.cpp, and core/optimizer/nchwc_transformer.cc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.onnxfile.canonical.workgraph import TO_FIRST, TO_LAST, Rule, WorkGraph, plain_attributes
from dfqkit_export.onnxfile.graph import attribute, has_input

DOMAIN = "com.microsoft.nchwc"
_TO_BLOCKS, _TO_MAPS = "ReorderInput", "ReorderOutput"
#: Work on each number alone, so that they may as well work on maps; those of ONNX's own domain.
EACH = frozenset({"Add", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sum", "Tanh"})
_KEEP_CHANNELS = EACH | {
    "AveragePool", "DequantizeLinear", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "QuantizeLinear",
}  # fmt: skip


def conv(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open a convolution, what is added to it and its activation with it (`fused.fused_float`)."""
    weight, bias = graph.value(node.input[1], None), None
    groups, block = int(attribute(node, "group", 1)), graph.block
    if has_input(node, 2) and (bias := graph.value(node.input[2], None)) is None:
        return False
    if not block or weight is None or weight.ndim != 4 or weight.shape[0] % block:
        return False
    out, inner, *size = weight.shape
    plain, depthwise = groups == 1 and inner < block, groups > 1 and inner == 1
    maps = node.input[0] if plain else _maps(graph, node.input[0])
    channels = _channels(graph, maps)
    if channels is None or (not (plain or depthwise) and inner % block):
        return False
    if plain or depthwise:
        weight = weight.reshape(out // block, inner, *size, block).transpose(0, 4, 1, 2, 3)
    else:
        weight = weight.reshape(out // block, inner // block, *size, block, block).transpose(0, 5, 1, 4, 2, 3)
    weight = weight.reshape(out, inner, *size)
    kept = channels if depthwise else _filled(weight, bias, block) if groups == 1 else out
    inner = channels if groups == 1 else inner
    if weight[:, inner:].any() or weight[kept:].any() or (bias is not None and bias[kept:].any()):
        return False
    inputs = [maps, graph.constant(weight[:kept, :inner])]
    inputs += [graph.constant(bias[:kept])] if bias is not None else []
    if has_input(node, 3):
        added = _maps(graph, node.input[3])
        if not added or bias is None:
            return False
        inputs.append(added)
    attributes = plain_attributes(node) | {"group": kept if depthwise else groups}
    return _in_blocks(graph, node, graph.add("FusedConv", inputs, attributes, name=node.name))


def _filled(weight: NDArray[Any], bias: NDArray[Any] | None, block: int) -> int:
    """Return how many channels there are without those that fill the last block with zeros."""
    used = weight.reshape(len(weight), -1).any(1)
    if bias is not None:
        used = used | (bias != 0)
    return max(int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0, len(weight) - block + 1)


def pool(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open a pooling."""
    maps = _maps(graph, node.input[0])
    return bool(maps) and _in_blocks(graph, node, graph.add(node.op_type, [maps], plain_attributes(node)))


def each(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Let an operator on single numbers work on maps where all that it reads are blocks."""
    inputs = [name if not name or graph.scalar(name) is not None else _maps(graph, name) for name in node.input]
    if all(inputs[k] or not name for k, name in enumerate(node.input)) and inputs != [*map(graph.resolved, node.input)]:
        return _in_blocks(graph, node, graph.add(node.op_type, inputs, plain_attributes(node), name=node.name))
    return False


def to_maps(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take out the step back to maps behind the step to blocks, where no channel is lost or made up."""
    maps = _maps(graph, node.input[0])
    if not maps or _channels(graph, maps) != attribute(node, "channels", 0):
        return False
    last = attribute(node, "channels_last", 0)
    return graph.stand_for(node.output[0], graph.add("Transpose", [maps], {"perm": TO_LAST}) if last else maps)


def to_blocks(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn channels that come last before the step to blocks."""
    if not attribute(node, "channels_last", 0):
        return False
    return _in_blocks(graph, node, graph.add("Transpose", [node.input[0]], {"perm": TO_FIRST}))


def _in_blocks(graph: WorkGraph, node: onnx.NodeProto, maps: str) -> bool:
    return graph.stand_for(node.output[0], graph.add(_TO_BLOCKS, [maps], {"domain": DOMAIN}))


def _maps(graph: WorkGraph, blocks: str) -> str:
    """Return the maps that blocks were made of; "" where they are none."""
    maker = graph.producer(blocks)
    if maker is None or (maker.op_type, maker.domain) != (_TO_BLOCKS, DOMAIN) or attribute(maker, "channels_last", 0):
        return ""
    return graph.resolved(maker.input[0])


def _channels(graph: WorkGraph, maps: str) -> int | None:
    """Return how many channels maps have, as far as layers before them tell."""
    maker = graph.producer(maps) if maps else None
    if maps and (shape := graph.shape(maps)) is not None:
        return shape[1] if len(shape) == 4 else None
    if maker is not None and maker.op_type in ("Conv", "FusedConv"):
        weight = graph.shape(maker.input[1])
        return weight[0] if weight is not None else None
    return _channels(graph, maker.input[0]) if maker is not None and maker.op_type in _KEEP_CHANNELS else None


RULES: dict[str, tuple[Rule, ...]] = {
    "Conv": (conv,),
    _TO_BLOCKS: (to_blocks,),
    _TO_MAPS: (to_maps,),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), (pool,)),
}
