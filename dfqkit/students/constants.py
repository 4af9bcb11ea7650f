"""What a network computes from its own parameters, computed once: every such value becomes a stored tensor.

What belongs here: constant folding on the graph as `torch.export` gives it, so that computed weights (weight and
spectral norm, standardised weights, sums of low rank), frozen BatchNorm and indexed attention biases are parameters
like any other before a layer looks for its own. Folding constants into layers is `folding`.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import Tensor, fx

from dfqkit.students.folding import add_buffer

#: Elements up to which a constant is stored although it is larger than all that it is computed from.
LARGEST_GROWN = 2**20


def fold_constants(graph: fx.GraphModule) -> None:
    """Evaluate, in place, every operator that reads only parameters, buffers and numbers.

    Values that others read become buffers of the module whose operator reads them first, which the reading node's new
    constant names as ``meta["owner"]``. What draws random numbers or writes into its input stays as it is, and so does
    a constant that grows beyond `LARGEST_GROWN` elements (an expanded mask).
    """
    values = _evaluated(graph)
    stored = {_identity(value): node for node, value in values.items() if node.op == "get_attr"}
    made: dict[str, list[tuple[Tensor, str]]] = {}
    for node, value in values.items():
        readers = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not readers:
            continue
        if not isinstance(value, Tensor):
            for reader in readers if isinstance(value, int | float) else ():  # a number taken out of a tensor
                _write_number(reader, node, value)
            continue
        if _identity(value) in stored:
            _read_instead(readers, node, stored[_identity(value)])
            continue
        owner = _owner(readers[0])
        # A layer called twice computes its weight twice, and stays one layer.
        alike = (
            path for other, path in made.get(owner, []) if other.dtype == value.dtype and torch.equal(other, value)
        )
        path = next(alike, "")
        if not path:
            path = add_buffer(graph, owner, node.name, value.detach().clone())
            made.setdefault(owner, []).append((value, path))
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(path)
        constant.meta = {"val": value, "owner": owner}
        _read_instead(readers, node, constant)
    graph.graph.eliminate_dead_code()


def _evaluated(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return every node that depends on no input of the graph, with its value."""
    values: dict[fx.Node, Any] = {}
    written = _written(graph)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node in written:
                continue
            if node.op == "get_attr":
                if isinstance(value := _attribute(graph, node), Tensor):
                    values[node] = value
            elif _is_pure(node) and all(given in values for given in node.all_input_nodes):
                args, kwargs = (fx.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
                value = node.target(*args, **kwargs)
                given = [values[n].numel() for n in node.all_input_nodes if isinstance(values[n], Tensor)]
                if not isinstance(value, Tensor) or value.numel() <= max(LARGEST_GROWN, *given, 0):
                    values[node] = value
    return values


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _is_pure(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem or getattr(node.target, "__module__", "") in ("_operator", "math")
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _written(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that an operator writes into, with all that these may be views of."""
    ahead: list[fx.Node] = []
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            given = zip(node.target._schema.arguments, node.args, strict=False)
            ahead += [a for s, a in given if s.alias_info is not None and s.alias_info.is_write]
    found: set[fx.Node] = set()
    while ahead:
        node = ahead.pop()
        if isinstance(node, fx.Node) and node not in found:
            found.add(node)
            ahead += node.all_input_nodes
    return found


def _identity(value: object) -> object:
    """Return what two views of the same numbers share."""
    return (value.data_ptr(), value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else id(value)


def _owner(reader: fx.Node) -> str:
    """Return the path of the module whose forward runs a node; the node's name where that is the network itself."""
    stack = list((reader.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"@\d+", "", str(stack[-1][0])) if stack else ""  # the second call of `fc` is of `fc@1`
    return path if re.fullmatch(r"[\w.]+", path) else reader.name


def _read_instead(readers: list[fx.Node], node: fx.Node, other: fx.Node) -> None:
    for reader in readers:
        reader.replace_input_with(node, other)


def _write_number(reader: fx.Node, node: fx.Node, value: float) -> None:
    def put(other: fx.Node) -> Any:
        return value if other is node else other

    reader.args, reader.kwargs = fx.map_arg(reader.args, put), fx.map_arg(reader.kwargs, put)
