"""What a report says of a target whose own runtime is absent, answers, refuses the file or crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfqkit.run import target_check
from dfqkit.run.target_check import Account, ask_runtime, own_runtime
from dfqkit_export.backends.realised import LayerPrecision, Realised
from dfqkit_export.backends.targets import get_target
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from dfqkit_export.report import Floor, LayerRow

CONV = LayerPrecision(name="conv", op="Conv", precision="int8", executed_as="correlation", detail="")
REALISED = Realised(layers=(CONV,), float_ops=(), nodes={"correlation": 1})
FLOORS = [
    Floor(metric="integer_ops", subject="tensorrt-rtx", value=100.0),
    Floor(metric="agreement", subject="onnxruntime", value=99.0),
]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit_export.backends.tensorrt_rtx.session.find_spec", lambda name: object())


def test_without_rtx_the_report_opens_with_that_and_its_floors_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit_export.backends.tensorrt_rtx.session.find_spec", lambda name: None)
    account = ask_runtime(Path("m.onnx"), get_target("tensorrt"))
    (warning,) = account.warnings
    assert "pip install 'dfqkit[tensorrt-rtx]'" in warning
    assert "has not seen this file" in warning
    assert (account.realised, account.findings, account.metrics()) == (None, (), [])
    assert [floor.subject for floor in account.answerable(FLOORS)] == ["onnxruntime"]


def test_the_family_is_asked_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []

    def realised(path: Path, runtime: str) -> Realised:
        asked.append((path, runtime))
        return REALISED

    monkeypatch.setattr(target_check, "realised_precision", realised)
    account = ask_runtime(Path("m.onnx"), get_target("tensorrt"))
    assert asked == [(Path("m.onnx"), "tensorrt-rtx")]
    (metric,) = account.metrics()
    assert (metric.name, metric.subject, metric.value, metric.n) == ("integer_ops", "tensorrt-rtx", 100.0, 1)
    assert account.answerable(FLOORS) == FLOORS
    assert account.warnings == ()


def test_onnxruntime_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_check, "realised_precision", lambda path, runtime: REALISED)
    assert ask_runtime(Path("m.onnx"), get_target("onnxruntime")).subject == "onnxruntime"


@pytest.mark.parametrize("error", [ArtefactError("Node 'q' is refused."), RuntimeCrashedError("It crashed.")])
def test_a_refusal_or_crash_fails_the_report(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, runtime: str) -> Realised:
        raise error

    monkeypatch.setattr(target_check, "realised_precision", refuse)
    account = ask_runtime(Path("m.onnx"), get_target("tensorrt"))
    (finding,) = account.findings
    assert (finding.subject, finding.message) == ("tensorrt-rtx", str(error))
    # Nothing is excused: the floors on that runtime fail as well.
    assert account.answerable(FLOORS) == FLOORS


def test_rows_tell_what_this_runtime_did_and_nothing_of_another() -> None:
    rows = [
        LayerRow(name="conv", op="Conv", sqnr_student_db=30.0, precision="float", executed_as="FusedConv", detail="x"),
        LayerRow(name="add", op="Add", precision="float", executed_as="Add", detail="y"),
    ]
    told = Account(subject="tensorrt-rtx", realised=REALISED).tell(rows)
    assert [(row.precision, row.executed_as, row.detail) for row in told] == [("int8", "correlation", ""), ("", "", "")]
    assert told[0].sqnr_student_db == 30.0
    assert [row.precision for row in Account(subject="tensorrt-rtx").tell(rows)] == ["", ""]


class _Stand:
    """A runtime that is there or not, and takes the file or not."""

    def __init__(self, missing: str | None = None, error: Exception | None = None) -> None:
        self.missing, self.error = missing, error

    def available(self) -> str | None:
        return self.missing

    def load(self, path: Path) -> str:
        if self.error is not None:
            raise self.error
        return f"session of {path}"


@pytest.mark.parametrize(
    ("stand", "expected"),
    [
        (_Stand(), "session of m.onnx"),
        (_Stand(missing="not installed"), None),
        (_Stand(error=ArtefactError("refused")), None),
        (_Stand(error=RuntimeCrashedError("crashed")), None),
    ],
)
def test_the_targets_own_runtime_computes_too_where_it_can(
    stand: _Stand, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_check, "get_runtime", lambda name: stand)
    assert own_runtime(Path("m.onnx"), get_target("openvino")) == expected


def test_onnxruntime_is_not_run_twice() -> None:
    assert own_runtime(Path("m.onnx"), get_target("onnxruntime")) is None
