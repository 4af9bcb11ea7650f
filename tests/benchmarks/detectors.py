"""How many of its boxes a detector keeps in int8, beside `quantize_static`, on real images that trained neither.

    DFQKIT_ASSETS=... python tests/benchmarks/detectors.py --out OUT [--only rfb320] [--write FILE.md]

RFB-320 as torch module and as ONNX file, and NanoDet-m, through `dfqkit.quantize` as it comes, which sees no real
image; and `onnxruntime.quantization.quantize_static`, per channel, largest values, on 64 real images. AP50 in ONNX
Runtime of a file's boxes beside the float form's own: every fourth image of `imagenet_val1300_227.zip` by name, resized
to the network's size; of RFB-320 scores from 0.5 are true and those from 0.3 count, NMS at 0.3; of NanoDet-m 0.35, 0.2
and 0.6, by class. `quantize_static` is calibrated on others of that set. Speed is the median of interleaved runs on one
thread. Runs in OUT are continued, and files there not made again. Five minutes of a core for RFB-320, twenty for
NanoDet-m.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dfqkit
from dfqkit.config.files import find_file
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.measure.latency import measure_latency
from dfqkit_export.tasks.lookup import task_in

REAL = "imagenet_val1300_227.zip"
STRIDE, CALIBRATION = 4, 64


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A network, what it takes, and from what scores its boxes count."""

    factory: str
    image: dfqkit.ImageSpec
    task: dict[str, Any]
    weights: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Further sections of the recipe."""
        return {"teacher": {"weights": self.weights}} if self.weights else {}


FACE = dfqkit.ImageSpec(shape=(3, 240, 320), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
COCO = dfqkit.ImageSpec(
    shape=(3, 416, 416), mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), pixel_range=255, channels="BGR"
)
FACES = {"name": "detection", "threshold": 0.5, "floor": 0.3, "nms": 0.3}
DETECTORS = {
    "rfb320": Detector(factory="onnx:rfb320.onnx", image=FACE, task=FACES),
    "rfb320_torch": Detector(
        factory="dfqkit.models:rfb_320", image=FACE, task=FACES, weights="rfb320.safetensors"
    ),
    "nanodet_m": Detector(
        factory="onnx:nanodet_m.onnx",
        image=COCO,
        task={"name": "detection", "threshold": 0.35, "floor": 0.2, "nms": 0.6},
    ),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    for name in options.only:
        row = compared(name, DETECTORS[name], options.out / name)
        (options.out / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.out.glob("*.json"))}
    text = table(rows)
    print(text)
    if options.write is not None:
        options.write.write_text(f"# Detectors\n\n{(__doc__ or '').strip()}\n\n{text}", encoding="utf-8")
    return 0


def compared(name: str, detector: Detector, folder: Path) -> dict[str, Any]:
    """Quantize a detector in both ways and return what is told of it."""
    images = detector.image
    result = dfqkit.quantize(
        detector.factory, image=images, task=detector.task, out=folder / "run", options=detector.options
    )
    teacher = result.folder / "teacher.onnx"
    static = folder / "static.onnx"
    if not static.exists():
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(teacher), str(prepared), skip_symbolic_shape=True)
        with_images = list(real(images, 1))[:CALIBRATION]
        quantize_static(
            str(prepared), str(static), Reader(OrtSession(teacher).input_name, with_images),
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    task = task_in(
        {entry.key: entry.value for entry in onnx.load(result.model, load_external_data=False).metadata_props}
    )
    files = {"float": teacher, "dfqkit": result.model, "quantize_static": static}
    answers = {key: outputs(path, task.names, images) for key, path in files.items()}
    timing = measure_latency(
        {key: OrtSession(path, threads=1) for key, path in files.items()},
        next(real(images, 0)),
        repeats=30,
        warmup=3,
        reference="float",
    )
    precision = realised_precision(result.model)
    return {
        "name": name,
        "verdict": str(result.report.verdict),
        "integers": f"{precision.integer_layers} of {len(precision.layers)}",
        **{
            key: {
                "ap50": (task.kept(answers["float"], answers[key]) or 0.0) / 100,
                "speed": timing.timings[key].ratio,
            }
            for key in ("dfqkit", "quantize_static")
        },
    }


class Reader:
    """What `quantize_static` reads images from."""

    def __init__(self, name: str, images: list[NDArray[np.float32]]) -> None:
        self.left = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next image by the input's name."""
        return next(self.left, None)


def real(image: dfqkit.ImageSpec, first: int) -> Iterator[NDArray[np.float32]]:
    """Yield every fourth real image, from the given one, as the network takes it, (1, 3, H, W)."""
    height, width = image.shape[1:]
    with zipfile.ZipFile(find_file(REAL, Path.cwd())) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".JPEG"))[first::STRIDE]:
            with archive.open(name) as file:
                pixels = Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            x = np.asarray(pixels, np.float32).transpose(2, 0, 1)[None] / 255
            yield np.ascontiguousarray(image.normalize(x), dtype=np.float32)


def outputs(path: Path, names: tuple[str, ...], image: dfqkit.ImageSpec) -> dict[str, NDArray[Any]]:
    """Return what a file gives for all images, by output."""
    session = OrtSession(path, threads=1)
    found = [session.outputs(x, names) for x in real(image, 0)]
    return {name: np.concatenate([each[place] for each in found]) for place, name in enumerate(names)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | AP50, dfqkit | AP50, quantize_static | speed, dfqkit | quantize_static | in integers | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        ours, theirs = row["dfqkit"], row["quantize_static"]
        lines.append(
            f"| {name} | **{ours['ap50']:.3f}** | {theirs['ap50']:.3f} | {ours['speed']:.2f}x | "
            f"{theirs['speed']:.2f}x | {row['integers']} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
