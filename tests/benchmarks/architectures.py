"""Ten torchvision classifiers through capture, w8a8 quantization and export: what each runtime makes of the files.

    python tests/benchmarks/architectures.py --out runs/architectures
    python tests/benchmarks/architectures.py --out runs/architectures --only resnet18 convnext_tiny

Weights are random; BatchNorm statistics come from one batch of synthetic images, ConvNeXt's layer scales lie between
0.1 and 0.5, and the last layer is fitted by ridge regression to tell ten clusters of synthetic images apart, so that
predictions mean something. Agreement counts on images with margins: those where the student's two largest logits lie
further apart than quantization moved its logits (root mean square over all images). Rows are kept in
OUT/NAME.json and not computed again; OUT/architectures.json and .md hold them all. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.integer_student import IntegerStudent
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.student import build_student, calibrate_student
from dfqkit_export.backends import get_backend, get_target
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.backends.precision import Realised
from dfqkit_export.checker import check_file
from dfqkit_export.errors import DfqkitError
from dfqkit_export.images.spec import ImageSpec

NAMES = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf",
    "densenet121", "googlenet", "vgg11_bn", "convnext_tiny",
)  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False}
}
CLASSES, BATCH = 10, 4
CONFIG = QuantConfig(bits="w8a8", weight_range="max", activation_range="percentile", bias_correction=False)
INTEGER, AGREEMENT = 0.95, 0.995


def synthetic_images(spec: ImageSpec, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normalised 8-bit images (n, C, H, W) of ten clusters (a pattern each, coarse to fine, and noise), and labels."""
    labels = torch.arange(n) % CLASSES
    images = 0.5 + 0.2 * _fields(CLASSES, (5, 20, 80), spec, 0)[labels] + 0.03 * _fields(n, (9, 40), spec, seed)
    return spec.normalize((images.clamp(0, 1) * 255).round() / 255), labels


