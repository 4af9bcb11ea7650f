"""Files that a check refuses by default, however well they measure: made from noise, not calibrated, of unknown origin.

What belongs here: the reasons, read from the ONNX metadata and the manifest. A file whose ranges come from noise may
agree with its teacher on easy images and still be nothing to ship; where somebody wants it all the same, they say why.
"""

from __future__ import annotations

import math

from .facts import ModelMarks
from .measurement import Measurement

__all__ = ["origin_of", "refusals"]

_NOISE = "noise"


def refusals(measured: Measurement, *, recording: bool) -> list[str]:
    """Return why a file is refused, a sentence each; empty for one that is not, and for a report.

    Args:
        measured: The case.
        recording: Whether it is about to be recorded, for which its origin must be known, too.
    """
    subject = measured.subject
    if subject is None:
        return []
    reasons = []
    if origin_of(measured) == _NOISE or subject.synthesis.get("noise") is True:
        reasons.append(
            "It was calibrated on random noise, says "
            + ("its ONNX metadata." if subject.metadata.get("dfqkit.synthesizer") == _NOISE else "its manifest.")
        )
    if measured.marks is not None and (uncalibrated := _uncalibrated(measured.marks)):
        reasons.append(uncalibrated)
    if recording and not origin_of(measured):
        reasons.append("Neither its ONNX metadata nor its manifest say what it was calibrated with.")
    return reasons


def origin_of(measured: Measurement) -> str:
    """Return the method that made a case's images, as the ONNX metadata or the manifest says; "" if neither does."""
    subject = measured.subject
    if subject is None:
        return ""
    return subject.metadata.get("dfqkit.synthesizer") or str(subject.synthesis.get("method") or "")


def _uncalibrated(marks: ModelMarks) -> str:
    scales = [m.output_scale for m in marks.layers.values() if m.output] + [
        m.input_scale for m in marks.layers.values() if m.input
    ]
    unusable = [scale for scale in scales if not (scale > 0 and math.isfinite(scale))]
    if unusable:
        return f"It is not calibrated: {len(unusable)} activation scale(s) are not above zero and finite."
    ones = sum(scale == 1.0 for scale in scales)
    if len(scales) > 2 and 2 * ones > len(scales):
        return f"It is not calibrated: {ones} of {len(scales)} activation scales are 1, the value before calibration."
    return ""
