"""Numbers that say how far one set of logits is from another, each with its standard error.

What belongs here: pure functions on numpy arrays, computed in float64. Every function takes logits of
shape (n, classes) of the *same images in the same order*; the reference, where there is one, comes first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.precision import Realised
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure import per_image
from dfqkit_export.measure.kinds import AGREEMENT, INTEGER_OPS, KL, TOP1, TOP1_DROP, TOP5, Metric, MetricKind

__all__ = ["Metric", "agreement", "integer_ops", "kl", "logit_max_abs", "paired_drop", "sqnr_db", "top1", "top5"]

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def top1(logits: Logits, labels: Labels, *, subject: str, data: str) -> Metric:
    """Return the share of images whose largest logit is the label's, with its binomial standard error.

    Args:
        logits: Shape (n, classes); ties go to the lower class index.
        labels: Shape (n,), class indices in [0, classes).
        subject: What the logits come from.
        data: The images they were computed on.

    Returns:
        Metric "top1" in percent. Its standard error is sqrt(p (1 - p) / n).

    Raises:
        ArtefactError: The shapes do not fit, nothing is there to measure, or a value is not finite.
    """
    return _share(TOP1, _correct(logits, labels), subject, data)


def top5(logits: Logits, labels: Labels, *, subject: str, data: str) -> Metric:
    """Return the share of images whose label is among the five largest logits, with its binomial standard error.

    Args:
        logits: Shape (n, classes) with at least 5 classes; ties go to the lower class index.
        labels: Shape (n,), class indices in [0, classes).
        subject: What the logits come from.
        data: The images they were computed on.

    Returns:
        Metric "top5" in percent.

    Raises:
        ArtefactError: The shapes do not fit, there are fewer than 5 classes, or a value is not finite.
    """
    values, indices = _labelled(logits, labels)
    if values.shape[1] < 5:
        msg = f"Top-5 needs at least 5 classes, found {values.shape[1]}. Use top-1."
        raise ArtefactError(msg)
    best = np.argsort(-values, axis=1, kind="stable")[:, :5]
    return _share(TOP5, (best == indices[:, None]).any(axis=1), subject, data)


def agreement(reference: Logits, logits: Logits, *, subject: str, data: str, kind: MetricKind = AGREEMENT) -> Metric:
    """Return the share of images on which both sets of logits choose the same class.

    Args:
        reference: Logits of the model that `subject` stands in for, shape (n, classes).
        logits: Logits of the subject, the same shape.
        subject: What `logits` come from.
        data: The images both were computed on.
        kind: What it is called: `AGREEMENT` with the teacher, `STUDENT_AGREEMENT` where the reference is the student.

    Returns:
        Metric in percent with its binomial standard error. It needs no labels.

    Raises:
        ArtefactError: The shapes differ, nothing is there to measure, or a value is not finite.
    """
    first, second = _pair(reference, logits)
    return _share(kind, per_image.agrees(first, second), subject, data)


def paired_drop(reference: Logits, logits: Logits, labels: Labels, *, subject: str, data: str) -> Metric:
    """Return by how many points top-1 falls from the reference to the subject, with the paired standard error.

    The images on which both are right or both are wrong tell nothing about the difference; the standard error is that
    of the mean of the per-image differences d in {-1, 0, 1}, sqrt((mean(d^2) - mean(d)^2) / n), which is much smaller
    than that of either accuracy (McNemar, Psychometrika 1947, for the counts it rests on).

    Args:
        reference: Logits of the model that is the measure, usually the teacher's, shape (n, classes).
        logits: Logits of the subject, the same shape.
        labels: Shape (n,), class indices in [0, classes).
        subject: What `logits` come from.
        data: The images both were computed on.

    Returns:
        Metric "top1_drop" in points; positive where the subject is worse.

    Raises:
        ArtefactError: The shapes do not fit, nothing is there to measure, or a value is not finite.
    """
    _pair(reference, logits)
    difference = _correct(reference, labels).astype(np.float64) - _correct(logits, labels)
    return TOP1_DROP.metric(
        subject=subject,
        data=data,
        value=100.0 * float(difference.mean()),
        n=difference.size,
        stderr=100.0 * float(difference.std() / math.sqrt(difference.size)),
    )


def kl(teacher: Logits, logits: Logits, *, subject: str, data: str) -> Metric:
    """Return the mean Kullback-Leibler divergence KL(teacher || subject) of the softmax distributions.

    Args:
        teacher: Teacher logits, shape (n, classes).
        logits: Logits of the subject, the same shape.
        subject: What `logits` come from.
        data: The images both were computed on.

    Returns:
        Metric "kl" in nats: the mean over the images, with the standard error of that mean (None for one image).

    Raises:
        ArtefactError: The shapes differ, nothing is there to measure, or a value is not finite.
    """
    values = per_image.divergence(*_pair(teacher, logits))
    n = values.size
    return KL.metric(
        subject=subject,
        data=data,
        value=max(0.0, float(values.mean())),
        n=n,
        stderr=float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
    )


def integer_ops(realised: Realised, *, subject: str, data: str = "model.onnx") -> Metric:
    """Return the share of the layers that a runtime computes in integers; n counts layers, without a sampling error.

    Args:
        realised: What the runtime told.
        subject: The runtime that was asked.
        data: The file.
    """
    share = realised.integer_ops
    value = None if share is None else 100.0 * share
    return INTEGER_OPS.metric(subject=subject, data=data, value=value, n=len(realised.layers))


def sqnr_db(reference: NDArray[Any], test: NDArray[Any]) -> float | None:
    """Return the signal-to-quantization-noise ratio of two tensors, 10 log10(sum r^2 / sum (r - t)^2), in dB.

    Args:
        reference: The signal r, any shape.
        test: What stands in for it, the same shape.

    Returns:
        The ratio in dB; higher is closer. None where it has no finite value: both tensors are identical (no noise at
        all), or the reference is zero everywhere (no signal). Tell them apart with `logit_max_abs`.

    Raises:
        ArtefactError: The shapes differ, the tensors are empty, or a value is not finite.
    """
    first, second = _same_shape(reference, test)
    signal, noise = float(np.square(first).sum()), float(np.square(first - second).sum())
    if signal == 0.0 or noise == 0.0:
        return None
    return 10.0 * math.log10(signal / noise)


def logit_max_abs(reference: NDArray[Any], test: NDArray[Any]) -> float:
    """Return the largest absolute difference of two tensors.

    Args:
        reference: Any shape.
        test: The same shape.

    Raises:
        ArtefactError: The shapes differ, the tensors are empty, or a value is not finite.
    """
    first, second = _same_shape(reference, test)
    return float(np.abs(first - second).max())


def _share(kind: MetricKind, hits: NDArray[np.bool_], subject: str, data: str) -> Metric:
    p, n = float(hits.mean()), hits.size
    return kind.metric(subject=subject, data=data, value=100.0 * p, n=n, stderr=100.0 * math.sqrt(p * (1.0 - p) / n))


def _correct(logits: Logits, labels: Labels) -> NDArray[np.bool_]:
    values, indices = _labelled(logits, labels)
    correct: NDArray[np.bool_] = values.argmax(axis=1) == indices
    return correct


def _labelled(logits: Logits, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values = _logits(logits)
    indices = np.asarray(labels)
    if indices.shape != (len(values),) or indices.dtype.kind not in "iu":
        msg = f"Labels must be {len(values)} integers, one for each image, found {indices.dtype} of {indices.shape}."
        raise ArtefactError(msg)
    if indices.min() < 0 or indices.max() >= values.shape[1]:
        msg = (
            f"Labels must lie in [0, {values.shape[1]}), found {indices.min()} to {indices.max()}. "
            "Check that the data set and the model count classes alike."
        )
        raise ArtefactError(msg)
    return values, indices.astype(np.int64)


def _pair(reference: Logits, logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _logits(reference), _logits(logits)
    return _same_shape(first, second)


def _logits(logits: Logits) -> NDArray[np.float64]:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        msg = f"Logits must have shape (n, classes) with at least one image, found {values.shape}."
        raise ArtefactError(msg)
    _finite(values)
    return values


def _same_shape(reference: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if first.shape != second.shape or first.size == 0:
        msg = f"Both tensors must have the same, non-empty shape, found {first.shape} and {second.shape}."
        raise ArtefactError(msg)
    _finite(first)
    _finite(second)
    return first, second


def _finite(values: NDArray[np.float64]) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        msg = (
            f"{bad} of {values.size} values are NaN or infinite, so nothing can be measured. Look for overflow or a "
            "division by zero in the model that made them."
        )
        raise ArtefactError(msg)