def _fields(n: int, grids: tuple[int, ...], spec: ImageSpec, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    noise = [torch.randn((n, 3, grid, grid), generator=rng) for grid in grids]
    return sum((nn.functional.interpolate(part, spec.shape[1:], mode="bilinear") for part in noise), torch.zeros(()))


def random_model(name: str, spec: ImageSpec) -> nn.Module:
    """The architecture with random weights, sane statistics and a last layer that tells the clusters apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **OPTIONS.get(name, {}))
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "layer_scale"):
                    module.layer_scale.uniform_(0.1, 0.5)
    images, labels = synthetic_images(spec, 60, 1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.train()
        else:
            module.training = False
    with torch.no_grad():
        model(images[:20])
    model.eval()
    _fit_last_layer(model, images, labels)
    return model


def _fit_last_layer(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(model, images)
    handle.remove()
    features = torch.cat(seen).double()
    mean = features.mean(0)
    centred = features - mean
    wanted = 10 * nn.functional.one_hot(labels, CLASSES).double() - 1
    gram = centred @ centred.T
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = (centred.T @ torch.linalg.solve(gram + ridge, wanted)).T
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(-weight @ mean)


def predict(model: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float32]:
    """Logits (n, classes)."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(BATCH)]).numpy()


def ran(runtime: str, path: Path, images: Tensor, threads: int) -> NDArray[np.float32]:
    """Logits of a file in a runtime."""
    session = open_session(runtime, path, threads=threads)
    return np.concatenate([session.run(batch.numpy()) for batch in images.split(BATCH)])


def with_margin(student: NDArray[np.float32], teacher: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images' two largest logits lie further apart than quantization moves a logit."""
    top = np.sort(student, axis=1)
    noise = float(np.sqrt(np.mean((student - teacher) ** 2)))
    return np.asarray(top[:, -1] - top[:, -2] > noise)


def share(first: NDArray[np.float32], second: NDArray[np.float32], among: NDArray[np.bool_]) -> float:
    """Share of the same predictions."""
    return float((first.argmax(1) == second.argmax(1))[among].mean()) if among.any() else float("nan")


def exported(graph: fx.GraphModule, target: str, spec: ImageSpec, path: Path) -> fx.GraphModule:
    """Quantize for a target, write the file, return the frozen student."""
    table = get_target(target)
    student = build_student(graph, CONFIG, table, spec)
    images = synthetic_images(spec, 8, 2)[0]
    calibrate_student(student, list(images.split(BATCH)), CONFIG, spec)
    freeze(student)
    write_qdq(student, table, path, metadata={})
    return student


def realised(path: Path, runtime: str) -> dict[str, Any]:
    """What a runtime made of the layers, or why it could not."""
    missing = get_backend(runtime).missing()
    if missing:
        return {"reason": missing}
    try:
        found: Realised = realised_precision(path, runtime)
    except DfqkitError as error:
        return {"accepted": False, "reason": str(error)}
    convolutions = [layer for layer in found.layers if layer.op == "Conv"]
    details = sorted({f"{layer.op}: {layer.detail}" for layer in found.layers if layer.precision == "float"})
    return {
        "accepted": True,
        "integer": found.integer_layers,
        "float": found.float_layers,
        "macs": found.integer_macs,
        "convs": sum(layer.precision == "int8" for layer in convolutions) / max(len(convolutions), 1),
        "float_ops": sorted({op for op, _ in found.float_ops}),
        "reason": "; ".join(details[:3]),
    }


def checked(path: Path, target: str) -> list[str]:
    """The checker's errors and warnings, each rule once with its count."""
    rules = [f"{problem.rule} ({problem.severity})" for problem in check_file(path, target).problems]
    return [f"{rule} x{rules.count(rule)}" for rule in sorted(set(rules))]


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one architecture."""
    start = time.monotonic()
    spec = ImageSpec(
        shape=(3, options.size, options.size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=CLASSES
    )
    model = random_model(name, spec)
    graph = float_graph(model, spec)
    paths = {target: options.out / f"{name}-{target}.onnx" for target in ("onnxruntime", "tensorrt")}
    student = exported(graph, "onnxruntime", spec, paths["onnxruntime"])
    images, labels = synthetic_images(spec, options.images, 3)
    teacher, ours = predict(graph, images), predict(IntegerStudent(student).run, images)
    theirs = ran("onnxruntime", paths["onnxruntime"], images, options.threads)
    kept = with_margin(ours, teacher)
    found: dict[str, Any] = {
        "size": options.size,
        "images": options.images,
        "with_margin": int(kept.sum()),
        "teacher_top1": float((teacher.argmax(1) == labels.numpy()).mean()),
        "student_top1": float((ours.argmax(1) == labels.numpy()).mean()),
        "agreement": share(ours, theirs, kept),
        "agreement_all": share(ours, theirs, np.ones_like(kept)),
        "same_bits": float((ours == theirs).mean()),
        "onnxruntime": realised(paths["onnxruntime"], "onnxruntime"),
        "checker": {"onnxruntime": checked(paths["onnxruntime"], "onnxruntime")},
    }
    if not get_backend("openvino").missing():
        there = ran("openvino", paths["onnxruntime"], images, options.threads)
        found["openvino"] = {
            "agreement": share(theirs, there, kept),
            "agreement_all": share(theirs, there, np.ones_like(kept)),
        }
    if "tensorrt" in options.targets:
        exported(graph, "tensorrt", spec, paths["tensorrt"])
        found["checker"]["tensorrt"] = checked(paths["tensorrt"], "tensorrt")
        found["tensorrt-rtx"] = realised(paths["tensorrt"], "tensorrt-rtx")
    found["seconds"] = time.monotonic() - start
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """The bars that a row misses."""
    if "error" in found:
        return [found["error"]]
    here, there = found["onnxruntime"], found.get("tensorrt-rtx", {})
    errors = [rule for rules in found["checker"].values() for rule in rules if "(error)" in rule]
    bars = {
        f"multiply-adds in integers {here.get('macs')}: {here['reason']}": (here.get("macs") or 0) < INTEGER,
        f"agreement {found['agreement']:.3f}": not found["agreement"] >= AGREEMENT,
        f"checker {', '.join(errors)}": bool(errors),
        f"RTX: {there.get('reason')}": "accepted" in there and not there.get("convs", 0) >= INTEGER,
    }
    return [text for text, is_missed in bars.items() if is_missed]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| architecture | ORT layers int / float | MACs int | agreement (images with margin) | same bits "
        "| checker ORT; TensorRT | RTX convs int8 | OpenVINO = ORT | left in float | s | missed |",
        "| --- " * 11 + "|",
    ]
    for name, found in rows.items():
        if "error" in found:
            lines.append(f"| {name} |" + " |" * 9 + f" {found['error']} |")
            continue
        here, there = found["onnxruntime"], found.get("tensorrt-rtx", {})
        checks = "; ".join(", ".join(rules) or "clean" for rules in found["checker"].values())
        rtx = percent(there.get("convs")) if there.get("accepted") else there.get("reason", "-")
        cells = [
            name, f"{here.get('integer')} / {here.get('float')}", percent(here.get("macs")),
            f"{percent(found['agreement'])} ({found['with_margin']} of {found['images']})", percent(found["same_bits"]),
            checks, rtx, percent(found.get("openvino", {}).get("agreement")),
            ", ".join(here.get("float_ops", [])) or "-", f"{found['seconds']:.0f}", "; ".join(missed(found)) or "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share for people."""
    return "-" if value is None else f"{100 * value:.1f} %"


def main() -> int:
    """Compute missing rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "tensorrt"], help="tensorrt is optional")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        kept = options.out / f"{name}.json"
        if kept.is_file():
            continue
        try:
            found = row(name, options)
        except DfqkitError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {found.get('seconds', 0):.0f} s", file=sys.stderr)
    rows = {
        name: json.loads((options.out / f"{name}.json").read_text(encoding="utf-8"))
        for name in NAMES
        if (options.out / f"{name}.json").is_file()
    }
    text = table(rows)
    (options.out / "architectures.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (options.out / "architectures.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if any(missed(found) for found in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
