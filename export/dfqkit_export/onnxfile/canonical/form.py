"""The form itself: rewriting until nothing changes, then the nodes that the outputs need, in one order.

What belongs here: reading a model, the rounds, sizes of tensors, and equal nodes made one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from dfqkit_export.onnxfile.canonical import blocked, fused, quantizers, rules, selecting, turning
from dfqkit_export.onnxfile.canonical.workgraph import Rule, WorkGraph
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, outer_names

_ROUNDS, _SMALL = 60, 1024
#: Whose inputs may be in any order.
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal"})


@dataclass(frozen=True, kw_only=True)
class CanonicalGraph:
    """A graph in canonical form, of the fields that `onnx.GraphProto` has for one that `SourceGraph` reads.

    Attributes:
        node: Nodes that the outputs need, each after those it reads.
        initializer: Constants; large ones are the file's own.
        input: Inputs that are no constants.
        output: One for each output, under the name of the tensor that it is here.
        outputs: The same as names.
        digests: What tells a constant from others, by name.
        shapes: Of tensors, as far as known.
        batch: The number that stands for the batch in shapes.
        opset: Of ONNX's own operators.
    """

    node: list[onnx.NodeProto]
    initializer: list[onnx.TensorProto]
    input: list[onnx.ValueInfoProto]
    output: list[onnx.ValueInfoProto]
    outputs: tuple[str, ...]
    digests: dict[str, str] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    batch: int
    opset: int


def canonical(model: onnx.ModelProto, *, block: int = 0) -> CanonicalGraph:
    """Return the graph of a checked model in canonical form. The model is left as it is, and no large tensor copied.

    Of operators on blocks of channels (`blocked`), of ``block`` each, weights are; with 0 they stay as they are.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = WorkGraph(model.graph, model.opset_import, block=block)
    store_constants(graph)
    graph.shapes |= _sizes(graph) if block else {}
    changed = True
    while changed:  # sizes are known of ONNX's own operators: what others stand for comes first
        changed = _rewrite(graph, sized=False)
        graph.shapes |= _sizes(graph)
    _rewrite(graph, sized=True)
    _put_in_order(graph)
    nodes = needed_nodes(graph)
    used = {name for node in nodes for name in (*node.input, *outer_names(node))} | set(graph.outputs)
    constants = {name: graph.constants[name] for name in sorted(used & graph.constants.keys())}
    for name, tensor in constants.items():
        tensor.name = name
    return CanonicalGraph(
        node=nodes,
        initializer=list(constants.values()),
        input=graph.inputs,
        output=[helper.make_empty_tensor_value_info(name) for name in graph.outputs],
        outputs=tuple(graph.outputs),
        digests={name: graph.digest(name) for name in constants},
        shapes=graph.shapes,
        batch=graph.batch,
        opset=graph.opset,
    )


def store_constants(graph: WorkGraph) -> None:
    """Take what Constant nodes hold for constants of the graph."""
    for node in [node for node in graph.nodes if node.op_type == "Constant" and node.domain in OWN_DOMAINS]:
        item = node.attribute[0] if len(node.attribute) == 1 else onnx.AttributeProto()
        if item.name == "value":
            graph.constants[node.output[0]] = item.t
        elif item.name in ("value_float", "value_floats", "value_int", "value_ints"):
            dtype = np.float32 if "float" in item.name else np.int64
            graph.stand_for(node.output[0], graph.constant(np.array(helper.get_attribute_value(item), dtype)))


def _rewrite(graph: WorkGraph, *, sized: bool) -> bool:
    """Apply rules, the first that does something, to each node, until none does; whether any did."""
    for done in range(_ROUNDS):
        changed = False
        for node in list(graph.nodes):
            if node.output and graph.resolved(node.output[0]) == node.output[0] not in graph.constants:
                changed |= any(rule(graph, node) for rule in _rules_of(graph, node, sized=sized))
        graph.resolve()
        if sized:
            changed |= _made_one(graph)
        graph.nodes = needed_nodes(graph)
        if not changed:
            return done > 0
    return False


