"""The gate against what else goes wrong in a file, in its graph, and in what is deployed beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dfqkit_export.gate import Baseline, CaseOutcome, Options, check_path
from tests import _more_faults
from tests._faults import FAULTS
from tests._gate_toy import make_bundle

#: One of each kind: numbers, graph, interface, bundle.
FAST = (
    "bias_negated", "zero_point_read_otherwise_than_written", "answer_overridden_in_large_batches",
    "residual_taken_off",
    "labels_swapped", "a_file_that_no_manifest_lists", "sample_code_changed", "another_number_of_classes",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    return _more_faults.prepared(make_bundle(folder / "plain", rich=True), folder / "good")


@pytest.fixture(scope="module")
def baseline(bundle: Path) -> Baseline:
    made = check_path(bundle, Baseline(), Options(update=True, threads=1))
    assert made.entry is not None
    found = Baseline(cases={made.name: made.entry})
    assert not check_path(bundle, found, Options(threads=1)).failed()
    return found


def said(case: CaseOutcome) -> str:
    return " ".join([case.error, *case.causes])


def test_there_are_faults_enough() -> None:
    assert len({*_more_faults.FAULTS, *FAULTS}) >= 56 + 20


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in _more_faults.FAULTS],
)
def test_a_fault_fails_the_check_and_is_named(name: str, bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    assert _more_faults.inject(name, bundle, tmp_path / "faulty"), "the toy has all that faults are about"
    case = check_path(tmp_path / "faulty", baseline, Options(threads=1))
    assert case.failed()
    for words in _more_faults.FAULTS[name].words:
        assert any(word in said(case) for word in words), said(case)


def test_what_was_recorded_beside_the_model_is_no_alarm(bundle: Path, tmp_path: Path) -> None:
    """A program of the vendor's and a file more, once they are in the baseline."""
    for name in ("a_program_more", "sample_code_changed", "a_file_that_no_manifest_lists", "labels_swapped"):
        _more_faults.inject(name, bundle, tmp_path / name)
        made = check_path(tmp_path / name, Baseline(), Options(update=True, threads=1))
        assert made.entry is not None
        again = check_path(tmp_path / name, Baseline(cases={made.name: made.entry}), Options(threads=1))
        assert not again.failed(), again.rows


def test_a_failure_that_nothing_explains_says_so(bundle: Path, baseline: Baseline) -> None:
    ((name, entry),) = baseline.cases.items()
    row = entry.metrics["logit_sqnr_db"]
    better = {**entry.metrics, "logit_sqnr_db": replace(row, value=(row.value or 0) + 30, stderr=0.0)}
    changed = Baseline(cases={name: replace(entry, metrics=better, images={})})
    case = check_path(bundle, changed, Options(threads=1))
    assert case.failed()
    assert "no single cause" in said(case)
