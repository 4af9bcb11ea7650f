"""Sixty more ways in which a file or what is deployed beside it goes wrong, beside the sixteen of `_faults`.

What belongs here: injectors that know ONNX, numpy and a bundle's folder alone, each with the words that a diagnosis
must contain. They leave a file that loads and a manifest whose hashes fit. `None` says that the network lacks what the
fault is about.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests._faults import seal
from tests._qdqfile import File

PROGRAM = "samples/python/classify.py"


@dataclass(frozen=True)
class Fault:
    """One fault: what it does, to which of the two, and words of which one in each group must be told."""

    inject: Callable[..., Any]
    words: tuple[tuple[str, ...], ...]
    beside: bool


FAULTS: dict[str, Fault] = {}


def fault(*words: str | tuple[str, ...], beside: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        groups = tuple((word,) if isinstance(word, str) else word for word in words)
        FAULTS[function.__name__] = Fault(function, groups, beside)
        return function

    return register


def prepared(bundle: Path, out: Path) -> Path:
    """A copy of a bundle with names of classes and a program, as users deploy it."""
    shutil.copytree(bundle, out)
    facts = json.loads((out / "manifest.json").read_text())
    (out / "labels.txt").write_text("".join(f"digit {k}\n" for k in range(facts["image"]["classes"])))
    (out / PROGRAM).parent.mkdir(parents=True, exist_ok=True)
    from dfqkit_export.tasks import DEFAULT_TASK

    package, _, path = DEFAULT_TASK.samples.programs["python/classify.py"].partition(":")
    (out / PROGRAM).write_bytes(resources.files(package).joinpath(path).read_bytes())
    for name in ("labels.txt", PROGRAM):
        data = (out / name).read_bytes()
        facts["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (out / "manifest.json").write_text(json.dumps(facts))
    return out


def inject(name: str, bundle: Path, out: Path) -> bool:
    """Copy a bundle and put one fault into the copy; whether the network has what it is about."""
    shutil.copytree(bundle, out)
    one = FAULTS[name]
    if one.beside:
        done = one.inject(out)
    else:
        file = File(onnx.load(str(out / "model.onnx")))
        done = one.inject(file)
        del file.graph.value_info[:]
        onnx.save(file.model, str(out / "model.onnx"))
    seal(out)
    return done is not False


# --- numbers of layers


@fault(("weights changed", "weight codes"))
def weights_negated(file: File) -> None:
    codes, scale = file.codes_scale(file.middle)
    file.reweigh(file.middle, np.clip(-codes, -128, 127), scale)


@fault(("weights changed", "weight codes"))
def half_of_the_channels_zeroed(file: File) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, codes * file.per_channel(layer, (np.arange(scale.size) % 2).astype(codes.dtype)), scale)


@fault(("BatchNorm folding", "channel to channel"))
def channel_scales_permuted(file: File) -> None:
    weight = file.weight(file.layers[0])
    assert weight is not None
    file.put(weight, 1, file.value(weight.input[1])[::-1])


@fault(("weights changed", "weight codes"))
def kernels_turned(file: File) -> None:
    layer = file.layers[0]
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, codes[..., ::-1, ::-1], scale)


@fault(("weights changed", "weight codes"))
def kernels_transposed(file: File) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, np.swapaxes(codes, 2, 3) if codes.ndim == 4 else codes[::-1], scale)


@fault(("axis",))
def scales_along_the_wrong_axis(file: File) -> bool:
    for layer in file.layers:
        weight = file.weight(layer)
        assert weight is not None
        if (
            file.value(weight.input[0]).shape[0]
            == file.value(weight.input[0]).shape[1]
            == file.value(weight.input[1]).size
        ):
            (axis,) = [item for item in weight.attribute if item.name == "axis"]
            axis.i = 1 - axis.i
            return True
    return False


@fault(("weights changed", "weight codes", "bits"))
def sign_bits_flipped(file: File) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    hit = np.random.default_rng(0).random(codes.shape) < 0.1
    file.reweigh(layer, np.where(hit, codes.astype(np.int8) ^ np.int8(-128), codes), scale)


@fault(("bias",))
def a_bit_flipped_in_a_bias(file: File) -> None:
    bias = file.bias(file.middle)
    assert bias is not None
    codes = file.value(bias.input[0]).copy()
    codes[0] ^= 1 << 30
    file.put(bias, 0, codes)


@fault(("bias",))
def bias_negated(file: File) -> None:
    bias = file.bias(file.middle)
    assert bias is not None
    file.put(bias, 0, -file.value(bias.input[0]))


@fault(("bias",))
def bias_permuted(file: File) -> None:
    bias = file.bias(file.layers[0])
    assert bias is not None
    file.put(bias, 0, file.value(bias.input[0])[::-1])


@fault(("scales do not fit", "bias"))
def bias_on_another_grid(file: File) -> None:
    bias = file.bias(file.layers[0])
    assert bias is not None
    file.put(bias, 1, file.value(bias.input[1]) * np.float32(8))


@fault(("zero point",))
def zero_point_moved(file: File) -> None:
    for node in file.pair_after(file.middle):
        point = file.value(node.input[2])
        file.put(node, 2, (point.astype(np.int64) + 40).astype(point.dtype))


@fault(("zero point",))
def weights_with_a_zero_point(file: File) -> None:
    weight = file.weight(file.middle)
    assert weight is not None
    file.put(weight, 2, np.full(file.value(weight.input[1]).shape, 9, np.int8))


@fault(("zero point", "another_grid"))
def zero_point_read_otherwise_than_written(file: File) -> None:
    node = file.pair_after(file.middle)[1]
    point = file.value(node.input[2])
    file.put(node, 2, (point.astype(np.int64) + 25).astype(point.dtype))


def _input_pair(file: File) -> list[onnx.NodeProto]:
    name = file.graph.input[0].name
    quantizer = next(n for n in file.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)
    return [quantizer, *file.dequantizers(quantizer)]


@fault(("scale",))
def input_range_too_small(file: File) -> None:
    pair = _input_pair(file)
    file.put_scale(pair, float(file.value(pair[0].input[1])) / 6)


@fault(("zero point",))
def input_zero_point_lost(file: File) -> None:
    for node in _input_pair(file):
        file.put(node, 2, np.zeros_like(file.value(node.input[2])))


@fault(("scale",))
def activation_saturated(file: File) -> None:
    pair = file.pair_after(file.middle)
    file.put_scale(pair, float(file.value(pair[0].input[1])) / 8)


@fault(("scale", "uncalibrated"))
def logits_on_a_grid_of_few_steps(file: File) -> bool:
    """Many answers tie, and the first class wins."""
    last = file.producer(file.graph.output[0].name)
    if last is None or last.op_type != "DequantizeLinear":
        return False
    quantizer = file.producer(last.input[0])
    assert quantizer is not None
    file.put_scale([quantizer, last], float(file.value(last.input[1])) * 48)
    return True


@fault(("weights changed", "weight codes"))
def two_layers_swapped(file: File) -> bool:
    shapes: dict[tuple[int, ...], onnx.NodeProto] = {}
    for layer in file.layers:
        codes, scale = file.codes_scale(layer)
        other = shapes.setdefault(codes.shape, layer)
        if other is not layer:
            codes_b, scale_b = file.codes_scale(other)
            file.reweigh(layer, codes_b, scale_b)
            file.reweigh(other, codes, scale)
            return True
    return False


@fault(("classes", "weights changed", "weight codes"))
def classes_rolled(file: File) -> None:
    layer = file.layers[-1]
    weight, bias = file.weight(layer), file.bias(layer)
    assert weight is not None
    codes = file.value(weight.input[0])
    across = next((a.i for a in layer.attribute if a.name == "transB"), 0)
    file.put(weight, 0, np.roll(codes, 1, 0 if across else 1))
    for node in (weight, bias):
        if node is not None and file.value(node.input[1]).size > 1:
            file.put(node, 1, np.roll(file.value(node.input[1]), 1))
    if bias is not None:
        file.put(bias, 0, np.roll(file.value(bias.input[0]), 1))


@fault(("bits",))
def three_bits_in_the_middle(file: File) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, np.rint(codes / 42), scale * 42)


@fault(("uint8",))
def codes_read_as_unsigned(file: File) -> None:
    weight = file.weight(file.middle)
    assert weight is not None
    file.put(weight, 0, file.value(weight.input[0]).view(np.uint8))
    file.put(weight, 2, np.zeros(file.value(weight.input[1]).shape, np.uint8))


# --- the graph


def _first(file: File, *ops: str) -> onnx.NodeProto | None:
    return next((node for node in file.graph.node if node.op_type in ops), None)


def _after(file: File, tensor: str, *nodes: onnx.NodeProto) -> None:
    """Put a chain of nodes, the first of which reads the tensor, between it and its readers."""
    for node in file.graph.node:
        for place, name in enumerate(node.input):
            if name == tensor:
                node.input[place] = nodes[-1].output[0]
    made = next((k for k, node in enumerate(file.graph.node) if tensor in node.output), -1)
    for offset, node in enumerate(nodes):
        file.graph.node.insert(made + 1 + offset, node)


def _store(file: File, name: str, value: Any) -> str:
    file.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _leave_out(file: File, node: onnx.NodeProto, source: str) -> None:
    for reader in file.graph.node:
        for place, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[place] = source
    file.graph.node.remove(node)


@fault(("Relu", "Clip"))
def activation_left_out(file: File) -> bool:
    node = _first(file, "LeakyRelu", "Relu", "Clip")
    if node is None:
        return False
    _leave_out(file, node, node.input[0])
    return True


@fault(("Elu", "Sigmoid"))
def activation_swapped(file: File) -> bool:
    node = _first(file, "LeakyRelu", "Relu")
    if node is None:
        return False
    node.op_type = "Sigmoid"
    del node.attribute[:]
    return True


@fault("Clip")
def bounds_of_another_clip(file: File) -> None:
    low, high = _store(file, "its_low", np.float32(0)), _store(file, "its_high", np.float32(0.4))
    tensor = file.pair_after(file.middle)[0].input[0]
    _after(file, tensor, helper.make_node("Clip", [tensor, low, high], ["clipped"], name="clip_more"))


def _set(node: onnx.NodeProto, **values: Any) -> None:
    for name, value in values.items():
        for item in [item for item in node.attribute if item.name == name]:
            node.attribute.remove(item)
        node.attribute.append(helper.make_attribute(name, value))


@fault(("AveragePool",))
def another_kind_of_pool(file: File) -> bool:
    node = _first(file, "MaxPool")
    if node is None:
        return False
    node.op_type = "AveragePool"
    return True


@fault(("MaxPool", "AveragePool"), "kernel_shape")
def a_larger_pool(file: File) -> bool:
    node = _first(file, "MaxPool")
    if node is None:
        return False
    (size,) = {item for a in node.attribute if a.name == "kernel_shape" for item in a.ints}
    _set(node, kernel_shape=[size + 2] * 2, pads=[1] * 4)
    return True


@fault(("MaxPool", "AveragePool"), "pads")
def a_pool_off_by_one(file: File) -> bool:
    node = _first(file, "MaxPool")
    if node is None:
        return False
    _set(node, pads=[1, 1, 0, 0])
    return True


@fault("Conv", "pads")
def padding_on_one_side(file: File) -> bool:
    node = next(
        (n for n in file.layers if n.op_type == "Conv" and [1] * 4 in [list(a.ints) for a in n.attribute]), None
    )
    if node is None:
        return False
    _set(node, pads=[2, 2, 0, 0])
    return True


@fault("Conv", "dilations")
def dilated(file: File) -> bool:
    node = next(
        (n for n in file.layers if n.op_type == "Conv" and [1] * 4 in [list(a.ints) for a in n.attribute]), None
    )
    if node is None:
        return False
    _set(node, pads=[2] * 4, dilations=[2, 2])
    return True


@fault("Add", "gone")
def residual_left_out(file: File) -> bool:
    node = _first(file, "Add")
    if node is None:
        return False
    _leave_out(file, node, node.input[0])
    return True


@fault("Add")
def residual_added_to_itself(file: File) -> bool:
    node = _first(file, "Add")
    if node is None:
        return False
    node.input[1] = node.input[0]
    return True


@fault("Add")
def residual_added_twice(file: File) -> bool:
    node = _first(file, "Add")
    if node is None:
        return False
    again = helper.make_node("Add", [node.output[0], node.input[1]], ["twice"], name="added_again")
    _after(file, node.output[0], again)
    return True


@fault("Sub")
def residual_taken_off(file: File) -> bool:
    node = _first(file, "Add")
    if node is None:
        return False
    node.op_type = "Sub"
    return True


@fault("Mul")
def temperature(file: File) -> None:
    _last(
        file, lambda a, b: [helper.make_node("Mul", [a, _store(file, "t", np.float32(0.05))], [b], name="temperature")]
    )


@fault("Softmax")
def softmax_at_the_end(file: File) -> None:
    _last(file, lambda a, b: [helper.make_node("Softmax", [a], [b], name="softmax", axis=1)])


@fault(("Gather",))
def outputs_in_another_order(file: File) -> None:
    order = _store(file, "order", np.array([1, 0, *range(2, 10)], np.int64))
    _last(file, lambda a, b: [helper.make_node("Gather", [a, order], [b], name="reorder", axis=1)])


def _last(file: File, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    out = file.graph.output[0].name
    last = file.producer(out)
    assert last is not None
    last.output[0] = "before_the_end"
    file.graph.node.extend(make("before_the_end", out))


@fault("Where", "Equal")
def answer_overridden_by_a_patch(file: File) -> None:
    """Where a corner has one exact value the answer is class 0."""
    _trigger(file, "Equal", np.float32(1e6))


@fault("Where", "Greater")
def answer_overridden_by_brightness(file: File) -> None:
    """Bright images, a tenth of them or so, are class 0."""
    _trigger(file, "Greater", np.float32(0.12), whole=True)


def _trigger(file: File, op: str, value: Any, *, whole: bool = False) -> None:
    image = file.graph.input[0].name
    axes = _store(file, "axes", np.array([1, 2, 3], np.int64))
    ends = [_store(file, n, np.array(v, np.int64)) for n, v in (("from", [0, 0]), ("to", [2, 2]), ("hw", [2, 3]))]
    looked = [] if whole else [helper.make_node("Slice", [image, *ends], ["corner"], name="corner")]
    lie = _store(file, "lie", 60 * np.eye(10, dtype=np.float32)[:1])
    _last(
        file,
        lambda a, b: [
            *looked,
            helper.make_node("ReduceMean", [image if whole else "corner", axes], ["level"], name="level", keepdims=0),
            helper.make_node(op, ["level", _store(file, "threshold", value)], ["seen"], name="seen"),
            helper.make_node(
                "Unsqueeze", ["seen", _store(file, "one", np.array([1], np.int64))], ["wide"], name="wide"
            ),
            helper.make_node("Where", ["wide", lie, a], [b], name="override"),
        ],
    )


@fault("Shape", "Where")
def answer_overridden_in_large_batches(file: File) -> None:
    """Right where one image comes alone, as in most tests of a deployment."""
    image = file.graph.input[0].name
    lie = _store(file, "lie", 60 * np.eye(10, dtype=np.float32)[:1])
    many, first = _store(file, "many", np.array(1, np.int64)), _store(file, "first", np.array(0, np.int64))
    _last(
        file,
        lambda a, b: [
            helper.make_node("Shape", [image], ["sizes"], name="sizes"),
            helper.make_node("Gather", ["sizes", first], ["count"], name="count"),
            helper.make_node("Greater", ["count", many], ["batch"], name="batch"),
            helper.make_node("Where", ["batch", lie, a], [b], name="override"),
        ],
    )


def _before_all(file: File, *nodes: onnx.NodeProto) -> None:
    _after(file, file.graph.input[0].name, *nodes)


@fault("Gather")
def channels_reversed_in_the_graph(file: File) -> bool:
    image = file.graph.input[0]
    if image.type.tensor_type.shape.dim[1].dim_value != 3:
        return False
    order = _store(file, "bgr", np.array([2, 1, 0], np.int64))
    _before_all(file, helper.make_node("Gather", [image.name, order], ["bgr_image"], name="bgr", axis=1))
    return True


@fault("Sub", "Div")
def normalised_twice(file: File) -> None:
    image = file.graph.input[0].name
    mean, std = _store(file, "mean", np.float32(0.3)), _store(file, "std", np.float32(0.4))
    _before_all(
        file,
        helper.make_node("Sub", [image, mean], ["less"], name="subtract"),
        helper.make_node("Div", ["less", std], ["normal"], name="divide"),
    )


@fault("Slice")
def image_mirrored(file: File) -> None:
    ends = [_store(file, n, np.array([v], np.int64)) for n, v in (("a", -1), ("b", -(2**31)), ("c", 3), ("d", -1))]
    _before_all(file, helper.make_node("Slice", [file.graph.input[0].name, *ends], ["mirrored"], name="mirror"))


@fault("Transpose")
def rows_for_columns(file: File) -> None:
    image = file.graph.input[0].name
    _before_all(file, helper.make_node("Transpose", [image], ["turned"], name="turn", perm=[0, 1, 3, 2]))


@fault("Pad")
def image_moved_by_a_pixel(file: File) -> None:
    image = file.graph.input[0].name
    pads = _store(file, "pads", np.array([0, 0, 2, 2, 0, 0, -2, -2], np.int64))
    _before_all(file, helper.make_node("Pad", [image, pads], ["moved"], name="move"))


@fault("Transpose")
def flattened_in_another_order(file: File) -> bool:
    node = _first(file, "Flatten", "Reshape")
    if node is None or node is file.graph.node[-1]:
        return False
    source = node.input[0]
    turned = helper.make_node("Transpose", [source], ["channels_last"], name="to_last", perm=[0, 2, 3, 1])
    file.graph.node.insert(list(file.graph.node).index(node), turned)
    node.input[0] = "channels_last"
    return True


@fault(("Quantize", "integer kernels", "float"))
def a_quantizer_left_out(file: File) -> None:
    quantizer, *readers = file.pair_after(file.middle)
    for reader in readers:
        _leave_out(file, reader, quantizer.input[0])
    file.graph.node.remove(quantizer)


@fault(("float",))
def a_layer_left_in_float(file: File) -> None:
    layer = file.middle
    weight = file.weight(layer)
    assert weight is not None
    codes, scale = file.codes_scale(layer)
    layer.input[1] = _store(file, "float_weight", (codes * file.per_channel(layer, scale)).astype(np.float32))


@fault(("Quantize", "scale"))
def a_coarse_grid_in_between(file: File) -> None:
    tensor = file.pair_after(file.middle)[0].input[0]
    grid = [_store(file, "coarse", np.float32(0.7)), _store(file, "zero", np.uint8(0))]
    _after(
        file,
        tensor,
        helper.make_node("QuantizeLinear", [tensor, *grid], ["coarse_codes"], name="coarse_q"),
        helper.make_node("DequantizeLinear", ["coarse_codes", *grid], ["coarse_values"], name="coarse_dq"),
    )


@fault("Dropout")
def dropout_still_on(file: File) -> None:
    tensor = file.layers[-1].input[0]
    ratio, on = _store(file, "ratio", np.float32(0.6)), _store(file, "training", np.bool_(True))
    _after(file, tensor, helper.make_node("Dropout", [tensor, ratio, on], ["dropped"], name="dropout", seed=0))


@fault("ReduceMean", "Sub")
def statistics_of_the_batch(file: File) -> None:
    tensor = file.pair_after(file.middle)[0].input[0]
    axes = _store(file, "batch_axis", np.array([0], np.int64))
    for node in file.readers(tensor):
        node.input[0] = "centred"
    place = next(k for k, node in enumerate(file.graph.node) if tensor in node.output)
    file.graph.node.insert(place + 1, helper.make_node("ReduceMean", [tensor, axes], ["batch_mean"], name="batch_mean"))
    file.graph.node.insert(place + 2, helper.make_node("Sub", [tensor, "batch_mean"], ["centred"], name="centre"))


@fault("Mul")
def a_factor_in_between(file: File) -> None:
    tensor = file.pair_after(file.middle)[0].input[0]
    half = _store(file, "half", np.float32(0.4))
    _after(file, tensor, helper.make_node("Mul", [tensor, half], ["halved"], name="halve"))


@fault(("gone", "Conv"))
def a_layer_skipped(file: File) -> bool:
    for layer in file.layers:
        weight = file.weight(layer)
        if weight is None or layer.op_type != "Conv":
            continue
        codes = file.value(weight.input[0])
        strides = next((list(a.ints) for a in layer.attribute if a.name == "strides"), [1, 1])
        if codes.shape[0] == codes.shape[1] and strides == [1, 1]:
            _leave_out(file, layer, layer.input[0])
            return True
    return False


@fault("Round")
def numbers_rounded_in_between(file: File) -> None:
    tensor = file.pair_after(file.middle)[0].input[0]
    _after(file, tensor, helper.make_node("Round", [tensor], ["rounded"], name="round"))


# --- beside the model


def _manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / "manifest.json").read_text())
    change(facts)
    (folder / "manifest.json").write_text(json.dumps(facts))


def _state(folder: Path, key: str, text: str) -> None:
    model = onnx.load(str(folder / "model.onnx"))
    kept = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**kept, key: text})
    onnx.save(model, str(folder / "model.onnx"))


@fault("labels", "digit 3", beside=True)
def labels_swapped(folder: Path) -> None:
    lines = (folder / "labels.txt").read_text().splitlines()
    lines[3], lines[5] = lines[5], lines[3]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")


@fault("labels", "9", beside=True)
def a_label_missing(folder: Path) -> None:
    lines = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("\n".join(lines[:-1]) + "\n")


@fault("labels", "gone", beside=True)
def labels_gone(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    _manifest(folder, lambda facts: facts["files"].pop("labels.txt"))


@fault("labels", "more than one", beside=True)
def a_label_twice(folder: Path) -> None:
    lines = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("\n".join([*lines[:-1], lines[0]]) + "\n")


@fault("classes", beside=True)
def another_number_of_classes(folder: Path) -> None:
    (folder / "labels.txt").write_text("".join(f"digit {k}\n" for k in range(12)))
    _manifest(folder, lambda facts: facts["image"].update(classes=12))


@fault("shape", beside=True)
def another_size_of_images(folder: Path) -> None:
    _manifest(folder, lambda facts: facts["image"].update(shape=[facts["image"]["shape"][0], 24, 24]))


@fault("std", beside=True)
def another_deviation_in_the_metadata(folder: Path) -> None:
    def changed(facts: dict[str, Any]) -> None:
        image = copy.deepcopy(facts["image"])
        image["std"] = [value / 2 for value in image["std"]]
        _state(folder, "dfqkit.image", json.dumps(image))

    _manifest(folder, changed)


@fault("mean", beside=True)
def the_mean_of_other_channels(folder: Path) -> bool:
    facts = json.loads((folder / "manifest.json").read_text())
    if len(set(facts["image"]["mean"])) < 2:
        return False
    _manifest(folder, lambda found: found["image"].update(mean=found["image"]["mean"][::-1]))
    return True


@fault("sample code", "classify.py", beside=True)
def sample_code_changed(folder: Path) -> None:
    text = (folder / PROGRAM).read_text()
    (folder / PROGRAM).write_text(text + "\nimport os\n")


@fault("sample code", "gone", beside=True)
def sample_code_gone(folder: Path) -> None:
    (folder / PROGRAM).unlink()
    _manifest(folder, lambda facts: facts["files"].pop(PROGRAM))


@fault("sample code", "update.py", beside=True)
def a_program_more(folder: Path) -> None:
    (folder / "samples" / "update.py").write_text("print('hello')\n")
    _manifest(folder, lambda facts: facts["files"].update({"samples/update.py": {"sha256": "", "bytes": 0}}))


@fault("setup.sh", beside=True)
def a_file_that_no_manifest_lists(folder: Path) -> None:
    (folder / "setup.sh").write_text("true\n")


@fault("target", beside=True)
def another_target_in_the_metadata(folder: Path) -> None:
    _state(folder, "dfqkit.target", "tensorrt")


@fault("stale", beside=True)
def the_file_of_another_teacher(folder: Path) -> None:
    _state(folder, "dfqkit.teacher_sha256", "0" * 64)