def _rules_of(graph: WorkGraph, node: onnx.NodeProto, *, sized: bool) -> tuple[Rule, ...]:
    op = node.op_type
    if node.domain == blocked.DOMAIN:
        return blocked.RULES.get(op, ())
    first = (
        *((blocked.each,) if graph.block and op in blocked.EACH else ()),
        *fused.RULES.get(op, ()),
        fused.own_domain,
        rules.as_inputs,
        rules.passed_on,
        rules.folded,
    )
    if not sized or node.domain:
        return first
    if op == "QuantizeLinear":
        return (*first, *quantizers.QUANTIZE)
    if op == "DequantizeLinear":
        return (*first, *quantizers.DEQUANTIZE)
    moved = (quantizers.read_last,) if op in quantizers.MOVES else ()
    own = [rule for each in (rules, selecting, turning) for rule in each.RULES.get(op, ())]
    return (*first, *own, *moved)


def _sizes(graph: WorkGraph) -> dict[str, tuple[int, ...]]:
    """Infer the sizes of all tensors, of a batch of the graph's own; large constants go without their values."""
    slim = onnx.GraphProto(name="sizes", node=graph.nodes)
    for value in graph.inputs:
        slim.input.add().CopyFrom(value)
        sizes = slim.input[-1].type.tensor_type.shape.dim
        if sizes and not sizes[0].dim_value > 0:
            sizes[0].dim_value = graph.batch
    for name, tensor in graph.constants.items():
        if math.prod(tensor.dims) <= _SMALL:
            slim.initializer.add().CopyFrom(tensor)
            slim.initializer[-1].name = name
        else:
            slim.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    slim.output.extend(helper.make_empty_tensor_value_info(name) for name in graph.outputs)
    model = onnx.ModelProto(ir_version=8, graph=slim, opset_import=graph.opsets)
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}  # an operator that onnx does not know: what needs no sizes is compared all the same
    known = {}
    for value in [*found.input, *found.value_info, *found.output]:
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            known[value.name] = tuple(size.dim_value for size in sizes)
    return known


def needed_nodes(graph: WorkGraph) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs need, each after those it reads, in an order that is the file's in nothing."""
    order: list[onnx.NodeProto] = []
    seen: set[int] = set()
    waiting = [(name, False) for name in reversed(graph.outputs)]
    while waiting:
        name, done = waiting.pop()
        node = graph.producer(name)
        if node is None or graph.is_constant(name):
            continue
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((name, True))
            waiting += [(each, False) for each in reversed([*node.input, *sorted(outer_names(node))]) if each]
    return order


def _put_in_order(graph: WorkGraph) -> None:
    """Let inputs of operators that take them in any order come in one that numbers of no calibration change."""
    known: dict[str, str] = {value.name: value.name for value in graph.inputs}
    known |= {name: f"{tensor.data_type} {list(tensor.dims)}" for name, tensor in graph.constants.items()}
    for node in needed_nodes(graph):
        if node.op_type in COMMUTATIVE and not node.domain:
            node.input[:] = sorted(node.input, key=lambda name: known.get(name, ""))
        parts = [node.op_type, *(known.get(name, "") for name in node.input)]  # attributes are what faults change
        own = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        known |= {name: f"{own} {place}" for place, name in enumerate(node.output)}


def _made_one(graph: WorkGraph) -> bool:
    """Let one node stand for all that compute the same."""
    first: dict[tuple[object, ...], onnx.NodeProto] = {}
    changed = False
    for node in graph.nodes:
        if any(item.HasField("g") or item.graphs for item in node.attribute) or node.op_type in rules.RANDOM:
            continue
        read = [graph.digest(name) if graph.is_constant(name) else graph.resolved(name) for name in node.input]
        attributes = sorted(item.SerializeToString() for item in node.attribute)
        same = first.setdefault((node.op_type, node.domain, *read, *attributes), node)
        if same is not node and len(same.output) == len(node.output):
            for old, new in zip(node.output, same.output, strict=True):
                changed |= graph.stand_for(old, new)
    if changed:
        graph.resolve()
    return changed
