"""The verdict on a file for itself: a file that is as it was recorded may have been broken then.

What belongs here: what a sentinel set, and the report in the bundle, let one say without a baseline. The rules are
`report.judging`'s, the same as for a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dfqkit_export.estimate import estimate_of
from dfqkit_export.gate.baseline import Case
from dfqkit_export.gate.measurement import Measurement
from dfqkit_export.gate.verdicts import Options, Row
from dfqkit_export.report.evidence import seen
from dfqkit_export.report.judging import LEAST_IMAGES, Evidence, Judgement, judge
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK

#: The row that is there only where the verdict is not `OK`.
VERDICT = "verdict"
_ADVICE = {
    FAILED: "It is not recorded without --reason TEXT.",
    NOT_JUDGED: "Take it with --allow-not-judged, or record why it is to be taken with --update --reason TEXT.",
}


def judgement(measured: Measurement) -> Judgement:
    """Judge what was measured without the baseline; metrics that somebody else measured are not judged here."""
    if measured.unjudged:
        return Judgement(verdict=NOT_JUDGED, reasons=measured.unjudged)
    subject, outputs = measured.subject, measured.outputs
    if subject is None or outputs is None:
        return Judgement(verdict=OK)
    report, sentinel = subject.bundle.report, subject.sentinel
    shown = sentinel.plain if sentinel.plain.sum() >= LEAST_IMAGES else np.ones(len(sentinel), bool)
    teacher, file = ({name: values[shown] for name, values in side.items()} for side in (sentinel.answers, outputs))
    evidence = Evidence(
        seen=[seen(sentinel.task, sentinel.spec, teacher, file, data="sentinel")],
        estimate=estimated(measured),
        doubts=report.reasons if report is not None and report.verdict == NOT_JUDGED else (),
    )
    return judge(evidence, report.findings if report is not None else ())


def estimated(measured: Measurement) -> Mapping[str, Any]:
    """Return what the images that were drawn at random tell of the drop on real ones; empty where they differ."""
    if measured.subject is None or measured.outputs is None:
        return {}
    sentinel = measured.subject.sentinel
    plain = sentinel.plain
    makers = {sentinel.sources[index].partition(":")[0] for index in np.unique(sentinel.source[plain])}
    if len(makers) != 1:  # the constants are those of one synthesizer's images
        return {}
    both = ({name: values[plain] for name, values in one.items()} for one in (sentinel.answers, measured.outputs))
    return estimate_of(sentinel.task, *both, synthesizer=makers.pop())


def verdict_rows(measured: Measurement, case: Case | None, options: Options) -> list[Row]:
    """Return the row of the verdict where it is not `OK`, with why it is accepted all the same, where it is."""
    judged = judgement(measured)
    if judged.verdict == OK:
        return []
    why = [finding.message for finding in judged.findings] or list(judged.reasons)
    accepted = _accepted(judged, measured, case, options)
    told = f"Accepted: {accepted}" if accepted else _ADVICE[judged.verdict]
    return [Row(metric=VERDICT, verdict=judged.verdict, reason=" ".join([*why, told]), accepted=accepted)]


def _accepted(judged: Judgement, measured: Measurement, case: Case | None, options: Options) -> str:
    if options.update and options.reason:
        return options.reason
    same = case is not None and case.files.get("model") == measured.files.get("model")
    if case is not None and case.reason and (same or not options.update):
        # A reason for what could not be judged is none for what is broken.
        return case.reason if judged.verdict in (case.verdict, NOT_JUDGED) else ""
    return "it is allowed here" if judged.verdict == NOT_JUDGED and options.allow_not_judged else ""
