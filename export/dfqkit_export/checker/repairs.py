"""The repairs that keep every number, one function for each rule that has one.

What belongs here: a function takes the model and the node that a problem names, which is still there, and returns what
it did as a sentence, "" where it could not do it. Whether the numbers really stayed is proved by `fix`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dfqkit_export.backends.qdq import MOVES
from dfqkit_export.backends.quantized_codes import stored_codes
from dfqkit_export.checker.editing import Editor, set_attribute
from dfqkit_export.checker.norms import fold_norm
from dfqkit_export.checker.quantized_weights import make_signed, make_unsigned
from dfqkit_export.onnxfile.graph import attribute, has_input

Repair = Callable[[Editor, str], str]


def unlist_initializers(editor: Editor, node: str) -> str:
    """W16: take initializers off the graph's inputs."""
    graph = editor.model.graph
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in stored]
    count = len(graph.input) - len(kept)
    del graph.input[:]
    graph.input.extend(kept)
    editor.model.ir_version = max(editor.model.ir_version, 4)
    return f"took {count} initializers off the graph's inputs"


def store_parameters(editor: Editor, node: str) -> str:
    """W18: store scales and zero points that nodes make."""
    found = editor.node(node)
    done = []
    for index, tensor in enumerate(found.input[1:3], start=1):
        value = editor.graph.constant(tensor) if tensor else None
        if value is not None and editor.graph.producer(tensor) is not None:
            found.input[index] = editor.store(f"{node}_{'scale' if index == 1 else 'zero_point'}", value)
            done.append(tensor)
    return f"stored {' and '.join(repr(name) for name in done)} as initializers" if done else ""


def state_type(editor: Editor, node: str) -> str:
    """W1: write the zero point that ONNX takes where none is given."""
    quantize = editor.node(node)
    scale = editor.graph.constant(quantize.input[1])
    name = editor.store(f"{node}_zero_point", np.zeros(() if scale is None else scale.shape, np.uint8))
    for found in (quantize, *(pair for pair, _ in editor.graph.pair(quantize))):
        if not has_input(found, 2):
            found.input[2:] = [name]
    return "stated the zero point that ONNX means, 0 as uint8"


def drop_axis_of_scale(editor: Editor, node: str) -> str:
    """W3: store a single scale with rank 0."""
    found = editor.node(node)
    for index, tensor in enumerate(found.input[1:3], start=1):
        value = editor.graph.constant(tensor) if tensor else None
        if value is not None and value.size == 1:
            found.input[index] = editor.store(f"{tensor}_scalar", value.reshape(()))
    set_attribute(found, "axis", None)
    return "stored its scale with rank 0"


def widen_bias(editor: Editor, node: str) -> str:
    """E4: store an int32 bias as float32."""
    found = editor.node(node)
    codes, scale = stored_codes(found, editor.graph), editor.graph.constant(found.input[1])
    point = editor.graph.zero_point(found)
    if codes is None or codes.ndim != 1 or scale is None or scale.dtype != np.float32 or point is None:
        return ""
    value = (codes.astype(np.int64) - point).astype(np.float32) * scale
    editor.redirect(found.output[0], editor.store(f"{found.input[0]}_float", value))
    return "stored the bias as float32"


def fold_clip(editor: Editor, node: str) -> str:
    """E5: apply a Clip to stored codes."""
    clip = editor.node(node)
    codes = editor.graph.constant(clip.input[0])
    if clip.op_type != "Clip" or codes is None:
        return ""
    bounds = _bounds(editor, clip)
    if bounds is None:
        return ""
    limits = np.iinfo(codes.dtype)
    low, high = (edge if bound is None else bound for edge, bound in zip((limits.min, limits.max), bounds, strict=True))
    editor.redirect(clip.output[0], editor.store(f"{clip.input[0]}_clipped", np.clip(codes, low, high)))
    return "applied it to the stored codes"


def _bounds(editor: Editor, clip: onnx.NodeProto) -> list[NDArray[Any] | None] | None:
    """Return both bounds of a Clip, None for one that it does not have; None where one is computed."""
    found = [editor.graph.constant(clip.input[i]) if has_input(clip, i) else None for i in (1, 2)]
    return None if any(has_input(clip, i) and bound is None for i, bound in enumerate(found, start=1)) else found


