"""PP-OCR v4 of PyPI's `rapidocr-onnxruntime`, quantized without an image, on rendered pages and lines.

    pip download --no-deps rapidocr-onnxruntime && unzip -d ocr rapidocr_onnxruntime-*.whl
    python tests/benchmarks/ocr.py --models ocr/rapidocr_onnxruntime/models --out runs/ocr
    python tests/benchmarks/ocr.py --models ... --out runs/ocr --only cls --pages 10 --lines 100

The files are the user's own and not shipped. Each is quantized by its recipe `ppocr/...` through `dfqkit.quantize`,
from drawn scenes alone; rendered text only grades. A finished run in OUT is not made again. Text is random words in
DejaVu (`pip install matplotlib` brings it, --font names others), in random sizes and colours, slightly noisy. All in
ONNX Runtime, one image a batch:

- det: IoU of the int8 file's mask, at the detector's threshold, with the float file's, over all pixels of all pages;
- cls: accuracy of the direction of lines, upright and upside down in turn, against what was drawn;
- rec: share of lines that are read without an error, spaces left out.

Beside each stands `onnxruntime.quantization.quantize_static` (QDQ, per channel, min-max), calibrated on CALIBRATION
rendered images of another seed. Ends with 1 where a network is below what is asked of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFont

import dfqkit
from dfqkit.config.reading import load_recipe
from dfqkit_export.backends.onnxruntime.session import EXACT_PRODUCTS
from dfqkit_export.report import Report

#: By network: its file, what is measured, and what the int8 file may lose (det: the least IoU).
NETWORKS = {
    "det": ("ch_PP-OCRv4_det_infer.onnx", "IoU of masks", 0.97),
    "cls": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", "accuracy", 0.005),
    "rec": ("ch_PP-OCRv4_rec_infer.onnx", "lines", 0.01),
}
CALIBRATION, THRESHOLD = 64, 0.3
STARTS, VOWELS = (*"bcdfghklmnprstvwz", "br", "ch", "cl", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr"), "aeiou"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Bold")


class Writer:
    """Draws text of random words, sizes and colours."""

    def __init__(self, seed: int, fonts: list[str]) -> None:
        self.rng, self.fonts = np.random.default_rng(seed), fonts

    def word(self) -> str:
        """Return a word that could be one, or a number."""
        rng = self.rng
        if rng.random() < 0.2:
            return str(rng.integers(10, 100000))
        count = rng.integers(2, 4)
        text = "".join(str(rng.choice(STARTS)) + str(rng.choice(list(VOWELS))) for _ in range(count))
        return (text, text.capitalize(), text.upper())[int(rng.choice(3, p=(0.6, 0.25, 0.15)))]

    def colours(self) -> tuple[Any, Any]:
        """Return ground and ink, RGB, far enough apart to be read."""
        while True:
            ground, ink = self.rng.integers(0, 256, (2, 3))
            if abs(ground.mean() - ink.mean()) > 90:
                return tuple(map(int, ground)), tuple(map(int, ink))

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return _font(str(self.rng.choice(self.fonts)), size)

    def noisy(self, image: Image.Image) -> np.ndarray:
        """Return the pixels (H, W, 3), uint8, with noise of up to 8 of 255."""
        pixels = np.asarray(image, np.float32)
        return (
            np.clip(pixels + self.rng.normal(0, self.rng.uniform(0, 8), pixels.shape), 0, 255).round().astype(np.uint8)
        )

    def line(self, ratio: float) -> tuple[np.ndarray, str]:
        """Return an image (H, W, 3) of one line, at most ``ratio`` as wide as high, and its text."""
        rng = self.rng
        while True:
            text, font = " ".join(self.word() for _ in range(rng.integers(1, 3))), self.font(int(rng.integers(18, 40)))
            left, top, right, bottom = font.getbbox(text)
            pads = rng.integers(2, 8, 4)
            width, height = int(right - left + pads[0] + pads[1]), int(bottom - top + pads[2] + pads[3])
            if 2 < width / height < ratio:
                break
        ground, ink = self.colours()
        image = Image.new("RGB", (width, height), ground)
        ImageDraw.Draw(image).text((pads[0] - left, pads[2] - top), text, ink, font=font)
        return self.noisy(image), text

    def page(self, height: int, width: int) -> np.ndarray:
        """Return an image (height, width, 3) with lines at random places, none over another."""
        rng, (ground, _) = self.rng, self.colours()
        image, y = Image.new("RGB", (width, height), ground), int(rng.integers(5, 60))
        draw = ImageDraw.Draw(image)
        while True:
            font = self.font(int(rng.integers(12, 36)))
            text = " ".join(self.word() for _ in range(rng.integers(1, 5)))
            _, _, right, bottom = font.getbbox(text)
            if y + bottom > height:
                return self.noisy(image)
            ink = self.colours()[1]
            while abs(np.mean(ink) - np.mean(ground)) < 90:
                ink = self.colours()[1]
            draw.text((int(rng.integers(2, max(3, width - int(right)))), y), text, ink, font=font)
            y += int(bottom * rng.uniform(1.1, 2.5))


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an input (1, 3, H, W): BGR, -1 to 1; lines as high as that, with 0 to their right."""
    height, most = size
    if pixels.shape[:2] != size:
        width = min(most, int(np.ceil(height * pixels.shape[1] / pixels.shape[0])))
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    values = pixels[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    return np.pad(values, ((0, 0), (0, 0), (0, 0), (0, most - values.shape[3])))


def inputs(
    name: str, size: tuple[int, int], count: int, seed: int, fonts: list[str]
) -> Iterator[tuple[np.ndarray, Any]]:
    """Give inputs of a size with what is drawn: nothing for pages, 0 or 1 (upside down) for cls, text for rec."""
    writer = Writer(seed, fonts)
    for index in range(count):
        if name == "det":
            yield fitted(writer.page(*size), size), None
            continue
        pixels, text = writer.line(size[1] / size[0])
        turned = name == "cls" and index % 2
        yield fitted(pixels[::-1, ::-1] if turned else pixels, size), index % 2 if name == "cls" else text


def opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry(EXACT_PRODUCTS, "1")  # else x86 without VNNI saturates
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read(probabilities: np.ndarray, alphabet: str) -> str:
    """Return the text of (steps, classes) by CTC: equal neighbours are one, class 0 is none."""
    best = probabilities.argmax(1)
    kept = best[(best > 0) & (best != np.append([-1], best[:-1]))]
    return "".join(alphabet[each - 1] for each in kept if each <= len(alphabet))


def measured(name: str, files: dict[str, Path], drawn: Iterator[tuple[np.ndarray, Any]]) -> dict[str, float]:
    """Return what each file reaches: the IoU with the first's masks, or the share of right answers."""
    sessions = {key: opened(path) for key, path in files.items()}
    alphabet = sessions["float"].get_modelmeta().custom_metadata_map.get("character", "").replace("\n", "") + " "
    good, of = dict.fromkeys(files, 0), dict.fromkeys(files, 0)
    for image, truth in drawn:
        found = {key: session.run(None, {"x": image})[0][0] for key, session in sessions.items()}
        for key, answer in found.items():
            if name == "det":
                ours, theirs = answer > THRESHOLD, found["float"] > THRESHOLD
                good[key] += int((ours & theirs).sum())
                of[key] += int((ours | theirs).sum())
                continue
            said = answer.argmax() if name == "cls" else read(answer, alphabet).replace(" ", "")
            good[key] += int(said == (truth if name == "cls" else truth.replace(" ", "")))
            of[key] += 1
    return {key: good[key] / of[key] for key in files}


class _Reader(CalibrationDataReader):
    def __init__(self, images: list[np.ndarray]) -> None:
        self.images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"x": image}


