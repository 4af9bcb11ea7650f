"""The constants of the drop estimate: what was fitted where the truth is known, and where it holds.

What belongs here: `Calibration`, how it is read, and `distrust`, which says where it does not hold. The constants
themselves are in ``constants.json``, with what they come from; tests/benchmarks/estimate_study.py writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate.features import Features

SCHEMA = 1
TABLE = Path(__file__).with_name("constants.json")
_OTHER = "These images, or this network, are of another kind than those it was calibrated with."


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The constants of the estimate, and where it holds.

    Attributes:
        scale: Drop in points at x = 1, were there no ceiling.
        power: With which the drop grows with x; set, not fitted.
        floor: Standard deviation, in points, of what the estimate misses however small the drop.
        relative: The same as a share of the drop.
        measured: Variance, in points squared for each unit of x, with which 10,000 images show the drop: those that
            change their class, in number proportional to x, do so for better or for worse by chance.
        multiplier: How many standard deviations the interval reaches to each side.
        level: Share of cases that an interval should hold, in (0, 1).
        synthesizers: Those whose images it was fitted with.
        bounds: Lowest and highest value of each feature, by name, and of "teacher_top1" in percent.
        provenance: Teachers, cells, images and the command that fitted it; any JSON value.
    """

    scale: float
    power: float
    floor: float
    relative: float
    measured: float
    multiplier: float
    level: float
    synthesizers: Sequence[str]
    bounds: Mapping[str, tuple[float, float]]
    provenance: Mapping[str, Any]

    def drop(self, features: Features) -> float | None:
        """Return the drop in points: a power of x, levelling off at chance; None where there is no x."""
        if features.noise is None:
            return None
        ceiling = 100.0 * (1.0 - 1.0 / features.classes)
        return -ceiling * math.expm1(-self.scale * features.noise**self.power / ceiling)

    def deviation(self, features: Features) -> float | None:
        """Return the standard deviation, in points, of what 10,000 images would show about the drop.

        The floor, the share of the drop, the chance of those images, and what the error of x makes.
        """
        drop = self.drop(features)
        if drop is None or features.noise is None or features.noise_stderr is None:
            return None
        sampling = self.power * drop * features.noise_stderr / features.noise if features.noise else 0.0
        chance = math.sqrt(self.measured * features.noise)
        return math.hypot(self.floor, self.relative * drop, chance, sampling)

    def interval(self, features: Features) -> tuple[float, float, float] | None:
        """Drop, lower and upper end in points; None where there is no x."""
        drop, deviation = self.drop(features), self.deviation(features)
        if drop is None or deviation is None:
            return None
        return drop, drop - self.multiplier * deviation, drop + self.multiplier * deviation


@cache
def read_calibration(path: Path = TABLE) -> Calibration:
    """Read the constants that the package ships, or others of the same form.

    Raises:
        ArtefactError: The file is missing, not JSON, of another version, or has other fields.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            message = f"its schema is not {SCHEMA}"
            raise ValueError(message)
        document["bounds"] = {name: (float(low), float(high)) for name, (low, high) in document["bounds"].items()}
        return Calibration(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = (
            f"The calibration {str(path)!r} cannot be used ({type(error).__name__}: {error}). Install dfqkit again, or "
            "write it with tests/benchmarks/estimate_study.py."
        )
        raise ArtefactError(message) from None


def distrust(
    features: Features, constants: Calibration, *, synthesizer: str | None = None, teacher_top1: float | None = None
) -> str:
    """Say why there can be no estimate; empty where there can. What is None is left out."""
    if synthesizer is not None and synthesizer not in constants.synthesizers:
        return (
            f"The images are made by {synthesizer!r}; it was calibrated with those of "
            f"{', '.join(constants.synthesizers)}, and the error differs. Grade with images of one of these."
        )
    if features.noise is None:
        return (
            f"The file's logits do not follow the float model's (gain {features.gain:.2g}): it is broken, and how many "
            "images it still gets right cannot be told."
        )
    checked: list[tuple[str, str, float, str]] = [
        ("n", "The number of images", features.n, "Give more images."),
        ("classes", "The number of classes", features.classes, "No such model was part of the calibration."),
        ("classes_seen", "The share of classes that any image shows", features.classes_seen / features.classes, _OTHER),
        ("logit_std", "The spread of the float model's logits", features.logit_std, _OTHER),
        ("confidence", "The float model's mean confidence", features.confidence, _OTHER),
        ("noise", "The error of the file's logits", features.noise, "The drop is larger than any that was measured."),
        ("gain", "The gain of the file's logits", features.gain, "The file is worse than any that was measured."),
    ]
    if teacher_top1 is not None:
        checked.append(("teacher_top1", "The float model's top-1", teacher_top1, "No such model was calibrated with."))
    for name, what, value, advice in checked:
        low, high = constants.bounds[name]
        if not low <= value <= high:
            return f"{what} is {value:.4g}, outside of the calibrated {low:.4g} to {high:.4g}. {advice}"
    return ""
