"""int8 against float32 in ONNX Runtime: torchvision ResNet-18 at 224, batch 1, all files in one interleaved run.

    python tests/benchmarks/latency_resnet18.py

The bar is `onnxruntime.quantization.quantize_static` (QDQ, U8S8, per channel) of the same float file. Weights are
random: time does not depend on them. Prints medians and the
median of every round's ratio; exits with 1 below 2.8x or slower than 1.03 of quantize_static.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.scheme import QuantConfig
from dfqkit.students.student import build_student, calibrate_student
from dfqkit.teacher import load_teacher
from dfqkit_export.images import ImageSpec
from dfqkit_export.latency import measure
from dfqkit_export.precision import realised_precision
from dfqkit_export.qdq import write_float, write_qdq
from dfqkit_export.runtimes.ort import OrtSession
from dfqkit_export.targets import get_target


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def main() -> int:
    """Build the three files and time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spec = ImageSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000)
    teacher, target = load_teacher(options.model, spec), get_target("onnxruntime")
    images = torch.randn((8, *spec.shape), generator=torch.Generator().manual_seed(0))
    graph = float_graph(teacher.model, spec)
    config = QuantConfig(bits="w8a8", activation_range="percentile")
    student = build_student(graph, config, target, spec)
    calibrate_student(student, [images], config, spec)
    freeze(student)
    with tempfile.TemporaryDirectory() as folder:
        real, ours, theirs = (Path(folder) / f"{name}.onnx" for name in ("float32", "dfqkit", "quantize_static"))
        write_float(graph, real, metadata={})
        write_qdq(student, target, ours, metadata={})
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(real), str(prepared))
        quantize_static(
            str(prepared), str(theirs), _Reader([images.numpy()]), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        sessions = {path.stem: OrtSession(path, threads=options.threads) for path in (real, ours, theirs)}
        timing = measure(sessions, images[:1].numpy(), repeats=options.repeats, warmup=10, reference="float32")
        print(f"{options.model} at 224, batch 1, {options.threads} thread(s), {options.repeats} interleaved runs")
        for name, entry in timing.timings.items():
            integer = realised_precision(Path(folder) / f"{name}.onnx")
            print(
                f"{name:16s} median {entry.median:7.2f} ms  {entry.ratio:5.2f}x float32  "
                f"{integer.integer_layers} of {len(integer.layers)} layers in integers"
            )
    ratios = {name: entry.ratio or 0.0 for name, entry in timing.timings.items()}
    share = ratios["quantize_static"] / ratios["dfqkit"]
    good = ratios["dfqkit"] >= 2.8 and share <= 1.03
    print(f"{'ok' if good else 'MISSED'}: {ratios['dfqkit']:.2f}x float32 (2.8 asked), {share:.2f} of quantize_static")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
