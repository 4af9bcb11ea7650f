"""What a file did behind its network, in float, put behind the file that is written in its place.

What belongs here: the piece of ONNX and how it is joined. How it was cut off a file is `teacher.onnx_graph.picking`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import version_converter

from dfqkit_export.errors import TeacherError
from dfqkit_export.onnxfile.graph import made_names, opset_of, rename_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class Tail:
    """Nodes behind a network: suppression of boxes, and what gathers those that are left.

    Attributes:
        model: The nodes: from outputs of the network, and its inputs where these are asked for their size, to outputs
            of the file.
        outputs: What the file gives, in its order, the network's own among them.
        kind: What picks, for messages.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    kind: str = "NonMaxSuppression"


def joined(model: onnx.ModelProto, tail: Tail) -> onnx.ModelProto:
    """Return a model with a tail behind it: outputs as the file had them, then those that the tail reads.

    Tensors of the model that are called like one of the tail get other names. The tail is of the model's opset then.

    Raises:
        TeacherError: The model lacks what the tail reads, or the tail has no form in the model's opset.
    """
    found, opset = onnx.ModelProto(), opset_of(model) or 0
    found.CopyFrom(model)
    part = _in_opset(tail, opset).graph
    given = {value.name for value in (*found.graph.input, *found.graph.output)}
    read = [value.name for value in part.input]
    missing = [name for name in read if name not in given]
    if missing:
        message = (
            f"What is behind {tail.kind} reads {', '.join(missing)}, which the task does not count among the network's "
            "outputs. Name them as the task's boxes and scores, or name no outputs at all."
        )
        raise TeacherError(message)
    inner = made_names(found.graph) & made_names(part).difference(read)
    rename_tensors(found.graph, {name: f"{name}/inner" for name in inner})
    nodes = {node.name for node in found.graph.node if node.name}
    for node in part.node:
        node.name = f"tail/{node.name}" if node.name in nodes else node.name
    found.graph.node.extend(part.node)
    found.graph.initializer.extend(part.initializer)
    ends = {value.name: value for value in (*found.graph.output, *part.output)}
    order = [*(name for name in tail.outputs if name in ends), *(v.name for v in found.graph.output)]
    values = [ends[name] for name in dict.fromkeys(order)]
    del found.graph.output[:]
    found.graph.output.extend(values)
    return found


def _in_opset(tail: Tail, opset: int) -> onnx.ModelProto:
    if opset_of(tail.model) == opset:
        part = onnx.ModelProto()
        part.CopyFrom(tail.model)
        return part
    try:
        return version_converter.convert_version(tail.model, opset)
    except Exception as error:  # it raises what its C++ does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"What is behind {tail.kind} is written in opset {opset_of(tail.model)} and cannot be brought to "
            f"{opset}: {reason[:200]}. Export the file in opset {opset}, or without {tail.kind}."
        )
        raise TeacherError(message) from error
