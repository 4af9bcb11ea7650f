"""A small quantized classifier and its bundle, made in two seconds without torch.

What belongs here: coloured digits, a network of random features with a least-squares head, its int8 file by ONNX
Runtime's own quantizer, and the bundle's folder around it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.sentinel import Sentinel, normalized, write_sentinel

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.2, 0.15, 0.1), std=(0.3, 0.25, 0.2), classes=10)
TEACHER = hashlib.sha256(b"the toy's teacher").hexdigest()
_CHANNELS = (3, 12, 16, 24)


def make_bundle(folder: Path, *, calibrated_on: int = 0, name: str = "toy", rich: bool = False) -> Path:
    """Write a bundle's folder: model.onnx, sentinel.safetensors, manifest.json.

    Args:
        folder: where it goes.
        calibrated_on: which third of the training images calibrates, 0 to 2.
        name: the manifest's name.
        rich: whether the network has pools, a residual and a Clip, too.
    """
    folder.mkdir(parents=True)
    codes, labels = _coloured_digits()
    train, rest = codes[:900], codes[900:]
    teacher = folder / "teacher.onnx"
    (_write_rich_teacher if rich else _write_teacher)(teacher, train, labels[:900])
    _quantize(teacher, folder / "model.onnx", train[calibrated_on::3])
    logits = OrtSession(teacher, threads=1).predict(normalized(rest, SPEC))
    teacher.unlink()
    write_sentinel(folder / "sentinel.safetensors", _sentinel(rest, logits))
    files = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        files[file.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "schema": 1,
        "kind": "dfqkit-bundle",
        "name": name,
        "target": "onnxruntime",
        "dfqkit": "0",
        "image": SPEC.to_dict(),
        "teacher": {"name": "toy", "sha256": TEACHER},
        "synthesis": {"method": "dfq", "data_free": True, "noise": False},
        "quant": {},
        "command": "",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _coloured_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    tints = np.random.default_rng(0).uniform(0.3, 1.0, (10, 3))
    grey = digits.images[:, None] / 16.0
    codes = np.rint(255 * grey * tints[digits.target][:, :, None, None]).astype(np.uint8)
    return codes, digits.target.astype(np.int64)


def _write_teacher(path: Path, codes: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    rng = np.random.default_rng(1)
    nodes, tensors, last = [], [], "image"
    for index in range(1, len(_CHANNELS)):
        fan = _CHANNELS[index - 1] * 9
        weight = rng.normal(0, np.sqrt(2 / fan), (_CHANNELS[index], _CHANNELS[index - 1], 3, 3))
        weight *= np.exp(rng.normal(0, 0.4, (len(weight), 1, 1, 1)))
        bias = rng.normal(0, 0.4, len(weight))
        for kind, values in (("weight", weight), ("bias", bias)):
            tensors.append(numpy_helper.from_array(values.astype(np.float32), f"conv{index}.{kind}"))
        stride = 2 if index == 3 else 1
        inputs = [last, f"conv{index}.weight", f"conv{index}.bias"]
        nodes.append(
            helper.make_node("Conv", inputs, [f"c{index}"], name=f"conv{index}", pads=[1] * 4, strides=[stride] * 2)
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        last = f"r{index}"
    nodes.append(helper.make_node("Flatten", [last], ["features"], name="flatten"))
    _write_with_head(path, nodes, tensors, codes, labels)


def _write_rich_teacher(path: Path, codes: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    rng = np.random.default_rng(1)
    nodes, tensors = [], []

    def conv(name: str, source: str, channels: tuple[int, int], *, stride: int = 1) -> None:
        weight = rng.normal(0, np.sqrt(2 / (9 * channels[0])), (channels[1], channels[0], 3, 3))
        for kind, values in (("weight", weight), ("bias", rng.normal(0, 0.2, channels[1]))):
            tensors.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.{kind}"))
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, pads=[1] * 4, strides=[stride] * 2))

    conv("conv1", "image", (3, 16))
    nodes.append(helper.make_node("Relu", ["conv1"], ["r1"], name="relu1"))
    nodes.append(helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]))
    conv("conv2", "p1", (16, 16))
    nodes.append(helper.make_node("Relu", ["conv2"], ["r2"], name="relu2"))
    conv("conv3", "r2", (16, 16))
    nodes.append(helper.make_node("Add", ["conv3", "p1"], ["sum"], name="residual"))
    nodes.append(helper.make_node("LeakyRelu", ["sum"], ["leaky"], name="leaky", alpha=0.1))
    nodes.append(helper.make_node("AveragePool", ["leaky"], ["p2"], name="pool2", kernel_shape=[2, 2], strides=[1, 1]))
    conv("conv4", "p2", (16, 32))
    tensors.append(numpy_helper.from_array(np.float32(0), "low"))
    tensors.append(numpy_helper.from_array(np.float32(3), "high"))
    nodes.append(helper.make_node("Clip", ["conv4", "low", "high"], ["c4"], name="clip4"))
    nodes.append(helper.make_node("Flatten", ["c4"], ["features"], name="flatten"))
    _write_with_head(path, nodes, tensors, codes, labels)


def _write_with_head(
    path: Path,
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    codes: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> None:
    """Fit a linear layer to the features by least squares, and write the network."""
    features = _run(nodes, tensors, "features", normalized(codes, SPEC))
    design = np.c_[features, np.ones(len(features))]
    target = 12 * np.eye(10)[labels] - 2
    head = np.linalg.solve(design.T @ design + 20 * np.eye(design.shape[1]), design.T @ target)
    tensors.append(numpy_helper.from_array(head[:-1].T.astype(np.float32), "linear.weight"))
    tensors.append(numpy_helper.from_array(head[-1].astype(np.float32), "linear.bias"))
    nodes.append(
        helper.make_node("Gemm", ["features", "linear.weight", "linear.bias"], ["logits"], name="linear", transB=1)
    )
    onnx.save(_model(nodes, tensors, "logits"), str(path))


def _model(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", *SPEC.shape])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["n", None])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], output: str, images: NDArray[np.float32]
) -> NDArray[np.float64]:
    import onnxruntime

    model = _model(nodes, tensors, output).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"image": images})[0], np.float64)


def _quantize(source: Path, out: Path, codes: NDArray[np.uint8]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            images = normalized(codes, SPEC)
            self._batches: Iterator[NDArray[np.float32]] = iter(np.array_split(images, 4))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"image": batch}

    quantize_static(
        str(source), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    model = onnx.load(str(out))
    for key, value in (
        ("dfqkit.image", json.dumps(SPEC.to_dict())),
        ("dfqkit.synthesizer", "dfq"),
        ("dfqkit.teacher_sha256", TEACHER),
    ):
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(out))


def _sentinel(codes: NDArray[np.uint8], logits: NDArray[np.float32]) -> Sentinel:
    ranked = np.sort(logits, axis=1)
    near = np.argsort(ranked[:, -1] - ranked[:, -2])[:160]
    plain = np.setdiff1d(np.arange(len(codes)), near)[::5][:96]
    chosen = np.concatenate([near, plain])
    return Sentinel(
        spec=SPEC,
        teacher_name="toy",
        teacher_sha256=TEACHER,
        images=codes[chosen],
        answers={"logits": logits[chosen]},
        sources=("digits",),
        source=np.zeros(len(chosen), np.int16),
        kind=np.concatenate([np.zeros(len(near), np.uint8), np.ones(len(plain), np.uint8)]),
    )