def by_quantize_static(real: Path, out: Path, images: list[np.ndarray]) -> Path:
    """Write the bar's file: the float file that the run wrote, calibrated on rendered images."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(real), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(out), _Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    return out


def quantized(name: str, models: Path, out: Path, sets: list[str]) -> Report:
    """Quantize a network by its recipe into OUT/NAME, unless that is done."""
    done = out / name / "report.json"
    if not done.exists():
        recipe = load_recipe(f"ppocr/{name}-procedural-w8a8-ort", sets)
        sections = recipe.model_dump(mode="json", include={"bank", "quant", "synthesis", "floors", "seed"})
        dfqkit.quantize(
            f"onnx:{models / NETWORKS[name][0]}", image=recipe.image.spec(), task=recipe.task.model_dump(),
            method="procedural", out=out / name, options=sections,
        )  # fmt: skip
    return Report.from_json(done.read_text("utf-8"))


def row(name: str, args: argparse.Namespace, fonts: list[str]) -> dict[str, Any]:
    """Quantize and measure one network."""
    model, what, allowed = NETWORKS[name]
    report = quantized(name, args.models, args.out, args.set)
    folder, real = args.out / name, args.models / model
    files, bar = {"float": real, "int8": folder / "model.onnx"}, folder / "quantize_static.onnx"
    height, width = load_recipe(f"ppocr/{name}-procedural-w8a8-ort").image.spec().shape[1:]
    size = (height, width)  # the files' own may be open
    if not bar.exists():
        images = [image for image, _ in inputs(name, size, CALIBRATION, seed=2, fonts=fonts)]
        by_quantize_static(folder / "teacher.onnx", bar, images)
    files["quantize_static"] = bar
    count = args.pages if name == "det" else args.lines
    found: dict[str, Any] = {"model": model, "what": what, "images": count, "size": size}
    found |= measured(name, files, inputs(name, size, count, seed=1, fonts=fonts))
    least = allowed if name == "det" else found["float"] - allowed
    left = Counter(item["op"] for item in report.precision["float_ops"])
    integer = f"{report.precision['integer']} of {report.precision['integer'] + report.precision['float']}"
    found |= {"asked": least, "holds": found["int8"] >= least, "verdict": report.verdict, "integer": integer}
    return found | {"float_ops": dict(sorted(left.items()))}


def page(rows: list[dict[str, Any]]) -> str:
    """Return the stored table."""
    lines = [
        "# PP-OCR v4, quantized without an image\n",
        f"`tests/benchmarks/{Path(__file__).name}` says what is measured; floats are ONNX Runtime's nodes. A run\n"
        "sees drawn scenes alone; which layers of the reader its recipe leaves in float (`quant.in_float`) was\n"
        "chosen by a look at the first 16 of the 1,000 lines. Verdicts are of runs without labels, on scenes without\n"
        "text.\n",
        "| network | images | measured | float | int8 | quantize_static, 64 rendered images | asked | in integers "
        "| in float | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = " | ".join(f"{row[key]:.4f}" for key in ("float", "int8", "quantize_static", "asked"))
        left = ", ".join(f"{op} {count}" for op, count in row["float_ops"].items())
        size = f"{row['images']} of {row['size'][0]}x{row['size'][1]}"
        lines.append(
            f"| {row['model']} | {size} | {row['what']} | {figures} | {row['integer']} | {left} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--font", nargs="+", type=Path)
    parser.add_argument("--set", nargs="+", default=[], help="other values of the recipe, such as quant.scales=float")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="store the table")
    args = parser.parse_args()
    fonts = [str(path) for path in args.font or _dejavu()]
    rows = []
    for name in args.only:
        rows.append(row(name, args, fonts))
        print(json.dumps(rows[-1]), flush=True)
    if args.write is not None:
        args.write.write_text(page(rows), "utf-8")
    return int(not all(each["holds"] for each in rows))


def _dejavu() -> list[Path]:
    import matplotlib

    return [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf" for name in FONTS]


if __name__ == "__main__":
    sys.exit(main())
