"""Whether every layer of deep networks, additions too, has its SQNR in the report of a run.

    python tests/benchmarks/layer_rows.py --out runs/layer_rows
    python tests/benchmarks/layer_rows.py --out runs/layer_rows --only cifar_resnet56 repvgg_a0

Weights are random, BatchNorm statistics as training could have left them; images are noise, named as such: figures say
that a run ends and that layers are compared with themselves, nothing about accuracy. Needs timm. Rows are kept in
OUT/NAME.json and not computed again. Exits with 1 where a run fails, a layer has no SQNR, or the runtime is off.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dfqkit
from dfqkit import models

#: Side of the images, by network; those that `dfqkit.models` lacks are timm's.
NETWORKS = {
    **{f"cifar_resnet{depth}": 32 for depth in (20, 32, 44, 56, 110)},
    "repvgg_a0": 32,
    "levit_128s": 224,
    "efficientvit_b0": 64,
}
#: Where the runtime is the student, it differs by rounding at most.
LEAST_RUNTIME_DB = 40.0
OPTIONS = {
    "synthesis": {"method": "noise", "accept_noise": True},
    "bank": {"calibration": 32, "held_out": 16, "grading": 32, "batch": 16},
    "validate": {"latency_repeats": 0},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if hasattr(models, name):
        model: nn.Module = getattr(models, name)()
    else:
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=10)
    with torch.no_grad():
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
    """Run one network; what is missing, in words, and how many layers there are."""
    size = NETWORKS[name]
    image = dfqkit.ImageSpec(shape=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)
    try:
        result = dfqkit.quantize(network(name), image=image, bits="w8a8", options=OPTIONS, out=out / name)
    except dfqkit.DfqkitError as error:
        return {"layers": 0, "additions": 0, "wrong": [f"{type(error).__name__}: {error}"]}
    layers = result.report.layers
    wrong = [f"{layer.name} has no SQNR" for layer in layers if layer.sqnr_student_db is None]
    wrong += [
        f"{layer.name} is {layer.sqnr_runtime_db:.1f} dB from the student in the runtime"
        for layer in layers
        if layer.sqnr_runtime_db is not None and layer.sqnr_runtime_db < LEAST_RUNTIME_DB
    ]
    return {"layers": len(layers), "additions": sum(layer.op == "Add" for layer in layers), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in args.only:
        kept = args.out / f"{name}.json"
        found = json.loads(kept.read_text("utf-8")) if kept.exists() else row(name, args.out)
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        failed = failed or bool(found["wrong"])
        verdict = "; ".join(found["wrong"][:3]) or "every layer has its SQNR"
        print(f"{name}: {found['layers']} layers, {found['additions']} additions: {verdict}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
