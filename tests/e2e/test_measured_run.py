"""A run whose measurement leaves tensors in float, killed in distillation: continued, it ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dfqkit
from dfqkit.run import playing
from dfqkit.run.folder import RunFolder
from dfqkit.training.quantized_student import QuantizedStudentTrainer
from dfqkit_export.measure.kinds import INTEGER_OPS
from tests._islands import PLAIN, apart

_OPTIONS = {
    "synthesis": {"method": "dafl", "batch": 16, "width": 8, "latent": 16, "warmup": 1, "memory": 16},
    "bank": {"calibration": 32, "held_out": 16, "grading": 16, "batch": 16},
    "distill": {"steps": 4, "batch": 8, "round_every": 2, "judge_every": 2, "partners": ["w4a8"]},
    "quant": {"weight_range": "max", "activation_range": "percentile"},
    "validate": {"latency_repeats": 0},
}
_SAME = ("calibrated.safetensors", "partner1.safetensors", "student.safetensors", "model.onnx")


def _run(out: Path) -> dfqkit.Result:
    return dfqkit.quantize(apart(3000.0), image=PLAIN, out=out, options=_OPTIONS)


@pytest.mark.slow
def test_it_is_continued_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    step = QuantizedStudentTrainer.run_step

    def until_the_third(self: QuantizedStudentTrainer) -> dict[str, float]:
        if self.step == 2:
            raise Killed
        return step(self)

    whole = _run(tmp_path / "whole")
    assert any("dB" in reason for reason in whole.report.provenance["kept in float"].values())
    assert any(row.precision == "float" for row in whole.report.layers)
    assert not [finding for finding in whole.report.findings if finding.metric == INTEGER_OPS.name]
    monkeypatch.setattr(playing, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedStudentTrainer, "run_step", until_the_third)
        with pytest.raises(Killed):
            _run(tmp_path / "killed")
    assert RunFolder.open(tmp_path / "killed").load_state("distill") is not None
    torch.manual_seed(1234)
    _run(tmp_path / "killed")
    for name in _SAME:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