def _scale_and_point(editor: Editor, quantize: onnx.NodeProto) -> tuple[NDArray[Any] | None, int | None]:
    """Return a quantizer's scale, where it is one float32 number, and zero point."""
    scale = editor.graph.constant(quantize.input[1])
    one = scale is not None and scale.size == 1 and scale.dtype == np.float32
    return scale if one else None, editor.graph.zero_point(quantize)


def clip_before(editor: Editor, node: str) -> str:
    """W9: clip float values in front of QuantizeLinear instead of codes behind it."""
    clip = editor.node(node)
    quantize = editor.graph.producer(clip.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(editor.graph.readers(quantize.output[0])) != 1:
        return ""
    scale, point, bounds = *_scale_and_point(editor, quantize), _bounds(editor, clip)
    if scale is None or point is None or bounds is None:
        return ""
    inputs = [quantize.input[0]]
    for name, bound in zip(("low", "high"), bounds, strict=True):
        if bound is None:
            inputs.append("")
        else:
            value = np.float32(int(bound.reshape(-1)[0]) - point) * scale.reshape(())
            inputs.append(editor.store(f"{node}_{name}", np.asarray(value, np.float32)))
    nodes = editor.model.graph.node
    moved = helper.make_node("Clip", inputs, [f"{node}_float"], name=f"{node}_float")
    editor.redirect(clip.output[0], quantize.output[0])
    nodes.insert([other.name for other in nodes].index(quantize.name), moved)
    quantize.input[0] = moved.output[0]
    return f"moved it in front of {quantize.name!r}, on floats"


def use_signed(editor: Editor, node: str) -> str:
    """E1, E2, W2, O15: write uint8 codes as int8."""
    found = editor.node(node)
    if found.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return make_signed(editor, found)
    weight = editor.graph.operand(found.input[1]).dequantize
    return make_signed(editor, weight) if weight is not None else ""


def use_unsigned(editor: Editor, node: str) -> str:
    """O5, O6, O7: write the int8 codes around a layer as uint8."""
    done = []
    for quantize in _quantizers_around(editor, editor.node(node)):
        if editor.graph.quantized_type(quantize) == TensorProto.INT8:
            change = make_unsigned(editor, quantize)
            editor.finish()
            done += [f"{quantize.name!r}: {change}"] if change else []
    return "; ".join(done)


def _quantizers_around(editor: Editor, layer: onnx.NodeProto) -> list[onnx.NodeProto]:
    graph = editor.graph
    found = []
    for tensor in layer.input[:2]:
        dequantize = graph.operand(tensor).dequantize
        quantize = graph.quantizer(dequantize) if dequantize is not None else None
        if quantize is not None and quantize.input[0] in graph.activations:
            found.append(quantize)
    tensor, reader = layer.output[0], graph.only_reader(layer.output[0])
    while reader is not None and reader.op_type in MOVES | {"Clip", "Relu"}:
        tensor, reader = reader.output[0], graph.only_reader(reader.output[0])
    return found + [node for node in graph.readers(tensor) if node.op_type == "QuantizeLinear"]


def clip_behind(editor: Editor, node: str) -> str:
    """O12: clip codes behind QuantizeLinear instead of floats in front; quantizing keeps the order of numbers."""
    quantize = _quantizers_around(editor, editor.node(node))[-1]
    clip = editor.graph.source(quantize.input[0], MOVES)
    if clip is None or clip.op_type != "Clip" or editor.graph.only_reader(clip.output[0]) is None:
        return ""
    scale, point, bounds = *_scale_and_point(editor, quantize), _bounds(editor, clip)
    dtype = helper.tensor_dtype_to_np_dtype(editor.graph.quantized_type(quantize))
    if scale is None or point is None or bounds is None:
        return ""
    limits = np.iinfo(dtype)
    ends = []
    for bound, edge in zip(bounds, (limits.min, limits.max), strict=True):
        code = edge if bound is None else round(float(np.float32(bound.reshape(-1)[0]) / scale.reshape(-1)[0])) + point
        ends.append(editor.store(f"{clip.name}_code", np.array(np.clip(code, limits.min, limits.max), dtype)))
    codes = quantize.output[0]
    behind = editor.insert("Clip", [codes, *ends], behind=quantize)
    editor.redirect(codes, behind.output[0], but=behind)
    editor.redirect(clip.output[0], clip.input[0])
    return f"moved Clip {clip.name!r} behind {quantize.name!r}, on codes"


def repeat_pair(editor: Editor, node: str) -> str:
    """O1, W8: quantize again behind an operator that moved dequantized values, on the same scale."""
    for tensor in editor.node(node).input[:2]:
        maker = editor.graph.producer(tensor)
        source = editor.graph.source(tensor, MOVES | {"Pad"})
        if maker is None or maker is source or source is None or source.op_type != "DequantizeLinear":
            continue
        _add_pair(editor, tensor, maker, source)
        return f"quantized {tensor!r} again, with the parameters of {source.name!r}"
    return ""


def quantize_pooling(editor: Editor, node: str) -> str:
    """O10: quantize between pooling and Flatten as well."""
    pool = editor.node(node)
    flatten = editor.graph.only_reader(pool.output[0])
    quantize = editor.graph.only_reader(flatten.output[0]) if flatten is not None else None
    if quantize is None:
        return ""
    _add_pair(editor, pool.output[0], pool, quantize)
    return f"quantized its output with the parameters of {quantize.name!r}"


def _add_pair(editor: Editor, tensor: str, maker: onnx.NodeProto, like: onnx.NodeProto) -> None:
    point = like.input[2] if has_input(like, 2) else ""
    if not point:
        dtype = helper.tensor_dtype_to_np_dtype(editor.graph.quantized_type(like) or TensorProto.UINT8)
        point = editor.store(f"{like.name}_zero_point", np.zeros((), dtype))
    quantize = editor.insert("QuantizeLinear", [tensor, like.input[1], point], behind=maker)
    dequantize = editor.insert("DequantizeLinear", [quantize.output[0], like.input[1], point], behind=quantize)
    editor.redirect(tensor, dequantize.output[0], but=quantize)


def drop_repeated_pair(editor: Editor, node: str) -> str:
    """W17: let the readers of a second quantization read the codes of the first."""
    quantize = editor.node(node)
    before = editor.graph.producer(quantize.input[0])
    if before is None or editor.graph.is_output(quantize.output[0]):
        return ""
    editor.redirect(quantize.output[0], before.input[0])
    return "removed it; the codes in front are the same"


def use_global_pool(editor: Editor, node: str) -> str:
    """O9: write a mean over height and width as GlobalAveragePool."""
    mean = editor.node(node)
    keeps = attribute(mean, "keepdims", 1)
    del mean.attribute[:]
    mean.input[1:] = []
    mean.op_type = "GlobalAveragePool"
    if not keeps:
        result = mean.output[0]
        mean.output[0] = f"{result}_pooled"
        flatten = editor.insert("Flatten", [mean.output[0]], behind=mean, axis=1)
        flatten.output[0] = result
    return "wrote it as GlobalAveragePool" + ("" if keeps else " and Flatten")


EXACT: dict[str, Repair] = {
    "W16": unlist_initializers,
    "W18": store_parameters,
    "W1": state_type,
    "E1": use_signed,
    "E2": use_signed,
    "E4": widen_bias,
    "E5": fold_clip,
    "W2": use_signed,
    "W3": drop_axis_of_scale,
    "W8": repeat_pair,
    "W9": clip_before,
    "W17": drop_repeated_pair,
    "O1": repeat_pair,
    "O5": use_unsigned,
    "O6": use_unsigned,
    "O7": use_unsigned,
    "O10": quantize_pooling,
    "O12": clip_behind,
    "O15": use_signed,
}
"""Repairs after which every output has the same bits, with the rule that each obeys."""

ROUNDED: dict[str, tuple[Repair, str]] = {
    "O9": (use_global_pool, "GlobalAveragePool adds in another order than ReduceMean"),
    "W11": (fold_norm, "folded weights round once, where convolution and BatchNormalization rounded twice"),
}
"""Repairs after which the outputs may differ by float rounding, and why."""
