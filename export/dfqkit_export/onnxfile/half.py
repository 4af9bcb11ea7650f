"""A QDQ file with float16 around its codes, for runtimes that compute in the types that a file has.

What belongs here: the types alone. Codes, inputs and outputs stay what they are, and images are quantized in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dfqkit_export.errors import TargetError

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_MADE, _WHOLE = "_float16", "_float32"


def with_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file of opset 19 or later with float16 in place of float32 everywhere but at its ends.

    Raises:
        TargetError: A number does not fit float16, or an operator does not take it.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    images, outputs = (
        {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}
        for values in (graph.input, graph.output)
    )
    entries = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in images]
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    whole = {node.input[1] for node in entries}
    fixed = {node.input[2] for node in graph.node if node.op_type == "Resize" and len(node.input) > 2}  # ONNX: float32
    for tensor in [each for each in graph.initializer if each.data_type == _FLOAT and each.name not in fixed]:
        if tensor.name in whole:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name += _WHOLE
        tensor.CopyFrom(_half(tensor, exact=tensor.name in scales))
    for node in graph.node:
        changed = outputs if node in entries else images | outputs
        for names in (node.input, node.output):
            names[:] = [name + _MADE if name in changed else name for name in names]
        if node in entries:
            node.input[1] += _WHOLE
        for attribute in node.attribute:
            if attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
            elif (node.op_type, attribute.name, attribute.i) == ("Cast", "to", _FLOAT):
                attribute.i = _HALF
    read = {name for node in graph.node for name in node.input}
    first = [_cast(name, name + _MADE, _HALF) for name in sorted(images) if name + _MADE in read]
    nodes = [*first, *graph.node, *(_cast(name + _MADE, name, _FLOAT) for name in sorted(outputs))]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = f"An operator of this network takes no float16 ({error!s:.300}). Take the target in float32."
        raise TargetError(message) from error
    return made


def _cast(source: str, made: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [made], name=f"{source}_to_{made}", to=to)


def _half(tensor: TensorProto, *, exact: bool = False) -> TensorProto:
    """Return a tensor in float16: exact within what its 11 bits are, where it is a scale; below 6e-5 they are fewer."""
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost = exact and np.any(np.abs(half - values) > np.abs(values) / 2**11)
    if lost or np.any(np.isinf(half) & np.isfinite(values)):
        message = f"{tensor.name!r} has a number that float16 cannot hold. Take the target in float32 for this network."
        raise TargetError(message)
    return numpy_helper.from_array(half, tensor.name)
