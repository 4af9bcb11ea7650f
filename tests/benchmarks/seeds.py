"""One recipe over several seeds: mean and spread of what the runtime measures.

    python tests/benchmarks/seeds.py cifar10-resnet20/dfq-w4a4-ort --seeds 0 1 2 --out runs/w4a4

Runs that are complete are not run again, so an interrupted benchmark continues. Writes
OUT/seeds.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from dfqkit.cli import main as dfqkit
from dfqkit_export.report import Report

SHOWN = (
    ("teacher", "top1"),
    ("calibrated", "top1_drop"),
    ("student", "top1_drop"),
    ("onnxruntime", "top1"),
    ("onnxruntime", "top1_drop"),
    ("onnxruntime", "agreement"),
    ("onnxruntime", "student_agreement"),
    ("onnxruntime", "student_top1_gap"),
    ("onnxruntime", "integer_ops"),
)


def main() -> int:
    """Run the seeds and summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="override, as in dfqkit run")
    options = parser.parse_args()
    values: dict[tuple[str, str], list[float]] = {}
    seconds = []
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        if not (folder / "report.json").is_file():
            overrides = [part for item in options.set for part in ("--set", item)]
            code = dfqkit(["run", options.recipe, "--seed", str(seed), "--out", str(folder), *overrides])
            if code not in (0, 1):
                return code
        report = Report.from_json((folder / "report.json").read_text(encoding="utf-8"))
        seconds.append(sum(report.provenance["seconds"].values()))
        for subject, name in SHOWN:
            metric = report.metric(name, subject)
            if metric is not None and metric.value is not None:
                values.setdefault((subject, name), []).append(metric.value)
    summary = {
        f"{subject}.{name}": {
            "mean": statistics.mean(v),
            "stdev": statistics.stdev(v) if len(v) > 1 else None,
            "values": v,
        }
        for (subject, name), v in values.items()
    }
    document = {"recipe": options.recipe, "seeds": options.seeds, "seconds": seconds, "metrics": summary}
    (options.out / "seeds.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for key, entry in summary.items():
        spread = "" if entry["stdev"] is None else f" ± {entry['stdev']:.3f}"
        print(f"{key:32s} {entry['mean']:9.3f}{spread}   ({', '.join(f'{value:.3f}' for value in entry['values'])})")
    print(f"{'seconds':32s} {statistics.mean(seconds):9.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
