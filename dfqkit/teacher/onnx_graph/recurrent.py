"""Recurrent operators as `nn.LSTM` and `nn.GRU`.

What belongs here: the order in which ONNX and torch stack gates, and the axes of what they give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfqkit.teacher.onnx_graph.building import TRIED, Building, Size, Value, refuse
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit.teacher.onnx_graph.table import Given, needed, optional, translates

#: Of torch's gates, where ONNX has them: input, output, forget, cell; and update, reset, new.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
_SOUND = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


class _LSTM(nn.LSTM):
    """One that gives its values and both states side by side."""

    def __call__(self, *given: Any) -> Any:
        values, (hidden, cell) = super().__call__(*given)
        return values, hidden, cell


@translates("LSTM", "GRU")
def _recurrent(node: Operator, given: Given, to: Building) -> Any:
    x = needed(node, given, 0)
    hidden, direction = int(node.get("hidden_size")), node.get("direction", "forward")
    gates, both = _GATES[node.kind], direction == "bidirectional"
    weight, recurrence = (needed(node, given, index).constant for index in (1, 2))
    bias = None if (given_bias := optional(given, 3)) is None else given_bias.constant
    _check(node, given, weight, recurrence)
    assert weight is not None
    assert recurrence is not None
    kind: Any = _LSTM if node.kind == "LSTM" else nn.GRU
    layer = kind(weight.shape[2], hidden, bidirectional=both, bias=True, device="meta")
    if bias is None:
        bias = torch.zeros(weight.shape[0], 2 * len(gates) * hidden)
    for place, ending in enumerate(("", "_reverse")[: weight.shape[0]]):
        halves = bias[place].chunk(2)
        parts = {"weight_ih": weight[place], "weight_hh": recurrence[place], "bias_ih": halves[0], "bias_hh": halves[1]}
        for name, values in parts.items():
            ordered = torch.cat([values[gate * hidden : (gate + 1) * hidden] for gate in gates]).clone()
            setattr(layer, f"{name}_l0{ending}", nn.Parameter(ordered, requires_grad=False))
    batch_first = bool(node.get("layout", 0))
    x = to.call(torch.transpose, x, 0, 1) if batch_first else x
    x = to.call(torch.flip, x, [0]) if direction == "reverse" else x
    states = [_state(each, to) for index in (5, 6) if (each := optional(given, index)) is not None and _stays(each)]
    start = states[0] if node.kind == "GRU" and states else tuple(states)
    flat = to.layers(node, layer, x, start) if states else to.layers(node, layer, x)
    steps, last = flat[0], flat[1:]
    steps = to.call(torch.flip, steps, [0]) if direction == "reverse" else steps
    length, ways = x.examples[0].shape[0], weight.shape[0]
    steps = to.call(torch.reshape, steps, (length, -1, ways, hidden))
    order = (1, 0, 2, 3) if batch_first else (0, 2, 1, 3)
    finals = [to.call(torch.transpose, each, 0, 1) if batch_first else each for each in last]
    return (to.call(torch.permute, steps, order), *finals)


def _check(node: Operator, given: Given, *stored: Tensor | None) -> None:
    sound = node.get("activations")
    lengths, peepholes = optional(given, 4), optional(given, 7)
    steps = needed(node, given, 0).examples[0].shape[1 if node.get("layout", 0) else 0]
    whole = lengths is None or all(bool((each == steps).all()) for each in lengths.examples)
    problems = {
        "has weights that are computed": any(each is None for each in stored),
        f"has the activations {sound}": bool(sound) and sound[: len(_SOUND[node.kind])] != _SOUND[node.kind],
        "clips its state": bool(node.get("clip", 0)),
        "has peepholes, or couples gates": bool(node.get("input_forget", 0)) or peepholes is not None,
        "runs over sequences of several lengths": not whole,
        "resets before it multiplies (linear_before_reset=0)": node.kind == "GRU"
        and not node.get("linear_before_reset"),
    }
    found = next((what for what, is_so in problems.items() if is_so), None)
    if found:
        raise refuse(node, f"{found}, which torch's {node.kind} cannot", "Give the torch module, or one without it.")


def _stays(state: Value) -> bool:
    """Return whether a state at the start is other than zero, which torch takes by itself."""
    return not all(bool((each == 0).all()) for each in state.examples)


def _state(state: Value, to: Building) -> Value:
    sizes = [Size(*TRIED) if axis == 1 else size for axis, size in enumerate(state.sizes())]
    return state if state.moving else to.call(torch.broadcast_to, state, sizes)
