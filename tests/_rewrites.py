"""Ways to write the same function otherwise, each as an edit of an ONNX model that leaves it a complete one.

What belongs here: what exporters, optimizers and editors do to files that changes nothing that is computed, nor the
kernels that compute it. None of them knows what a check looks at.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto | None]


def _nodes(model: onnx.ModelProto, *ops: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ops]


def _tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _activations(model: onnx.ModelProto) -> list[str]:
    """Tensors between operators, without those computed from constants and outputs."""
    found = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if found & set(node.input):
            found.update(node.output)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    return [name for node in model.graph.node for name in node.output if name in found - ends]


def _rename(model: onnx.ModelProto, new: Callable[[str], str], fixed: set[str] | None = None) -> None:
    ends = {value.name for value in (*model.graph.input, *model.graph.output)} if fixed is None else fixed
    for node in model.graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                if name and name not in ends:
                    side[place] = new(name)
    for item in (*model.graph.initializer, *model.graph.value_info):
        if item.name not in ends:
            item.name = new(item.name)


def _between(model: onnx.ModelProto, tensor: str, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Put nodes, made of the names of their input and output, between a tensor and all its readers."""
    out = f"{tensor}/after"
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == tensor:
                node.input[place] = out
    producer = next((k for k, node in enumerate(model.graph.node) if tensor in node.output), -1)
    for offset, node in enumerate(make(tensor, out)):
        model.graph.node.insert(producer + 1 + offset, node)


def _constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def constant_nodes(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]


def constant_nodes_for_some(model: onnx.ModelProto) -> None:
    half = list(model.graph.initializer)[::2]
    for tensor in half:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        model.graph.initializer.remove(tensor)


def nodes_renamed(model: onnx.ModelProto) -> None:
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"


def nodes_renamed_partly(model: onnx.ModelProto) -> None:
    for k, node in enumerate(model.graph.node):
        node.name = f"renamed/{k}" if k % 3 == 0 else node.name


