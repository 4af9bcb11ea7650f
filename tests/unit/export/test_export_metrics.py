from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure import metrics
from dfqkit_export.measure.kinds import STUDENT_AGREEMENT, Metric
from dfqkit_export.tasks import classification

WHERE = {"subject": "s", "data": "d"}


def one_hot(classes: list[int], width: int = 6) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.eye(width)[classes]


def test_top1_counts_and_has_the_binomial_error() -> None:
    metric = classification.top1(one_hot([0, 1, 2, 3]), np.array([0, 1, 2, 5]), **WHERE)
    assert (metric.value, metric.n, metric.unit, metric.higher_is_better) == (75.0, 4, "%", True)
    assert metric.stderr == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))


def test_agreement_needs_no_labels() -> None:
    metric = classification.agreement(one_hot([0, 1, 2, 3, 4]), one_hot([0, 1, 2, 3, 5]), **WHERE)
    assert (metric.name, metric.value) == ("agreement", 80.0)
    assert (
        classification.agreement(one_hot([0]), one_hot([0]), kind=STUDENT_AGREEMENT, **WHERE).name
        == "student_agreement"
    )


def test_paired_drop_is_the_difference_with_the_paired_error() -> None:
    labels = np.zeros(100, np.int64)
    reference = one_hot([0] * 90 + [1] * 10)
    test = one_hot([0] * 87 + [1] * 3 + [0] * 1 + [1] * 9)
    metric = classification.paired_drop(reference, test, labels, **WHERE)
    assert metric.value == pytest.approx(2.0)
    # McNemar's counts: b = 3 lost, c = 1 won.
    assert metric.stderr == pytest.approx(100 * math.sqrt((3 + 1) / 100 - ((3 - 1) / 100) ** 2) / 10)
    independent = math.hypot(*(classification.top1(x, labels, **WHERE).stderr or 0 for x in (reference, test)))
    assert metric.stderr < independent / 2
    assert metric.higher_is_better is False


def test_paired_error_matches_resampling() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    reference = rng.normal(size=(400, 4)) + 2 * np.eye(4)[labels]
    test = reference + 0.5 * rng.normal(size=(400, 4))
    difference = (reference.argmax(1) == labels).astype(float) - (test.argmax(1) == labels)
    draws = [difference[rng.integers(0, 400, 400)].mean() for _ in range(2000)]
    metric = classification.paired_drop(reference, test, labels, **WHERE)
    assert metric.stderr == pytest.approx(100 * np.std(draws), rel=0.1)


def test_kl_has_the_closed_form_of_two_classes() -> None:
    p, q = 0.8, 0.6
    logits = [np.log([[x, 1 - x]]) + shift for x, shift in ((p, 3.0), (q, -7.0))]
    metric = classification.kl(logits[0], logits[1], **WHERE)
    assert metric.value == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert (metric.stderr, metric.unit) == (None, "nats")


def test_kl_survives_large_logits_and_averages() -> None:
    teacher, student = np.array([[1e4, 0.0], [0.0, 0.0]]), np.array([[1e4, 0.0], [math.log(3), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    metric = classification.kl(teacher, student, **WHERE)
    assert metric.value == pytest.approx(expected / 2)
    assert metric.stderr == pytest.approx(expected / 2)


def test_kl_of_itself_is_zero_and_never_negative() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 10))
    assert classification.kl(logits, logits + 0.1, **WHERE).value == pytest.approx(0.0, abs=1e-12)
    assert (classification.kl(logits, logits + 0.1, **WHERE).value or 0.0) >= 0.0


@pytest.mark.parametrize(("ratio", "expected"), [(10.0, 20.0), (100.0, 40.0), (1.0, 0.0), (0.1, -20.0)])
def test_sqnr_of_a_scaled_error(ratio: float, expected: float) -> None:
    reference = np.random.default_rng(0).normal(size=(4, 7))
    value = metrics.sqnr_db(reference, reference * (1 + 1 / ratio))
    assert value == pytest.approx(expected)


def test_sqnr_of_rounding_matches_the_uniform_noise_model() -> None:
    signal = np.random.default_rng(0).uniform(-1, 1, 100_000)
    step = 2 / 2**8
    # Uniform signal of power 1/3 against uniform noise of power step^2 / 12: 6.02 dB a bit.
    assert metrics.sqnr_db(signal, np.round(signal / step) * step) == pytest.approx(20 * math.log10(2**8), abs=0.1)


def test_sqnr_without_a_finite_value_is_none() -> None:
    ones = np.ones(3)
    assert metrics.sqnr_db(ones, ones) is None
    assert metrics.sqnr_db(0 * ones, ones) is None
    assert (metrics.max_abs(ones, ones), metrics.max_abs(0 * ones, -2 * ones)) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((2, 3)), np.array([0]), "2 integers"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "2 integers"),
        (np.zeros((2, 3)), np.array([0, 3]), r"\[0, 3\)"),
        (np.zeros(3), np.array([0]), "shape"),
        (np.zeros((0, 3)), np.array([], np.int64), "at least one image"),
        (np.array([[0.0, np.nan]]), np.array([0]), "1 of 2 values"),
    ],
)
def test_bad_logits_and_labels_are_refused(logits: Any, labels: Any, words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        classification.top1(logits, labels, **WHERE)


def test_pairs_of_different_shape_are_refused() -> None:
    with pytest.raises(ArtefactError, match=r"\(2, 3\) and \(2, 4\)"):
        classification.agreement(np.zeros((2, 3)), np.zeros((2, 4)), **WHERE)


@pytest.mark.parametrize("change", [{"value": math.nan}, {"stderr": math.inf}, {"n": -1}])
def test_metrics_hold_only_what_json_can(change: dict[str, Any]) -> None:
    values: dict[str, Any] = {"name": "m", "subject": "s", "data": "d", "value": 1.0, "unit": "", "n": 1, **change}
    with pytest.raises(ArtefactError, match=r"finite|negative"):
        Metric(**values)
