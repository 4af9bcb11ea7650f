"""Operators that do nothing, are done before the file runs, or have two ways to be written.

What belongs here: rewritings that no quantizer is needed for. Each keeps the function for every batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from dfqkit_export.onnxfile.canonical.workgraph import Rule, WorkGraph, ints, plain_attributes, set_attribute
from dfqkit_export.onnxfile.graph import attribute, has_input

#: Operators that give the same values another shape.
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_NOTHING = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}
#: What older opsets say as attributes, by the place of the input that it became.
_TO_INPUTS: dict[str, dict[str, int]] = {
    "Clip": {"min": 1, "max": 2},
    "Pad": {"pads": 1, "value": 2},
    "Slice": {"starts": 1, "ends": 2, "axes": 3},
    "Split": {"split": 1},
    "TopK": {"k": 1},
    "Dropout": {"ratio": 1},
    **{f"Reduce{kind}": {"axes": 1} for kind in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare")},
}
_FLOATS = frozenset({"min", "max", "value", "ratio"})
_FOLDED_MOST = 1 << 26
#: What gives other numbers each time.
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_NOT_FOLDED = frozenset({"DequantizeLinear", "If", "Loop", "Scan", *RANDOM})


def passed_on(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Leave out an operator that hands its input on."""
    op, out = node.op_type, node.output[0]
    source = node.input[0] if node.input else ""
    given = [name for name in node.input if name]
    if (
        op == "Identity"
        or (op in ("Sum", "Max", "Min", "Mean", "Concat") and len(given) == 1)
        or (op == "Dropout" and len(node.output) == 1 and not (has_input(node, 2) and graph.scalar(node.input[2]) != 0))
        or (op == "Pad" and _all(graph, node, 1, 0))
        or (op == "Cast" and _cast_to_itself(graph, node))
        or (op == "Transpose" and (perm := ints(node, "perm")) is not None and perm == sorted(perm))
        or (op in (*RESHAPES, "Expand") and graph.shape(out) is not None and graph.shape(out) == graph.shape(source))
        or (op in ("MaxPool", "AveragePool") and len(node.output) == 1 and _window_of_one(node))
        or (op == "Relu" and graph.made_by(source, "Relu") is not None)
    ):
        return graph.stand_for(out, source)
    if op in _NOTHING and len(node.input) == 2:
        for place in (1, 0) if op in ("Add", "Mul") else (1,):
            value, other = graph.value(node.input[place]), node.input[1 - place]
            if value is None or not value.size or not (value == _NOTHING[op]).all():
                continue
            keeps = value.size == 1 and value.ndim <= 1
            if keeps or (graph.shape(out) is not None and graph.shape(out) == graph.shape(other)):
                return graph.stand_for(out, other)
    return False


def _all(graph: WorkGraph, node: onnx.NodeProto, place: int, number: int) -> bool:
    value = graph.value(node.input[place]) if has_input(node, place) else None
    return value is not None and bool((value == number).all())