def nodes_nameless(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def layers_change_names(model: onnx.ModelProto) -> None:
    layers = _nodes(model, "Conv", "Gemm")
    names = [node.name for node in layers]
    for node, name in zip(layers, names[1:] + names[:1], strict=True):
        node.name = name


def one_layer_renamed(model: onnx.ModelProto) -> None:
    _nodes(model, "Conv")[-1].name = "features/last"


def tensors_renamed(model: onnx.ModelProto) -> None:
    _rename(model, lambda name: f"t/{name[::-1]}")


def tensors_renamed_partly(model: onnx.ModelProto) -> None:
    _rename(model, lambda name: f"{name}_x" if len(name) % 2 else name)


def all_renamed(model: onnx.ModelProto) -> None:
    nodes_renamed(model)
    numbers: dict[str, str] = {}
    _rename(model, lambda name: numbers.setdefault(name, str(len(numbers))))


def dead_nodes(model: onnx.ModelProto) -> None:
    for k, name in enumerate(_activations(model)[:4]):
        model.graph.node.append(helper.make_node("Identity", [name], [f"dead{k}"], name=f"dead{k}"))


def unused_initializers(model: onnx.ModelProto) -> None:
    _constant(model, "left_over", np.arange(100, dtype=np.float32))


def initializers_in_other_order(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def nodes_in_other_order(model: onnx.ModelProto) -> None:
    """Each node as late as its readers allow."""
    left, order = list(model.graph.node), []
    needed = {value.name for value in model.graph.output}
    while left:
        for node in left:
            rest = [n for n in left if n is not node]
            if not any(set(node.output) & set(other.input) for other in rest):
                order.append(node)
                left = rest
                break
    assert needed
    del model.graph.node[:]
    model.graph.node.extend(order[::-1])


def local_functions(model: onnx.ModelProto) -> None:
    """Every DequantizeLinear of a weight and every Conv is a call of a function of the file's own."""
    opset = [entry for entry in model.opset_import if entry.domain == ""]
    calls: list[onnx.NodeProto] = []
    for k, node in enumerate(model.graph.node):
        if node.op_type not in ("Conv", "DequantizeLinear"):
            calls.append(node)
            continue
        inner = copy.deepcopy(node)
        formal = [f"in{i}" for i in range(len(node.input))]
        inner.input[:], inner.output[:] = formal, ["out"]
        model.functions.append(helper.make_function("local", f"F{k}", formal, ["out"], [inner], opset))
        calls.append(helper.make_node(f"F{k}", node.input, node.output, domain="local", name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(calls)
    model.opset_import.append(helper.make_opsetid("local", 1))


def one_function_for_all(model: onnx.ModelProto) -> None:
    """The whole graph but its constants is one function."""
    graph = model.graph
    ends = [v.name for v in graph.input], [v.name for v in graph.output]
    formal = [*ends[0], *(tensor.name for tensor in graph.initializer)]
    body = [copy.deepcopy(node) for node in graph.node]
    opset = [entry for entry in model.opset_import if entry.domain == ""]
    model.functions.append(helper.make_function("local", "Net", formal, ends[1], body, opset))
    del graph.node[:]
    graph.node.append(helper.make_node("Net", formal, ends[1], domain="local", name="net"))
    model.opset_import.append(helper.make_opsetid("local", 1))


def identities(model: onnx.ModelProto) -> None:
    for k, name in enumerate(_activations(model)):
        _between(model, name, lambda a, b, k=k: [helper.make_node("Identity", [a], [b], name=f"same{k}")])


def identity_behind_constants(model: onnx.ModelProto) -> None:
    for name in [tensor.name for tensor in model.graph.initializer][:6]:
        _between(model, name, lambda a, b: [helper.make_node("Identity", [a], [b])])


def identity_at_the_end(model: onnx.ModelProto) -> None:
    (out,) = model.graph.output
    last = next(node for node in model.graph.node if out.name in node.output)
    last.output[0] = "before_the_end"
    model.graph.node.append(helper.make_node("Identity", ["before_the_end"], [out.name], name="end"))


def dropouts(model: onnx.ModelProto) -> None:
    name = _nodes(model, "Conv")[-1].output[0]
    _between(model, name, lambda a, b: [helper.make_node("Dropout", [a], [b], name="dropout")])


def transposes_that_cancel(model: onnx.ModelProto) -> None:
    name = _nodes(model, "Conv")[0].output[0]
    there, back = [0, 2, 3, 1], [0, 3, 1, 2]
    _between(
        model,
        name,
        lambda a, b: [
            helper.make_node("Transpose", [a], ["there"], name="there", perm=there),
            helper.make_node("Transpose", ["there"], [b], name="back", perm=back),
        ],
    )


def transposes_around_a_quantizer(model: onnx.ModelProto) -> None:
    """A pair of quantizers works on channels that come last."""
    conv = _nodes(model, "Conv")[0].output[0]
    near = {conv, *(n.output[0] for n in _nodes(model, "Relu", "Clip") if n.input[0] == conv)}
    node = next(n for n in _nodes(model, "QuantizeLinear") if n.input[0] in near)
    name = node.input[0]
    model.graph.node.insert(
        list(model.graph.node).index(node), helper.make_node("Transpose", [name], ["last"], perm=[0, 2, 3, 1])
    )
    node.input[0] = "last"
    for reader in [n for n in model.graph.node if n.op_type == "DequantizeLinear" and node.output[0] in n.input]:
        out = reader.output[0]
        reader.output[0] = f"{out}/last"
        place = list(model.graph.node).index(reader)
        model.graph.node.insert(place + 1, helper.make_node("Transpose", [f"{out}/last"], [out], perm=[0, 3, 1, 2]))


def scalars_that_do_nothing(model: onnx.ModelProto) -> None:
    one, zero = _constant(model, "one", np.float32(1)), _constant(model, "zero", np.zeros(1, np.float32))
    name = _nodes(model, "Conv")[0].output[0]
    _between(
        model,
        name,
        lambda a, b: [
            helper.make_node("Mul", [a, one], ["times_one"]),
            helper.make_node("Add", [zero, "times_one"], ["plus_zero"]),
            helper.make_node("Div", ["plus_zero", one], ["by_one"]),
            helper.make_node("Sub", ["by_one", zero], [b]),
        ],
    )


def cast_to_its_own_type(model: onnx.ModelProto) -> None:
    (value,) = model.graph.input
    _between(model, value.name, lambda a, b: [helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT)])


def _flattening(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """What leaves a row for each image."""
    stored = _tensors(model)
    rows = [n for n in _nodes(model, "Reshape") if n.input[1] in stored and list(stored[n.input[1]].dims) == [2]]
    return [n for n in _nodes(model, "Flatten") if all(item.i == 1 for item in n.attribute)] + rows


def reshape_for_flatten(model: onnx.ModelProto) -> None:
    shape = _constant(model, "flat_shape", np.array([0, -1], np.int64))
    for node in _flattening(model):
        node.op_type = "Reshape"
        node.input[:] = [node.input[0], shape]
        del node.attribute[:]


def reshape_computed_from_the_shape(model: onnx.ModelProto) -> None:
    """As exporters write `x.view(x.size(0), -1)`."""
    first, rest = _constant(model, "first", np.array([0], np.int64)), _constant(model, "rest", np.array([-1], np.int64))
    for node in _flattening(model):
        place = list(model.graph.node).index(node)
        made = [
            helper.make_node("Shape", [node.input[0]], ["whole_shape"]),
            helper.make_node("Gather", ["whole_shape", first], ["batch"], axis=0),
            helper.make_node("Concat", ["batch", rest], ["new_shape"], axis=0),
        ]
        for offset, each in enumerate(made):
            model.graph.node.insert(place + offset, each)
        node.op_type = "Reshape"
        node.input[:] = [node.input[0], "new_shape"]
        del node.attribute[:]


def two_reshapes_for_one(model: onnx.ModelProto) -> None:
    shape = _constant(model, "three", np.array([0, 0, -1], np.int64))
    for node in _flattening(model)[:1]:
        _between(model, node.input[0], lambda a, b: [helper.make_node("Reshape", [a, shape], [b])])


def unsqueezed_and_squeezed(model: onnx.ModelProto) -> None:
    axes, name = _constant(model, "axes", np.array([1], np.int64)), model.graph.input[0].name
    _between(
        model,
        name,
        lambda a, b: [
            helper.make_node("Unsqueeze", [a, axes], ["five"]),
            helper.make_node("Squeeze", ["five", axes], [b]),
        ],
    )


def float_data(model: onnx.ModelProto) -> None:
    """Numbers in typed fields instead of bytes."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        made = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.reshape(-1).tolist())
        tensor.CopyFrom(made)


def raw_data(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def shapes_inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model)


def shapes_forgotten(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]


def newer_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    made = onnx.version_converter.convert_version(model, 21)
    helper.set_model_props(made, metadata)
    return made


def newer_file_format(model: onnx.ModelProto) -> None:
    model.ir_version = 10


def documented(model: onnx.ModelProto) -> None:
    model.doc_string = model.graph.doc_string = "a network"
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input):
        item.doc_string = "told by a tool"


def metadata_of_another_tool(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="tool.version", value="1.2")
    for node in model.graph.node:
        if hasattr(node, "metadata_props"):
            node.metadata_props.add(key="namespace", value="net")


def another_producer(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version, model.graph.name = "a tool", "3", "main"
    model.model_version, model.domain = 7, "org.example"


def batch_renamed(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "images"


def initializers_shared(model: onnx.ModelProto) -> None:
    first: dict[bytes, str] = {}
    for tensor in list(model.graph.initializer):
        plain = onnx.TensorProto()
        plain.CopyFrom(tensor)
        plain.name = ""
        kept = first.setdefault(plain.SerializeToString(), tensor.name)
        if kept != tensor.name:
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    if name == tensor.name:
                        node.input[place] = kept
            model.graph.initializer.remove(tensor)


def initializers_duplicated(model: onnx.ModelProto) -> None:
    stored = _tensors(model)
    for k, node in enumerate(model.graph.node):
        for place, name in enumerate(node.input):
            if name in stored:
                made = onnx.TensorProto()
                made.CopyFrom(stored[name])
                made.name = f"{name}/{k}/{place}"
                model.graph.initializer.append(made)
                node.input[place] = made.name
    for tensor in stored.values():
        model.graph.initializer.remove(tensor)


def addends_swapped(model: onnx.ModelProto) -> None:
    for node in _nodes(model, "Add", "Mul"):
        node.input[:] = [node.input[1], node.input[0]]


def a_dequantizer_for_each_reader(model: onnx.ModelProto) -> None:
    for node in list(_nodes(model, "DequantizeLinear")):
        readers = [(n, k) for n in model.graph.node for k, name in enumerate(n.input) if name == node.output[0]]
        for count, (reader, slot) in enumerate(readers[1:]):
            made = copy.deepcopy(node)
            made.name, made.output[0] = f"{node.name}/{count}", f"{node.output[0]}/{count}"
            reader.input[slot] = made.output[0]
            model.graph.node.insert(list(model.graph.node).index(node), made)


def a_quantizer_pair_twice(model: onnx.ModelProto) -> None:
    """What is on a grid is put on the same grid again."""
    node = next(n for n in _nodes(model, "DequantizeLinear") if n.input[0] not in _tensors(model))
    grid = node.input[1:3]
    _between(
        model,
        node.output[0],
        lambda a, b: [
            helper.make_node("QuantizeLinear", [a, *grid], ["again"], name="q_again"),
            helper.make_node("DequantizeLinear", ["again", *grid], [b], name="dq_again"),
        ],
    )


def zero_points_of_biases_left_out(model: onnx.ModelProto) -> None:
    stored = _tensors(model)
    for node in _nodes(model, "DequantizeLinear"):
        point = stored.get(node.input[2]) if len(node.input) > 2 else None
        if point is not None and point.data_type == TensorProto.INT32:
            del node.input[2:]


def defaults_said(model: onnx.ModelProto) -> None:
    for node in _nodes(model, "Conv"):
        have = {item.name for item in node.attribute}
        extra = {"group": 1, "dilations": [1, 1], "auto_pad": "NOTSET"}
        node.attribute.extend(helper.make_attribute(k, v) for k, v in extra.items() if k not in have)
    for node in _nodes(model, "Gemm"):
        have = {item.name for item in node.attribute}
        extra = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        node.attribute.extend(helper.make_attribute(k, v) for k, v in extra.items() if k not in have)


def attributes_in_other_order(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        items = list(node.attribute)[::-1]
        del node.attribute[:]
        node.attribute.extend(items)


def own_domain_by_its_long_name(model: onnx.ModelProto) -> None:
    for node in _nodes(model, "Conv", "Gemm"):
        node.domain = "ai.onnx"


def pads_in_words(model: onnx.ModelProto) -> None:
    """SAME_UPPER for the pads of 3 x 3 kernels that step by one."""
    for node in _nodes(model, "Conv"):
        found = {item.name: list(item.ints) for item in node.attribute if item.ints}
        if found.get("pads") == [1] * 4 and found.get("strides", [1, 1]) == [1, 1]:
            kept = [item for item in node.attribute if item.name not in ("pads", "auto_pad")]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("auto_pad", "SAME_UPPER")])


def weights_turned(model: onnx.ModelProto) -> None:
    """Gemm with its codes stored as [in, out]."""
    stored = _tensors(model)
    for node in _nodes(model, "Gemm"):
        reader = next(n for n in model.graph.node if node.input[1] in n.output)
        across = next((item for item in node.attribute if item.name == "transB"), None)
        if reader.input[0] not in stored or across is None or not across.i:
            continue
        tensor = stored[reader.input[0]]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor).T), tensor.name))
        node.attribute.remove(across)
        axis = next((item for item in reader.attribute if item.name == "axis"), None)
        if axis is not None:
            axis.i = 1 - axis.i


def moved_before_it_is_quantized(model: onnx.ModelProto) -> None:
    """A pool reads codes: the pair of quantizers in front of it is behind it."""
    pools = _nodes(model, "MaxPool", "Flatten", "Reshape")
    made = {name: node for node in model.graph.node for name in node.output}
    for node in pools:
        before = made.get(node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        out = node.output[0]
        node.input[0], node.output[0] = before.input[0], f"{out}/codes"
        again = helper.make_node("DequantizeLinear", [f"{out}/codes", *before.input[1:]], [out], name=f"{out}/dq")
        model.graph.node.insert(list(model.graph.node).index(node) + 1, again)
    del model.graph.value_info[:]


def relu_behind_codes_that_begin_at_zero(model: onnx.ModelProto) -> None:
    stored = _tensors(model)
    for node in _nodes(model, "QuantizeLinear"):
        point = numpy_helper.to_array(stored[node.input[2]]) if len(node.input) > 2 else np.zeros(1, np.uint8)
        made = next((n for n in model.graph.node if node.input[0] in n.output), None)
        if made is not None and made.op_type == "Conv" and point.dtype == np.uint8 and not point.any():
            _between(model, node.input[0], lambda a, b: [helper.make_node("Relu", [a], [b], name="relu_more")])
            return


def _optimized(level: str) -> Rewrite:
    def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
            options.log_severity_level = 3
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    return rewrite


REWRITES: dict[str, Rewrite] = {
    f.__name__: f
    for f in (
        constant_nodes, constant_nodes_for_some, nodes_renamed, nodes_renamed_partly, nodes_nameless,
        layers_change_names, one_layer_renamed, tensors_renamed, tensors_renamed_partly, all_renamed, dead_nodes,
        unused_initializers, initializers_in_other_order, nodes_in_other_order, local_functions, one_function_for_all,
        identities, identity_behind_constants, identity_at_the_end, dropouts, transposes_that_cancel,
        transposes_around_a_quantizer, scalars_that_do_nothing, cast_to_its_own_type,
        reshape_for_flatten, reshape_computed_from_the_shape, two_reshapes_for_one, unsqueezed_and_squeezed,
        float_data, raw_data, shapes_inferred, shapes_forgotten, newer_opset, newer_file_format, documented,
        metadata_of_another_tool, another_producer, batch_renamed, initializers_shared, initializers_duplicated,
        addends_swapped, a_dequantizer_for_each_reader, a_quantizer_pair_twice,
        zero_points_of_biases_left_out, defaults_said, attributes_in_other_order, own_domain_by_its_long_name,
        pads_in_words, weights_turned, moved_before_it_is_quantized, relu_behind_codes_that_begin_at_zero,
    )
} | {
    "written_by_the_runtime_unoptimized": _optimized("ORT_DISABLE_ALL"),
    "written_by_the_runtime_basic": _optimized("ORT_ENABLE_BASIC"),
    "written_by_the_runtime_extended": _optimized("ORT_ENABLE_EXTENDED"),
    "written_by_the_runtime_all": _optimized("ORT_ENABLE_ALL"),
}  # fmt: skip
#: Rewritings of the file alone, not of the model in it.
IN_FILE = ("external_data",)


def rewrite(name: str, bundle: Path, out: Path) -> None:
    """Copy a bundle's folder and write its model otherwise."""
    import shutil

    from tests._faults import seal

    shutil.copytree(bundle, out)
    model = onnx.load(str(out / "model.onnx"))
    if name == "external_data":
        stored = {"save_as_external_data": True, "location": "model.data", "size_threshold": 1024}  # as tools do
        onnx.save(model, str(out / "model.onnx"), **stored)
        listed = __import__("json").loads((out / "manifest.json").read_text())
        listed["files"]["model.data"] = {"sha256": "", "bytes": 0}
        (out / "manifest.json").write_text(__import__("json").dumps(listed))
    else:
        onnx.save(REWRITES[name](model) or model, str(out / "model.onnx"))
    seal(out)
