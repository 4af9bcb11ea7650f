"""The drop on real images, estimated from synthetic ones without a label.

What belongs here: `estimate_drop`, which gives a number with an interval, or the reason why it gives none. What the
logits show is measured in `features`; what was fitted where the truth is known is `calibration`.

The idea. An image changes its class where the file's error exceeds the margin, and one that is near the boundary is one
that the float model often had wrong; so the drop grows about as the square of the error. So does, to second order, the
divergence of the file's answers, KL(float model || file): half the variance of the logits' error under the softmax.
The drop is ``scale * kl ** power * (classes / 10) ** by_classes``, and the power comes out near 1. The divergence needs
no more than some dozens of images, where a share of answers that stay needs hundreds, and it means much the same for
logits of any size and images of any of the synthesizers. Others were tried on the same files, each teacher left out in
turn: the logits' error, alone or beside their spread, the share of images that change their class, confidence, and
pairs of these; none was better. What is left is what teachers differ by, in the main how often they are right, which no
synthetic image tells; the interval is as wide as that is on a teacher that took no part in the fit.

Limits. ``constants.json`` says on which teachers it was fitted, and between which bounds the features must lie. It
refuses images of other synthesizers (noise, or what no teacher of the study was seen on), too few images or answers
among them, a number of classes or a stated accuracy of the float model that was never seen, and a larger divergence
than was measured; and a float model that is not sure of its answers, which may be one that is often wrong: two of the
study's lost more than was told. It cannot notice what hurts real images alone, for example normalisation done wrong
outside of the file.

Related: label-free estimates of accuracy on shifted data (Guillory et al., ICCV 2021; Garg et al., ICLR 2022; Baek et
al., NeurIPS 2022; Jiang et al., ICLR 2022) need unlabelled images of the real distribution, which there are none of
here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dfqkit_export.estimate.calibration import Calibration, distrust, read_calibration
from dfqkit_export.estimate.features import Features, Logits, measure_features
from dfqkit_export.tasks import CLASSES, Outputs, Task


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated drop of top-1 on real images, or why there is none.

    Attributes:
        value: Points; None where it cannot be trusted.
        low: Lower end of the interval in points; None with the value.
        high: Upper end.
        confidence: Share of calibration cases, each of a teacher left out, that such an interval held.
        trusted: Whether there is a number.
        reason: Why there is none; empty otherwise.
        features: What was measured.
        n: Images.
        synthesizer: What made the images.
        method: How the number comes about, in a sentence or two.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    trusted: bool
    reason: str
    features: Features
    n: int
    synthesizer: str
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def estimate_drop(
    teacher: Logits,
    student: Logits,
    *,
    synthesizer: str,
    teacher_top1: float | None = None,
    calibration: Calibration | None = None,
) -> Estimate:
    """Estimate by how many points top-1 on real images falls from the float model to a quantized file.

    Args:
        teacher: The float model's logits on synthetic images that calibrated nothing, shape (n, classes).
        student: Those of the file on the same images, as the runtime gives them.
        synthesizer: What made the images: the name of a method, for example "dfq"; what follows a colon, as in the
            sources of image sets ("dfq:grading"), is left aside.
        teacher_top1: The float model's accuracy in percent where it is known; only to see whether such models were part
            of the calibration.
        calibration: Other constants than those that are shipped.

    Returns:
        A number with its interval, or the reason why there is none.

    Raises:
        ArtefactError: The logits do not fit each other or are not finite, or the calibration cannot be read.
    """
    constants = calibration or read_calibration()
    synthesizer = synthesizer.partition(":")[0]
    features = measure_features(teacher, student)
    reason = distrust(features, constants, synthesizer=synthesizer, teacher_top1=teacher_top1)
    value, low, high = (None, None, None) if reason else constants.interval(features)
    return Estimate(
        value=value,
        low=low,
        high=high,
        confidence=constants.level,
        trusted=not reason,
        reason=reason,
        features=features,
        n=features.n,
        synthesizer=synthesizer,
        method=(
            f"{constants.scale:.3g} * kl^{constants.power:.3g} * (classes / 10)^{constants.by_classes:.3g} points, of "
            f"the answers' divergence; fitted on {constants.provenance.get('summary', 'cases of known truth')}. The "
            "interval holds the drop that a test set would show, for teachers like these."
        ),
    )


def estimate_of(
    task: Task, reference: Outputs, outputs: Outputs, *, synthesizer: str, teacher_top1: float | None = None
) -> dict[str, Any]:
    """Return `Estimate.to_dict()` of a classifier, and the reason why there is none of another network."""
    if CLASSES not in task.offers:
        reason = f"It was calibrated with classifiers, and this is another network ({task.title})."
        return {"value": None, "low": None, "high": None, "trusted": False, "reason": reason}
    (name,) = task.names
    reference, outputs = task.shaped(reference), task.shaped(outputs)
    found = estimate_drop(reference[name], outputs[name], synthesizer=synthesizer, teacher_top1=teacher_top1)
    return found.to_dict()
