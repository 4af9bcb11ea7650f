"""What a kind of metrics is, one measured number of a kind, and how kinds are found by name.

What belongs here: the classes and the look-up. The table itself is `kinds`, through which everybody takes these.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from dfqkit_export.errors import ArtefactError

#: Entry point group under which other packages offer kinds.
GROUP = "dfqkit.metrics"
#: Kinds by name, in the order in which tables that choose their rows show them.
KINDS: dict[str, MetricKind] = {}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a value may be on the wrong side of a recorded one, unless another tolerance is stated.

    Attributes:
        absolute: In the metric's unit.
        relative: A share of the recorded value, added.
        of_images: The least, as a share of the images.
        flips: Whether it is no less than what an equally good file would flip of images that were chosen where the
            file at hand is right.
    """

    absolute: float = 0.0
    relative: float = 0.0
    of_images: float = 0.0
    flips: bool = False


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """What each image contributes to a metric, from which the paired standard error of a change follows.

    The values are the task's: `Task.per_image`.

    Attributes:
        key: Name under which tasks give and baselines keep the values; metrics with the same values share it.
        binary: Whether the values are yes or no.
        over: The images that count.
        total: How values come to the metric: their mean, their sum, or their mean as noise power in dB.
    """

    key: str
    binary: bool = False
    over: Literal["all", "plain", "sensitive"] = "all"
    total: Literal["mean", "sum", "dB"] = "mean"


