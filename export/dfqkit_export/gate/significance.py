"""When a metric has changed: values of each image, standard errors of a difference, default tolerances.

What belongs here: the numbers behind a verdict. The same images are measured every time, so what decides whether a
difference would also be seen on others of their kind is the spread of the per-image *differences*, not the spread of
either side: images on which both files answer alike say nothing (see also `tasks.classification.paired_drop`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.signature import pack, unpack
from dfqkit_export.measure.kinds import MetricKind, find_kind, known_kinds

Floats = NDArray[np.float64]

#: A step of stored logarithms is an eighth of a factor of two, which is much finer than images differ from each other.
_STEPS, _ZERO = 8.0, 200.0
_DB = 10.0 / math.log(10.0)


@dataclass(frozen=True, kw_only=True)
class ImageValues:
    """What each sentinel image contributed.

    Attributes:
        sensitive: Which images are of the sensitive kind, bool (N,).
        values: What they contribute, (N,), by the key that `PerImage` gives it; bool for yes or no.
    """

    sensitive: NDArray[np.bool_]
    values: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.sensitive)

    def to_dict(self) -> dict[str, Any]:
        """Return text that JSON can hold, about a byte an image and value."""
        packed = {
            key: pack(np.packbits(values) if values.dtype == np.bool_ else _encoded(values))
            for key, values in self.values.items()
        }
        return {"n": len(self), "sensitive": pack(np.packbits(self.sensitive)), **packed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageValues:
        """Rebuild what `to_dict` wrote, values to within 5 %; those of which no metric is known are left out."""
        kept = {kind.per_image.key: kind.per_image.binary for kind in known_kinds() if kind.per_image is not None}
        try:
            n = int(values["n"])
            sensitive = _bits(values["sensitive"], n)
            found = {
                key: _bits(values[key], n) if binary else _decoded(unpack(values[key], "u1"))
                for key, binary in kept.items()
                if key in values
            }
        except (KeyError, TypeError, ValueError) as error:
            message = f"The baseline's values per image are damaged ({error!r}). Record it again with --update."
            raise ArtefactError(message) from None
        if not found or any(len(array) != n for array in (sensitive, *found.values())):
            message = (
                f"The baseline's values per image are not of the {n} images they name. Record it again with --update."
            )
            raise ArtefactError(message)
        return cls(sensitive=sensitive, values=found)


def image_values(
    kinds: Iterable[MetricKind], values: Mapping[str, NDArray[Any]], sensitive: NDArray[np.bool_]
) -> ImageValues:
    """Return what each image contributes to metrics of these kinds, of what the task gives of each image by key."""
    keys = dict.fromkeys(kind.per_image.key for kind in kinds if kind.per_image is not None)
    return ImageValues(sensitive=sensitive, values={key: values[key] for key in keys if key in values})


def difference_stderr(metric: str, base: ImageValues, now: ImageValues) -> float | None:
    """Return the paired standard error (`ddof` 1) of a metric's change between two files on the same images.

    It is in the metric's unit; None for a metric without one.
    """
    kind = find_kind(metric)
    each = kind.per_image if kind is not None else None
    if kind is None or each is None or each.key not in base.values or each.key not in now.values:
        return None
    counted = {"all": np.ones(len(now), bool), "plain": ~now.sensitive, "sensitive": now.sensitive}[each.over]
    first, second = (side.values[each.key][counted].astype(np.float64) for side in (base, now))
    if each.total == "dB":
        if not len(now) or first.mean() <= 0 or second.mean() <= 0:
            return None
        # The signal is the teacher's and does not change: d log(mean noise), by the delta method.
        return _DB * _stderr(second / second.mean() - first / first.mean())
    scale = int(counted.sum()) if each.total == "sum" else 100.0 if kind.unit == "%" else 1.0
    return scale * _stderr(second - first)


def default_tolerance(metric: str, value: float | None, n: int, flips: float = 0.0) -> float:
    """Return the tolerance that a metric is recorded with, unless another is stated: `MetricKind.tolerance_at`."""
    kind = find_kind(metric)
    return kind.tolerance_at(value, n, flips) if kind is not None else 0.0


def expected_flips(power: Mapping[str, Any]) -> float:
    """Return how many more sensitive images an equally good file may flip than the one that they were chosen with.

    Images are chosen where the file at hand is right, so that any other, as good as it is, is wrong on more of them:
    the number that the set's own power (`Sentinel.power`) states, with two standard deviations of a count.
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


def _bits(text: Any, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(unpack(text, "u1"))[:n].astype(bool)


def _encoded(values: Floats) -> NDArray[np.uint8]:
    codes = np.rint(_STEPS * np.log2(np.maximum(values, 1e-30)) + _ZERO)
    return np.clip(codes, 0, 255).astype(np.uint8)


def _decoded(codes: NDArray[Any]) -> Floats:
    values: Floats = np.exp2((codes.astype(np.float64) - _ZERO) / _STEPS)
    return np.where(codes == 0, 0.0, values)
