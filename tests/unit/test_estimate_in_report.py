"""The estimated drop in a run's report: which images it rests on, and what it is told about the teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dfqkit.run.measuring import estimated_drop
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.tasks import DEFAULT_TASK
from dfqkit_export.tasks.classification import LOGITS


@pytest.fixture
def logits() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    teacher = rng.normal(0.0, 4.3, (256, 10))
    teacher[np.arange(256), np.arange(256) % 10] += 3.0
    noisy = teacher + rng.normal(0.0, 1.0, teacher.shape)
    return {"teacher": {LOGITS: teacher}, "student": {LOGITS: teacher}, "onnxruntime": {LOGITS: noisy}}


def _accuracy(subject: str, value: float) -> Metric:
    return Metric(name="top1", subject=subject, data="real:x", value=value, unit="%", n=10)


def test_it_is_about_the_runtime_and_not_the_student(logits: dict[str, Any]) -> None:
    found = estimated_drop(DEFAULT_TASK, logits, "dfq", [])
    assert found["trusted"]
    assert found["value"] > 0.05
    assert (found["synthesizer"], found["n"]) == ("dfq", 256)


def test_noise_is_refused(logits: dict[str, Any]) -> None:
    found = estimated_drop(DEFAULT_TASK, logits, "noise", [])
    assert found["value"] is None
    assert "noise" in found["reason"]


def test_the_teacher_is_judged_by_its_own_accuracy(logits: dict[str, Any]) -> None:
    known = [_accuracy("onnxruntime", 40.0), _accuracy("teacher", 92.0)]
    assert estimated_drop(DEFAULT_TASK, logits, "dfq", known)["trusted"]
    refused = estimated_drop(DEFAULT_TASK, logits, "dfq", [_accuracy("teacher", 40.0)])
    assert "float model's top-1 is 40" in refused["reason"]
