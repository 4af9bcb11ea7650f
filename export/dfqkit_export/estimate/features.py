"""What a float model's and a file's logits on the same synthetic images show about the error between them.

What belongs here: `Features` and how they are measured. What follows from them is in `estimate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.metrics import sqnr_db
from dfqkit_export.tasks.classification import kl

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What teacher and student answer on the same synthetic images.

    Attributes:
        n: Images.
        classes: Classes.
        classes_seen: Classes that the teacher chooses for at least one image.
        confidence: Mean of the teacher's largest softmax value.
        logit_std: Standard deviation of the teacher's logits about each image's mean.
        gain: G, the slope of the student's logits on the teacher's, both about each image's mean.
        error_std: Standard deviation of what is left, a class's constant shift included.
        agreement: Share of images with the same class, in percent.
        kl: Mean KL(teacher || student), in nats.
        kl_stderr: Its standard error, from the spread over the images.
        sqnr_db: Of the logits, in dB; None where they are equal.
    """

    n: int
    classes: int
    classes_seen: int
    confidence: float
    logit_std: float
    gain: float
    error_std: float
    agreement: float
    kl: float
    kl_stderr: float
    sqnr_db: float | None


def measure_features(teacher: Logits, student: Logits) -> Features:
    """Return what two sets of logits (n, classes) of the same images show.

    Raises:
        ArtefactError: The shapes differ, nothing is there to measure, there is one class only, or a value is not
            finite.
    """
    divergence = kl(teacher, student, subject="", data="")  # checks both
    first, second = np.asarray(teacher, np.float64), np.asarray(student, np.float64)
    n, classes = first.shape
    if classes < 2:
        message = "A drop can be estimated of a classifier with at least 2 classes, found 1 logit an image."
        raise ArtefactError(message)
    first_centred, second_centred = (values - values.mean(axis=1, keepdims=True) for values in (first, second))
    power = float(np.square(first_centred).sum())
    gain = float((first_centred * second_centred).sum()) / power if power else 0.0
    left = second_centred - gain * first_centred
    answers = first.argmax(axis=1)
    shifted = first - first.max(axis=1, keepdims=True)
    return Features(
        n=n,
        classes=classes,
        classes_seen=len(np.unique(answers)),
        confidence=float((1.0 / np.exp(shifted).sum(axis=1)).mean()),
        logit_std=math.sqrt(power / first.size),
        gain=gain,
        error_std=math.sqrt(np.square(left).mean()),
        agreement=100.0 * float((answers == second.argmax(axis=1)).mean()),
        kl=divergence.value or 0.0,
        kl_stderr=divergence.stderr or 0.0,
        sqnr_db=sqnr_db(first, second),
    )
