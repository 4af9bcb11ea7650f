"""Numbers that say how far one set of tensors is from another, whatever they mean.

What belongs here: pure functions on numpy arrays, computed in float64, of the *same images in the same order*; the
reference, where there is one, comes first. What depends on what outputs mean is `dfqkit_export.tasks`'.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.precision import Realised
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.intervals import rule_of_three
from dfqkit_export.measure.kinds import INTEGER_OPS, Metric, MetricKind


def share(kind: MetricKind, hits: NDArray[np.bool_], *, subject: str, data: str) -> Metric:
    """Return on how many images something holds, in percent, with its binomial standard error sqrt(p (1 - p) / n).

    Where it holds for all or none, that is 0 and says nothing: the interval is that of the rule of three.
    """
    p, n = float(hits.mean()), hits.size
    stderr, unseen = 100.0 * math.sqrt(p * (1.0 - p) / n), 100.0 * rule_of_three(n)
    interval = {0.0: (0.0, unseen), 1.0: (100.0 - unseen, 100.0)}.get(p)
    return kind.metric(subject=subject, data=data, value=100.0 * p, n=n, stderr=stderr, interval=interval)


def integer_share(realised: Realised, *, subject: str, data: str = "model.onnx") -> Metric:
    """Return the share of the layers that a runtime computes in integers; n counts layers, without a sampling error."""
    share = realised.integer_ops
    value = None if share is None else 100.0 * share
    return INTEGER_OPS.metric(subject=subject, data=data, value=value, n=len(realised.layers))


def sqnr_db(reference: NDArray[Any], test: NDArray[Any]) -> float | None:
    """Return the signal-to-quantization-noise ratio of two tensors, 10 log10(sum r^2 / sum (r - t)^2), in dB.

    Higher is closer. None where it has no finite value: both tensors are identical (no noise at all), or the reference
    is zero everywhere (no signal). Tell them apart with `max_abs`.
    """
    first, second = same_shape(reference, test)
    signal, noise = float(np.square(first).sum()), float(np.square(first - second).sum())
    if signal == 0.0 or noise == 0.0:
        return None
    return 10.0 * math.log10(signal / noise)


def max_abs(reference: NDArray[Any], test: NDArray[Any]) -> float:
    """Return the largest absolute difference of two tensors."""
    first, second = same_shape(reference, test)
    return float(np.abs(first - second).max())


def same_shape(reference: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both in float64; refuse other shapes than equal ones, empty tensors and values that are not finite."""
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if first.shape != second.shape or first.size == 0:
        message = f"Both tensors must have the same, non-empty shape, found {first.shape} and {second.shape}."
        raise ArtefactError(message)
    require_finite(first)
    require_finite(second)
    return first, second


def require_finite(values: NDArray[np.float64]) -> None:
    """Refuse values that are not finite, and say how many there are."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        message = (
            f"{bad} of {values.size} values are NaN or infinite, so nothing can be measured. Look for overflow or a "
            "division by zero in the model that made them."
        )
        raise ArtefactError(message)
