"""Baselines and tolerances that compare nothing are refused, with what to do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate import Baseline, Case, Options, Recorded, check_metrics, conclude, read_baseline
from dfqkit_export.gate.baseline import require_comparing
from dfqkit_export.gate.change import Change, times
from dfqkit_export.gate.compare import check
from dfqkit_export.gate.filerows import with_reasons
from dfqkit_export.gate.measurement import Measurement
from dfqkit_export.gate.verdicts import Row
from dfqkit_export.measure.kinds import AGREEMENT, KL
from dfqkit_export.report import Report
from tests._messages import names

GOOD = {
    "agreement": {"value": 99.0, "stderr": 0.5, "n": 300, "tolerance": 1.5, "higher_is_better": True},
    "kl": {"value": 0.002, "stderr": 0.001, "n": 300, "tolerance": 0.003, "higher_is_better": False},
}


def written(path: Path, metrics: dict[str, Any]) -> Path:
    file = path / "baseline.json"
    file.write_text(json.dumps({"schema": 1, "cases": {"net": {"metrics": metrics}}, "environment": {}}))
    return file


def test_a_sound_baseline_is_read(tmp_path: Path) -> None:
    assert read_baseline(written(tmp_path, GOOD)).cases["net"].metrics["kl"].tolerance == 0.003


@pytest.mark.parametrize(
    ("metric", "field", "value"),
    [
        ("agreement", "higher_is_better", False),
        ("kl", "higher_is_better", True),
        ("agreement", "tolerance", 1e29),
        ("agreement", "tolerance", 100),
        ("agreement", "tolerance", -1.0),
        ("agreement", "tolerance", math.nan),
        ("agreement", "tolerance", math.inf),
        ("kl", "tolerance", 50.0),
        ("kl", "tolerance", -1e-9),
        ("agreement", "stderr", 1e12),
        ("kl", "stderr", -1.0),
    ],
)
def test_a_metric_that_could_not_fail_is_refused(metric: str, field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        require_comparing(
            "net", read_baseline(written(tmp_path, {**GOOD, metric: {**GOOD[metric], field: value}})).cases["net"]
        )
    names(str(caught.value), "--update")


def test_a_case_without_metrics_is_refused(tmp_path: Path) -> None:
    report = Report(title="net", metrics=[AGREEMENT.metric(subject="onnxruntime", data="real:t", value=9.0, n=9)])
    (tmp_path / "report.json").write_text(report.to_json())
    base = read_baseline(written(tmp_path, {}))
    base = Baseline(cases={"net (report)": base.cases["net"]})
    outcome = check([tmp_path / "report.json"], base)
    assert outcome.exit_code == 2
    names(outcome.cases[0].error, "net", "metrics", "--update")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_refused(value: float) -> None:
    with pytest.raises(ArtefactError) as caught:
        check([], Baseline(), Options(tolerances={"agreement": value}))
    names(str(caught.value), "agreement")


def test_a_tolerance_that_compares_nothing_is_not_recorded() -> None:
    metrics = {"agreement": AGREEMENT.metric(subject="file", data="sentinel", value=99.0, n=100)}
    with pytest.raises(ArtefactError) as caught:
        check_metrics("net", metrics, Baseline(), Options(update=True, tolerances={"agreement": 1e29}))
    names(str(caught.value), "agreement", "--tolerance")


def test_another_graph_fails_where_the_baseline_counts_none() -> None:
    new = Row(metric="structure", verdict="new", now=1.0)
    wrong = Change(layer="pool", kind="graph", text="MaxPool pool: pads was 0 and is 1", wrong=True)
    (row,) = with_reasons([new], [wrong], Measurement(name="net", metrics={}), None)
    assert row.verdict == "regressed"
    assert "MaxPool pool" in row.reason


def test_a_report_that_fails_has_no_single_cause() -> None:
    base = Baseline(
        cases={
            "net": Case(metrics={"kl": Recorded(value=0.01, stderr=None, n=9, tolerance=0.01, higher_is_better=False)})
        }
    )
    case = check_metrics("net", {"kl": KL.metric(subject="file", data="sentinel", value=2.0, n=9)}, base)
    assert conclude([case], base).exit_code == 1
    assert "no single cause" in " ".join(case.causes)


@pytest.mark.parametrize("ratio", [1.0, 0.9999, 1.004, 0.98, 2.0, 0.5, 1e-7, 1.96])
def test_no_ratio_is_told_as_one_time(ratio: float) -> None:
    assert times(ratio) != "1 times"
    assert times(2.0) == "2 times"
    assert times(1.003) == "0.3 % more than"
