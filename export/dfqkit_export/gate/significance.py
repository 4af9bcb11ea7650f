"""When a metric has changed: per-image values, standard errors of a difference, default tolerances.

What belongs here: the numbers behind a verdict. The same images are measured every time, so what decides whether a
difference would also be seen on others of their kind is the spread of the per-image *differences*, not the spread of
either side: images on which both files answer alike say nothing (see also `metrics.paired_drop`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.sketches import pack, unpack

__all__ = ["PerImage", "default_tolerance", "difference_stderr", "expected_flips", "noise_stderr_db", "per_image"]

Floats = NDArray[np.float64]

#: A step of stored logarithms is an eighth of a factor of two, which is much finer than images differ from each other.
_STEPS, _ZERO = 8.0, 200.0
_DB = 10.0 / math.log(10.0)

# Set from W8A8 files of CIFAR-10 ResNet-20 that were calibrated on images of 16 kinds, 512 sentinel images: files of
# eight kinds that lose nothing on real images spread over 1.2 points of agreement, a factor of 1.41 in KL and 1.1 dB;
# that of noise lies 4.7 points, a factor of 2.3 and 3.2 dB from the best.
_ABSOLUTE = {
    "agreement": 1.5,
    "plain_agreement": 1.5,
    "logit_sqnr_db": 1.5,
    "integer_ops": 0.0,
    "structure": 0.0,
    "preprocessing": 0.0,
    "top1": 0.3,
    "top5": 0.3,
    "top1_drop": 0.3,
    "student_agreement": 0.1,
    "student_top1_gap": 0.05,
}
_KL_SHARE, _KL_LEAST, _FLIP_SHARE = 0.5, 0.002, 0.04


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """What each sentinel image contributed.

    Attributes:
        agrees: Whether the file and the teacher chose the same class, bool (N,).
        kl: KL(teacher || file), nats, (N,).
        noise: Squared error of the logits, summed over the classes, (N,).
        sensitive: Which images are of the sensitive kind, bool (N,).
    """

    agrees: NDArray[np.bool_]
    kl: Floats
    noise: Floats
    sensitive: NDArray[np.bool_]

    def to_dict(self) -> dict[str, Any]:
        """Return text that JSON can hold, about a byte an image and value."""
        return {
            "n": len(self.agrees),
            "agrees": pack(np.packbits(self.agrees)),
            "sensitive": pack(np.packbits(self.sensitive)),
            "kl": pack(_encoded(self.kl)),
            "noise": pack(_encoded(self.noise)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PerImage:
        """Rebuild what `to_dict` wrote, values to within 5 %.

        Raises:
            ArtefactError: Something else stands there.
        """
        try:
            n = int(values["n"])
            agrees, sensitive = (
                np.unpackbits(unpack(values[k], "u1"))[:n].astype(bool) for k in ("agrees", "sensitive")
            )
            kl, noise = (_decoded(unpack(values[key], "u1")) for key in ("kl", "noise"))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"The baseline's values per image are damaged ({error!r}). Record it again with --update."
            raise ArtefactError(msg) from None
        if not len(agrees) == len(sensitive) == len(kl) == len(noise) == n:
            msg = f"The baseline's values per image are not of the {n} images they name. Record it again with --update."
            raise ArtefactError(msg)
        return cls(agrees=agrees, kl=kl, noise=noise, sensitive=sensitive)


def per_image(teacher: NDArray[Any], logits: NDArray[Any], sensitive: NDArray[np.bool_]) -> PerImage:
    """Return what each image contributes to the metrics.

    Args:
        teacher: Teacher logits, shape (n, classes), finite.
        logits: The file's logits of the same images, finite.
        sensitive: Which images are of the sensitive kind, (n,).
    """
    first, second = np.asarray(teacher, np.float64), np.asarray(logits, np.float64)
    p, q = _log_softmax(first), _log_softmax(second)
    return PerImage(
        agrees=first.argmax(1) == second.argmax(1),
        kl=np.maximum((np.exp(p) * (p - q)).sum(1), 0.0),
        noise=np.square(first - second).sum(1),
        sensitive=sensitive,
    )


def difference_stderr(metric: str, base: PerImage, now: PerImage) -> float | None:
    """Return the standard error of the change of a metric between two files on the same images.

    Args:
        metric: Name of the metric.
        base: Values of the baseline's file.
        now: Values of today's file, of the same images in the same order.

    Returns:
        The paired standard error in the metric's unit, with `ddof` 1; None for a metric without one.
    """
    sensitive, n = now.sensitive, len(now.agrees)
    hits = now.agrees.astype(np.float64) - base.agrees
    if metric == "agreement":
        return 100.0 * _stderr(hits)
    if metric == "plain_agreement":
        return 100.0 * _stderr(hits[~sensitive])
    if metric == "flips":
        return int(sensitive.sum()) * _stderr(hits[sensitive])
    if metric == "kl":
        return _stderr(now.kl - base.kl)
    if metric == "logit_sqnr_db" and n and now.noise.mean() > 0 and base.noise.mean() > 0:
        # The signal is the teacher's and does not change: d log(mean noise), by the delta method.
        return _DB * _stderr(now.noise / now.noise.mean() - base.noise / base.noise.mean())
    return None


def default_tolerance(metric: str, value: float | None, n: int, flips: float = 0.0) -> float:
    """Return the tolerance that a metric is recorded with, unless another is stated.

    Args:
        metric: Name of the metric.
        value: Its value.
        n: How many images it rests on.
        flips: How many more images an equally good file may flip: `expected_flips`.
    """
    if metric == "kl":
        return _rounded(_KL_SHARE * (value or 0.0) + _KL_LEAST)
    if metric == "flips":
        return float(math.ceil(max(1.0, _FLIP_SHARE * n, flips)))
    if metric == "agreement" and n:
        return _rounded(max(_ABSOLUTE[metric], 100 * flips / n))
    return _ABSOLUTE.get(metric, 0.0)


def expected_flips(power: Mapping[str, Any]) -> float:
    """Return how many more sensitive images an equally good file may flip than the one that they were chosen with.

    Images are chosen where the file at hand is right, so that any other, as good as it is, is wrong on more of them:
    the number that the set's own power states, with two standard deviations of a count.

    Args:
        power: `Sentinel.power`.
    """
    equal, own = power.get("equal_flips"), power.get("own_flips")
    if not all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in (equal, own)):
        return 0.0
    return max(0.0, float(equal) - float(own)) + 2 * math.sqrt(float(equal))  # type: ignore[arg-type]


def noise_stderr_db(noise: Floats) -> float | None:
    """Return the standard error of an SQNR in dB from the noise of each image; None where it has none."""
    mean = float(noise.mean()) if noise.size else 0.0
    return _DB * _stderr(noise / mean) if mean > 0 and noise.size > 1 else None


def _stderr(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _encoded(values: Floats) -> NDArray[np.uint8]:
    codes = np.rint(_STEPS * np.log2(np.maximum(values, 1e-30)) + _ZERO)
    return np.clip(codes, 0, 255).astype(np.uint8)


def _decoded(codes: NDArray[Any]) -> Floats:
    values: Floats = np.exp2((codes.astype(np.float64) - _ZERO) / _STEPS)
    return np.where(codes == 0, 0.0, values)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
