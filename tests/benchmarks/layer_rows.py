"""Deep networks and transformers with random weights: what runs in integers, and whether every layer has its SQNR.

    python tests/benchmarks/layer_rows.py --out runs/layer_rows
    python tests/benchmarks/layer_rows.py --out runs/layer_rows --only cifar_resnet56 repvgg_a0
    python tests/benchmarks/layer_rows.py --out runs/layer_rows --only transformers --write FILE.md

Weights are random, BatchNorm statistics as training could have left them, what starts at 0 or near it woken; images are
noise, of transformers drawn scenes, others than those that calibrated: figures say that a run ends, that layers are
compared with themselves and what 8 bits cost, nothing about accuracy. Needs timm. Rows are kept in OUT/NAME.json
and not computed again. Exits with 1 where a run fails, a layer has no SQNR, the runtime is off, or of a transformer
a linear layer or a convolution is in float or the logits in ONNX Runtime have less than LEAST_DB of the teacher's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dfqkit
from dfqkit import models
from dfqkit_export.backends.opening import realised_precision
from tests.benchmarks.classifiers import waken

#: Side of the images, by network; those that `dfqkit.models` lacks are timm's.
NETWORKS = {
    **{f"cifar_resnet{depth}": 32 for depth in (20, 32, 44, 56, 110)},
    "repvgg_a0": 32,
    "deit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "convnext_atto": 64,
    "mobilevit_xxs": 64,
    "levit_128s": 64,
    "efficientvit_b0": 64,
}
#: Whose layers have all to be in integers, on drawn scenes, with so much of the teacher's logits.
TRANSFORMERS = [*list(NETWORKS)[-6:]]
LEAST_DB = 20.0
#: Where the runtime is the student, it differs by rounding at most; float scales round on ties, layer after layer.
LEAST_RUNTIME_DB = {False: 40.0, True: 25.0}
SCENES = {
    "synthesis": {"method": "procedural"},
    "quant": {"scales": "float", "activation_range": "percentile"},
    "floors": [],
}
NOISE = {"method": "noise", "accept_noise": True}
OPTIONS = {
    "bank": {"calibration": 32, "held_out": 16, "grading": 32, "batch": 16},
    "validate": {"latency_repeats": 0},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if hasattr(models, name):
        model: nn.Module = getattr(models, name)()
    else:
        import timm

        sized = {"img_size": NETWORKS[name]} if name.startswith(("deit", "swin", "levit")) else {}
        model = timm.create_model(name, pretrained=False, num_classes=10, **sized)
        waken(model)
    with torch.no_grad():
        for place, parameter in model.named_parameters():  # of the size of what they are added to or joined with
            if place.endswith(("cls_token", "pos_embed")):
                parameter.normal_(0.0, 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high)
    return model.eval()


def row(name: str, out: Path) -> dict[str, Any]:
    """Run one network: its layers, how many are in integers, what is left in dB, and what is wrong, in words."""
    size, scenes = NETWORKS[name], name in TRANSFORMERS
    image = dfqkit.ImageSpec(shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)
    options = {**OPTIONS, **(SCENES if scenes else {"synthesis": NOISE})}
    try:
        result = dfqkit.quantize(network(name), image=image, bits="w8a8", options=options, out=out / name)
    except dfqkit.DfqkitError as error:
        return {"layers": 0, "additions": 0, "wrong": [f"{type(error).__name__}: {error}"]}
    layers, sqnr = result.report.layers, result.report.metric("logit_sqnr_db", "onnxruntime")
    found = {"layers": len(layers), "additions": sum(layer.op == "Add" for layer in layers), "size": size}
    found |= {"sqnr_db": None if sqnr is None else sqnr.value, **in_integers(result.model)}
    wrong = [f"{layer.name} has no SQNR" for layer in layers if layer.sqnr_student_db is None]
    wrong += [
        f"{layer.name} is {layer.sqnr_runtime_db:.1f} dB from the student in the runtime"
        for layer in layers
        if layer.sqnr_runtime_db is not None and layer.sqnr_runtime_db < LEAST_RUNTIME_DB[scenes]
    ]
    if scenes and (found["weighted"][0] < found["weighted"][1] or (found["sqnr_db"] or 0) < LEAST_DB):
        wrong.append(f"{found['weighted']} of linear layers and convolutions in integers, {found['sqnr_db']} dB")
    return found | {"wrong": wrong}


def in_integers(path: Path) -> dict[str, Any]:
    """Count what ONNX Runtime computes on codes, each with how many there are, and name what it computes on floats."""
    graph, ran = onnx.load(path).graph, realised_precision(path)
    stored = {each.name for each in graph.initializer}
    for node in graph.node:  # in order: weights are dequantized, and may be turned, before they are read
        if node.op_type in ("DequantizeLinear", "Transpose", "Reshape", "Constant") and stored.issuperset(
            node.input[:1]
        ):
            stored.update(node.output)
    weighted = {node.name for node in graph.node if stored.intersection(node.input)}
    kinds = {"weighted": [0, 0], "products": [0, 0]}
    for layer in ran.layers:
        if layer.op != "Add":
            kind = kinds["weighted" if layer.name in weighted else "products"]
            kind[0] += layer.precision == "int8"
            kind[1] += 1
    return kinds | {"float_ops": dict(Counter(op for op, _ in ran.float_ops))}


def page(rows: dict[str, dict[str, Any]]) -> str:
    """Return the stored table."""
    lines = [
        "# Transformers and modern blocks, random weights\n",
        f"W8A8, float scales, procedural images, ONNX Runtime. `tests/benchmarks/{Path(__file__).name}` says more.\n",
        "| network | pixels | linear layers and convolutions in integers | products of two activations in integers | "
        "SQNR of the logits, dB | in float |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        counts = [" of ".join(map(str, found[kind])) for kind in ("weighted", "products")]
        left = ", ".join(f"{op} {count}" for op, count in sorted(found["float_ops"].items()))
        lines.append(f"| {name} | {found['size']} | {' | '.join(counts)} | {found['sqnr_db']:.1f} | {left} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=[*NETWORKS, "transformers"])
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="store the table of those that ran")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed, rows = False, {}
    for name in [each for key in args.only for each in (TRANSFORMERS if key == "transformers" else [key])]:
        kept = args.out / f"{name}.json"
        found = json.loads(kept.read_text("utf-8")) if kept.exists() else row(name, args.out)
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        failed = failed or bool(found["wrong"])
        verdict = "; ".join(found["wrong"][:3]) or "every layer has its SQNR"
        print(f"{name}: {found['layers']} layers, {found['additions']} additions: {verdict}", flush=True)
        if "weighted" in found:
            rows[name] = found
            print(page({name: found}).splitlines()[-1], flush=True)
    if args.write is not None:
        args.write.write_text(page(rows), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
