"""The float model with the same measuring points as a student, for losses between their features.

What belongs here: the reference graph and the tap that reads both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import TracebackType

from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle


def measuring_points(student: fx.GraphModule) -> list[str]:
    """Names of the nodes that a student quantizes with a quantizer of their own, the input left out."""
    return [
        node.args[0].name
        for node in student.graph.nodes
        if node.op == "call_module"
        and str(node.target) == f"quant.{node.args[0].name}"
        and node.args[0].op != "placeholder"
    ]


def reference_graph(graph: fx.GraphModule, points: Sequence[str]) -> fx.GraphModule:
    """A copy of a float graph with an identity module ``quant.n`` behind each node ``n`` of ``points``."""
    reference = copy.deepcopy(graph)
    reference.add_submodule("quant", nn.Module())
    nodes = {node.name: node for node in reference.graph.nodes}
    for name in points:
        reference.get_submodule("quant").add_module(name, nn.Identity())
        with reference.graph.inserting_after(nodes[name]):
            call = reference.graph.call_module(f"quant.{name}", (nodes[name],))
        nodes[name].replace_all_uses_with(call, delete_user_cb=lambda user, new=call: user is not new)  # type: ignore[misc]
    reference.recompile()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference.eval()


class FeatureTap:
    """Reads what leaves ``quant.n`` for every point ``n`` during a forward; ``features`` holds the last forward's.

    Args:
        model: a student or a reference graph.
        points: node names.
    """

    def __init__(self, model: fx.GraphModule, points: Sequence[str]) -> None:
        self.model, self.points = model, points
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        modules = {name: self.model.get_submodule(f"quant.{name}") for name in self.points}
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: self.features.clear()))
        for name, module in modules.items():
            self._handles.append(module.register_forward_hook(self._reader(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.features.clear()

    def _reader(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(module: nn.Module, inputs: object, output: Tensor) -> None:
            # A quantizer that serves again further down is called twice; its first call is the point itself.
            self.features.setdefault(name, output)

        return read
