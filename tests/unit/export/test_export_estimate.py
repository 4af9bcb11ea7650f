"""The estimated drop: measured against closed forms and simulated truth, and every reason for which there is none."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate import estimate_drop
from dfqkit_export.estimate.calibration import TABLE, Calibration, read_calibration
from dfqkit_export.estimate.features import measure_features
from dfqkit_export.report import Report

Array = NDArray[Any]
STUDY = Path(__file__).parents[3] / "recipes" / "estimate" / "estimate.json"
ANYTHING = {
    "n": (2, 1e9),
    "classes": (2, 1000),
    "variety": (0.0, 1.0),
    "sureness": (0.0, 1e9),
    "divergence": (0.0, 1e9),
    "gain": (0.0, 1e9),
    "teacher_top1": (0.0, 100.0),
}


def constants(**changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "scale": 30.0,
        "power": 1.5,
        "by_classes": 0.25,
        "floor": 0.1,
        "relative": 0.2,
        "measured": 2.0,
        "multiplier": 1.6,
        "level": 0.9,
        "synthesizers": ("dfq",),
        "bounds": ANYTHING,
        "provenance": {},
    }
    return Calibration(**values | changes)


def like_cifar(n: int = 256, seed: int = 0) -> Array:
    """Logits of the size and confidence that the shipped constants were fitted with."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 4.3, (n, 10))
    logits[np.arange(n), np.arange(n) % 10] += 3.0
    return logits


def noisy(logits: Array, std: float, seed: int = 1) -> Array:
    return logits + np.random.default_rng(seed).normal(0.0, std, logits.shape)


def test_gain_and_error_are_those_that_were_put_in() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(0.0, 3.0, (4000, 10))
    # Centred over the classes and orthogonal to the teacher, so that the decomposition is exact.
    error = rng.normal(0.0, 1.0, (4000, 10))
    centred = teacher - teacher.mean(axis=1, keepdims=True)
    error -= error.mean(axis=1, keepdims=True)
    error -= centred * (error * centred).sum() / np.square(centred).sum()
    found = measure_features(teacher, 0.8 * teacher + error + rng.normal(0.0, 9.0, (4000, 1)))
    assert found.gain == pytest.approx(0.8, rel=1e-12)
    assert found.error_std == pytest.approx(math.sqrt(np.square(error).mean()), rel=1e-12)
    assert found.logit_std == pytest.approx(centred.std(), rel=1e-12)
    assert (found.n, found.classes, found.classes_seen) == (4000, 10, 10)


def test_the_standard_error_of_the_divergence_is_the_spread_over_draws() -> None:
    teacher = np.random.default_rng(0).normal(0.0, 3.0, (100, 10))
    draws = [measure_features(teacher, noisy(teacher, 1.0, seed)) for seed in range(1, 201)]
    assert np.mean([draw.kl_stderr for draw in draws]) == pytest.approx(np.std([draw.kl for draw in draws]), rel=0.3)


def test_the_divergence_is_half_of_the_logits_variance_under_the_softmax() -> None:
    """Of small errors e, KL is to second order half the variance of e under the float model's softmax."""
    rng = np.random.default_rng(0)
    teacher, error = rng.normal(0.0, 2.0, (500, 10)), rng.normal(0.0, 0.01, (500, 10))
    share = np.exp(teacher) / np.exp(teacher).sum(axis=1, keepdims=True)
    variance = (share * error**2).sum(axis=1) - (share * error).sum(axis=1) ** 2
    assert measure_features(teacher, teacher + error).kl == pytest.approx(variance.mean() / 2, rel=0.02)


def test_the_drop_is_a_power_of_the_divergence_and_of_the_classes() -> None:
    teacher = like_cifar()
    seen = dataclasses.replace(measure_features(teacher, noisy(teacher, 1.0)), kl=0.04)
    assert constants().drop(seen) == pytest.approx(30.0 * 0.008)
    assert constants().drop(dataclasses.replace(seen, classes=160)) == pytest.approx(2 * 30.0 * 0.008)


def test_equal_logits_give_no_drop_and_an_interval_about_it() -> None:
    teacher = like_cifar()
    found = estimate_drop(teacher, teacher, synthesizer="dfq:grading")
    assert (found.value, found.trusted, found.reason) == (0.0, True, "")
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.0 < found.high < 0.5


def test_fewer_images_give_a_wider_interval() -> None:
    widths, only = [], constants(floor=0.0, relative=0.0, measured=0.0)
    for n in (64, 4096):
        teacher = like_cifar(n)
        found = estimate_drop(teacher, noisy(teacher, 2.0), synthesizer="dfq", calibration=only)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(8.0, rel=0.3)


