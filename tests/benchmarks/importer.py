"""ONNX files through the importer: which are taken over, and how far the translation is from ONNX Runtime.

    python tests/benchmarks/importer.py --files FOLDER ... --write recipes/architectures/importer.md
    python tests/benchmarks/importer.py --only rfb320 torchvision:resnet18

Of files: those of `REAL` that a folder of --files, DFQKIT_ASSETS, or an installed rapidocr-onnxruntime holds. Of
networks: torchvision's, timm's and two written here, with random weights and woken BatchNorm statistics, exported by
torch's new exporter (free batch, opset 18) and by its old one (one image, opset 11 to 17). `error` is the largest
difference of any output, relative to the output's largest number, over five images (`proof.tried_images`); `any
batch` says whether torch.export takes the module with a free batch. The two columns after it are the same for the
packages onnx2torch and onnx2pytorch, where they are installed: their error on one image, and whether what they make
takes two; or in a word what they raise. Ends with 1 where a file is neither taken over nor refused in words.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from dfqkit.teacher.onnx_graph.importing import import_onnx
from dfqkit_export.errors import DfqkitError
from dfqkit_export.images.spec import ImageSpec

REAL = {
    "rfb320": (3, 240, 320),
    "nanodet_m": (3, 416, 416),
    "ch_PP-OCRv4_det_infer": (3, 224, 320),
    "ch_PP-OCRv4_rec_infer": (3, 48, 320),
    "ch_ppocr_mobile_v2.0_cls_infer": (3, 48, 192),
}
NETWORKS = {
    "torchvision:resnet18": (96, 13), "torchvision:mobilenet_v3_small": (96, 17), "timm:ghostnet_100": (96, 12),
    "torchvision:shufflenet_v2_x1_0": (96, 11), "torchvision:efficientnet_b0": (96, 17), "timm:levit_128s": (224, 14),
    "torchvision:deeplabv3_mobilenet_v3_large": (96, 12), "timm:deit_tiny_patch16_224": (224, 14),
    "timm:swin_tiny_patch4_window7_224": (224, 17), "timm:convnext_atto": (96, 17), "timm:efficientvit_b0": (96, 15),
    "timm:mobilevit_xxs": (128, 17), "here:lines": (32, 14), "here:pyramid": (64, 11),
}  # fmt: skip
OTHERS = ("onnx2torch", "onnx2pytorch")


class Lines(nn.Module):
    """Text lines: convolutions, two recurrent layers in both directions, classes for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Hardswish())
        self.lstm = nn.LSTM(32, 24, bidirectional=True, batch_first=True)
        self.gru, self.head = nn.GRU(48, 24, batch_first=True), nn.Linear(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (N, W / 2, 40)."""
        columns = self.stem(x).mean(2).transpose(1, 2)
        probabilities: Tensor = self.head(self.gru(self.lstm(columns)[0])[0]).softmax(-1)
        return probabilities


class Pyramid(nn.Module):
    """Raw heads of a detector at three scales, joined, with boxes decoded on grids, as YOLO's exports are."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())
            for a, b in pairwise(widths)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 2 * 9, 1) for width in widths[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return rows (N, boxes, 9) and the coarsest map."""
        rows = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            n, _, height, width = x.shape
            y = head(x).view(n, 2, 9, height, width).permute(0, 1, 3, 4, 2).contiguous()
            grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).float()
            place = y[..., :2].sigmoid() * 2 + grid - 0.5
            size = (y[..., 2:4].sigmoid() * 2) ** 2
            rows.append(torch.cat([place, size, y[..., 4:].sigmoid()], -1).view(n, -1, 9))
        return torch.cat(rows, 1), torch.nn.functional.interpolate(x, scale_factor=2.0)


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", default=[], help="folders with files of REAL")
    parser.add_argument("--only", nargs="*", default=[], help="names of REAL or NETWORKS")
    parser.add_argument("--write", type=Path, help="where the table goes")
    options = parser.parse_args()
    rows, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name, path, shape in _cases(options, Path(folder)):
            row, fine = _row(name, path, shape)
            print("|", " | ".join(row), "|", flush=True)
            rows.append(row)
            bad += not fine
    head = ["network", "opset", "nodes", "BatchNorms", "error", "any batch", *OTHERS, "s"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    if options.write:
        told = f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}"
        text = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
        command = "python tests/benchmarks/importer.py --write recipes/architectures/importer.md"
        options.write.write_text(f"`{command}` ({told})\n\n{text}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return int(bad > 0)


def _cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path | str, tuple[int, int, int]]]:
    """Yield names with the file, or why there is none, and the shape of its images."""
    chosen = options.only or (*REAL, *NETWORKS)
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    places = [*options.files, os.environ.get("DFQKIT_ASSETS", ".")]
    places += [f"{place}/models" for place in (package.submodule_search_locations or ())] if package else []
    for name, shape in REAL.items():
        found = next((path for place in places if (path := Path(place) / f"{name}.onnx").is_file()), None)
        if name in chosen and found is not None:
            yield name, found, shape
    for name, (size, opset) in NETWORKS.items():
        if name not in chosen:
            continue
        model, x = _network(name), torch.randn(1, 3, size, size)
        for old in (False, True):
            path = folder / f"{name.replace(':', '_')}_{old}.onnx"
            title = f"{name} ({'old' if old else 'new'} exporter)"
            try:
                _export(model, x, path, opset if old else None)
            except Exception as error:
                yield title, f"not exported: {type(error).__name__}", (3, size, size)
                continue
            yield title, path, (3, size, size)


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    if library == "here":
        made: nn.Module = {"lines": Lines, "pyramid": Pyramid}[model]()
    elif library == "timm":
        import timm

        made = timm.create_model(model, pretrained=False, num_classes=10)
    else:
        import torchvision

        more = {"weights_backbone": None} if "deeplab" in model else {}
        made = torchvision.models.get_model(model, weights=None, num_classes=10, **more)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean, layer.running_var = (
                torch.randn_like(layer.bias) * 0.1,
                torch.rand_like(layer.bias) + 0.5,
            )
    return made.eval()


def _export(model: nn.Module, x: Tensor, path: Path, opset: int | None) -> None:
    options: dict[str, Any] = {"dynamo": opset is None, "opset_version": opset or 18, "input_names": ["pixels"]}
    if opset is None:
        x = x.repeat(2, 1, 1, 1)
        options |= {"dynamic_shapes": ({0: torch.export.Dim("N", min=1, max=65536)},), "external_data": False}
    with _silent():
        torch.onnx.export(model, (x,), path, **options)


def _row(name: str, path: Path | str, shape: tuple[int, int, int]) -> tuple[list[str], bool]:
    if isinstance(path, str):
        return [name, "", "", "", path, "", "", "", ""], True
    model, start, fine = onnx.load(path), time.monotonic(), True
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    image = ImageSpec(shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    try:
        imported = import_onnx(path, image)
        error, free = f"{imported.error:.1e}", _free(imported.module, shape)
    except DfqkitError as refused:
        error, free = f"refused: {str(refused)[:120]}", ""
    except Exception as broken:
        error, free, fine = f"{type(broken).__name__}: {str(broken)[:120]}", "", False
    seconds = f"{time.monotonic() - start:.0f}"
    others = [_other(each, path, shape) for each in OTHERS]
    return [name, str(opset), str(len(model.graph.node)), str(norms), error, free, *others, seconds], fine


def _free(module: nn.Module, shape: tuple[int, int, int]) -> str:
    dynamic = ({0: torch.export.Dim("N", min=1, max=65536)},)
    try:
        with _silent():
            torch.export.export(module, (torch.zeros(2, *shape),), dynamic_shapes=dynamic)
    except Exception as error:
        return f"no: {type(error).__name__}"
    return "yes"


def _other(package: str, path: Path, shape: tuple[int, int, int]) -> str:
    """Return what another package makes of a file."""
    if importlib.util.find_spec(package) is None:
        return "not tried"
    try:
        with _silent(), torch.no_grad():
            library = importlib.import_module(package)
            convert: Callable[[Any], nn.Module] = (
                library.convert if package == "onnx2torch" else lambda m: library.ConvertModel(m, experimental=True)
            )
            module, x = convert(onnx.load(path)).eval(), torch.randn(2, *shape)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            wanted = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
            found = module(x[:1])
            pairs = zip(found if isinstance(found, list | tuple) else [found], wanted, strict=True)
            error = max(float(np.abs(a.numpy() - b).max() / np.abs(b).max()) for a, b in pairs)
    except Exception as broken:
        return type(broken).__name__
    try:
        with _silent(), torch.no_grad():
            both = module(x)
            two = all(len(each) == 2 for each in (both if isinstance(both, list | tuple) else [both]))
    except Exception:
        two = False
    return f"{error:.1e}, {'two' if two else 'one'}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence exporters and other packages."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        onnxruntime.set_default_logger_severity(4)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


if __name__ == "__main__":
    raise SystemExit(main())
