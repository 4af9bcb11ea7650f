"""The table of operators, by ONNX's name, and what their translations share: constants, axes, operands.

What belongs here: `OPERATORS`, which the modules beside this one fill by `translates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dfqkit.teacher.onnx_graph.building import Building, Size, Value, refuse, size_of
from dfqkit.teacher.onnx_graph.reading import Operator

#: What a node reads, in its order; None for what is left out.
Given = Sequence[Value | None]
Translation = Callable[[Operator, Given, Building], Any]

#: How each operator is translated.
OPERATORS: dict[str, Translation] = {}


def translates(*kinds: str) -> Callable[[Translation], Translation]:
    """Let a function translate operators of these kinds."""

    def enter(function: Translation) -> Translation:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return enter


def needed(node: Operator, given: Given, index: int) -> Value:
    """Return an input that the operator cannot do without."""
    found = given[index] if index < len(given) else None
    if found is None:
        raise refuse(node, f"has no input {index}", "Export the file again.")
    return found


def optional(given: Given, index: int) -> Value | None:
    """Return an input that may be left out."""
    return given[index] if index < len(given) else None


def fixed(node: Operator, given: Given, index: int, attribute: str | None = None) -> Tensor | None:
    """Return what older files hold in an attribute and newer ones in an input, as a constant; None if in neither."""
    if attribute is not None and attribute in node.attributes:
        return torch.as_tensor(node.attributes[attribute])
    value = optional(given, index)
    if value is None:
        return None
    if value.constant is None:
        raise refuse(
            node,
            f"computes its input {index} ('{node.inputs[index]}') from the image or the size of the batch",
            "Only a constant is translated. Fold it (onnxsim), or give the torch module that the file was made from.",
        )
    return value.constant


def numbers(node: Operator, given: Given, index: int, attribute: str | None = None) -> list[int] | None:
    """Return the same as integers."""
    found = fixed(node, given, index, attribute)
    return None if found is None else [int(each) for each in found.flatten()]


def axes_of(node: Operator, given: Given) -> list[int] | None:
    """Return the axes that an operator is about, counted from the front; None where it names none."""
    found, rank = numbers(node, given, 1, "axes"), needed(node, given, 0).rank
    return found and [each % rank for each in found]


def sizes_in(node: Operator, value: Value) -> list[int | Size]:
    """Return the numbers in a vector that may follow the batch."""
    if value.node is not None:
        raise refuse(
            node,
            "takes a size that is computed from the image's values",
            "Shapes must follow from shapes. Give the network without the part that depends on values, such as NMS.",
        )
    one, other = (each.flatten().tolist() for each in value.examples)
    return [size_of(a, b) for a, b in zip(one, other, strict=True)]


def whole_batch(node: Operator, value: Value, axes: Sequence[int]) -> None:
    """Refuse to take the axes of the batch away, or to pick images out of it."""
    theirs = set(axes) & set(value.moving)
    if theirs:
        raise refuse(
            node,
            f"works across the images of a batch: axis {min(theirs)} of '{node.inputs[0]}' is theirs",
            "Each image must be treated alone. Export the network with the batch's axis kept in all outputs, or give "
            "the torch module.",
        )


def plain(value: Value, beside: Value) -> Any:
    """Return a constant of one number as the number, where it changes no shape; else the value."""
    constant = value.constant
    if constant is not None and constant.numel() == 1 and constant.dim() <= beside.rank and beside.constant is None:
        return constant.item()
    return value
