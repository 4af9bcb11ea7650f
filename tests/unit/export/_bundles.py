"""A run's folder with a tiny model, made without torch, for the tests of sentinel sets and bundles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.tensors import write_tensors
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Report
from dfqkit_export.sentinel import normalized

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3), classes=10)
TEACHER = "a" * 64


def codes(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images with some structure, so that classes differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 3, 2, 2)).repeat(4, axis=2).repeat(4, axis=3)
    return np.clip(coarse + rng.normal(0, 30, (n, 3, 8, 8)), 0, 255).astype(np.uint8)


def write_net(builder: Any, path: Path, *, quantized: bool = True, metadata: dict[str, str] | None = None) -> Path:
    """Conv, Relu, conv, residual, pool, classifier: with quantized activations, or float with the same weights."""
    b = builder()

    def q(x: str, name: str, **options: Any) -> str:
        return b.qdq(x, name, **options) if quantized else x

    x = q("x", "input", scale=0.03, zero_point=128)
    r = q(b.node("Relu", [b.conv(x, "conv1", (3, 8))], "relu1"), "act1", scale=0.1)
    c = q(b.conv(r, "conv2", (8, 8)), "act2", scale=0.6, zero_point=128)
    a = q(b.node("Relu", [b.node("Add", [r, c], "add")], "relu2"), "act3", scale=0.4)
    g = q(b.node("GlobalAveragePool", [a], "pool"), "act4", scale=0.2)
    f = q(b.node("Flatten", [g], "flatten"), "act5", scale=0.2)
    b.save(path, b.gemm(f, "fc", (8, 10), float_bias=True), rank=2)
    model = onnx.load(path)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def write_set(path: Path, images: NDArray[np.uint8], teacher: Path, source: str = "dfq:grading") -> Path:
    header = {"schema": 1, "image": SPEC.to_dict(), "teacher": TEACHER, "source": source}
    logits = OrtSession(teacher, threads=1).predict(normalized(images, SPEC))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"images": images, "logits": logits}, {"imagebank": json.dumps(header)})
    return path


def write_run(folder: Path, builder: Any, *, name: str = "toy/dfq-w8a8-ort", n: int = 96, **meta: str) -> Path:
    """The folder of a finished run without a sentinel set of its own."""
    folder.mkdir(parents=True)
    metadata = {
        "dfqkit.recipe": name,
        "dfqkit.synthesizer": "dfq",
        "dfqkit.teacher": "toy",
        "dfqkit.teacher_sha256": TEACHER,
        "dfqkit.target": "onnxruntime",
        "dfqkit.quant": '{"bits": "w8a8"}',
        "dfqkit.image": json.dumps(SPEC.to_dict()),
        **{f"dfqkit.{key}": value for key, value in meta.items()},
    }
    write_net(builder, folder / "model.onnx", metadata=metadata)
    teacher = write_net(builder, folder / "teacher.onnx", quantized=False)
    write_set(folder / "images" / "grading.safetensors", codes(n), teacher)
    write_set(folder / "images" / "calibration.safetensors", codes(16, seed=9), teacher, "dfq:calibration")
    top1 = Metric(
        name="top1", subject="onnxruntime", data="real:toys", value=91.5, unit="%", n=200, stderr=1.97,
        higher_is_better=True,
    )  # fmt: skip
    report = Report(
        title=name, metrics=[top1], warnings=["Made of <b>toys</b>."], recipe="schema: 1\n",
        synthesis={"data_free": True, "real_data": None}, provenance={"seed": 3, "device": "cpu"},
    )  # fmt: skip
    (folder / "report.json").write_text(report.to_json())
    (folder / "recipe.yaml").write_text("schema: 1\nname: !!python/object/apply:os.system [true]\n")
    list_run(folder)
    return folder


def list_run(folder: Path) -> None:
    """Write a run's manifest over what is in its folder."""
    names = ["model.onnx", "teacher.onnx", "report.json", "images/grading.safetensors", "sentinel.safetensors"]
    files = {
        name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(), "size": 1}
        for name in names
        if (folder / name).exists()
    }
    stage = {"status": "complete", "seconds": 1.0, "files": files, "facts": {}}
    facts = {"command": "dfqkit run toy/dfq-w8a8-ort"}
    (folder / "manifest.json").write_text(
        json.dumps({"schema": 1, "digest": "d", "facts": facts, "stages": {"export": stage}})
    )
