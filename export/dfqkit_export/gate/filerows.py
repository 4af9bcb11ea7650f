"""Rows about the file itself, beside its answers: is it of the recorded kind, whole, and one that may be taken at all.

What belongs here: verdicts that need no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..metrics import Metric
from .baseline import Case
from .causes import preprocessing_changes
from .measurement import Measurement
from .refusal import refusals
from .structure import Change
from .verdicts import FAILING, Row

__all__ = ["file_metrics", "file_rows", "with_reasons"]

_SHOWN = 6


def file_rows(measured: Measurement, case: Case | None, *, recording: bool, allow: str) -> list[Row]:
    """Return the rows that are there only where something is wrong: unknown to the baseline, refused, damaged.

    Args:
        measured: The case.
        case: What was recorded of it, or None.
        recording: Whether it is about to be recorded.
        allow: Why a file that is refused by default is taken; "" refuses it.
    """
    unknown = [] if case is not None or recording else [_UNKNOWN]
    allowed = allow or (case.allowed if case is not None else "")
    return [*unknown, *([] if allowed else _refused(measured, recording)), *_broken(measured)]


_UNKNOWN = Row(
    metric="baseline",
    verdict="missing",
    reason="The baseline does not have this case, so nothing was compared; record it with --update.",
)


def file_metrics(measured: Measurement, case: Case | None, changes: Sequence[Change]) -> dict[str, Metric]:
    """How many layers and statements of the file are wrong, as metrics whose recorded value is 0."""
    if measured.subject is None or measured.marks is None:
        return {}
    wrong = len({change.layer for change in changes if change.wrong})
    stated = len(preprocessing_changes(measured.subject, case))
    return {
        name: Metric(
            name=name, subject="file", data="model.onnx", value=float(value), unit=unit, n=n, higher_is_better=False
        )
        for name, value, unit, n in (
            ("structure", wrong, "layers", len(measured.marks.layers)),
            ("preprocessing", stated, "statements", 3),
        )
    }


def with_reasons(rows: list[Row], changes: Sequence[Change], measured: Measurement, case: Case | None) -> list[Row]:
    """Give the rows about the file itself the reason that their number stands for."""
    reasons = {
        "structure": "; ".join([change.text for change in changes if change.wrong][:_SHOWN]),
        "preprocessing": "; ".join(preprocessing_changes(measured.subject, case)) if measured.subject else "",
    }
    told = []
    for row in rows:
        reason = reasons.get(row.metric, "")
        if row.metric == "preprocessing" and reason and row.verdict in ("ok", "new"):
            row = replace(row, verdict="regressed")  # wrong from the first day on
        told.append(
            replace(row, reason=f"{reason[:1].upper()}{reason[1:]}.") if reason and row.verdict in FAILING else row
        )
    return told


def _refused(measured: Measurement, recording: bool) -> list[Row]:
    reasons = refusals(measured, recording=recording)
    advice = "Calibrate it on better images, or say why it is to be taken with --allow REASON."
    return [Row(metric="origin", verdict="refused", reason=f"{' '.join(reasons)} {advice}")] if reasons else []


def _broken(measured: Measurement) -> list[Row]:
    rows = [Row(metric="floor of the report", verdict="regressed", reason=text) for text in measured.findings]
    if measured.subject is not None and measured.subject.damaged:
        names = ", ".join(measured.subject.damaged[:_SHOWN])
        reason = f"Not the files that the manifest lists (another sha256): {names}. Copy or make the bundle again."
        rows.append(Row(metric="files", verdict="regressed", reason=reason))
    return rows
