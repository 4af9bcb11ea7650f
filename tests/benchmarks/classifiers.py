"""One classifier of every timm module that registers any, with random weights: captured, quantized, written, compared.

    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl              # all; hours on one core
    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl --part 2/4   # every fourth, from the second
    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl --capture-only

For timm 1.0.31, whose modules `classifiers.txt` lists: module, a small classifier, the size of its images (the
smallest that it takes), and further arguments. Weights are what timm starts with; what starts at 0 is woken, and where
logits hardly tell images apart, BatchNorms get the statistics of a few: a signal that dies compares nothing. Images
come of zeroq with one step where the network has BatchNorm statistics, else of noise, and the row says which. They
calibrate a W8A8 student by largest weights and percentiles, without correction of biases and without measured floats:
what decides about files of good accuracy is tried elsewhere, and here only whether there is a file and whether it is
its student. Compared on noise that calibrated nothing, by distances of logits over the range of all of them:

- `file`: the file from its student, with the share of equal bits;
- `rounding`: the student in float64 from itself in float32. Behind a float operator sums round differently in every
  runtime, and where a quantizer follows, a value at a tie takes the next code: no file is nearer than that;
- `steps`: where the two part, the student led by the file's own codes: how far a value lies at most from those that
  have the file's code, in steps of its quantizer (and `led`, in the rows, the outputs' distance then);
- `student`: the student from its teacher;
- `spread`: the largest difference between images in one logit of the teacher, at least LEAST.

A file is its student where `file` is 0, or at most NEAR, or TIMES the `rounding`, and the class is the same wherever
the margin is larger; or where, step by step, it does what its student does with the same codes, but for values at a
tie: `steps` up to TIE, outputs up to NEAR. On processors without VNNI the target is the one for them. A network that
cannot be quantized must be refused in words, and `inspect` must say them.

Each network runs in a process of its own, forked from one that has everything imported, with limits on time and memory.
One JSON line a network goes to --out, and a network that has one is not run again. Ends with a table (--write FILE
stores it, and the rows beside it as JSON), and with 1 where one dies of anything but a refusal, or fewer than NEEDED
hold.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_suffix(".txt")
NEEDED, NEAR, TIMES, TIE, LEAST = 109, 1e-4, 3.0, 0.01, 0.01
SECONDS, GIGABYTES = 1800, 12
IMAGES, TRIED = 4, 8  # for calibration, for the comparison


def listed() -> dict[str, tuple[str, int, dict[str, Any]]]:
    """Model, image size and further arguments, by timm's module."""
    rows = [line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {
        module: (name, int(size), {key: json.loads(value) for key, value in (item.split("=") for item in more)})
        for module, name, size, *more in rows
    }


def tried(module: str, *, capture_only: bool) -> dict[str, Any]:
    """The row of one network; runs in a process of its own."""
    import timm
    import torch

    from dfqkit.students.capture import float_graph
    from dfqkit.teacher.load import load_teacher
    from dfqkit.teacher.structure import provides
    from dfqkit_export.errors import DfqkitError
    from dfqkit_export.images.spec import ImageSpec

    name, size, more = listed()[module]
    found: dict[str, Any] = {"module": module, "name": name, "size": size, "timm": timm.__version__}
    start = time.monotonic()
    teacher = None
    try:
        usual = timm.get_pretrained_cfg(name)
        image = ImageSpec(shape=(3, size, size), mean=usual.mean, std=usual.std, classes=10)
        teacher = load_teacher(f"timm:{name}", image, factory_args=more)
        waken(teacher.model)
        noise = torch.randn((TRIED, *image.shape), generator=torch.Generator().manual_seed(1))
        if spread(teacher.model, noise) < LEAST:
            settle(teacher.model, noise)
        found["spread"] = spread(teacher.model, noise)
        found["method"] = "zeroq" if "batchnorm" in provides(teacher) else "noise"
        graph = float_graph(teacher.model, image)
        found["captured"] = round(time.monotonic() - start, 1)
        if not capture_only:
            found |= written(teacher, graph, found["method"])
    except DfqkitError as error:
        found["refused"] = f"{type(error).__name__}: {error}"
        if not capture_only:  # `inspect` makes the same teacher, and ends with the same words where there is none
            found["inspect"] = inspected(teacher) if teacher is not None else str(error)
    except Exception:
        found["traceback"] = traceback.format_exc()
    return found | {"seconds": round(time.monotonic() - start, 1)}


def waken(model: Any) -> int:
    """Give random weights to layers that start at 0, and scales of branches that start near it a size; count them.

    Without that logits are constant, or a branch adds nothing to them, and nothing is compared.
    """
    import torch

    generator, count = torch.Generator().manual_seed(2), 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            elif not name.endswith("bias") and parameter.numel() > 1 and _is_small_constant(parameter):
                parameter.fill_(0.5)
            else:
                continue
            count += 1
    return count


def settle(model: Any, images: Any) -> None:
    """Give every BatchNorm the statistics that it meets on images (n, C, H, W)."""
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the batch's own, not a step towards them
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(images)
    model.eval()


def spread(model: Any, images: Any) -> float:
    """Return the largest difference between images (n, C, H, W) in one logit, as a share of the range of all."""
    import torch

    with torch.no_grad():
        logits = model(images)
    return float((logits.amax(0) - logits.amin(0)).max() / (logits.max() - logits.min() + 1e-30))


def _is_small_constant(values: Any) -> bool:
    low, high = float(values.min()), float(values.max())
    return low == high and abs(high) <= 0.1


def inspected(teacher: Any) -> str:
    """What `inspect` says stands in the way, which must be in words too."""
    from dfqkit.students.preflight import examine
    from dfqkit.teacher.inspection import inspect_teacher

    return inspect_teacher(teacher, examine).capture_problem or ""


def written(teacher: Any, graph: Any, method: str) -> dict[str, Any]:
    """Quantize a graph, write it, and compare the file with its student."""
    import torch

    from dfqkit.config.quant import QuantConfig
    from dfqkit.students.freezing import freeze
    from dfqkit.students.onnx_file import write_qdq
    from dfqkit.students.student import build_student, calibrate_student
    from dfqkit_export.backends.opening import open_session

    target = own_target()
    scheme = QuantConfig(weight_range="max", activation_range="percentile", bias_correction=False)
    student = build_student(graph, scheme, target, teacher.image)
    calibrate_student(student, [synthetic(teacher, method)], scheme, teacher.image)
    freeze(student)
    images = torch.randn((TRIED, *teacher.image.shape), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = Path(folder) / "model.onnx"
        write_qdq(student, target, model, metadata={})
        exact, ours = graph(images), student(images)
        theirs = torch.from_numpy(open_session("onnxruntime", model, threads=1).run(images.numpy()))
        whole = float(ours.max() - ours.min()) + 1e-30
        parted = float((theirs - ours).abs().max()) > NEAR * whole
        steps, led = led_by(student, model, images, theirs) if parted else (0.0, 0.0)
        finer = ours
        with contextlib.suppress(RuntimeError):  # a graph with constants of its own type: held to NEAR alone
            finer = student.double()(images.double())
    top = ours.topk(2, dim=1).values
    file = (theirs - ours).abs()
    clear = top[:, 0] - top[:, 1] > 2 * file.amax(1)
    return {
        "exported": True,
        "target": target.name,
        "bits": float((theirs == ours).float().mean()),
        "file": float(file.max()) / whole,
        "rounding": float((finer - ours).abs().max()) / whole,
        "steps": steps,
        "led": led / whole,
        "student": float((ours - exact).abs().max()) / whole,
        "same_class": bool((theirs.argmax(1) == ours.argmax(1))[clear].all()),
        "clear": int(clear.sum()),
        "quantizers": len(list(student.get_submodule("quant").children())),
    }


def own_target() -> Any:
    """Return the target whose kernels this processor has: without VNNI, products of 8-bit weights saturate."""
    from dfqkit_export.backends import DEFAULT_TARGET, get_target
    from dfqkit_export.env import environment

    flags = environment()["cpu"]["flags"]
    return get_target("onnxruntime-avx2") if "avx2" in flags and not any("vnni" in f for f in flags) else DEFAULT_TARGET


def led_by(student: Any, model: Path, images: Any, output: Any) -> tuple[float, float]:
    """Run a student on the codes of its file: each part computes with what the file's computed with.

    Returns:
        How far at most a value that the file codes otherwise lies from those that have the file's code, in steps of its
        quantizer, and the largest distance of the outputs. Both infinite where the file, its tensors laid open, gives
        another output (N, classes) than it did.
    """
    import onnx
    import torch
    from torch import fx

    from dfqkit.students.naming import tensor_names
    from dfqkit.students.quantizers import activation_proxy
    from dfqkit_export.backends.opening import open_session

    opened = onnx.load(str(model))
    present = {name for node in opened.graph.node for name in node.output}
    quantizers = {n: name for n, name in tensor_names(student).items() if str(n.target).startswith("quant.")}
    seen = {node: name for node, name in quantizers.items() if name in present}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in seen.values())
    onnx.save(opened, str(model.with_suffix(".open.onnx")))
    session: Any = open_session("onnxruntime", model.with_suffix(".open.onnx"), threads=1)
    first, *rest = map(torch.from_numpy, session.outputs(images.numpy()))
    codes, steps = dict(zip(seen, rest, strict=True)), [0.0]
    if not torch.equal(first, output):
        return float("inf"), float("inf")

    class Led(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n not in codes:
                return value
            far = (self.env[n.args[0]] - codes[n]).abs() / activation_proxy(student.get_submodule(n.target)).scale()
            steps.append(float((far - 0.5)[value != codes[n]].max()) if bool((value != codes[n]).any()) else 0.0)
            return codes[n]

    answer = Led(student, garbage_collect_values=False).run(images)
    return max(steps), float((answer - output).abs().max())


def synthetic(teacher: Any, method: str) -> Any:
    """Images (n, C, H, W) of the method."""
    import torch

    from dfqkit.config.registry import synthesizer_config
    from dfqkit.config.synthesis import Demand
    from dfqkit.synthesis.build import build_synthesizer

    options = {"steps": 1, "batch": IMAGES} if method == "zeroq" else {"accept_noise": True}
    section = synthesizer_config(method).model_validate({"method": method, **options})
    demand = Demand(training=IMAGES, fresh=0)
    made = build_synthesizer(section, teacher, torch.Generator().manual_seed(0), demand)
    for _ in range(made.warmup_rounds):
        made.synthesize([])
    return made.training_batch(IMAGES).detach()


def is_same(row: dict[str, Any]) -> bool:
    """Whether a file computes what its student does."""
    tied = row.get("steps", TIE + 1) <= TIE and row["led"] <= NEAR
    return bool(row["same_class"] and (row["file"] <= max(NEAR, TIMES * row["rounding"]) or tied))


def prepare() -> None:
    """Import what every network needs, and write a small one: children are forked from here."""
    import timm  # noqa: F401
    import torch
    from torch import nn

    import dfqkit.teacher.load  # noqa: F401
    from dfqkit.config.quant import QuantConfig
    from dfqkit.students.capture import float_graph
    from dfqkit.students.onnx_file import float_model
    from dfqkit.students.student import build_student
    from dfqkit_export.images.spec import ImageSpec

    torch.set_num_threads(1)
    image = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=10)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    graph = float_graph(net, image)
    build_student(graph, QuantConfig(), own_target(), image)
    float_model(graph, own_target().opset)
    gc.collect()
    gc.freeze()


def in_child(module: str, *, capture_only: bool) -> dict[str, Any]:
    """The same in a process with limits; a death or a timeout is a row too."""
    import torch

    forks = multiprocessing.get_context("fork")
    here, there = forks.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)  # the first call after a fork makes the pool anew: not for autograd's threads to race
        gc.disable()  # the process is short; a third of an export would go into collections
        resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 2**30,) * 2)
        there.send(tried(module, capture_only=capture_only))

    child = forks.Process(target=work, daemon=True)
    child.start()
    there.close()
    try:
        row: dict[str, Any] = here.recv() if here.poll(SECONDS) else {"died": f"not done after {SECONDS} s"}
    except EOFError:
        child.join()
        row = {"died": f"exit {child.exitcode}"}
    child.kill()
    child.join()
    return {"module": module} | row


