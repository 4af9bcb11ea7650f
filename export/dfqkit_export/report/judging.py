"""What decides a verdict: labelled images where there are any, else what images without labels can tell, or nothing.

What belongs here: the limits, and the rules that lead from what was measured to findings or to the reason why there is
no verdict. What a set of images shows is `evidence`; floors, which stand beside all of this, are `floors`.

The limits are between files of known drop: recipes/verdict/verdicts.md lists them (tests/benchmarks/verdicts.py makes
them and the page). None that loses five points is `ok` by these rules, none that loses less than one is `failed`; what
lies between may be either, or `not judged`. Images that were made for a network are near its decision boundaries, where
an answer flips although no real one would: what tells is the half of the images about which the teacher is surest, and
the power of the error beside what differs from image to image. Images of noise, a teacher that gives all images one
answer, and a teacher that was never trained tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dfqkit_export.measure import kinds
from dfqkit_export.report.document import LayerRow
from dfqkit_export.report.evidence import Seen
from dfqkit_export.report.floors import Finding
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK, Verdict
from dfqkit_export.words import some

#: Points of top-1 that a good file may lose, and that none may: the two sides of every rule here.
GOOD, BROKEN = 1.0, 5.0
#: Images without which nothing is told: the size of an error is known from few, whether answers stay from all of them.
LEAST_IMAGES = 16
#: A file is good where the surest answers stay (percent) and the error is small (dB). Of files that lose five points,
#: none that keeps these answers is above 9.3 dB: the rest is margin, for networks that were not among them.
OK_FIRM, OK_DB = 99.0, 13.0
#: It is broken where neither holds. Of files that lose less than a point, the worst keep 86 % at 5.7 dB, 95 % at 0.8.
FAILED_FIRM, FAILED_DB = 90.0, 4.0
#: Below this a layer's error exceeds its signal. Files whose output is good have such layers where these barely matter.
COLLAPSED_DB = 0.0
#: Above this share of one answer (percent), the images show one class and its neighbours.
LARGEST = 90.0
#: Images in which something must be found: of three boxes or letters, one at the threshold would decide.
FEWEST_SHOWING = 8
#: A teacher whose mean probability is less than so many times chance is as unsure as one that was never trained.
UNSURE = 2.0
#: A teacher is no better than a guess below this share of the way from chance to perfect.
SKILL = 0.1
#: A file that gives another answer than the student that it was written from, on one image in ten, is another network.
SAME = 90.0
#: Where most of what it loses of the teacher's answers its student loses, too, they are undecided on these images, and
#: behind float operators a tie that falls otherwise gives another: of what is lost at most this share is the file's.
OWN = 0.5


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured of a file.

    Attributes:
        drops: Top-1 drops on labelled images, with their intervals.
        teacher: The teacher's own accuracy on labelled images.
        classes: How many it tells apart; 0 where that is not known.
        same: Agreement of each runtime with the student that the file was written from.
        seen: What images without labels show, each set of them.
        layers: SQNR by layer, where it was measured.
        integer: Share of the layers in integer kernels, in percent; None where that is not known.
        estimate: `Estimate.to_dict()`; empty without one.
        allowed: Points that a floor on labelled images allows; None without one.
        doubts: Why images without labels tell nothing here, a sentence each.
    """

    drops: Sequence[kinds.Metric] = ()
    teacher: Sequence[kinds.Metric] = ()
    classes: int = 0
    same: Sequence[kinds.Metric] = ()
    seen: Sequence[Seen] = ()
    layers: Sequence[LayerRow] = ()
    integer: float | None = None
    estimate: Any = None
    allowed: float | None = None
    doubts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict: what does not hold where it is `FAILED`, and what it rests on or why there is none."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()

    def without(self, unknown: Sequence[str]) -> Judgement:
        """Return it with what was asked for and is not known, without which nothing is OK."""
        verdict = NOT_JUDGED if unknown and self.verdict == OK else self.verdict
        return replace(self, verdict=verdict, reasons=(*self.reasons, *unknown))


