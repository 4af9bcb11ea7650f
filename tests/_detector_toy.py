"""A small detector and its bundle, made in seconds without torch: coloured squares, two levels, boxes in corners.

What belongs here: images and their boxes, a network of random features with least-squares heads, which gives corners in
pixels and probabilities of three kinds, and its int8 file by ONNX Runtime's own quantizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.sentinel import Sentinel, normalized, write_sentinel
from dfqkit_export.tasks import task_of
from tests._faults import seal
from tests._gate_toy import TEACHER

SPEC = ImageSpec(shape=(3, 32, 32), mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3))
KINDS, STRIDES, ANCHORS, CHANNELS = 3, (4, 8), (8.0, 16.0), 24
VARIANCES = (0.1, 0.2)
_COLOURS = np.array([[1.0, 0.25, 0.2], [0.2, 1.0, 0.3], [0.25, 0.3, 1.0]])
F32 = np.float32


def scenes(n: int, seed: int) -> tuple[NDArray[np.uint8], list[NDArray[np.float64]]]:
    """Return images of one or two squares, and of each its rows of kind, centre and size, in pixels."""
    rng = np.random.default_rng(seed)
    images, boxes = rng.uniform(0.2, 0.4, (n, 3, 32, 32)), []
    for image in images:
        rows = []
        for left in (0, 16)[: rng.integers(1, 3)]:
            w, h = rng.uniform(6, 15, 2)
            x, y = left + 8 + rng.uniform(-1, 1), rng.uniform(h / 2, 32 - h / 2)
            kind = int(rng.integers(KINDS))
            image[:, int(y - h / 2) : int(y + h / 2) + 1, max(0, int(x - w / 2)) : int(x + w / 2) + 1] = _COLOURS[kind][
                :, None, None
            ] * rng.uniform(0.8, 1)
            rows.append([kind, x, y, w, h])
        boxes.append(np.array(rows))
    return np.rint(255 * images).astype(np.uint8), boxes


class Graph:
    """A model in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def const(self, name: str, value: Any, dtype: Any = F32) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def op(self, kind: str, inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs.split(), [name], name=f"{name}_node", **attributes))
        return name

    def conv(self, x: str, name: str, weight: Any, bias: Any, stride: int = 1) -> str:
        self.const(f"{name}.weight", weight)
        self.const(f"{name}.bias", bias)
        pads = [weight.shape[2] // 2] * 4
        self.nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{name}:0"], name=name, pads=pads, strides=[stride] * 2
            )
        )
        return f"{name}:0"

    def model(self, outputs: dict[str, tuple[Any, ...]]) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, 1, ["n", *shape]) for name, shape in outputs.items()]
        given = [helper.make_tensor_value_info("image", 1, ["n", *SPEC.shape])]
        graph = helper.make_graph(self.nodes, "detector", given, values, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def run(self, images: NDArray[np.float32], *outputs: str) -> list[NDArray[Any]]:
        import onnxruntime

        model = self.model(dict.fromkeys(outputs, (None,) * 3)).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return list(session.run(list(outputs), {"image": images}))


def priors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return centres (P, 2) and sizes (P, 2) of the anchors, level by level, row by row."""
    centres, sizes = [], []
    for stride, size in zip(STRIDES, ANCHORS, strict=True):
        y, x = np.meshgrid(*[(np.arange(32 // stride) + 0.5) * stride] * 2, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], 1))
        sizes.append(np.full((x.size, 2), size))
    return np.concatenate(centres).astype(F32), np.concatenate(sizes).astype(F32)


def _features(graph: Graph) -> list[str]:
    rng = np.random.default_rng(5)

    def block(x: str, name: str, given: int, stride: int) -> str:
        weight = rng.normal(0, np.sqrt(2 / (9 * given)), (CHANNELS, given, 3, 3))
        return graph.op("Relu", graph.conv(x, name, weight, rng.normal(0, 0.3, CHANNELS), stride), f"{name}_relu")

    x = block(block("image", "stem", 3, 2), "deep", CHANNELS, 1)
    fine = block(x, "fine", CHANNELS, 2)
    return [fine, block(block(fine, "coarse", CHANNELS, 2), "wide", CHANNELS, 1)]


def _wanted(boxes: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return logits (N, P, kinds), offsets (N, P, 4), and where there is an object (N, P)."""
    centres, sizes = priors()
    scores, moves = np.full((len(boxes), len(centres), KINDS), -5.0), np.zeros((len(boxes), len(centres), 4))
    for image, rows in enumerate(boxes):
        for kind, x, y, w, h in rows:
            small = max(w, h) < 10
            near = np.abs(centres - [x, y]).max(1) <= np.where(sizes[:, 0] == ANCHORS[0], 2.5, 4.5)
            near &= (sizes[:, 0] == ANCHORS[0]) == small
            scores[image, near, int(kind)] = 5.0
            moves[image, near, :2] = ([x, y] - centres[near]) / sizes[near] / VARIANCES[0]
            moves[image, near, 2:] = np.log([w, h] / sizes[near]) / VARIANCES[1]
    return scores, moves, scores.max(2) > 0


def _heads(graph: Graph, levels: list[str], images: NDArray[np.float32], boxes: list[NDArray[np.float64]]) -> None:
    """Fit 3 x 3 heads to the features by least squares."""
    scores, moves, there = _wanted(boxes)
    first = 0
    for level, features in enumerate(graph.run(images, *levels)):
        rows, columns = features.shape[2:]
        part, first = slice(first, first + rows * columns), first + rows * columns
        padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
        shifted = [padded[:, :, r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
        flat = np.stack(shifted, 2).reshape(len(images), -1, rows * columns).swapaxes(1, 2).astype(np.float64)
        design = np.concatenate([flat, np.ones((*flat.shape[:2], 1))], 2)
        for name, wanted, counts in (
            ("scores", scores[:, part], 1 + 6.0 * there[:, part]),
            ("boxes", moves[:, part], 0.003 + 1.0 * there[:, part]),
        ):
            x, y, w = design.reshape(-1, design.shape[2]), wanted.reshape(-1, wanted.shape[2]), counts.reshape(-1, 1)
            fit = np.linalg.solve(x.T @ (w * x) + 3 * np.eye(x.shape[1]), x.T @ (w * y)).T
            weight = fit[:, :-1].reshape(len(fit), CHANNELS, 3, 3)
            raw = graph.conv(levels[level], f"{name}{level}", weight, fit[:, -1])
            graph.op("Transpose", raw, f"{name}{level}_t", perm=[0, 2, 3, 1])
            graph.op("Reshape", f"{name}{level}_t to_{name}", f"{name}{level}_flat")


def _decode(graph: Graph) -> None:
    centres, sizes = priors()
    graph.const("centres", centres)
    graph.const("anchors", sizes)
    graph.const("moved", sizes * F32(VARIANCES[0]))
    for name, value in (("variance", VARIANCES[1]), ("half", 0.5)):
        graph.const(name, value)
    graph.const("two", [2, 2], np.int64)
    for name in ("scores", "boxes"):
        graph.op("Concat", f"{name}0_flat {name}1_flat", f"all_{name}", axis=1)
    graph.op("Sigmoid", "all_scores", "scores")
    graph.nodes.append(helper.make_node("Split", ["all_boxes", "two"], ["offset", "growth"], name="halves", axis=2))
    graph.op("Mul", "offset moved", "shift")
    graph.op("Add", "shift centres", "centre")
    graph.op("Exp", graph.op("Mul", "growth variance", "grown"), "factor")
    graph.op("Mul", "factor anchors", "size")
    graph.op("Mul", "size half", "reach")
    graph.op("Sub", "centre reach", "low")
    graph.op("Add", "centre reach", "high")
    graph.op("Concat", "low high", "boxes", axis=2)


def write_float(path: Path, *, joined: bool = False) -> None:
    """Write the teacher; joined, boxes and scores are one output."""
    images, boxes = scenes(300, 0)
    graph = Graph()
    graph.const("to_scores", [0, -1, KINDS], np.int64)
    graph.const("to_boxes", [0, -1, 4], np.int64)
    _heads(graph, _features(graph), normalized(images, SPEC), boxes)
    _decode(graph)
    outputs = {"boxes": (80, 4), "scores": (80, KINDS)}
    if joined:
        graph.op("Concat", "boxes scores", "rows", axis=2)
        outputs = {"rows": (80, 4 + KINDS)}
    onnx.save(graph.model(outputs), path)


def quantize(source: Path, out: Path, seed: int = 7, given: Any = None, **options: Any) -> None:
    """Write the int8 file of ONNX Runtime's own quantizer, from scenes or normalised images that are given."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = np.array_split(normalized(scenes(240, seed)[0], SPEC), 4) if given is None else given
            self._batches: Iterator[Any] = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {onnx.load(source).graph.input[0].name: batch}

    quantize_static(
        str(source), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **options,
    )  # fmt: skip


def make_bundle(folder: Path, *, seed: int = 7) -> Path:
    """Write a bundle's folder: model.onnx, sentinel.safetensors, manifest.json; the seed is of what calibrates."""
    folder.mkdir(parents=True)
    teacher = folder.parent / f"{folder.name}_teacher.onnx"
    write_float(teacher)
    quantize(teacher, folder / "model.onnx", seed, op_types_to_quantize=["Conv", "Relu"])
    images = scenes(120, 3)[0]
    outputs = OrtSession(teacher, threads=1).run_all(normalized(images, SPEC))
    return bundled(folder, images, outputs, task_of({"name": "detection"}).fitted(dict(outputs), SPEC), SPEC)


def bundled(folder: Path, images: NDArray[np.uint8], outputs: Any, task: Any, spec: ImageSpec) -> Path:
    """Write what lies beside a folder's model.onnx: its metadata, a sentinel set of images, the manifest."""
    model = onnx.load(folder / "model.onnx")
    stated = {
        "dfqkit.image": json.dumps(spec.to_dict()), "dfqkit.task": json.dumps(task.to_dict()),
        "dfqkit.synthesizer": "procedural", "dfqkit.teacher_sha256": TEACHER,
    }  # fmt: skip
    helper.set_model_props(model, stated)
    onnx.save(model, folder / "model.onnx")
    sentinel = Sentinel(
        spec=spec, teacher_name="toy", teacher_sha256=TEACHER, images=images, answers=dict(outputs),
        sources=("squares",), source=np.zeros(len(images), np.int16), task=task,
        kind=(np.arange(len(images)) % 2).astype(np.uint8),
    )  # fmt: skip
    write_sentinel(folder / "sentinel.safetensors", sentinel)
    manifest = {
        "schema": 1, "kind": "dfqkit-bundle", "name": "squares", "target": "onnxruntime", "dfqkit": "0",
        "image": spec.to_dict(), "task": task.to_dict(), "teacher": {"name": "toy", "sha256": TEACHER},
        "synthesis": {"method": "procedural", "data_free": True, "noise": False}, "quant": {}, "command": "",
        "files": {
            name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(), "bytes": 0}
            for name in ("model.onnx", "sentinel.safetensors")
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    return folder