def state(row: dict[str, Any], *, capture_only: bool) -> str:
    """What became of a network, in a word or two."""
    if "traceback" in row or "died" in row:
        return "TRACEBACK" if "traceback" in row else "DIED"
    if "refused" in row:
        return "refused" if capture_only or row.get("inspect") else "REFUSED, BUT INSPECT SAYS YES"
    if not row["spread"] >= LEAST:
        return "IMAGES ARE NOT TOLD APART"
    return "captured" if capture_only else "holds" if is_same(row) else "FILE IS NOT STUDENT"


def table(rows: list[dict[str, Any]], *, capture_only: bool) -> str:
    """The rows as Markdown, and the counts."""
    titles = "module | model | pixels | target | images | bits | file | rounding | steps | student | spread | s | "
    lines = [f"| {titles}|", "| --- " * titles.count("|") + "|"]
    for row in rows:
        last = (row.get("traceback", "").splitlines() or [""])[-1] or row.get("died", "") or row.get("refused", "")
        told = f"{state(row, capture_only=capture_only)} {last[:300]}".strip()
        shares = [f"{row[key]:.2g}" if key in row else "" for key in ("file", "rounding", "steps", "student", "spread")]
        bits = f"{100 * row['bits']:.0f} %" if "bits" in row else ""
        told_of = [str(row.get(key, "")) for key in ("module", "name", "size", "target", "method")]
        cells = [*told_of, bits, *shares]
        lines.append("| " + " | ".join([*cells, f"{row.get('seconds', 0):.0f}", told.replace("|", "/")]) + " |")
    counts = Counter(state(row, capture_only=capture_only) for row in rows)
    return "\n".join([*lines, "", f"Of {len(rows)}: " + ", ".join(f"{n} {name}" for name, n in counts.most_common())])