def judge(evidence: Evidence, findings: Iterable[Finding] = ()) -> Judgement:
    """Judge what was measured; `findings` are those that stand already, such as floors that do not hold."""
    found = [*findings, *_of_the_file(evidence)]
    if guesses := _guesses(evidence):
        return Judgement(verdict=FAILED if found else NOT_JUDGED, findings=tuple(found), reasons=guesses)
    measured = [_labelled(drop, evidence.allowed) for drop in evidence.drops if drop.value is not None]
    if not measured or NOT_JUDGED in {each.verdict for each in measured}:
        without = _without_labels(evidence)
        # Too few labelled images to tell, of which hardly any was lost, are no reason to doubt what others tell.
        small = all((drop.value or 0.0) < GOOD for drop in evidence.drops)
        told = [each for each in measured if each.verdict == FAILED or not small]
        measured = [*told, without] if measured else [without]
    found += [finding for each in measured for finding in each.findings]
    reasons = tuple(dict.fromkeys(reason for each in measured for reason in each.reasons))
    if found:
        return Judgement(verdict=FAILED, findings=tuple(found), reasons=reasons)
    return Judgement(verdict=NOT_JUDGED if NOT_JUDGED in {each.verdict for each in measured} else OK, reasons=reasons)


def _of_the_file(evidence: Evidence) -> list[Finding]:
    """Return what does not hold whatever the images say: the file is not the student's, or it is no integer network."""
    # Of an image of many boxes one is at a threshold: where a task measures what stays of them, that counts.
    measure = (
        kinds.STUDENT_KEPT if any(m.name == kinds.STUDENT_KEPT.name for m in evidence.same) else kinds.STUDENT_AGREEMENT
    )
    empty = {shown.data for shown in evidence.seen if _nothing_shown(shown)}  # a letter more or less is no other file
    kept = {shown.data: shown.kept for shown in evidence.seen if shown.kept is not None}
    found = [
        Finding(
            metric=metric.name,
            subject=metric.subject,
            value=metric.value,
            floor=SAME,
            message=(
                f"The file is not what was calibrated: {metric.subject} keeps {metric.value:.2f} % of the student's "
                f"answers on {metric.n} images of {metric.data}. The column 'runtime' of the table of "
                "layers says where they part; report it where no setting of yours explains it."
            ),
        )
        for metric in evidence.same
        if metric.name == measure.name
        and metric.data not in empty
        and metric.value is not None
        and metric.value < SAME
        and 100.0 - metric.value > OWN * (100.0 - kept.get(metric.data, 100.0))
    ]
    if evidence.integer == 0:
        message = (
            "No layer of the file runs in integer kernels: it is a float network of other values. `dfqkit inspect` "
            "says of each layer why."
        )
        found.append(Finding(metric=kinds.INTEGER_OPS.name, subject="file", value=0.0, floor=0.0, message=message))
    return found


def _guesses(evidence: Evidence) -> tuple[str, ...]:
    """Say where the teacher itself does little better than guessing, so that no file can lose anything."""
    chance = 100.0 / evidence.classes if evidence.classes else 0.0
    least = chance + SKILL * (100.0 - chance)
    return tuple(
        f"The teacher itself is right on {top1.value:.2f} % of {top1.n} labelled images of {top1.data}, where guessing "
        f"is on {chance:.2g} %: agreeing with it shows nothing. Check mean and std, the labels and the weights."
        for top1 in evidence.teacher
        if evidence.classes and top1.value is not None and top1.value < least
    )


