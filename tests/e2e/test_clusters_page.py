"""The scripts of docs/clusters.md, as a queue would start them: with stand-ins for the queue's own commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dfqkit.cli import command_line
from dfqkit_export.images.stored import StoredBank

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r'```bash title="([\w.]+)"\n(.*?)^```$', PAGE, re.S | re.M))
DIGITS = ROOT / "recipes" / "digits"
STAND_INS = """
dfqkit() { "$PYTHON" -m dfqkit "$@" -q; }
torchrun() { "$PYTHON" -m torch.distributed.run "$@" $MORE; }
srun() { "$@"; }
scontrol() { echo 127.0.0.1; }
"""


def submitted(name: str, **given: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **given}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", STAND_INS + SCRIPTS[name]],
        capture_output=True, text=True, check=False, timeout=900, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_tasks_of_an_array_make_files_of_which_another_job_makes_the_set(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    text = (DIGITS / "zeroq-w8a8-ort.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("batch: 64, steps: 140", "batch: 4, steps: 5"),
        ("teacher.safetensors", f"{DIGITS}/teacher.safetensors"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text, encoding="utf-8")
    given = {"RECIPE": str(recipe), "N": "12", "SHARD": "4", "OUT": str(tmp_path / "set")}
    done = submitted("array.sh", **given, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "set" / "shard-00001.safetensors").exists()
    assert not (tmp_path / "set" / "shard-00000.safetensors").exists()
    done = submitted("complete.sh", **given)
    assert done.returncode == 0, done.stderr
    bank = StoredBank.open(tmp_path / "set")
    bank.verify()
    assert [shard.n for shard in bank.shards] == [4, 4, 4]


@pytest.mark.slow
def test_one_job_distils_with_two_processes(tmp_path: Path) -> None:
    overrides = ["distill.steps=4", "distill.judge_every=2", "distill.partners=[]", "synthesis.warmup=4", "floors=[]"]
    overrides += [f"bank.{name}=32" for name in ("calibration", "held_out", "grading", "batch")]
    more = ["-q", "--threads", "1", *(word for override in overrides for word in ("--set", override))]
    given = {"RECIPE": "digits/dfq-w4a4-ort", "OUT": str(tmp_path / "run"), "PROCESSES": "2", "MORE": " ".join(more)}
    done = submitted("distil.sh", **given, SLURM_NNODES="1", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="one")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.json").exists()
    assert done.stdout.count("top1_drop") <= 2  # one process talks


def test_the_job_for_kuberay_is_yaml_whose_command_is_ours() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)^```$", PAGE, re.S | re.M)
    job = yaml.safe_load(text)
    args = command_line().parse_args(shlex.split(job["spec"]["entrypoint"])[1:])
    assert (args.cluster, args.count) == ("auto", 1048576)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["nodeSelector"]
