"""Networks of other tasks go from recipe to gate: their files are judged, bundled, run by their sample, and checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from dfqkit.cli import main
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.report import Report
from dfqkit_export.tasks import task_in, task_of
from tests._task_nets import INPUTS, TASKS, recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", TASKS)
def test_a_network_goes_from_recipe_to_gate(network: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(network), encoding="utf-8")
    run, bundle, baseline = tmp_path / "run", tmp_path / "bundle", tmp_path / "baseline.json"
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(run), "-q", "--device", "cpu"]) in (0, 1)
    report = Report.from_json((run / "report.json").read_text(encoding="utf-8"))
    file = {metric.name: metric.value for metric in report.metrics if metric.subject == "onnxruntime"}
    assert file["student_agreement"] == 100, "the file is the student"
    assert (file.get("sqnr_db") or file.get("logit_sqnr_db") or 0) > 20
    model = onnx.load(run / "model.onnx")
    if network in INPUTS:
        assert [value.name for value in model.graph.input] == ["left", "right"]
        assert file["integer_ops"] == 100
        assert min(value for name, value in file.items() if name.startswith("sqnr_db:")) >= 25
    task = task_in({entry.key: entry.value for entry in model.metadata_props})
    assert tuple(value.name for value in model.graph.output) == task.names
    stored = StoredBank.open(run / "images" / "grading.safetensors")
    assert task_of(stored.task) == task
    bound = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["bound"]["teacher"]["task"]
    assert task_of(bound) == task
    assert main(["bundle", str(run), "--out", str(bundle)]) == 0
    assert main(["check", str(bundle), "--baseline", str(baseline), "--update", "--reason", "a toy"]) in (0, 1)
    assert main(["check", str(bundle), "--baseline", str(baseline)]) in (0, 1)
    done = subprocess.run(
        [sys.executable, str(bundle / "samples" / "python" / "run.py")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(np.isfinite(values).all() for values in stored.answers.values())
