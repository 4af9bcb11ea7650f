"""Ways in which a detector's int8 file goes wrong, each as an edit of a bundle of any detector of decoded boxes.

What belongs here: injectors that find heads by themselves, and the words of which a diagnosis must have one in each
group. They leave a file that loads and a manifest whose hashes fit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dfqkit_export.gate import open_subject
from dfqkit_export.tasks.detection import Detection
from tests._faults import seal
from tests._qdqfile import File

BOXES, SCORES = "boxes", "scores"


def heads(file: File, output: str) -> list[onnx.NodeProto]:
    """The last convolutions in front of an output, in the file's order: one a level."""
    found: dict[str, onnx.NodeProto] = {}
    ahead = [output]
    while ahead:
        node = file.producer(ahead.pop())
        if node is not None and node.op_type == "Conv":
            found[node.name] = node
        elif node is not None:
            ahead.extend(node.input)
    return [node for node in file.graph.node if node.name in found]


def _reorder(file: File, layer: onnx.NodeProto, order: np.ndarray) -> None:
    weight, bias = file.weight(layer), file.bias(layer)
    assert weight is not None
    for node, slots in ((weight, (0, 1)), (bias, (0, 1))):
        for slot in slots if node is not None else ():
            values = file.value(node.input[slot])
            if values.ndim and len(values) == len(order):
                file.put(node, slot, values[order])


def _behind(file: File, output: str, nodes: Callable[[str], list[onnx.NodeProto]]) -> None:
    """Put nodes between what made an output and the output; they are given the tensor's new name."""
    maker = file.producer(output)
    assert maker is not None
    inner = f"{output}.inner"
    for node in file.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == output:
                    names[place] = inner
    file.graph.node.extend(nodes(inner))


def coordinates_swapped_in_the_answer(file: File, kinds: int) -> None:
    file.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 3, 2]), "swap"))
    _behind(file, BOXES, lambda x: [helper.make_node("Gather", [x, "swap"], [BOXES], name="swap_x_and_y", axis=-1)])


def coordinates_swapped_in_the_heads(file: File, kinds: int) -> None:
    for layer in heads(file, BOXES):
        order = np.arange(file.codes_scale(layer)[0].shape[0]).reshape(-1, 4)
        _reorder(file, layer, order[:, [1, 0, 2, 3]].reshape(-1))


def class_rows_permuted(file: File, kinds: int) -> None:
    for layer in heads(file, SCORES):
        order = np.arange(file.codes_scale(layer)[0].shape[0]).reshape(-1, kinds)
        _reorder(file, layer, order[:, [1, 0, *range(2, kinds)]].reshape(-1))


def anchors_scaled(file: File, kinds: int) -> None:
    """The anchors that sizes are multiplied with, behind an exponential."""
    (exp,) = (node for node in file.graph.node if node.op_type == "Exp")
    (mul,) = (node for node in file.readers(exp.output[0]) if node.op_type == "Mul")
    slot = 1 - list(mul.input).index(exp.output[0])
    file.put(mul, slot, file.value(mul.input[slot]) * np.float32(1.1))


def level_zeroed(file: File, kinds: int) -> None:
    for output in (BOXES, SCORES):
        layer = heads(file, output)[0]
        weight, bias = file.weight(layer), file.bias(layer)
        for node in (weight, bias):
            assert node is not None
            file.put(node, 0, np.zeros_like(file.value(node.input[0])))


def one_scale(file: File, kinds: int) -> None:
    """Boxes in pixels and scores in one tensor of one grid, as quantizers that take every Concat make it."""
    pixels = np.float32(1 if kinds == 3 else 320)  # the toy's boxes are in pixels, others in shares of the image
    stored = {
        "one.scale": np.float32(40 * pixels**0.5 / 255), "one.zero": np.uint8(8), "pixels": pixels,
        "shares": 1 / pixels, "parts": np.array([4, kinds]),
    }  # fmt: skip
    file.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items())
    _behind(file, BOXES, lambda x: [helper.make_node("Mul", [x, "pixels"], ["one.boxes"], name="to_pixels")])
    _behind(
        file,
        SCORES,
        lambda x: [
            helper.make_node("Concat", ["one.boxes", x], ["one"], name="join", axis=2),
            helper.make_node("QuantizeLinear", ["one", "one.scale", "one.zero"], ["one.q"], name="one_Q"),
            helper.make_node("DequantizeLinear", ["one.q", "one.scale", "one.zero"], ["one.dq"], name="one_DQ"),
            helper.make_node("Split", ["one.dq", "parts"], ["one.shared", SCORES], name="part", axis=2),
            helper.make_node("Mul", ["one.shared", "shares"], [BOXES], name="to_shares"),
        ],
    )


FAULTS: dict[str, tuple[Callable[[File, int], None], tuple[str, ...]]] = {
    "coordinates_swapped_in_the_answer": (coordinates_swapped_in_the_answer, ("box coordinates swapped", "x", "y")),
    "coordinates_swapped_in_the_heads": (coordinates_swapped_in_the_heads, ("box coordinates swapped", "x", "y")),
    "class_rows_permuted": (class_rows_permuted, ("classes swapped", "0", "1")),
    "anchors_scaled": (anchors_scaled, ("1.1 times as wide", "anchor")),
    "level_zeroed": (level_zeroed, ("level", "same numbers for every image")),
    "one_scale": (one_scale, ("one grid", "scores", "boxes")),
}


