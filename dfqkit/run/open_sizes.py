"""Whether a network's file may leave height and width open: it is written at two sizes, and must be the same file.

What belongs here: the proof, and which axes it opens. A file that is the same at both has no number in it that came of
a size, and at either it is the file of the captured graph, which was compared with the network there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import onnx
from torch import fx, nn

from dfqkit.students.capture import float_graph
from dfqkit.students.naming import file_names
from dfqkit.students.nodes import op_name
from dfqkit.students.onnx_file import float_model
from dfqkit.students.user_code import at, place_of_node
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.sources import is_translated, resolve_factory
from dfqkit_export.errors import DfqkitError, TeacherError
from dfqkit_export.images.spec import ImageSpec

_LOG = logging.getLogger(__name__)
#: How much larger the other size is: what divides networks' sizes divides it.
_MORE = (64, 128)


def open_axes(teacher: Teacher, graph: fx.GraphModule, opset: int) -> dict[str, dict[int, str]]:
    """Return the axes of a teacher's file that stay open beside the batch's, with their names, by input and output.

    None are where nobody asks: neither ``image.dynamic`` nor the file that the teacher came from, where that leaves
    them open.

    Raises:
        TeacherError: They were asked for by ``image.dynamic``, and the network does not allow it.
    """
    image, names = teacher.image, file_names(graph)
    told = names.axes.get(_first(image, names.inputs), {})
    more = [size if image.dynamic or image.axis(2 + place) in told else 0 for place, size in enumerate(_MORE)]
    if not any(more):
        return {}
    shape = (image.shape[0], image.shape[1] + more[0], image.shape[2] + more[1])
    larger = replace(image, shape=shape)
    try:
        grown = float_graph(_at(teacher)(larger), larger, teacher.task, teacher.names)
        other = float_model(grown, opset)
        same = _sizeless(other) == _sizeless(one := float_model(graph, opset))
        reason = "" if same else _difference(graph, grown)
    except DfqkitError as error:
        reason = str(error)
    if not reason:
        return _differing(one, other, names.axes, image)
    size = f"{image.shape[1]} x {image.shape[2]}"
    message = f"Height and width of '{teacher.name}' cannot stay open, but are {size}, since at {shape[1:]} {reason}"
    if image.dynamic:
        message += ". Leave image.dynamic out, or give the part of the network that is the same at any size."
        raise TeacherError(message)
    _LOG.warning("%s.", message.rstrip("."))
    return {}


def _first(image: ImageSpec, inputs: tuple[str, ...]) -> str:
    return next((entry.name for entry in image.inputs if entry.shape is None), inputs[0])


def _at(teacher: Teacher) -> Callable[[ImageSpec], nn.Module]:
    """Return what gives the teacher's module for images of a size."""
    if teacher.factory is not None and is_translated(teacher.factory):
        read: Any = resolve_factory(teacher.factory)
        return lambda image: read(image).module
    return lambda _: teacher.model


def _sizeless(model: onnx.ModelProto) -> bytes:
    """Return a file without the sizes of its inputs and outputs."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for value in (*found.graph.input, *found.graph.output):
        value.type.tensor_type.ClearField("shape")
    written: bytes = found.SerializeToString(deterministic=True)
    return written


def _difference(graph: fx.GraphModule, other: fx.GraphModule) -> str:
    """Say which number follows from the size: an argument of a layer, the first that differs, or a stored one."""
    for one, two in zip(graph.graph.nodes, other.graph.nodes, strict=False):
        pairs = zip((*one.args, *one.kwargs.values()), (*two.args, *two.kwargs.values()), strict=False)
        if one.op == "call_function" and (
            found := next((each for each in pairs if str(each[0]) != str(each[1])), None)
        ):
            name, way = op_name(one.target), ""
            if name.startswith("upsample"):
                way = " (give `interpolate` a scale_factor in place of a size)"
            return f"'{name}'{at(place_of_node(one))} takes {found[1]}, and {found[0]} here{way}"
    return "it holds numbers that follow from the size (positions, anchors, shapes of views)"


def _differing(
    one: onnx.ModelProto, other: onnx.ModelProto, names: Mapping[str, Mapping[int, str]], image: ImageSpec
) -> dict[str, dict[int, str]]:
    """Return the axes whose sizes differ between two files, with the names that the file they came from has."""
    found: dict[str, dict[int, str]] = {}
    ends = ((*each.graph.input, *each.graph.output) for each in (one, other))
    inputs = {value.name for value in one.graph.input}
    for mine, theirs in zip(*ends, strict=True):
        pairs = zip(mine.type.tensor_type.shape.dim, theirs.type.tensor_type.shape.dim, strict=True)
        usual = {image.axis(2): "height", image.axis(3): "width"} if mine.name in inputs else {}
        named = usual | dict(names.get(mine.name, {}))
        opened = [axis for axis, (a, b) in enumerate(pairs) if a.dim_value != b.dim_value]
        found[mine.name] = {axis: named.get(axis, f"{mine.name}_{axis}") for axis in opened}
    return found
