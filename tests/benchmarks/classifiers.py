"""One classifier of every timm module that registers any, with random weights: captured, quantized, written, compared.

    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl              # all; hours on one core
    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl --part 2/4   # every fourth, from the second
    python tests/benchmarks/classifiers.py --out runs/classifiers.jsonl --capture-only

For timm 1.0.31, whose modules `classifiers.txt` lists: module, the smallest of its classifiers, the size of its images
(the smallest that it takes), and further arguments. Images come of zeroq with a few steps where the network has
BatchNorm statistics, else of noise, and the row says which. A row holds: whether `float_graph` captures the network;
whether a whole run ends with a file; how far the file's logits are from the student's (`file`, a relative error) and
the student's from the teacher's (`student`), on noise. File = student where `file` is below LARGEST, or a tenth of what
quantization itself changed. A network that cannot be quantized must be refused in words, and `inspect` must say them.
Each network runs in a process of its own, with limits on time and memory. One JSON line a network goes to --out, and a
network that has one is not run again. Ends with a table, and with 1 where one dies of anything but a refusal, or fewer
than NEEDED hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_suffix(".txt")
NEEDED, LARGEST = 109, 0.03
SECONDS, GIGABYTES = 900, 12
SIZES = {"calibration": 8, "held_out": 4, "grading": 8, "batch": 4}


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
    torch.set_num_threads(1)
    found: dict[str, Any] = {"module": module, "name": name, "size": size, "timm": timm.__version__}
    start = time.monotonic()
    try:
        usual = timm.get_pretrained_cfg(name)
        image = ImageSpec(shape=(3, size, size), mean=usual.mean, std=usual.std, classes=10)
        teacher = load_teacher(f"timm:{name}", image, factory_args=more)
        found["method"] = "zeroq" if "batchnorm" in provides(teacher) else "noise"
        float_graph(teacher.model, image)
        found["captured"] = time.monotonic() - start
        if not capture_only:
            found |= written(teacher, found["method"])
    except DfqkitError as error:
        found["refused"] = f"{type(error).__name__}: {error}"
        if not capture_only:
            found["inspect"] = inspected(teacher)
    except Exception:
        found["traceback"] = traceback.format_exc()
    return found | {"seconds": time.monotonic() - start}


def inspected(teacher: Any) -> str:
    """What `inspect` says stands in the way, which must be in words too."""
    from dfqkit.students.preflight import examine
    from dfqkit.teacher.inspection import inspect_teacher

    return inspect_teacher(teacher, examine).capture_problem or ""


def written(teacher: Any, method: str) -> dict[str, Any]:
    """Run to the end, and compare the file with its student."""
    import torch

    import dfqkit
    from dfqkit.progress import silent
    from dfqkit.run.context import Context
    from dfqkit.run.distill import FINAL
    from dfqkit.run.execution import recipe_of
    from dfqkit.run.folder import RunFolder
    from dfqkit_export.backends.opening import open_session

    synthesis = {"method": method, **({"steps": 2, "batch": 4} if method == "zeroq" else {"accept_noise": True})}
    with tempfile.TemporaryDirectory() as out:
        options = {"synthesis": synthesis, "bank": SIZES, "validate": {"latency_repeats": 0}, "device": "cpu"}
        result = dfqkit.quantize(teacher, out=Path(out) / "run", options=options)
        folder = RunFolder.open(result.folder)
        device = torch.device("cpu")
        context = Context(folder=folder, recipe=recipe_of(folder), device=device, progress=silent(), given=teacher)
        student = context.stored_student(context.scheme, FINAL)
        images = torch.randn((3, *teacher.image.shape), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            float_logits, ours = teacher.model(images), student(images)
        theirs = torch.from_numpy(open_session("onnxruntime", result.model, threads=1).run(images.numpy()))
        empty = sum(row.sqnr_db is None for row in result.report.layers)
    norm = float(ours.norm()) + 1e-12
    return {
        "exported": True,
        "verdict": result.report.verdict,
        "rows_without_sqnr": f"{empty} of {len(result.report.layers)}",
        "file": float((theirs - ours).norm()) / norm,
        "student": float((ours - float_logits).norm()) / norm,
    }


def is_same(row: dict[str, Any]) -> bool:
    """Whether a file computes what its student does."""
    return "file" in row and row["file"] < max(LARGEST, 0.1 * row["student"])


def in_child(module: str, *, capture_only: bool) -> dict[str, Any]:
    """The same in a process with limits; a death or a timeout is a row too."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", module, *(["--capture-only"] * capture_only)]
    limit = GIGABYTES * 2**30
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )  # fmt: skip
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"module": module, "died": f"not done after {SECONDS} s"}
    except (ValueError, IndexError):
        return {"module": module, "died": f"exit {done.returncode}: {done.stderr[-2000:]}"}
    return row


def state(row: dict[str, Any], *, capture_only: bool) -> str:
    """What became of a network, in a word or two."""
    if "traceback" in row or "died" in row:
        return "TRACEBACK" if "traceback" in row else "DIED"
    if "refused" in row:
        return "refused" if capture_only or row.get("inspect") else "REFUSED, BUT INSPECT SAYS YES"
    return "captured" if capture_only else "holds" if is_same(row) else "FILE IS NOT STUDENT"


def table(rows: list[dict[str, Any]], *, capture_only: bool) -> str:
    """The rows as Markdown, and the counts."""
    lines = ["| module | model | images | method | file / student | s | |", "| --- " * 7 + "|"]
    for row in rows:
        last = (row.get("traceback", "").splitlines() or [""])[-1] or row.get("died", "") or row.get("refused", "")
        distance = f"{row['file']:.2g} / {row['student']:.2g}" if "file" in row else ""
        told = f"{state(row, capture_only=capture_only)} {last[:160]}"
        seconds = f"{row.get('seconds', 0):.0f}"
        cells = [row["module"], row.get("name", ""), str(row.get("size", "")), row.get("method", ""), distance, seconds]
        lines.append("| " + " | ".join([*cells, told.replace("|", "/")]) + " |")
    counts = Counter(state(row, capture_only=capture_only) for row in rows)
    return "\n".join([*lines, "", ", ".join(f"{count} {name}" for name, count in counts.most_common())])


def main() -> int:
    """Run what has no row yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", default="1/1", metavar="I/N")
    parser.add_argument("--only", nargs="+", metavar="MODULE", choices=listed())
    parser.add_argument("--capture-only", action="store_true")
    parser.add_argument("--one", choices=listed(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(tried(options.one, capture_only=options.capture_only)))
        return 0
    if options.out is None:
        parser.error("--out FILE is needed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if options.out.is_file():
        rows = {row["module"]: row for row in map(json.loads, options.out.read_text(encoding="utf-8").splitlines())}
    index, count = map(int, options.part.split("/"))
    for module in options.only or list(listed())[index - 1 :: count]:
        if module not in rows:
            rows[module] = in_child(module, capture_only=options.capture_only)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[module]) + "\n")
            print(module, state(rows[module], capture_only=options.capture_only), file=sys.stderr, flush=True)
    found = [rows[module] for module in listed() if module in rows]
    print(table(found, capture_only=options.capture_only))
    states = [state(row, capture_only=options.capture_only) for row in found]
    good = sum(name in ("holds", "captured") for name in states)
    return 1 if any(name.isupper() for name in states) or (len(found) == len(listed()) and good < NEEDED) else 0


if __name__ == "__main__":
    sys.exit(main())