def _of_levels(edit: Callable[[File, str, str, int], None]) -> Callable[[File, Detection], None]:
    """Return an edit of each level's outputs, boxes and scores, of a detector that gives bins of distances there."""

    def inject_(file: File, task: Detection) -> None:
        for level, (boxes, scores) in enumerate(zip(task.boxes, task.scores, strict=True)):
            edit(file, boxes, scores, level)

    return inject_


def _gathered(file: File, output: str, order: np.ndarray) -> None:
    file.graph.initializer.append(numpy_helper.from_array(order, f"{output}.order"))
    _behind(
        file, output, lambda x: [helper.make_node("Gather", [x, f"{output}.order"], [output], f"{output}_g", axis=-1)]
    )


def _sides_swapped(file: File, boxes: str, scores: str, level: int) -> None:
    _gathered(file, boxes, np.arange(32).reshape(4, 8)[[1, 0, 2, 3]].ravel())


def _rows_permuted(file: File, boxes: str, scores: str, level: int) -> None:
    """Two classes of the layer that gives scores, and behind them bins, as a converter that sorts rows has it."""
    (layer,) = heads(file, scores)
    rows = file.codes_scale(layer)[0].shape[0]
    _reorder(file, layer, np.array([1, 0, *range(2, rows)]))


def strides_scaled(file: File, task: Detection) -> None:
    """The anchors of a detector that has none: what positions are apart, which its file says beside itself."""
    said = {entry.key: entry.value for entry in file.model.metadata_props}
    wrong = replace(task, strides=tuple(1.1 * stride for stride in task.strides))
    helper.set_model_props(file.model, said | {"dfqkit.task": json.dumps(wrong.to_dict())})


def _level_zeroed(file: File, boxes: str, scores: str, level: int) -> None:
    if level == 1:
        (layer,) = heads(file, scores)
        for node in filter(None, (file.weight(layer), file.bias(layer))):
            file.put(node, 0, np.zeros_like(file.value(node.input[0])))


def _joined(file: File, boxes: str, scores: str, level: int) -> None:
    stored = {"scale": np.float32(40 / 255), "zero": np.uint8(128), "parts": np.array([32, 80])}
    file.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), f"{boxes}.{k}") for k, v in stored.items())
    grid = [f"{boxes}.scale", f"{boxes}.zero"]
    _behind(file, boxes, lambda x: [helper.make_node("Identity", [x], [f"{boxes}.own"], name=f"{boxes}_own")])
    _behind(
        file,
        scores,
        lambda x: [
            helper.make_node("Concat", [f"{boxes}.own", x], [f"{boxes}.one"], name=f"{boxes}_join", axis=2),
            helper.make_node("QuantizeLinear", [f"{boxes}.one", *grid], [f"{boxes}.q"], name=f"{boxes}_Q"),
            helper.make_node("DequantizeLinear", [f"{boxes}.q", *grid], [f"{boxes}.dq"], name=f"{boxes}_DQ"),
            helper.make_node("Split", [f"{boxes}.dq", f"{boxes}.parts"], [boxes, scores], name=f"{boxes}_part", axis=2),
        ],
    )


#: The same of a detector of three levels, distributions and 80 classes, such as NanoDet-m.
LEVEL_FAULTS: dict[str, tuple[Callable[[File, Detection], None], tuple[str, ...]]] = {
    "sides_swapped": (_of_levels(_sides_swapped), ("box coordinates swapped", "left", "top")),
    "class_rows_permuted": (_of_levels(_rows_permuted), ("classes swapped", "0", "1")),
    "strides_scaled": (strides_scaled, ("strides",)),
    "level_zeroed": (_of_levels(_level_zeroed), ("level", "same numbers for every image", "814")),
    "one_scale": (_of_levels(_joined), ("one grid", "scores", "boxes")),
}


def inject_levels(name: str, bundle: Path, out: Path) -> None:
    """Copy a bundle's folder of such a detector and put one of the faults into the copy's file."""
    shutil.copytree(bundle, out)
    with open_subject(bundle) as subject:
        task = subject.sentinel.task
    assert isinstance(task, Detection)
    file = File(onnx.load(str(out / "model.onnx")))
    LEVEL_FAULTS[name][0](file, task)
    del file.graph.value_info[:]
    onnx.save(file.model, str(out / "model.onnx"))
    seal(out)


def inject(name: str, bundle: Path, out: Path) -> None:
    """Copy a bundle's folder and put one of the faults into the copy's file."""
    shutil.copytree(bundle, out)
    with open_subject(bundle) as subject:
        kinds = subject.sentinel.answers[SCORES].shape[-1]
    file = File(onnx.load(str(out / "model.onnx")))
    FAULTS[name][0](file, kinds)
    del file.graph.value_info[:]
    onnx.save(file.model, str(out / "model.onnx"))
    seal(out)
