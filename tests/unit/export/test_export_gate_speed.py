"""The gate where it demands that a file is so many times as fast as in float."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dfqkit.cli import main
from dfqkit_export.bundle import Order, write_bundle
from dfqkit_export.gate import Baseline, CaseOutcome, Options, Row, check_path, conclude, render_markdown, speed
from dfqkit_export.measure.latency import Timing
from tests.unit.export._bundles import list_run, write_net, write_run

MEASURED = Timing(median=1, min=1, max=1, p10=1, p90=1, ratio=1.5, ratio_low=1.4, ratio_high=1.6)


@pytest.fixture
def run(tmp_path: Path, qdq: Any) -> Path:
    return made(tmp_path, qdq)


def made(folder: Path, qdq: Any, **metadata: str) -> Path:
    """A run with a sentinel set of its own, and its bundle beside it."""
    run = write_run(folder / "run", qdq, **metadata)
    write_bundle(Order(run=run, out=folder / "b"))
    shutil.copy(folder / "b" / "sentinel.safetensors", run)
    list_run(run)
    return run


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """What is measured: the last one that a test puts here."""
    found = [MEASURED]
    monkeypatch.setattr(speed, "timed", lambda *_: found[-1])
    return found


def checked(path: Path, least: float | None = 1.5, **options: Any) -> CaseOutcome:
    return check_path(path, Baseline(), Options(min_speedup=least, **options))


def row_of(outcome: CaseOutcome) -> Row:
    assert not outcome.error
    return next(row for row in outcome.rows if row.metric == "speedup")


@pytest.mark.parametrize(
    ("least", "verdict"), [(1.3, "ok"), (1.5, "ok"), (1.6, "ok"), (1.601, "failed"), (math.nan, "failed")]
)
def test_only_an_interval_that_lies_below_as_a_whole_fails(
    run: Path, timings: list[Timing], least: float, verdict: str
) -> None:
    row = row_of(checked(run, least))
    assert (row.verdict, row.now, row.n) == (verdict, 1.5, 50)
    assert "1.50 times as fast as in float [1.40, 1.60], in 50 runs" in row.reason


def test_times_that_are_no_numbers_fail(run: Path, timings: list[Timing]) -> None:
    timings.append(replace(MEASURED, ratio=math.nan, ratio_low=math.nan, ratio_high=math.nan))
    assert row_of(checked(run)).verdict == "failed"


def test_nothing_is_timed_unless_that_is_demanded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "timed", lambda *_: pytest.fail("timed"))
    assert not [row for row in checked(run, None).rows if row.metric == "speedup"]


def test_where_nothing_can_be_timed_the_check_fails_and_says_why(run: Path, timings: list[Timing]) -> None:
    bundle = run.parent / "b"
    row = row_of(checked(bundle))
    assert row.verdict == "missing"
    assert "--teacher FLOAT.onnx" in row.reason
    assert row_of(checked(bundle, teacher=str(run / "teacher.onnx"))).verdict == "ok"
    assert "optimizations are off" in row_of(checked(run, optimized=False)).reason
    assert row_of(checked(run / "report.json")).verdict == "missing"


def test_a_file_whose_runtime_is_not_here_is_not_timed_elsewhere(
    tmp_path: Path, qdq: Any, timings: list[Timing]
) -> None:
    row = row_of(checked(made(tmp_path, qdq, target="tensorrt")))
    assert row.verdict == "missing"
    assert "Nothing is timed" in row.reason


def test_only_the_teacher_in_float_is_timed_beside(run: Path, tmp_path: Path, qdq: Any, timings: list[Timing]) -> None:
    for file, told in (
        (run / "model.onnx", "runs in integers itself"),
        (tmp_path / "none.onnx", "is not there"),
        (_another(write_net(qdq, tmp_path / "other.onnx", quantized=False)), "another network"),
    ):
        outcome = checked(run, teacher=str(file))
        assert told in outcome.error
        assert outcome.exit_code == 2


def _another(path: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if numpy_helper.to_array(tensor).ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)
    return path


def test_an_update_records_nothing_that_is_too_slow(run: Path, timings: list[Timing]) -> None:
    outcome = conclude([checked(run, 2.0, update=True)], Baseline(), Options(update=True))
    assert outcome.failed
    assert outcome.baseline is not None
    assert not outcome.baseline.cases
    assert "below 2" in render_markdown(outcome)


def test_the_command_times_both_files_and_writes_junit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one test that measures; it demands nothing that depends on the machine."""
    base = ["--baseline", str(run.parent / "base.json")]
    bundle = ["check", str(run.parent / "b"), *base]
    assert main([*bundle, "--teacher", str(run / "teacher.onnx")]) == 2
    assert main([*bundle, "--update-in-ci"]) == 0
    junit = run.parent / "junit.xml"
    timed = [*bundle, "--teacher", str(run / "teacher.onnx"), "--junit-xml", str(junit)]
    assert main([*timed, "--min-speedup", "1e-6"]) == 0
    assert main([*timed, "--min-speedup", "1e6"]) == 1
    assert "speedup" in capsys.readouterr().out
    test = next(each for each in ElementTree.parse(junit).iter("testcase") if each.get("name") == "speedup")
    failure = test.find("failure")
    assert failure is not None
    assert "in 50 runs of each in turns" in (failure.get("message") or "")
