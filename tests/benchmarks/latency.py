"""int8 against float32 in ONNX Runtime: torchvision ResNet-18 and MobileNetV2 at 224, batch 1, interleaved.

    python tests/benchmarks/latency.py

The bar is `onnxruntime.quantization.quantize_static` (QDQ, U8S8, per channel) of the same float file, which runs in
turn with ours and the float file. Weights are random: time does not depend on them. Prints medians and the median of
every round's ratio; exits with 1 below 2.8x (ResNet-18) or 2.0x (MobileNetV2) float32, or where a file takes more than
1.03 of quantize_static's time.
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

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.student import build_student, calibrate_student
from dfqkit.teacher.load import load_teacher
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.latency import measure_latency

#: Models, and how many times float32's speed they must reach on a CPU with VNNI.
ASKED = {"resnet18": 2.8, "mobilenet_v2": 2.0}
SLOWEST = 1.03  # of the time of quantize_static's file
CONFIG = QuantConfig(bits="w8a8", weight_range="max", activation_range="percentile", bias_correction=False)


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def main() -> int:
    """Build and time every model's three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ASKED), help="names in torchvision; others need 1.0x")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    return 0 if all([compared(name, options) for name in options.models]) else 1


def compared(name: str, options: argparse.Namespace) -> bool:
    """Time one model's files and print the result; whether it reaches what is asked."""
    with tempfile.TemporaryDirectory() as folder:
        paths, images = written(f"torchvision:{name}", Path(folder))
        sessions = {path.stem: OrtSession(path, threads=options.threads) for path in paths}
        timing = measure_latency(sessions, images, repeats=options.repeats, warmup=10, reference="float32")
        print(f"{name} at 224, batch 1, {options.threads} thread(s), {options.repeats} interleaved runs")
        for path in paths:
            entry, integer = timing.timings[path.stem], realised_precision(path)
            print(
                f"  {path.stem:16s} median {entry.median:7.2f} ms  {entry.ratio:5.2f}x float32  "
                f"{integer.integer_layers} of {len(integer.layers)} layers in integers, {sum(integer.nodes.values())} "
                f"nodes, float: {', '.join(sorted({op for op, _ in integer.float_ops})) or 'none'}"
            )
    ratios = {stem: entry.ratio or 0.0 for stem, entry in timing.timings.items()}
    share, asked = ratios["quantize_static"] / ratios["dfqkit"], ASKED.get(name, 1.0)
    good = ratios["dfqkit"] >= asked and share <= SLOWEST
    verdict = "ok" if good else "MISSED"
    print(f"  {verdict}: {ratios['dfqkit']:.2f}x float32 ({asked} asked), {share:.2f} of quantize_static")
    return good


def written(factory: str, folder: Path) -> tuple[list[Path], np.ndarray]:
    """The float file, ours and quantize_static's, and one image to run."""
    spec = ImageSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000)
    target = get_target("onnxruntime")
    images = torch.randn((8, *spec.shape), generator=torch.Generator().manual_seed(0))
    graph = float_graph(load_teacher(factory, spec).model, spec)
    student = build_student(graph, CONFIG, target, spec)
    calibrate_student(student, [images], CONFIG, spec)
    freeze(student)
    real, ours, theirs, prepared = (
        folder / f"{name}.onnx" for name in ("float32", "dfqkit", "quantize_static", "prepared")
    )
    write_float(graph, real, metadata={})
    write_qdq(student, target, ours, metadata={})
    quant_pre_process(str(real), str(prepared))
    quantize_static(
        str(prepared), str(theirs), _Reader([images.numpy()]), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return [real, ours, theirs], images[:1].numpy()


if __name__ == "__main__":
    sys.exit(main())
