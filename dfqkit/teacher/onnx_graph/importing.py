"""From a file to a module: its operators are translated one after the other, and the result is proven.

What belongs here: the walk over a file's nodes, and the words for a node that nothing here knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import fx

from dfqkit.students.inputs import takes_stacked
from dfqkit.students.naming import FileNames
from dfqkit.teacher.onnx_graph import elementwise, layers, recurrent, sampling, shapes
from dfqkit.teacher.onnx_graph.building import TRIED, Building, Size, Value, known, refuse
from dfqkit.teacher.onnx_graph.idioms import recognised
from dfqkit.teacher.onnx_graph.picking import detector_of, without_picking
from dfqkit.teacher.onnx_graph.proof import require_equal, require_tail
from dfqkit.teacher.onnx_graph.reading import Operator, Source, as_tensor, operators_of, read, read_by
from dfqkit.teacher.onnx_graph.table import OPERATORS
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.words import some

#: The modules that fill the table.
TRANSLATED_BY = (elementwise, layers, recurrent, sampling, shapes)

_CONTROL = {"Loop", "Scan", "SequenceConstruct", "SequenceInsert", "SequenceAt", "ConcatFromSequence"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A file as a network of torch.

    Attributes:
        module: Maps normalised images (N, C, H, W) to its output, or to its outputs by name in the file's order.
        names: What the file calls its inputs and outputs.
        taken: What images it takes, in its own layout and type.
        error: Of its outputs beside those of the file in its runtime, the largest, relative to the output's largest.
        detection: Parameters of a detector, where the file ends in the suppression of boxes.
    """

    module: fx.GraphModule
    names: FileNames
    taken: ImageSpec
    error: float
    detection: Mapping[str, Any] = field(default_factory=dict)


def import_onnx(path: str | Path, image: ImageSpec) -> Imported:
    """Return a file as a module that computes the same, for any batch size.

    Raises:
        TeacherError: It is no float network for images, has an operator that is not known here, or the module does not
            give what the file does; says which node, and what to do.
    """
    cut = without_picking(whole := read(path, image))
    source = cut.source
    module = translated(source, image)
    takes_stacked(module, image)
    error = require_equal(module, source, image, Path(path).name)
    if source.names.tail is not None:
        require_tail(whole, source, Path(path).name)
    return Imported(
        module=module, names=source.names, taken=source.taken, error=error, detection=detector_of(cut, module, image)
    )


def translated(source: Source, image: ImageSpec) -> fx.GraphModule:
    """Return a file's operators as a module of torch, not proven yet."""
    operators = recognised(source.operators, source.constants, source.names.outputs)
    _require_known(operators)
    to = Building(image, source.batch, source.names.inputs)
    values: dict[str, Value] = {name: known(value, name) for name, value in source.constants.items()}
    sides = {entry.name for entry in image.inputs if entry.shape is not None}
    for name, start in to.inputs.items():
        turned = source.channels_last and name not in sides
        values[name] = to.call(torch.permute, start, (0, 2, 3, 1)) if turned else start
    _translate(operators, values, to, set(source.names.outputs))
    outputs = {name: values[name] for name in source.names.outputs}
    for name, value in outputs.items():
        if value.moving != (0,) or value.sizes()[0] != Size(*TRIED):
            message = (
                f"Output '{name}' has the shape {value.at(to.batch)} for {to.batch} image(s), in which the first "
                "axis is not the batch. Export the network with the batch's axis kept in all outputs."
            )
            raise TeacherError(message)
    return to.finish(outputs)


def _translate(operators: Sequence[Operator], values: dict[str, Value], to: Building, kept: set[str]) -> None:
    last = {name: place for place, node in enumerate(operators) for name in read_by(node)}
    for place, node in enumerate(operators):
        _one(node, values, to)
        for name in read_by(node):
            if last[name] == place and name not in kept:
                values.pop(name, None)  # the examples of a large network are as large as its training


def _one(node: Operator, values: dict[str, Value], to: Building) -> None:
    if node.kind == "If":
        _branch(node, values, to)
        return
    given = [values[name] if name else None for name in node.inputs]
    try:
        made = OPERATORS[node.kind](node, given, to)
    except TeacherError as error:
        if node.name in str(error):
            raise
        raise refuse(node, str(error), "Give the torch module that the file was made from.") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        shapes_ = ", ".join(str(list(each.examples[0].shape)) for each in given if each is not None)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refuse(
            node,
            f"cannot be taken over for a batch of {TRIED[0]} images of {shapes_ or 'nothing'}: "
            f"{reason[:200].rstrip('.')}",
            "Where the file was made for one image alone, export it with a free batch size; or simplify it (onnxsim), "
            "or give the torch module.",
        ) from error
    for name, value in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
        values[name] = Value(value.examples, value.node, name) if name else value


def _branch(node: Operator, values: dict[str, Value], to: Building) -> None:
    """Translate the branch that a constant condition takes."""
    condition = values[node.inputs[0]].constant
    if condition is None:
        raise refuse(node, "branches on what is in the image", "Give the torch module, or export it without branches.")
    graph: onnx.GraphProto = node.get("then_branch" if bool(condition.any()) else "else_branch")
    stored = {each.name: known(as_tensor(numpy_helper.to_array(each)), each.name) for each in graph.initializer}
    inner = values | stored
    operators = operators_of(graph, node.opset)
    _require_known(operators)
    for each in operators:
        _one(each, inner, to)
    for name, value in zip(node.outputs, graph.output, strict=True):
        values[name] = inner[value.name]


def _require_known(operators: Sequence[Operator]) -> None:
    unknown: Mapping[str, Operator] = {
        node.kind: node for node in operators if node.kind not in OPERATORS and node.kind != "If"
    }
    if not unknown:
        return
    node = next(iter(unknown.values()))
    more = f" (unknown too: {some([kind for kind in unknown if kind != node.kind], 5)})" if len(unknown) > 1 else ""
    if "." in node.kind:
        todo = "It is of one runtime's own domain: give the file from before it was optimised for that runtime."
    elif node.kind in _CONTROL:
        todo = "Loops are not taken over: export the network without them, or give its torch module as the factory."
    else:
        todo = (
            "Simplify the file (onnxsim file.onnx simple.onnx), which folds what is constant; or give the torch module "
            "that it was made from as teacher.factory: package.module:function."
        )
    raise refuse(node, f"is an operator that is not known here{more}", todo)