def _labelled(drop: kinds.Metric, allowed: float | None) -> Judgement:
    """Judge a drop by its interval: surely more than is good, or surely less than what breaks a file."""
    value, spread = drop.value or 0.0, 2.0 * (drop.stderr or 0.0)
    low, high = (value - spread if drop.low is None else drop.low), (value + spread if drop.high is None else drop.high)
    limit = min(max(GOOD, allowed or 0.0), BROKEN)
    told = f"{drop.subject} loses {value:.2f} points on {drop.n} labelled images of {drop.data} [{low:.2f}, {high:.2f}]"
    if low > limit:
        message = f"{told}: more than {limit:g}, whichever images of their kind are drawn."
        finding = Finding(metric=drop.name, subject=drop.subject, value=value, floor=limit, message=message)
        return Judgement(verdict=FAILED, findings=(finding,))
    if high < BROKEN:
        return Judgement(verdict=OK, reasons=(f"{told}: surely less than {BROKEN:g}.",))
    open_ = f"{told}, which may be less than {GOOD:g} and may be more than {BROKEN:g}: give more labelled images."
    return _not_judged(open_)


def _without_labels(evidence: Evidence) -> Judgement:
    """Judge by images without labels, where they can tell."""
    if evidence.doubts:
        return Judgement(verdict=NOT_JUDGED, reasons=tuple(evidence.doubts))
    if not evidence.seen:
        reason = "No image graded it that trained nothing. Give some (bank.grading), or labelled ones (validate.data)."
        return _not_judged(reason)
    each = [_by_images(shown) for shown in evidence.seen]
    findings = tuple(finding for one in each for finding in one.findings) + _by_estimate(evidence.estimate)
    doubts = [reason for one in each if one.verdict == NOT_JUDGED for reason in one.reasons]
    doubts += _collapsed(evidence.layers) + _uncertain(evidence.estimate)
    reasons = tuple(doubts or [reason for one in each for reason in one.reasons])
    return Judgement(
        verdict=FAILED if findings else NOT_JUDGED if doubts else OK,
        findings=findings,
        reasons=() if findings else reasons,
    )


def _not_judged(reason: str) -> Judgement:
    return Judgement(verdict=NOT_JUDGED, reasons=(reason,))


def _by_images(shown: Seen) -> Judgement:
    if shown.n < LEAST_IMAGES:
        return _not_judged(
            f"{shown.n} images of {shown.data} are too few to tell anything; {LEAST_IMAGES} are the least."
        )
    if not shown.classes:
        return _by_limits(shown)
    if shown.groups < 2 or shown.largest > LARGEST:
        return _not_judged(_one_answer(shown))
    if shown.confidence is not None and shown.count > 3 and shown.confidence < UNSURE / shown.count:
        return _not_judged(
            f"The teacher is hardly surer of its answers on {shown.data} than chance (mean probability "
            f"{shown.confidence:.3f} of {shown.count} classes), as an untrained network is. Check its weights, or give "
            "labelled images (validate.data)."
        )
    error, power = _error(shown)
    told = (
        f"On {shown.n} images of {shown.data} it gives the teacher's answer on {shown.agreement:.1f} %, on the surer "
        f"half of them on {shown.firm_agreement:.1f} %, with {power}"
    )
    if shown.firm_agreement < FAILED_FIRM and error < FAILED_DB:
        message = f"{told}: broken files are below {FAILED_FIRM:g} % and {FAILED_DB:g} dB."
        return _broken(shown.firm_agreement, FAILED_FIRM, message)
    if shown.firm_agreement >= OK_FIRM and error >= OK_DB:
        reason = f"{told}: none of the broken files tried reaches {OK_FIRM:g} % and {OK_DB:g} dB."
        return Judgement(verdict=OK, reasons=(reason,))
    return _not_judged(
        f"{told}, between what good and broken files show ({OK_FIRM:g} % and {OK_DB:g} dB): only labelled images "
        "(validate.data) can tell."
    )


