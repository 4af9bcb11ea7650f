"""What a synthesizer costs beyond the teacher: time of a warm-up round over that of the bare teacher.

    python tests/benchmarks/step_cost.py --repeats 15 --out step_cost.json

The teacher is a CIFAR ResNet-20, with --large FD-MobileNet 0.5x (or the one named) at 224 pixels (use --batch 32
--threads 1), whose bare pass has its channels last, as is faster there; weights come from DFQKIT_ASSETS, else they are
random. With --bf16 a round in bfloat16 is timed in turn with the same round in float32. A round of every
registered synthesizer is timed in turn with as many bare forward and backward passes to the input as the round counts
as its cost, in the same batches; the figure is the median of the ratios. Methods that need a student play against a
copy of the teacher, whose passes are on top. Exits with 1 if a method that optimises pixels without a student is above
--limit.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dfqkit.config.registry import synthesizer_configs
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import implementation
from dfqkit.synthesis.pixels import PixelSynthesizer
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit_export.errors import DfqkitError
from dfqkit_export.images.spec import ImageSpec

IMAGE = ImageSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10)
LARGE = replace(IMAGE, shape=(3, 224, 224), classes=1000)
#: By --large: network, file of its weights, and its images.
TEACHERS = {
    "": ("cifar_resnet20", "cifar10_resnet20.safetensors", IMAGE),
    "fd_mobilenet_05": ("fd_mobilenet_05", "imagenet_fdmobilenet_0.5x.safetensors", LARGE),
    "mobilenet_v1_075": ("mobilenet_v1_075", "imagenet_mobilenetv1_0.75_224.safetensors", LARGE),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes; with one thread of a CPU its own time, which other work on the machine disturbs less."""
    own = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if own else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def bare_pass(teacher: Teacher, batch: int, device: torch.device) -> Callable[[], object]:
    """A forward and a backward to the input, which nothing can do with less."""
    x = torch.randn((batch, *teacher.image.shape), generator=derive(1, "bare", device=device), device=device)
    layout = torch.channels_last if teacher.image == LARGE else torch.contiguous_format
    x = x.contiguous(memory_format=layout).requires_grad_(True)
    return lambda: torch.autograd.grad(teacher.model(x).sum(), x)


def measure(kind: type[SynthesizerConfig], teacher: Teacher, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of one method."""
    device, batch = torch.device(options.device), options.batch
    fields = {"batch": batch} if "batch" in kind.model_fields else {}

    def maker(**more: bool) -> Synthesizer:
        config, rng = kind.model_validate(fields | more), derive(0, "step", device=device)
        return implementation(kind)(config, teacher, rng, Demand(training=batch, fresh=0))

    config = kind.model_validate(fields)
    made = maker(bf16=True) if options.bf16 else maker()
    students = [copy.deepcopy(teacher.model)] if "student" in config.needed else []
    made.synthesize(students)
    before = made.cost
    made.synthesize(students)
    passes = max(1, round((made.cost - before) / batch))
    if made.cost == before or made.warmup_rounds < 2 + options.repeats:
        return {"left_out": "has no warm-up to speak of"}
    bare = bare_pass(teacher, batch, device)
    if options.bf16:
        passes, bare = 1, partial(maker().synthesize, students)
    bare()
    ratios, seconds = [], []
    for _ in range(options.repeats):
        plain = sum(timed(bare, device) for _ in range(passes))
        seconds.append(timed(lambda: made.synthesize(students), device))
        ratios.append(seconds[-1] / plain)
    return {
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "seconds": statistics.median(seconds),
        "passes": passes,
        "student": bool(students),
        "pixels": isinstance(made, PixelSynthesizer),
    }


def main() -> int:
    """Measure all of them, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", nargs="?", const="fd_mobilenet_05", default="", choices=TEACHERS)
    parser.add_argument("--bf16", action="store_true", help="time bfloat16 beside float32; methods on pixels alone")
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    assets = os.environ.get("DFQKIT_ASSETS")
    network, file, image = TEACHERS[options.large]
    weights = Path(assets) / file if assets else None
    teacher = load_teacher(f"dfqkit.models:{network}", image, weights)
    teacher.model.to(options.device)
    found: dict[str, dict[str, Any]] = {}
    print(f"{'method':24s} {'ratio':>6s}  {'quartiles':>13s}  {'seconds':>8s}  passes")
    for name, kind in synthesizer_configs().items():
        if options.methods and name not in options.methods:
            continue
        try:
            found[name] = measure(kind, teacher, options)
        except (DfqkitError, ValidationError) as error:
            found[name] = {"left_out": str(error).replace("\n", " ")}
        row = found[name]
        if "left_out" in row:
            print(f"{name:24s} left out: {row['left_out'][:90]}")
            continue
        low, high = row["quartiles"]
        against = "  (against a student)" if row["student"] else ""
        print(
            f"{name:24s} {row['ratio']:6.3f}  {low:5.3f}..{high:5.3f}  {row['seconds']:8.3f}  {row['passes']}{against}"
        )
    if options.out:
        names = ("repeats", "batch", "threads", "device", "large", "bf16", "limit")
        setting = {name: getattr(options, name) for name in names}
        document = {"teacher": teacher.sha256, "torch": torch.__version__, **setting, "methods": found}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    above = [n for n, row in found.items() if row.get("pixels") and not row["student"] and row["ratio"] > options.limit]
    if above:
        print(f"above {options.limit}: {', '.join(above)}", file=sys.stderr)
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
