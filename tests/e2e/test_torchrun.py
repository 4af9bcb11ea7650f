"""Distillation by two processes, as torchrun starts them: what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_distill import distiller

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys
import torch
from dfqkit.training.ranks import Ranks
from tests.unit.test_distill import distiller

torch.set_num_threads(1)
ranks = Ranks.joined("cpu")
with ranks.met():
    loop = distiller(**json.loads(sys.argv[2]))
    loop.spread(ranks)
    terms = [loop.run_step() for _ in range(loop.config.steps)]
if ranks.first:
    open(sys.argv[1], "w").write(json.dumps([terms, loop.kept_step]))
else:
    assert len(loop.judged) == 1  # one process alone judges
with ranks.met():  # another one, behind work of the first process alone
    assert ranks.told(3.0 if ranks.first else 0.0) == 3.0
"""
SETTING = {
    "steps": 10, "batch": 8, "judge_every": 5, "average": 0.5, "partners": ["w3a3"], "partner_every": 2, "shift": 1,
    "weights": {"response": 0.1, "feature": 10.0, "relation": 1.0}, "quant": {"scales": "float"},
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    program, out = tmp_path / "program.py", tmp_path / "out.json"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(program), str(out), json.dumps(SETTING)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    terms, kept = json.loads(out.read_text())
    alone = distiller(**SETTING)
    expected = [alone.run_step() for _ in range(10)]
    for ours, theirs in zip(terms, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert kept == alone.kept_step