@dataclass(frozen=True, kw_only=True)
class MetricKind:
    """A metric, whatever its value.

    Attributes:
        name: Its name in files.
        title: Its name for readers.
        unit: "%", "points", "nats", "dB", "ms", "bytes", "" for a plain number.
        decimals: Decimals that readers see; None for significant digits.
        significant: Significant digits of a metric that spans many orders of magnitude; None for four.
        higher_is_better: Direction; None for a number that is neither good nor bad.
        tolerance: How far it may change.
        per_image: What each image contributes; None for a metric that is not about images, or has no paired error.
        about: What it is told of: the file alone, images, or images with labels.
        gated: Whether the gate compares it; False for what is information only.
        timed: Whether it depends on the machine and on what else runs there.
        ratio_words: For a metric that is compared as a ratio, how a better and a worse one are called.
        without_value: What it means that there is no finite value where there was one, for a metric whose best it is.
        headline: Whether it is among the figures at the head of a report, of which the first of the table are shown.
        on_card: Whether model cards show it.
        short: Its name at the head of a narrow column of comparisons of synthesizers; "" where they leave it out.
    """

    name: str
    title: str
    unit: str = ""
    decimals: int | None = None
    significant: int | None = None
    higher_is_better: bool | None
    tolerance: Tolerance = Tolerance()
    per_image: PerImage | None = None
    about: Literal["file", "images", "labels"] = "images"
    gated: bool = True
    timed: bool = False
    ratio_words: tuple[str, str] | None = None
    without_value: str = ""
    headline: bool = False
    on_card: bool = False
    short: str = ""

    def metric(
        self,
        *,
        subject: str,
        data: str,
        value: float | None,
        n: int,
        stderr: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Metric:
        """Return a measured number of this kind, of which the arguments say what `Metric`'s attributes do."""
        return Metric(
            name=self.name,
            subject=subject,
            data=data,
            value=value,
            unit=self.unit,
            n=n,
            stderr=stderr,
            higher_is_better=self.higher_is_better,
            low=interval[0] if interval else None,
            high=interval[1] if interval else None,
        )

    def of_output(self, output: str) -> MetricKind:
        """Return the same of one output of a network that has several, without paired errors."""
        name, title = f"{self.name}:{output}", f"{self.title}: {output}"
        return replace(self, name=name, title=title, per_image=None, headline=False, on_card=False, short="")

    def tolerance_at(self, value: float | None, n: int, flips: float = 0.0) -> float:
        """Return the tolerance that a value of n images is recorded with.

        `flips` says how many more images an equally good file may flip.
        """
        known = self.tolerance
        whole = self.unit == "images"
        least = flips * (1.0 if whole else 100.0 / n) if known.flips and n else 0.0
        limit = max(known.absolute + known.relative * (value or 0.0), known.of_images * n, least)
        return float(math.ceil(limit)) if whole else float(f"{limit:.3g}")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number and what is needed to judge it.

    Attributes:
        name: What was measured, the name of a `MetricKind`.
        subject: What it was measured on: "teacher", "student", the name of a runtime, ...
        data: The images it was measured with, for example "real:cifar10_test" or "synthetic:dfq, seed 7".
        value: The number; None where the quantity has no finite value (see the function that made it).
        unit: The kind's.
        n: How many images (for latency: repetitions) the value rests on.
        stderr: Standard error of the value, in its unit; None where it has none.
        higher_is_better: The kind's.
        low: Lower end of an interval of 95 %, where one is known that holds better than one of standard errors.
        high: Its upper end.
    """

    name: str
    subject: str
    data: str
    value: float | None
    unit: str
    n: int
    stderr: float | None = None
    higher_is_better: bool | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that JSON cannot hold."""
        for field in ("value", "stderr", "low", "high"):
            number = getattr(self, field)
            if number is not None and not math.isfinite(number):
                message = (
                    f"Metric {self.name!r} of {self.subject!r} has the {field} {number}, which is not finite. Use None "
                    "for a quantity without a finite value, and look for NaN in the model's outputs."
                )
                raise ArtefactError(message)
        if self.n < 0:
            message = (
                f"Metric {self.name!r} of {self.subject!r} claims to rest on {self.n} images; n cannot be negative."
            )
            raise ArtefactError(message)

    @property
    def kind(self) -> MetricKind:
        """Its kind; what it says of itself goes before what is known, as in a file that another version wrote."""
        known = find_kind(self.name)
        if known is not None and known.unit == self.unit:
            return known
        alike = kind_of_unit(self.unit)
        made = known or MetricKind(name=self.name, title=self.name, higher_is_better=self.higher_is_better)
        return replace(
            made,
            unit=self.unit,
            decimals=alike.decimals if alike else None,
            significant=alike.significant if alike else None,
            ratio_words=alike.ratio_words if alike else None,
            gated=alike.gated if alike else True,
        )


def register(kind: MetricKind) -> MetricKind:
    """Add a kind to the table, and return it so that a constant can name it."""
    if KINDS.setdefault(kind.name, kind) != kind:
        message = f"There are two kinds of metrics called {kind.name!r}. Give one of them another name."
        raise ArtefactError(message)
    return kind


def find_kind(name: str) -> MetricKind | None:
    """Return the kind of a name, own or from a plugin; None where nobody knows it.

    A name with a colon, such as ``sqnr_db:boxes``, is of the kind in front of it, and about one output.
    """
    if name not in KINDS:
        load_plugins()
    kind, _, output = name.partition(":")
    found = KINDS.get(name) or (KINDS.get(kind) if output else None)
    return found if found is None or not output else found.of_output(output)


def known_kinds() -> list[MetricKind]:
    """Return all kinds, those of plugins last."""
    load_plugins()
    return list(KINDS.values())


def kind_of_unit(unit: str) -> MetricKind | None:
    """Return the first kind of the table with a unit, after whose way other numbers in that unit are written."""
    return next((kind for kind in KINDS.values() if kind.unit == unit), None) if unit else None


@cache
def load_plugins() -> None:
    """Add the kinds that other packages offer, once; one that cannot be used is named in a warning."""
    from importlib.metadata import entry_points  # slow to load, and not needed for own kinds

    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
            if not isinstance(kind, MetricKind):
                message = "it is not a dfqkit_export.measure.kinds.MetricKind"
                raise TypeError(message)
            register(kind)
        except Exception as error:  # whatever a foreign module raises; the others' metrics are told all the same
            warnings.warn(
                f"Metric {point.name!r} ({point.value}) cannot be used: {error}. Repair or remove the package that "
                f"offers it under the entry point {GROUP!r}.",
                RuntimeWarning,
                stacklevel=2,
            )
