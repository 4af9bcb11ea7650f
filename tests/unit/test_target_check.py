"""What a report says of a target whose own runtime is absent, answers, refuses the file or crashes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from dfqkit.run import target_check
from dfqkit.run.target_check import Account, ask_runtime, own_runtime
from dfqkit_export.backends import get_backend, get_target
from dfqkit_export.backends.base import Backend, Options
from dfqkit_export.backends.precision import LayerPrecision, Realised
from dfqkit_export.backends.session import Session
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from dfqkit_export.report import Floor, LayerRow

CONV = LayerPrecision(name="conv", op="Conv", precision="int8", executed_as="correlation", detail="")
REALISED = Realised(layers=(CONV,), float_ops=(), nodes={"correlation": 1})
SESSION = cast("Session", object())
FLOORS = [
    Floor(metric="integer_ops", subject="tensorrt-rtx", value=100.0),
    Floor(metric="agreement", subject="onnxruntime", value=99.0),
]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: object())


def test_without_rtx_the_report_opens_with_that_and_its_floors_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None)
    account = ask_runtime(Path("m.onnx"), get_target("tensorrt"))
    (warning,) = account.warnings
    assert "[tensorrt-rtx]'" in warning
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


@pytest.mark.parametrize(
    ("target", "saturating", "warned"),
    [
        ("onnxruntime-vnni", True, True),
        ("onnxruntime-vnni", False, False),
        ("onnxruntime", True, False),
        ("onnxruntime-avx2", True, False),
        ("tensorrt", True, False),
    ],
)
def test_a_processor_that_saturates_is_told(
    target: str, saturating: bool, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_check, "realised_precision", lambda path, runtime: REALISED)
    monkeypatch.setattr(target_check, "saturates", lambda cpu: saturating)
    warnings = ask_runtime(Path("m.onnx"), get_target(target)).warnings
    assert ["session.x64quantprecision to 1" in text for text in warnings] == [True] * warned


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
    told = Account(subject="tensorrt-rtx", realised=REALISED).tell(rows, {"": 0.5})
    assert [(row.precision, row.executed_as, row.detail) for row in told] == [("int8", "correlation", ""), ("", "", "")]
    assert (told[0].sqnr_student_db, [row.ms for row in told]) == (30.0, [0.5, None])
    assert [row.precision for row in Account(subject="tensorrt-rtx").tell(rows, {"": 0.5})] == ["", ""]


def _stand(missing: str = "", error: Exception | None = None) -> Backend:
    """A runtime that is there or not, and takes the file or not."""

    def load(path: Path, options: Options) -> Session:
        if error is not None:
            raise error
        return SESSION

    return replace(get_backend("openvino"), missing=lambda: missing, load=load)


@pytest.mark.parametrize(
    ("stand", "expected"),
    [
        (_stand(), SESSION),
        (_stand(missing="not installed"), None),
        (_stand(error=ArtefactError("refused")), None),
        (_stand(error=RuntimeCrashedError("crashed")), None),
    ],
)
def test_the_targets_own_runtime_computes_too_where_it_can(
    stand: Backend, expected: Session | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_check, "backend_of", lambda target: stand)
    assert own_runtime(Path("m.onnx"), get_target("openvino")) is expected


def test_onnxruntime_is_not_run_twice() -> None:
    assert own_runtime(Path("m.onnx"), get_target("onnxruntime")) is None
