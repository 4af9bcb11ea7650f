"""What every synthesizer's section of a recipe has, and what it says of its method before anything is computed.

What belongs here: the base of these sections and of their loss weights, and what is asked of a synthesizer. Listing,
planning and reports read a method's facts off its section, so nothing here, nor any section, imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from dfqkit.config.section import Added, Section
from dfqkit_export.images import TORCHVISION

#: What `SynthesizerConfig.real_data` says where nothing tells.
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the caller is going to ask of a synthesizer, for schedules and for methods that make a set beforehand.

    Attributes:
        training: Different images that `Synthesizer.training_batch` should draw from.
        fresh: Images that `Synthesizer.sample` will be asked for, in all.
        game_rounds: Rounds with students after the warm-up.
        beside: What the run's other synthesizer of the same configuration is asked for, the one that grades or, for
            that one, the main one; None where it is not known. Sources of a limited number of images leave that many.
    """

    training: int = 256
    fresh: int = 0
    game_rounds: int = 0
    beside: Demand | None = None

    @property
    def images(self) -> int:
        """Training and fresh images together."""
        return self.training + self.fresh


NO_DEMAND = Demand()


class SynthesizerConfig(Section):
    """Base of every method's section; the first line of a section's docstring is what lists say of the method.

    Attributes:
        implementation: The class that does it, as ``module:Class``; imported when it is built.
        needs: What the method cannot do without, of "batchnorm" (layers with running statistics), "classes" (a task
            whose output is one number a class), "linear_head" (a linear layer that gives these), "features" (what
            enters the last layer), "objects" (a task that finds some), "tokens" (attention between some), "student"
            (one to play against, in the warm-up too), "records", "images" and "pipeline" (what the section names).
        file_keys: Fields that name files or folders.
        warning: What every report about its images must open with; None for most methods.
        origin: What images are made from where that is not the teacher; "" for most methods.
    """

    implementation: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    file_keys: ClassVar[tuple[str, ...]] = ()
    warning: ClassVar[str | None] = None
    origin: ClassVar[str] = ""

    method: str
    low_pass: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Gaussian low-pass on every image that is drawn, D0 as a share of the image's size (SynQ: 20 to "
        "100 of 224 pixels); null leaves images as they are.",
    )

    @classmethod
    def summary(cls) -> str:
        """Return the method in one line."""
        return (cls.__doc__ or "").partition("\n")[0]

    @property
    def needed(self) -> frozenset[str]:
        """What this configuration needs; less or more than ``needs`` where options decide."""
        weights = getattr(self, "weights", None)
        if not isinstance(weights, StatisticsWeights):
            return self.needs
        spared = {"classes"} if weights.of_classes and not any(map(weights.counts, weights.of_classes)) else set()
        return (self.needs - spared) | ({"objects"} if weights.objects else set())

    def warnings(self) -> tuple[str, ...]:
        """Return what reports about images of this configuration must open with."""
        return () if self.warning is None else (self.warning,)

    def made_from(self) -> str:
        """Return what images of this configuration are made from, if not from the teacher and real data; else ""."""
        return self.origin

    def real_data(self) -> str | None:
        """Return what real data took part in images of this configuration, its files found, as "similar images".

        `UNKNOWN` where that cannot be told; None where there was none. Methods that read data, or what
        was made of data, override this.
        """
        return None

    def resolved(self, find: Callable[[str], str]) -> Self:
        """Return the same, with every file that it names found by ``find``; torchvision's data sets are none."""
        named = {key: getattr(self, key) for key in self.file_keys}
        places = {key: name for key, name in named.items() if name and not name.startswith(TORCHVISION)}
        return self.model_copy(update={key: find(name) for key, name in places.items()}) if places else self

    def files(self) -> list[str]:
        """Return the names of the files that it reads, in the order in which `resolved` asks for them."""
        names: list[str] = []

        def note(name: str) -> str:
            names.append(name)
            return name

        self.resolved(note)
        return names

    def data_sets(self) -> dict[str, str]:
        """Return every text in it that names a data set of torchvision, by where it stands."""
        texts = _texts(self.model_dump(by_alias=True), "synthesis")
        return {where: text for where, text in texts if text.startswith(TORCHVISION)}

    def grading(self) -> Self:
        """Return the configuration of the separate, differently seeded synthesizer whose images grade the result."""
        return self

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """Return the same method sized to a budget, as comparisons at equal cost need it.

        Args:
            passes: Teacher forward+backward image passes that the warm-up may take, at the most; a method whose
                smallest unit is larger than that takes one unit.
            demand: What will be asked of it.

        Returns:
            A configuration, all that does not decide the cost as it was; the same one where a method has no cost
            (`images`, `noise`).
        """
        return self


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield every text in nested mappings and sequences, behind where it is."""
    if isinstance(value, str):
        yield where, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _texts(part, f"{where}.{key}")


class LossWeights(Section):
    """Base of every method's ``weights``: factors of its loss terms, of which at least one must count."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(value == 0 for value in self.model_dump().values()):
            message = (
                "all are 0, which optimises nothing and leaves noise; give one a value above 0, or use method noise "
                "where a baseline is wanted"
            )
            raise ValueError(message)
        return self


class StatisticsWeights(LossWeights):
    """Base of the weights of methods on what layers see, which any network's outputs can join.

    Attributes:
        of_classes: Terms about classes: where all are off, a task without classes will do. Empty where a method has
            none, or cannot do without.
    """

    of_classes: ClassVar[frozenset[str]] = frozenset()

    objects: Annotated[float, Added("0.2.0")] = Field(
        0.0, ge=0, description="Objects of all classes and sizes in every image, of a task that finds some. Ours."
    )

    def counts(self, term: str) -> bool:
        """Return whether a term has a weight; one that the method sets itself has."""
        return bool(getattr(self, term) != 0)
