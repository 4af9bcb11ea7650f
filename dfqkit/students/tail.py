"""What follows a network's last layer and only changes how its answer is written: softmax, temperature, sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from dfqkit.students.folding import Affine
from dfqkit.students.nodes import called, op_name, source

#: Operators of one tensor, value by value or over the classes. What joins or averages values is none.
_WRITES_WORDS = (
    "softmax _softmax softmin log_softmax _log_softmax sigmoid logsigmoid log_sigmoid_forward mul div add sub rsub neg "
    "exp log clamp clamp_min clamp_max to _to_copy"
)
_WRITES = frozenset(_WRITES_WORDS.split())


def tail_of(
    outputs: Iterable[fx.Node], modules: Mapping[str, nn.Module], through: Callable[[fx.Node], fx.Node]
) -> set[fx.Node]:
    """Return every node between the last operator that computes an answer and the graph's outputs, that one included.

    These stay in float: a quantizer behind the logits makes many of 1000 classes tie, in front of a softmax too.

    Args:
        outputs: The nodes that the graph returns.
        modules: Of the graph, by path.
        through: Gives the node in front of operators that only move values.
    """
    found: set[fx.Node] = set()
    for output in outputs:
        node = through(output)
        while _writes(node, modules):
            found.add(node)
            node = through(source(node))
        found.add(node)
    return found


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    read = [other for other in node.all_input_nodes if other.op != "get_attr"]
    if len(read) != 1 or read[0] is not node.args[0]:
        return False
    module = called(node, modules)
    return isinstance(module, Affine | nn.Sigmoid) or (node.op == "call_function" and op_name(node.target) in _WRITES)