def _cast_to_itself(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    source = node.input[0]
    own = next((v.type.tensor_type.elem_type for v in graph.inputs if v.name == source), 0)
    before = graph.made_by(source, "Cast", "DequantizeLinear")
    if before is not None:
        own = attribute(before, "to", 0) if before.op_type == "Cast" else graph.data_type(before.input[1])
    return bool(own) and own == attribute(node, "to", 0)


def _window_of_one(node: onnx.NodeProto) -> bool:
    ones = (ints(node, "kernel_shape") or [0], ints(node, "strides") or [1])
    return all(set(numbers) == {1} for numbers in ones) and not any(ints(node, "pads") or [0])


def folded(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Compute what depends on no image; stored codes stay codes."""
    names = [name for name in node.input if name]
    if node.domain or node.op_type in _NOT_FOLDED or not names or any(not graph.is_constant(name) for name in names):
        return False
    if sum(math.prod(graph.shape(name) or ()) for name in names) > _FOLDED_MOST:
        return False
    from onnx.reference import ReferenceEvaluator

    values = {name: graph.value(name, None) for name in names}
    if any(value is None for value in values.values()):
        return False
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in values]
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output if n]
    inner = onnx.helper.make_graph([node], "one", inputs, outputs)
    one = onnx.helper.make_model(inner, opset_imports=[onnx.helper.make_opsetid("", graph.opset)])
    try:
        found = ReferenceEvaluator(one).run(None, values)
    except Exception:
        return False
    for value, made in zip(found, outputs, strict=True):
        graph.stand_for(made.name, graph.constant(np.asarray(value)))
    return True


def as_inputs(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Make inputs of what older opsets say as attributes."""
    found = [item for item in node.attribute if item.name in _TO_INPUTS.get(node.op_type, {})]
    for item in found:
        place = _TO_INPUTS[node.op_type][item.name]
        value = np.array(onnx.helper.get_attribute_value(item), np.float32 if item.name in _FLOATS else np.int64)
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = graph.constant(value)
        node.attribute.remove(item)
    return bool(found)


def clipped(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Call Clip at 0 from below, and the larger of 0 and a value, a Relu."""
    if node.op_type == "Clip":
        low = graph.scalar(node.input[1]) if has_input(node, 1) else None
        high = graph.scalar(node.input[2]) if has_input(node, 2) else math.inf
        source = node.input[0] if low == 0 and high is not None and high >= np.finfo(np.float32).max else ""
    else:
        places = [k for k in (0, 1) if len(node.input) == 2 and graph.scalar(node.input[k]) == 0]
        source = node.input[1 - places[0]] if len(places) == 1 else ""
    return bool(source) and graph.stand_for(node.output[0], graph.add("Relu", [source], name=node.name, like=source))


def transposed(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Make one of Transposes behind each other; one that moves sizes of 1 alone is a Reshape."""
    perm, shape = ints(node, "perm"), graph.shape(node.input[0])
    if perm is None:
        if shape is not None:
            set_attribute(node, "perm", list(range(len(shape)))[::-1])
        return shape is not None
    before = graph.made_by(node.input[0], "Transpose")
    first = ints(before, "perm") if before is not None else None
    if before is not None and first is not None and len(first) == len(perm):
        attributes = {"perm": [first[axis] for axis in perm]}
        new = graph.add("Transpose", [before.input[0]], attributes, name=node.name, like=node.output[0])
        return graph.stand_for(node.output[0], new)
    out = graph.shape(node.output[0])
    if (
        shape is not None
        and out is not None
        and [a for a in perm if shape[a] != 1] == sorted(a for a in perm if shape[a] != 1)
    ):
        new = graph.add("Reshape", [node.input[0]], {"to": list(out)}, name=node.name, like=node.output[0])
        return graph.stand_for(node.output[0], new)
    return False


def reshaped(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Call whatever gives another shape a Reshape to it, from the shape that was there first."""
    before = graph.made_by(node.input[0], *RESHAPES)
    out = graph.shape(node.output[0])
    if out is None:
        return False
    if before is None and attribute(node, "to", None) is not None:
        return False
    source = node.input[0] if before is None else before.input[0]
    new = graph.add("Reshape", [source], {"to": list(out)}, name=node.name, like=node.output[0])
    return graph.stand_for(node.output[0], new)


def averaged(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Say the mean over all places of an image in one way."""
    shape, out = graph.shape(node.input[0]), graph.shape(node.output[0])
    if shape is None or len(shape) != 4 or out is None:
        return False
    if node.op_type == "ReduceMean":
        axes = graph.value(node.input[1]) if has_input(node, 1) else None
        if axes is None or sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
            return False
    elif ints(node, "kernel_shape") != list(shape[2:]) or out[2:] != (1, 1) or any(ints(node, "pads") or [0]):
        return False
    new = graph.add("GlobalAveragePool", [node.input[0]], name=node.name)
    graph.shapes[new] = (*shape[:2], 1, 1)
    if out != graph.shapes[new]:
        new = graph.add("Reshape", [new], {"to": list(out)}, like=node.output[0])
    return graph.stand_for(node.output[0], new)


def windowed(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Say strides, dilations, pads and the kernel's shape, with numbers."""
    weight = graph.shape(_behind_quantizer(graph, node.input[1])) if node.op_type.startswith("Conv") else None
    size = ints(node, "kernel_shape") or (list(weight[2:]) if weight is not None else None)
    if size is None:
        return False
    wanted: dict[str, list[int] | None] = {
        "kernel_shape": size,
        "strides": ints(node, "strides") or [1] * len(size),
        "pads": ints(node, "pads") or [0] * 2 * len(size),
        "dilations": ints(node, "dilations") or [1] * len(size),
    }
    auto = attribute(node, "auto_pad", b"NOTSET").decode()
    shape, out = graph.shape(node.input[0]), graph.shape(node.output[0])
    if auto.startswith("SAME"):
        if shape is None or out is None or node.op_type == "ConvTranspose":
            return False
        wanted["pads"] = _same(wanted, shape[2:], out[2:], upper=auto == "SAME_UPPER")
    if auto == "NOTSET" and all(ints(node, name) == value for name, value in wanted.items()):
        return False
    if auto != "NOTSET":
        set_attribute(node, "auto_pad", None)
    for name, value in wanted.items():
        set_attribute(node, name, value)
    return True


def _same(wanted: dict[str, list[int] | None], shape: Sequence[int], out: Sequence[int], *, upper: bool) -> list[int]:
    kernel, strides = wanted["kernel_shape"] or [], wanted["strides"] or []
    dilations = wanted.get("dilations") or [1] * len(kernel)
    begins, ends = [], []
    for n, o, k, s, d in zip(shape, out, kernel, strides, dilations, strict=True):
        whole = max((o - 1) * s + d * (k - 1) + 1 - n, 0)
        begins.append(whole // 2 if upper else whole - whole // 2)
        ends.append(whole - begins[-1])
    return begins + ends


def _behind_quantizer(graph: WorkGraph, tensor: str) -> str:
    maker = graph.made_by(tensor, "DequantizeLinear")
    return tensor if maker is None else maker.input[0]


def multiplied(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn stored weights of Gemm to [out, in]."""
    if attribute(node, "transB", 0) or not graph.computed_from_constants(node.input[1]):
        return False
    weight = graph.add("Transpose", [node.input[1]], {"perm": [1, 0]})
    shape = graph.shape(_behind_quantizer(graph, node.input[1]))
    if shape is None or len(shape) != 2:
        return False
    graph.shapes[weight] = shape[::-1]
    node.input[1] = weight
    set_attribute(node, "transB", 1)
    return True


def with_bias(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take a stored addend of each channel behind a Conv or a product of matrices as its bias."""
    for place in (0, 1):
        layer, addend = graph.made_by(node.input[place], "Conv", "MatMul"), node.input[1 - place]
        shape = graph.shape(_behind_quantizer(graph, addend))
        if layer is None or shape is None or not graph.computed_from_constants(addend):
            continue
        weight = graph.shape(_behind_quantizer(graph, layer.input[1]))
        if weight is None or not graph.computed_from_constants(layer.input[1]):
            continue
        if layer.op_type == "Conv":
            bias = graph.value(addend, None)  # of codes the axis would have to move
            if bias is None or has_input(layer, 2) or shape not in ((1, weight[0], 1, 1), (weight[0], 1, 1)):
                continue
            inputs, attributes = [*layer.input[:2], graph.constant(bias.reshape(-1))], plain_attributes(layer)
        elif len(weight) == 2 and graph.rank(layer.input[0]) == 2 and shape == weight[1:]:
            inputs, attributes = [*layer.input, addend], {}
        else:
            continue
        op = "Conv" if layer.op_type == "Conv" else "Gemm"
        new = graph.add(op, inputs, attributes, name=layer.name, like=node.output[0])
        return graph.stand_for(node.output[0], new)
    return False


def mish(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open Mish, x * tanh(softplus(x)), which runtimes without a kernel for it do, too."""
    x = node.input[0]
    inner = graph.add("Tanh", [graph.add("Softplus", [x], like=x)], like=x)
    return graph.stand_for(node.output[0], graph.add("Mul", [x, inner], name=node.name, like=x))


def scaled_product(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Multiply a product of matrices by a number instead of one of the two."""
    for place in (0, 1):
        found = _scaled(graph, node.input[place])
        if found is not None:
            inputs = list(node.input)
            inputs[place], number = found
            out = graph.add("MatMul", inputs, name=node.name, like=node.output[0])
            new = graph.add("Mul", [out, graph.constant(np.array(number, np.float32))], like=out)
            return graph.stand_for(node.output[0], new)
    return False


def scaled_once(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Multiply once by the product of two numbers."""
    outer = _scaled(graph, node.output[0])
    inner = _scaled(graph, outer[0]) if outer is not None else None
    if outer is None or inner is None:
        return False
    inputs = [inner[0], graph.constant(np.array(inner[1] * outer[1], np.float32))]
    return graph.stand_for(node.output[0], graph.add("Mul", inputs, name=node.name, like=node.output[0]))


def _scaled(graph: WorkGraph, tensor: str) -> tuple[str, float] | None:
    """Return what a tensor is a multiple of, moved as it is, and by which number."""
    moved = graph.made_by(tensor, "Transpose", "Reshape")
    if moved is not None:
        found = _scaled(graph, moved.input[0])
        return (graph.copied(moved, found[0]), found[1]) if found is not None else None
    node = graph.made_by(tensor, "Mul", "Div")
    for place in (1, 0) if node is not None and node.op_type == "Mul" else (1,):
        number = graph.scalar(node.input[place]) if node is not None else None
        if node is not None and number and not graph.is_constant(node.input[1 - place]):
            return node.input[1 - place], number if node.op_type == "Mul" else 1 / number
    return None


def summed(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Call a sum of two an Add."""
    if len(node.input) != 2:
        return False
    node.op_type = "Add"
    return True


_WINDOW = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
RULES: dict[str, tuple[Rule, ...]] = {
    "Clip": (clipped,),
    "Max": (clipped,),
    "Sum": (summed,),
    "Transpose": (transposed,),
    "ReduceMean": (averaged,),
    "Gemm": (multiplied,),
    "Add": (with_bias,),
    "Mish": (mish,),
    "Mul": (scaled_once,),
    "MatMul": (scaled_product,),
    **dict.fromkeys(RESHAPES, (reshaped,)),
    **dict.fromkeys(_WINDOW, (windowed,)),
    "AveragePool": (windowed, averaged),
}
