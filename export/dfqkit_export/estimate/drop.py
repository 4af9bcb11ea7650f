"""The drop on real images, estimated from synthetic ones without a label.

What belongs here: `estimate_drop`, which gives a number with an interval, or the reason why it gives none. What the
logits show is measured in `features`; what was fitted where the truth is known is `calibration`.

The idea. A quantized classifier's logits are the float model's, weakened by a common gain g, plus an error that depends
little on the image: on CIFAR-10 its standard deviation on images of the generators of dfq and fastdfkd is mostly within
a tenth of the one on the test images, though margins and confidence there are nothing like the real ones. Agreement on
synthetic images is therefore a poor estimate of agreement on real ones (58 % for 92 %), while x = std(error) / g, the
error beside a logit that was weakened with it, carries over. An image changes its class where the error exceeds its
margin, and an image near the boundary is one that the float model often had wrong; so the drop grows faster than x, as
`scale` * x ** `power`, levelling off at chance. A margin density that is flat at zero would give the power 2, one that
rises from zero 3. How dense the margins of real images are cannot be seen on synthetic ones: `scale` is taken from the
teachers of the calibration. The interval is for the drop that 10,000 real images would show.

Limits. It holds for teachers like those it was calibrated on: ``constants.json`` says which they are, how many files,
and between which bounds the features must lie. It refuses images of synthesizers that it was not calibrated with (on
noise, or on images far from what BatchNorm saw, the error is another), too few images or classes among them, logits of
another size or confidence, which mean another kind of network, a number of classes or a stated accuracy of the float
model that was never seen, and an error larger than any that was measured. It cannot notice what hurts real images
alone, for example normalisation done wrong outside of the file, and it is low by about a quarter for files that were
trained on images of the same kind as those that grade: the error on these is a tenth less than on real ones.

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
    value, low, high = (None if reason else constants.interval(features)) or (None, None, None)
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
            f"{constants.scale:.3g} * x^{constants.power:.3g} points, where x is the logit error on synthetic images "
            f"beside the gain; fitted on {constants.provenance.get('summary', 'cases of known truth')}. The interval "
            "holds the true drop for teachers like these."
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