def _by_limits(shown: Seen) -> Judgement:
    """Judge by the limits of the task: of how much of the teacher's answers stays, and of the worst output's error."""
    if reason := _nothing_shown(shown):
        return _not_judged(reason)
    if shown.kept is None and shown.count > 1 and shown.largest > LARGEST:
        return _not_judged(_one_answer(shown))
    limits, kept = shown.limits, shown.firm_agreement if shown.kept is None else shown.kept
    error, power = _error(shown)
    what = "on the surer half of them" if shown.kept is None else "by the task's own measure"
    told = (
        f"On {shown.n} images of {shown.data} it gives the teacher's {shown.answer} on {shown.agreement:.1f} %, {what} "
        f"{kept:.1f} % of the answers stay, with {power} in the worst output"
    )
    if kept < limits.failed and error < limits.failed_db:
        message = f"{told}: files below {limits.failed:g} % and {limits.failed_db:g} dB are broken."
        return _broken(kept, limits.failed, message)
    if kept >= limits.ok and error >= limits.ok_db:
        reason = f"{told}: what this task asks is {limits.ok:g} % and {limits.ok_db:g} dB."
        return Judgement(verdict=OK, reasons=(reason,))
    return _not_judged(
        f"{told}. This task asks {limits.ok:g} % and {limits.ok_db:g} dB, and what a file loses that lies below is not "
        "known: only labelled images (validate.data) can tell."
    )


def _one_answer(shown: Seen) -> str:
    return (
        f"The teacher gives one answer to {shown.largest:.0f} % of the images of {shown.data}, so that nearly any "
        "file agrees with it there. Check mean and std, make other images, or give labelled ones (validate.data)."
    )


def _error(shown: Seen) -> tuple[float, str]:
    """Return how far the error lies below the signal, in dB, and the same in words."""
    if shown.signal_db is None:
        return float("inf"), "no error at all"
    return shown.signal_db, f"an error {shown.signal_db:.1f} dB below the signal"


def _broken(kept: float, least: float, message: str) -> Judgement:
    finding = Finding(metric=kinds.AGREEMENT.name, subject="file", value=kept, floor=least, message=message)
    return Judgement(verdict=FAILED, findings=(finding,))


def _nothing_shown(shown: Seen) -> str:
    """Say that images show too little of what a task finds (boxes, text) for any file to lose some of it."""
    found = round(shown.n * (1 - shown.empty / 100))
    if shown.empty <= LARGEST and found >= min(FEWEST_SHOWING, shown.n):
        return ""
    return (
        f"The teacher finds something in {found} of the {shown.n} images of {shown.data}, so that what a file makes of "
        f"them shows little: {FEWEST_SHOWING} and one in ten are the least. Check mean and std, make images that show "
        "something, or give labelled ones (validate.data)."
    )


def _collapsed(layers: Sequence[LayerRow]) -> list[str]:
    lost = [row.name for row in layers if row.sqnr_student_db is not None and row.sqnr_student_db < COLLAPSED_DB]
    if not lost:
        return []
    return [
        f"The error exceeds the signal in {len(lost)} of {len(layers)} layers ({some(lost, 3)}), which these images "
        "may not show in the output: only labelled images (validate.data) can tell."
    ]


def _by_estimate(estimate: Any) -> tuple[Finding, ...]:
    low = _end(estimate, "low")
    if low is None or low < BROKEN / 2:
        return ()
    message = f"Estimated without labels, it loses at least {low:.2f} points on real images."
    return (Finding(metric=kinds.TOP1_DROP.name, subject="file", value=low, floor=BROKEN / 2, message=message),)


def _uncertain(estimate: Any) -> list[str]:
    high = _end(estimate, "high")
    if high is None or high < BROKEN:
        return []
    return [f"Estimated without labels, it may lose {high:.2f} points on real images."]


def _end(estimate: Any, name: str) -> float | None:
    value = estimate.get(name) if isinstance(estimate, dict) and estimate.get("trusted") else None
    return float(value) if isinstance(value, int | float) else None
