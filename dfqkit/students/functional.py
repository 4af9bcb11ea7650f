"""An exported graph without what no graph of values can hold: in-place operators, grad and autocast islands, asserts.

What belongs here: what changes how a captured network is written down, and never what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from dfqkit.students.nodes import op_name
from dfqkit.students.user_code import at, place_of_node
from dfqkit_export.errors import TeacherError

#: What does nothing in eval mode, and gives its input itself.
IDENTITIES = frozenset(
    ("dropout", "feature_dropout", "alpha_dropout", "alias", "detach", "contiguous", "clone", "lift_fresh_copy")
)

#: Higher-order operators that only say how their body is run, by where the body stands among the arguments.
_ISLANDS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


def without_mutation(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with every in-place operator as a functional one.

    Where each changes a value that nothing else reads, exchanging the operators is enough and keeps the graph as it
    is. Elsewhere (a slice that is written to, a buffer, the input) torch's own functionalization rewrites it.
    """
    for _ in range(2):
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
        nodes = [node for graph in graphs for node in graph.nodes if _mutates(node)]
        if all(_is_only_reader(node) and _functional(node) for node in nodes):
            for node in nodes:
                node.target = _functional(node)
            return program
        program = program.run_decompositions({})
    left = next(node for node in nodes if not (_is_only_reader(node) and _functional(node)))
    message = (
        f"Operator '{op_name(left.target)}'{at(place_of_node(left))} changes its input in place, and torch cannot "
        "write it otherwise. Use the functional form in the model."
    )
    raise TeacherError(message)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _functional(node: fx.Node) -> Any:
    """Return the operator that gives what an in-place one writes; None where there is no such."""
    assert isinstance(node.target, torch._ops.OpOverload)
    packet = getattr(torch.ops.aten, op_name(node.target).removesuffix("_"), None)
    return getattr(packet, node.target._overloadname, None)


def _is_only_reader(node: fx.Node) -> bool:
    """Whether what an operator changes is a new value that it alone reads."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or len(changed.users) > 1 or op_name(changed.target) in IDENTITIES:
        return False
    target = changed.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return _mutates(changed) or not any(value.alias_info for value in target._schema.returns)


def plain(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Put the bodies of grad and autocast islands where they stand, and drop asserts and stored buffers, in place.

    Raises:
        TeacherError: A part of the model runs in another precision, or under control flow; says which line.
    """
    while island := next((n for n in graph.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)), None):
        _inline(graph, island, device)
    for node in graph.graph.nodes:
        _name_convolution(node)
    for node in reversed(graph.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _name_convolution(node: fx.Node) -> None:
    """Write TorchScript's general convolution as the one that it is."""
    if op_name(node.target) not in ("convolution", "_convolution") or node.meta["val"].dim() not in (3, 4):
        return
    given, axes = list(node.args), node.meta["val"].dim() - 2
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = given[:9]
    if transposed:
        node.target = getattr(torch.ops.aten, f"conv_transpose{axes}d").input
        node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        node.target = getattr(torch.ops.aten, f"conv{axes}d").default
        node.args = (x, weight, bias, stride, padding, dilation, groups)


def _inline(graph: fx.GraphModule, node: fx.Node, device: torch.device) -> None:
    name = op_name(node.target)
    if name not in _ISLANDS:
        message = (
            f"The model uses '{name}'{at(place_of_node(node) or _inner_place(graph, node))}: control flow, or an "
            "operator with a body of its own, which no target runs. Write it with torch.where, or give a module "
            "without it."
        )
        raise TeacherError(message)
    position = _ISLANDS[name]
    body = node.args[position]
    assert isinstance(body, fx.Node)
    prefix, inner = str(body.target), graph.get_submodule(str(body.target))
    assert isinstance(inner, fx.GraphModule)
    if name == "wrap_with_autocast" and node.args[2] and node.args[0] == device.type:
        message = (
            f"A part of the model runs under torch.autocast('{node.args[0]}', {node.args[1]})"
            f"{at(_inner_place(graph, node))}: its float model would not be float32, which quantization starts from. "
            "Take the autocast out of forward, or give it enabled=False."
        )
        raise TeacherError(message)
    values: dict[fx.Node, Any] = {}
    given = iter(node.args[position + 1 :])
    with graph.graph.inserting_before(node):
        for old in inner.graph.nodes:
            if old.op == "placeholder":
                values[old] = next(given)
            elif old.op == "output":
                outputs: Any = fx.map_arg(old.args[0], lambda n: values[n])
            elif old.op == "get_attr":
                values[old] = graph.graph.get_attr(f"{prefix}.{old.target}")
            else:
                values[old] = graph.graph.node_copy(old, lambda n: values[n])
    for user in list(node.users):
        index: Any = user.args[1]
        user.replace_all_uses_with(outputs[index])
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def _inner_place(graph: fx.GraphModule, node: fx.Node) -> str:
    """Return the user's line of the first operator in the body of a higher-order one."""
    return next((place for inner in _bodies(graph, node) for n in inner.graph.nodes if (place := place_of_node(n))), "")


def _bodies(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.GraphModule]:
    for argument in node.all_input_nodes:
        body = getattr(graph, str(argument.target), None) if argument.op == "get_attr" else None
        if isinstance(body, fx.GraphModule):
            yield body
