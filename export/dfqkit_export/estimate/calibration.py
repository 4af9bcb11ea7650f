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

SCHEMA = 2
TABLE = Path(__file__).with_name("constants.json")
_OTHER = "These images, or this network, are of another kind than those it was calibrated with."


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The constants of the estimate, and where it holds.

    Attributes:
        scale: Drop in points of a network of 10 classes at a divergence of 1 nat.
        power: With which the drop grows with the divergence.
        by_classes: With which it grows with the number of classes.
        floor: Standard deviation, in points, of what the estimate misses however small the drop.
        relative: The same as a share of the drop; most of it is what teachers differ by.
        measured: Variance, in points squared of 10 classes at a divergence of 1 nat, with which a test set shows the
            drop: images that change their class, in number as its root, do so for better or for worse by chance.
        multiplier: How many standard deviations the interval reaches to each side.
        level: Share of cases that an interval should hold, in (0, 1).
        synthesizers: Those whose images it was fitted with.
        bounds: Lowest and highest value of each feature, by name, and of "teacher_top1" in percent.
        provenance: Teachers, files, and the command that fitted it; any JSON value.
    """

    scale: float
    power: float
    by_classes: float
    floor: float
    relative: float
    measured: float
    multiplier: float
    level: float
    synthesizers: Sequence[str]
    bounds: Mapping[str, tuple[float, float]]
    provenance: Mapping[str, Any]

    def drop(self, features: Features) -> float:
        """Return the drop in points."""
        return float(self.scale * features.kl**self.power * self._more(features))

    def _more(self, features: Features) -> float:
        return float((features.classes / 10) ** self.by_classes)

    def deviation(self, features: Features) -> float:
        """Return the standard deviation, in points, of what a test set would show about the drop.

        The floor, the share of the drop, the chance of the test set, and what the error of the feature makes.
        """
        drop = self.drop(features)
        sampling = self.power * drop * features.kl_stderr / features.kl if features.kl else 0.0
        chance = math.sqrt(self.measured * math.sqrt(features.kl) * self._more(features))
        return math.hypot(self.floor, self.relative * drop, chance, sampling)

    def interval(self, features: Features) -> tuple[float, float, float]:
        """Drop, lower and upper end in points."""
        drop, reach = self.drop(features), self.multiplier * self.deviation(features)
        return drop, drop - reach, drop + reach


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


def distrust(features: Features, constants: Calibration, *, synthesizer: str, teacher_top1: float | None = None) -> str:
    """Say why there can be no estimate; empty where there can. An accuracy that is None is left out."""
    if synthesizer not in constants.synthesizers:
        return (
            f"The images are made by {synthesizer!r}; it was calibrated with those of "
            f"{', '.join(constants.synthesizers)}, and the error differs. Grade with images of one of these."
        )
    if features.gain <= 0:
        return (
            f"The file's logits do not follow the float model's (gain {features.gain:.2g}): it is broken, and how many "
            "images it still gets right cannot be told."
        )
    sure = features.confidence * max(features.classes, 10)
    variety = features.classes_seen / min(features.n / 2, features.classes)
    checked: list[tuple[str, str, float, str]] = [
        ("n", "The number of images", features.n, "Give more images."),
        ("classes", "The number of classes", features.classes, "No such model was part of the calibration."),
        ("variety", "The share of the classes (or of half as many as images) that any image shows", variety, _OTHER),
        ("sureness", "The float model's confidence as a multiple of chance", sure, _OTHER),
        ("divergence", "The divergence of the file's answers", features.kl, "Larger drops were not measured."),
        ("gain", "The gain of the file's logits", features.gain, "The file is worse than any that was measured."),
    ]
    if teacher_top1 is not None:
        checked.append(("teacher_top1", "The float model's top-1", teacher_top1, "No such model was calibrated with."))
    for name, what, value, advice in checked:
        low, high = constants.bounds[name]
        if not low <= value <= high:
            return f"{what} is {value:.4g}, outside of the calibrated {low:.4g} to {high:.4g}. {advice}"
    return ""
