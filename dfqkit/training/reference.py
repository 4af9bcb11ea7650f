"""The float model with the same measuring points as a student, for losses between their features.

What belongs here: the reference graph and its points; what reads both sides is `dfqkit.teacher.taps.FeatureTap`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn


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