def test_the_interval_adds_up_what_it_is_made_of() -> None:
    teacher = like_cifar()
    seen = measure_features(teacher, noisy(teacher, 2.0))
    drop = constants().drop(seen)
    parts = [0.1, 0.2 * drop, math.sqrt(2.0 * math.sqrt(seen.kl)), 1.5 * drop * seen.kl_stderr / seen.kl]
    reach = 1.6 * math.sqrt(sum(part**2 for part in parts))
    assert constants().interval(seen) == pytest.approx((drop, drop - reach, drop + reach))
    more = constants(relative=0.0, floor=0.0).deviation(dataclasses.replace(seen, classes=160, kl_stderr=0.0))
    assert more == pytest.approx(math.sqrt(2.0 * 2.0 * math.sqrt(seen.kl)))


def test_more_error_is_a_larger_drop() -> None:
    teacher = like_cifar()
    values = [estimate_drop(teacher, noisy(teacher, std), synthesizer="dfq").value for std in (0.3, 1.0, 2.0)]
    assert None not in values
    assert values == sorted(values, key=lambda value: value or 0.0)


def _refusals() -> dict[str, tuple[Array, Array, dict[str, Any], str]]:
    teacher = like_cifar()
    good = {"synthesizer": "dfq"}
    wide = np.random.default_rng(0).normal(0.0, 4.3, (256, 2000))
    one = teacher.copy()
    one[:, 3] += 30.0
    return {
        "noise": (teacher, noisy(teacher, 1.0), {"synthesizer": "noise"}, "made by 'noise'"),
        "few": (teacher[:16], noisy(teacher[:16], 1.0), good, "number of images is 16"),
        "classes": (wide, noisy(wide, 1.0), good, "number of classes is 2000"),
        "one class": (one, noisy(one, 1.0), good, "share of the classes"),
        "unsure": (teacher / 4, noisy(teacher / 4, 0.1), good, "confidence as a multiple of chance"),
        "large error": (teacher, noisy(teacher, 9.0), good, "divergence of the file's answers"),
        "broken": (teacher, -teacher, good, "do not follow"),
        "constant": (teacher, np.zeros_like(teacher), good, "do not follow"),
        "accuracy": (teacher, noisy(teacher, 1.0), good | {"teacher_top1": 20.0}, "float model's top-1 is 20"),
    }


@pytest.mark.parametrize("case", _refusals())
def test_it_gives_a_reason_in_place_of_a_number(case: str) -> None:
    teacher, student, options, words = _refusals()[case]
    found = estimate_drop(teacher, student, **options)
    assert (found.value, found.low, found.high, found.trusted) == (None, None, None, False)
    assert words in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (np.ones((4, 3)), np.ones((4, 2))),
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.ones((4, 1)), np.ones((4, 1))),
        (np.ones((4, 3)), np.full((4, 3), np.nan)),
    ],
)
def test_logits_that_cannot_be_compared_are_an_error(teacher: Array, student: Array) -> None:
    with pytest.raises(ArtefactError):
        estimate_drop(teacher, student, synthesizer="dfq")


def test_a_report_carries_it() -> None:
    teacher = like_cifar()
    found = estimate_drop(teacher, noisy(teacher, 1.0), synthesizer="dfq").to_dict()
    again = Report.from_json(Report(title="t", estimate=found).to_json())
    assert again.estimate == found
    assert again.estimate["low"] < again.estimate["value"] < again.estimate["high"]


@pytest.mark.parametrize("change", ["schema", "field", "text", "gone"])
def test_a_damaged_table_is_an_error(tmp_path: Path, change: str) -> None:
    path = tmp_path / "estimate.json"
    document = json.loads(TABLE.read_text())
    if change == "schema":
        document["schema"] = 99
    elif change == "field":
        del document["scale"]
    if change != "gone":
        path.write_text("{" if change == "text" else json.dumps(document))
    with pytest.raises(ArtefactError, match=r"estimate\.json"):
        read_calibration(path)


def test_the_shipped_constants_are_those_of_the_study() -> None:
    study = json.loads(STUDY.read_text())["constants"]
    shipped = json.loads(TABLE.read_text())
    assert shipped.pop("schema") == 2
    assert shipped == study


def test_the_study_meets_its_bar_with_each_teacher_left_out() -> None:
    """Recomputed from its rows, none of which the constants that judged it had seen."""
    study = json.loads(STUDY.read_text())
    rows = [row for row in study["rows"] if row["truth"] <= 10.0]
    trusted = [row for row in rows if "value" in row]
    assert len({row["teacher"] for row in rows}) >= 8
    assert len({row["teacher"] for row in trusted}) >= 7
    assert len(trusted) >= 0.8 * len(rows)
    truth, value = (np.array([row[key] for row in trusted]) for key in ("truth", "value"))
    assert np.abs(value - truth)[truth < 3].mean() <= 0.5
    inside = np.array([row["low"] <= row["truth"] <= row["high"] for row in trusted])
    assert inside.mean() >= 0.85
