"""Rows about the file itself, beside its answers: is it of the recorded kind, whole, and one that may be taken at all.

What belongs here: verdicts that need no image. Refused, however well they measure, are files made from noise, not
calibrated, or of unknown origin: one whose ranges come from noise may agree with its teacher on easy images and still
be nothing to ship; where somebody wants it all the same, they say why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dfqkit_export.gate.baseline import Case
from dfqkit_export.gate.change import Change
from dfqkit_export.gate.deployed import deployment_changes
from dfqkit_export.gate.diagnosis import preprocessing_changes
from dfqkit_export.gate.judged import VERDICT
from dfqkit_export.gate.measurement import Measurement
from dfqkit_export.gate.portable import ROWS
from dfqkit_export.gate.signature import Signature
from dfqkit_export.gate.verdicts import FAILING, Row
from dfqkit_export.measure.kinds import PREPROCESSING, SPEEDUP, STRUCTURE, Metric
from dfqkit_export.words import some

#: Rows that are there only where something is wrong.
ORIGIN, FILES, FLOOR, BESIDE = "origin", "files", "floor of the report", "beside the model"
#: Rows that an update does not make good.
STANDING = frozenset({ORIGIN, FILES, FLOOR, VERDICT, PREPROCESSING.name, SPEEDUP.name, *ROWS.values()})
_SHOWN = 6
_NOISE = "noise"


def file_rows(measured: Measurement, case: Case | None, *, recording: bool, allow: str) -> list[Row]:
    """Return the rows that are there only where something is wrong: unknown to the baseline, refused, damaged.

    A file that is refused by default is taken where `allow`, or the case, says why.
    """
    rows = []
    if case is None and not recording:
        reason = (
            f"The baseline has no case {measured.name!r}, so nothing was compared. Was it renamed? Record it with "
            "--update."
        )
        rows.append(Row(metric="baseline", verdict="missing", reason=reason))
    allowed = allow or (case.allowed if case is not None else "")
    if not allowed and (reasons := _refusals(measured, recording=recording)):
        advice = "Calibrate it on better images, or say why it is to be taken with --allow REASON."
        rows.append(Row(metric=ORIGIN, verdict="refused", reason=" ".join([*reasons, advice])))
    rows += [Row(metric=FLOOR, verdict="regressed", reason=text) for text in measured.findings]
    if measured.subject is not None and measured.subject.damaged:
        names = some(measured.subject.damaged, _SHOWN)
        reason = f"Not the files that the manifest lists (another sha256): {names}. Copy or make the bundle again."
        rows.append(Row(metric=FILES, verdict="regressed", reason=reason))
    if told := deployment_changes(measured.subject, None if recording else case):
        rows.append(Row(metric=BESIDE, verdict="regressed", reason=f"{some(told, _SHOWN, '; ')}."))
    return rows


def file_metrics(measured: Measurement, case: Case | None, changes: Sequence[Change]) -> dict[str, Metric]:
    """Return how many layers and statements of the file are wrong, as metrics whose recorded value is 0."""
    if measured.subject is None or measured.signature is None:
        return {}
    wrong = len({change.layer for change in changes if change.wrong})
    stated = len(preprocessing_changes(measured.subject, case))
    return {
        kind.name: kind.metric(subject="file", data="model.onnx", value=float(value), n=n)
        for kind, value, n in ((STRUCTURE, wrong, len(measured.signature.layers)), (PREPROCESSING, stated, 3))
    }


def with_reasons(rows: list[Row], changes: Sequence[Change], measured: Measurement, case: Case | None) -> list[Row]:
    """Give the rows about the file itself the reason that their number stands for."""
    reasons = {
        STRUCTURE.name: "; ".join([change.text for change in changes if change.wrong][:_SHOWN]),
        PREPROCESSING.name: "; ".join(preprocessing_changes(measured.subject, case)),
    }
    told = []
    for row in rows:
        reason = reasons.get(row.metric, "")
        if row.metric == PREPROCESSING.name and reason and row.verdict in ("ok", "new"):
            row = replace(row, verdict="regressed")  # wrong from the first day on
        elif row.metric == STRUCTURE.name and reason and row.verdict == "new":
            row = replace(row, verdict="regressed")  # a baseline that does not count it compares it all the same
        if reason and row.verdict in FAILING:
            row = replace(row, reason=f"{reason[:1].upper()}{reason[1:]}.")
        told.append(row)
    return told


def _refusals(measured: Measurement, *, recording: bool) -> list[str]:
    """Return why a file is refused, a sentence each; to be recorded, its origin must be known, too."""
    subject = measured.subject
    if subject is None:
        return []
    reasons = []
    if origin_of(measured) == _NOISE or subject.bundle.synthesis.get("noise") is True:
        reasons.append(
            "It was calibrated on random noise, says "
            + ("its ONNX metadata." if subject.metadata.get("dfqkit.synthesizer") == _NOISE else "its manifest.")
        )
    if measured.signature is not None and (uncalibrated := _uncalibrated(measured.signature)):
        reasons.append(uncalibrated)
    if recording and not origin_of(measured):
        reasons.append("Neither its ONNX metadata nor its manifest say what it was calibrated with.")
    return reasons


def origin_of(measured: Measurement) -> str:
    """Return the method that made a case's images, as the ONNX metadata or the manifest says; "" if neither does."""
    subject = measured.subject
    if subject is None:
        return ""
    return subject.metadata.get("dfqkit.synthesizer") or str(subject.bundle.synthesis.get("method") or "")


def _uncalibrated(signature: Signature) -> str:
    layers = signature.layers.values()
    scales = [layer.output_scale for layer in layers if layer.output]
    scales += [layer.input_scale for layer in layers if layer.input]
    unusable = [scale for scale in scales if not (scale > 0 and math.isfinite(scale))]
    if unusable:
        return f"It is not calibrated: {len(unusable)} activation scale(s) are not above zero and finite."
    ones = sum(scale == 1.0 for scale in scales)
    if len(scales) > 2 and 2 * ones > len(scales):
        return f"It is not calibrated: {ones} of {len(scales)} activation scales are 1, the value before calibration."
    return ""