def page(rows: list[dict[str, Any]]) -> str:
    """The stored table, and which networks of the list have no row yet."""
    known = {row["module"] for row in rows}
    missing = [module for module in listed() if module not in known]
    told = f"{(__doc__ or '').splitlines()[0]}\n`tests/benchmarks/{Path(__file__).name}` says what the columns are."
    rest = f"\nNot run yet ({len(missing)}): {', '.join(missing)}.\n" if missing else ""
    return f"# Classifiers of timm\n\n{told}\n\n{table(rows, capture_only=False)}\n{rest}"


def main() -> int:
    """Run what has no row yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="1/1", metavar="I/N")
    parser.add_argument("--only", nargs="*", metavar="MODULE", choices=listed())
    parser.add_argument("--capture-only", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if options.out.is_file():
        rows = {row["module"]: row for row in map(json.loads, options.out.read_text(encoding="utf-8").splitlines())}
    index, count = map(int, options.part.split("/"))
    wanted = list(listed())[index - 1 :: count] if options.only is None else options.only
    if set(wanted) - set(rows):
        prepare()
    for module in wanted:
        if module not in rows:
            rows[module] = in_child(module, capture_only=options.capture_only)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[module]) + "\n")
            told = f"{rows[module].get('seconds', 0):.0f} s"
            print(module, state(rows[module], capture_only=options.capture_only), told, file=sys.stderr, flush=True)
    found = [rows[module] for module in listed() if module in rows]
    print(table(found, capture_only=options.capture_only))
    if options.write is not None:
        lines = ",\n".join(json.dumps(row) for row in found)
        options.write.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        options.write.write_text(page(found), encoding="utf-8")
    states = [state(row, capture_only=options.capture_only) for row in found]
    good = sum(name in ("holds", "captured") for name in states)
    return 1 if any(name.isupper() for name in states) or (len(found) == len(listed()) and good < NEEDED) else 0


if __name__ == "__main__":
    sys.exit(main())
