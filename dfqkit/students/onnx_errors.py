"""Which operator of a graph has no ONNX form, where the exporter fails.

What belongs here: finding it by writing each operator alone: the exporter's messages are about a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dfqkit.students.nodes import op_name
from dfqkit.students.user_code import at, place_of_node


def untranslatable(
    graph: fx.GraphModule, example: Tensor, opset: int, error: Exception, translate: Callable[..., object]
) -> str:
    """Say which operator the exporter cannot write; its own message is about its own graph."""
    culprit = _culprit(graph, example, opset, translate)
    if culprit is None:
        reason = next((line for line in reversed(str(error.__cause__ or error).splitlines()) if line.strip()), "")
        return (
            f"The model cannot be written as ONNX, though each of its operators can: {type(error).__name__}: "
            f"{reason.strip()[:300]}. Please report it with the model; a smaller part of it may be written."
        )
    return (
        f"Operator '{op_name(culprit.target)}'{at(place_of_node(culprit))} has no ONNX form (opset {opset}), so no "
        "runtime could run the model. Write it with other operators, or give a module without it."
    )


class _Single(nn.Module):
    """One call of an operator, whose tensors are stored."""

    def __init__(self, node: fx.Node, values: Mapping[fx.Node, object]) -> None:
        super().__init__()
        self.node, self.values = node, values

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [x + 0]

        def value(node: fx.Node) -> Any:
            stored = self.values[node]
            if isinstance(stored, Tensor) and stored.dtype != torch.bool:
                return stored + x.sum().to(stored.dtype)  # not constant, or the exporter would compute it
            return stored

        args, kwargs = fx.map_arg(self.node.args, value), fx.map_arg(self.node.kwargs, value)
        result = self.node.target(*args, **kwargs)  # type: ignore[operator]
        return [*found, *(each for each in pytree.tree_leaves(result) if isinstance(each, Tensor))]


def _culprit(graph: fx.GraphModule, example: Tensor, opset: int, translate: Callable[..., object]) -> fx.Node | None:
    """Return the first node that cannot be written when it stands alone."""
    recorder = fx.Interpreter(graph, garbage_collect_values=False)
    try:
        recorder.run(example)
    except Exception:  # whatever it was that cannot be written cannot run here either
        return None
    tried, nodes = set[str](), list[fx.Node](graph.graph.nodes)
    for node in nodes:
        if node.op != "call_function" or str(node.target) in tried:
            continue
        tried.add(str(node.target))
        single = _Single(node, recorder.env)
        count = 1 + sum(isinstance(each, Tensor) for each in pytree.tree_leaves(recorder.env[node]))
        try:
            translate(single, example, opset, [f"out{i}" for i in range(count)])
        except Exception:
            return node
    return None
