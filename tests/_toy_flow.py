"""Everything that is done with a network of the toy task, command by command, in a Python of its own.

What belongs here: the commands, and what each said, as JSON. A Python of its own, because what other packages offer is
looked up once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import onnx
import torch

from tests._toy_task import NAME, tell_python

RECIPE = f"""
schema: 1
name: toy/scene
why: a second task goes the whole way
task: {NAME}
teacher: {{factory: "tests._toy_task:SceneNet"}}
image: {{shape: [3, 12, 12], mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
synthesis: {{method: zeroq, batch: 32, steps: 3}}
bank: {{calibration: 32, held_out: 16, grading: 48, batch: 16}}
quant: {{bits: w8a8, weight_range: max, activation_range: percentile}}
distill: {{steps: 4, batch: 8, judge_every: 2, partners: [w4a4]}}
validate: {{latency_repeats: 2}}
"""


def main(out: Path) -> None:
    """Do it all in a new folder, and leave ``said.json``: exit code, output and messages by the name of the step."""
    torch.set_num_threads(1)
    site = out / "site"
    tell_python(site)
    sys.path.insert(0, str(site))
    (out / "scene.yaml").write_text(RECIPE, encoding="utf-8")
    run, bundle, worse = out / "run", out / "bundle", out / "worse"
    grading, baseline = run / "images" / "grading.safetensors", out / "baseline.json"
    steps: dict[str, list[str | Path]] = {
        "run": ["run", out / "scene.yaml", "--out", run, "-q", "--device", "cpu"],
        "report": ["report", run],
        "info": ["bank", "info", grading, "--json"],
        "sheet": ["bank", "sheet", grading, "--out", out / "sheet.png"],
        "npz": ["bank", "export", grading, "--npz", out / "set.npz"],
        "inspect": ["inspect", out / "scene.yaml", "--json"],
        "classes": ["run", out / "scene.yaml", "--out", out / "none", "-q", "--set", "synthesis.method=dfq"],
        "compare": ["compare", run / "teacher.onnx", run / "model.onnx", "--images", grading, "--json"],
        "sentinel": ["sentinel", "--model", run / "model.onnx", "--teacher", run / "teacher.onnx", "--images", grading,
                     "--out", out / "sentinel.safetensors"],
        "bundle": ["bundle", run, "--out", bundle],
        "record": ["check", bundle, "--baseline", baseline, "--update"],
        "check": ["check", bundle, "--baseline", baseline],
        "worse": ["check", worse, "--baseline", baseline],
    }  # fmt: skip
    said = {}
    for name, arguments in steps.items():
        if name == "worse":
            damage(bundle, worse)
        said[name] = told([str(argument) for argument in arguments])
    (out / "said.json").write_text(json.dumps(said), encoding="utf-8")


def told(arguments: list[str]) -> tuple[int, str, str]:
    """Give one command; return its exit code, output and messages."""
    from dfqkit.cli import main as command

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(arguments)
    return code, out.getvalue(), err.getvalue()


def damage(bundle: Path, worse: Path) -> None:
    """Copy a bundle with weights of 2 bits in its model, its manifest saying that this is its model."""
    from dfqkit_export.sentinel.probes import Probe, probed

    shutil.copytree(bundle, worse)
    model = probed(onnx.load(worse / "model.onnx"), Probe(kind="weights", bits=2))
    assert model is not None
    data = model.SerializeToString()
    (worse / "model.onnx").write_bytes(data)
    manifest = json.loads((worse / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (worse / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
