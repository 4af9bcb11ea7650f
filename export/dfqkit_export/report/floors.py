"""Floors: the worst values that metrics may have, and what is found where one does not hold.

What belongs here: comparing what was measured with what was promised beforehand. Comparing it with what was measured
before is the gate's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.kinds import Metric


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The worst value that a metric may have.

    Attributes:
        metric: Name of the metric.
        subject: What it must have been measured on.
        value: Lowest allowed value where higher is better, highest allowed value where lower is better.
        data: Kind of images that it is about, the part of `Metric.data` before the colon ("real", "synthetic"); empty
            for all.
    """

    metric: str
    subject: str
    value: float
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One reason why the verdict is "failed".

    Attributes:
        metric: Name of the metric.
        subject: What it was measured on.
        value: The measured value; None where it was not measured.
        floor: The worst allowed value.
        message: What happened and what to do, in one or two sentences.
    """

    metric: str
    subject: str
    value: float | None
    floor: float
    message: str


def check_floors(metrics: Iterable[Metric], floors: Iterable[Floor]) -> list[Finding]:
    """Compare metrics with floors.

    A floor that nothing was measured for fails: a check that cannot be carried out must not pass in silence. Where a
    metric was measured on several sets of images, each of them must hold.

    Args:
        metrics: What was measured.
        floors: The worst allowed values, each for one metric and subject.

    Returns:
        One finding for each measurement that is on the wrong side of its floor, in the floors' order.

    Raises:
        ArtefactError: A floor's value is not finite, or it is for a metric that is neither good nor bad.
    """
    measured = list(metrics)
    findings: list[Finding] = []
    for floor in floors:
        if not math.isfinite(floor.value):
            message = f"Floor of {floor.metric!r} for {floor.subject!r} is {floor.value}; give a finite number."
            raise ArtefactError(message)
        matching = [metric for metric in measured if _is_about(floor, metric)]
        checked = [_check_floor(metric, floor) for metric in matching] or [_check_floor(None, floor)]
        findings.extend(finding for finding in checked if finding is not None)
    return findings


def floor_of(metric: Metric, floors: Iterable[Floor]) -> Floor | None:
    """Return the strictest floor that is about a metric, or None."""
    about = [floor for floor in floors if _is_about(floor, metric)]
    if not about:
        return None
    pick = max if metric.higher_is_better else min
    return pick(about, key=lambda floor: floor.value)


def _is_about(floor: Floor, metric: Metric) -> bool:
    kind = metric.data.partition(":")[0]
    return (metric.name, metric.subject) == (floor.metric, floor.subject) and floor.data in ("", kind)


def _check_floor(metric: Metric | None, floor: Floor) -> Finding | None:
    name = f"{floor.metric} of {floor.subject}"
    if metric is None or metric.value is None:
        message = f"{name} was not measured, but has a floor of {floor.value:g}. Measure it or take the floor out."
        return Finding(metric=floor.metric, subject=floor.subject, value=None, floor=floor.value, message=message)
    if metric.higher_is_better is None:
        message = f"{name} is neither good nor bad, so it cannot have a floor. Take the floor of {floor.value:g} out."
        raise ArtefactError(message)
    if metric.value >= floor.value if metric.higher_is_better else metric.value <= floor.value:
        return None
    side = "below" if metric.higher_is_better else "above"
    error = f" ± {metric.stderr:.3g}" if metric.stderr else ""
    if metric.low is not None and metric.high is not None:
        error = f" [{metric.low:.3g}, {metric.high:.3g}]"
    unit = f" {metric.unit}" if metric.unit else ""
    message = (
        f"{name} is {metric.value:.6g}{error}{unit} on {metric.data} (n = {metric.n}), {side} its floor of "
        f"{floor.value:g}{unit}."
    )
    return Finding(metric=floor.metric, subject=floor.subject, value=metric.value, floor=floor.value, message=message)
