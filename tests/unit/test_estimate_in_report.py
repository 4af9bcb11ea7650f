"""The estimated drop in a run's report: which images it rests on, and what it is told about the teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dfqkit.config.reading import load_recipe
from dfqkit.run.measuring import _estimate
from dfqkit_export.measure.kinds import Metric


@pytest.fixture
def logits() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    teacher = rng.normal(0.0, 4.3, (256, 10))
    teacher[np.arange(256), np.arange(256) % 10] += 3.0
    return {"teacher": teacher, "student": teacher, "onnxruntime": teacher + rng.normal(0.0, 1.0, teacher.shape)}


def _accuracy(subject: str, value: float) -> Metric:
    return Metric(name="top1", subject=subject, data="real:x", value=value, unit="%", n=10)


def test_it_is_about_the_runtime_and_not_the_student(logits: dict[str, Any]) -> None:
    found = _estimate(logits, load_recipe("digits/dfq-w8a8-ort"), [])
    assert found["trusted"]
    assert found["value"] > 0.05
    assert (found["synthesizer"], found["n"]) == ("dfq", 256)


def test_noise_is_refused(logits: dict[str, Any]) -> None:
    found = _estimate(logits, load_recipe("digits/noise-w8a8-ort"), [])
    assert found["value"] is None
    assert "noise" in found["reason"]


def test_the_teacher_is_judged_by_its_own_accuracy(logits: dict[str, Any]) -> None:
    recipe = load_recipe("digits/dfq-w8a8-ort")
    known = [_accuracy("onnxruntime", 40.0), _accuracy("teacher", 92.0)]
    assert _estimate(logits, recipe, known)["trusted"]
    refused = _estimate(logits, recipe, [_accuracy("teacher", 40.0)])
    assert "float model's top-1 is 40" in refused["reason"]
