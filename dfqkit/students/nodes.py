"""What the nodes of an `fx` graph read, call and hold, with types.

What belongs here: the narrowing of fx's unions (an argument may be a node, a number, a list) and of what modules hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit_export.errors import TeacherError

#: Operators that move values without changing them: codes go through.
STRUCTURAL = {"max_pool2d", "flatten", "reshape", "permute", "transpose", "slice", "unsqueeze", "squeeze", "expand"}
STRUCTURAL |= {"chunk", "split", "split_with_sizes", "unbind"}
#: Operators that move values without changing them, but behind which a runtime wants Q/DQ again: the same scale serves.
REGRID = {"getitem", "pad", "constant_pad_nd", "select"}


def op_name(target: object) -> str:
    """Return the short operator name of an fx target: ``aten.add_.Tensor`` gives ``add_``."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def fill_of(node: object) -> float | None:
    """Return the constant that a node pads with, where it is a constant pad."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    name, given = op_name(node.target), [*node.args[2:], None, None]
    if name == "constant_pad_nd":
        value = node.kwargs.get("value", given[0])
    elif name == "pad" and node.kwargs.get("mode", given[0]) in (None, "constant"):
        value = node.kwargs.get("value", given[1])
    else:
        return None
    return float(value) if isinstance(value, (int, float)) else 0.0


def source(node: fx.Node) -> fx.Node:
    """Return the node whose value is the first argument of another.

    Raises:
        TeacherError: It is a constant, or a list.
    """
    first = node.args[0]
    if not isinstance(first, fx.Node):
        message = f"'{node.name}' ({node.target}) reads {first!r} where a tensor of the graph is needed."
        raise TeacherError(message)
    return first


def called(node: object, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the module that a node calls; None for any other node, and for what is no node."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return modules.get(str(node.target))
    return None


def tensor_at(root: nn.Module, path: object) -> Tensor:
    """Return a parameter, buffer or constant by its dotted path.

    Raises:
        TeacherError: Something else is there.
    """
    value: object = reduce(getattr, str(path).split("."), root)
    if not isinstance(value, Tensor):
        message = f"'{path}' is a {type(value).__name__} where a tensor is needed."
        raise TeacherError(message)
    return value


def bypass(node: fx.Node, other: fx.Node) -> None:
    """Let whoever reads ``node`` read ``other``, and take it out of the graph."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def call_behind(node: fx.Node, module: str, *, outputs: bool = False) -> None:
    """Let whoever computes with what ``node`` gives read it through a module; outputs give it as it is, or so too."""
    with node.graph.inserting_after(node):
        call = node.graph.call_module(module, (node,))
    for user in list(node.users):
        if user is not call and (outputs or user.op != "output"):
            user.replace_input_with(node, call)


def watch(graph: fx.GraphModule, images: Tensor, see: Callable[[fx.Node, Tensor], None]) -> None:
    """Run images (N, C, H, W) through a graph, without gradients, and show every node that gives a tensor with it."""

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                see(n, value)
            return value

    device = next((p.device for p in graph.parameters()), images.device)
    with torch.no_grad():
        Watcher(graph).run(images.to(device))


def tensor_shapes(graph: fx.GraphModule, images: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every tensor of a graph on images (N, C, H, W)."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        shapes[node] = tuple(value.shape)

    watch(graph, images, see)
    return shapes
