"""Several sources at once, each with its share of the images.

What belongs here: the section that lists sources, and one synthesizer made of theirs. A recipe writes

    synthesis:
      sources:
        - {method: dfq, share: 0.6}
        - {method: images, share: 0.4, path: similar}

There is no paper and no loss; each source keeps its own. What is decided here:

- Order of images. Sources take turns by share (see `turns`): however many images are drawn, each source has given its
  share up to rounding, and every batch holds all of them, so that nothing needs to be shuffled. Fresh and training
  images are counted apart.
- Rounds. A warm-up round is one round of one source; they take turns by their numbers of rounds, so that all finish
  together. Against students every source plays in every round.
- Students in the warm-up (methods that cannot do without get one) are only shown to the sources that need them.
- A source with share 0 is left out.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, create_model, field_validator, model_serializer

from dfqkit.config.methods import synthesizer_names
from dfqkit.config.registry import synthesizer_config, with_method
from dfqkit.config.section import OneOf, Section
from dfqkit.config.synthesis import UNKNOWN, Demand, SynthesizerConfig
from dfqkit.synthesis.methods.mixture.turns import counts
from dfqkit_export.errors import RecipeError
from dfqkit_export.images import TORCHVISION


class Source(SynthesizerConfig):
    """One source of a mixture: the section of its method, and its share; there is such a class for every method."""

    share: float = Field(1.0, ge=0, description="Its part of the images, relative to the other sources' shares.")

    @model_serializer(mode="wrap")
    def _joined(self, handler: Callable[[Section], dict[str, Any]]) -> dict[str, Any]:
        fields = self._older(handler)
        return {"method": fields.pop("method"), "share": fields.pop("share"), **fields}

    def places(self) -> list[str]:
        """Return where it takes images from, to use them or to start from them."""
        named = [getattr(self, "path", None) if "images" in self.needs else None, getattr(self, "start_from", None)]
        return [place if place.startswith(TORCHVISION) else os.path.normpath(place) for place in named if place]

    def costs(self, demand: Demand) -> bool:
        """Return whether the method has a cost: those without return the configuration itself."""
        return self.at_cost(1, demand) is not self


def source_sections() -> dict[str, type[Source]]:
    """Return the sections that a source may have, by method; a plugin that is broken is left out."""
    found = {}
    for name in synthesizer_names():
        with contextlib.suppress(RecipeError):  # it is told where methods are listed
            found[name] = source_section(name)
    return found


def source_section(name: str) -> type[Source]:
    """Return the section of a source of the method called ``name``, which is no mixture itself."""
    if name == "mixture":
        message = "is a mixture within a mixture; list its sources here, with their shares multiplied by its own"
        raise RecipeError(message)
    return _with_share(synthesizer_config(name))


@functools.cache
def _with_share(config: type[SynthesizerConfig]) -> type[Source]:
    name = config.__name__.removesuffix("Config")
    bases: tuple[type[SynthesizerConfig], ...] = (config, Source)
    section = create_model(f"{name}Source", __base__=bases, __doc__=config.__doc__)
    return cast("type[Source]", section)


AnySource = Annotated[Source, OneOf("method", source_sections, source_section, "dfq"), BeforeValidator(with_method)]


class MixtureConfig(SynthesizerConfig):
    """Several sources, each with its share of the images; needs what they need."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.mixture.method:Mixture"

    method: Literal["mixture"] = "mixture"
    sources: tuple[AnySource, ...] = Field(
        description="Each with its method, that method's keys, and share; shares need not sum to 1."
    )

    @field_validator("sources")
    @classmethod
    def _divisible(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        total = sum(source.share for source in value)
        if not 0 < total < math.inf:
            message = (
                f"shares must sum to a finite number above 0, found {[source.share for source in value] or 'none'}"
            )
            raise ValueError(message)
        places = [place for source in value for place in source.places()]
        twice = [place for place in places if places.count(place) > 1]
        if twice:
            message = (
                f"two sources take images from one place ({', '.join(twice)}); list it once, with their shares added, "
                "or give each images of its own"
            )
            raise ValueError(message)
        return value

    @property
    def active(self) -> tuple[Source, ...]:
        """The sources that give images."""
        return tuple(source for source in self.sources if source.share)

    @property
    def shares(self) -> list[float]:
        """Of the active sources, normalised to a sum of 1."""
        total = sum(source.share for source in self.active)
        return [source.share / total for source in self.active]

    @property
    def memory(self) -> int:
        """Images that the sources remember, for the space that a run takes."""
        return sum(getattr(source, "memory", 0) for source in self.active)

    def resolved(self, find: Callable[[str], str]) -> Self:
        """Return the same with every source's files found."""
        return self.model_copy(update={"sources": tuple(s.resolved(find) for s in self.active)})

    @property
    def needed(self) -> frozenset[str]:
        """What any source needs."""
        return frozenset[str]().union(*(source.needed for source in self.active))

    def warnings(self) -> tuple[str, ...]:
        """Return the sources' warnings, each once, with the share that it is about."""
        found: dict[str, float] = {}
        for source, share in zip(self.active, self.shares, strict=True):
            for text in source.warnings():
                found[text] = found.get(text, 0.0) + share
        return tuple(f"{100 * share:.3g} % of the images: {text}" for text, share in found.items())

    def made_from(self) -> str:
        """Return what the sources' images are made from, each once."""
        found = dict.fromkeys(source.made_from() for source in self.active)
        return " and ".join(origin or "the teacher" for origin in found) if any(found) else ""

    def real_data(self) -> str | None:
        """Return the sources' phrases, each once; `UNKNOWN` only where none is known."""
        told = (source.real_data() for source in self.active)
        found = list(dict.fromkeys(phrase for phrase in told if phrase is not None))
        known = " and ".join(phrase for phrase in found if phrase != UNKNOWN)
        return known or (UNKNOWN if found else None)

    def grading(self) -> Self:
        """Return every source's own, with the same shares."""
        return self.model_copy(update={"sources": tuple(s.grading() for s in self.active)})

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """Return the budget, split by share over the sources that have a cost; they take no more than their parts."""
        sources, demands = list(self.active), self.demands(demand)
        costly = [index for index, source in enumerate(sources) if source.costs(demands[index])]
        total = sum(self.shares[index] for index in costly)
        for index in costly:
            own = math.floor(passes * self.shares[index] / total)
            sources[index] = sources[index].at_cost(own, demands[index])
        return self.model_copy(update={"sources": tuple(sources)}) if costly else self

    def demands(self, demand: Demand) -> list[Demand]:
        """Return what each active source is asked for: exactly what the first ``demand.fresh`` draws ask, and so on.

        Every source keeps at least one training image, where any are asked for, because more batches are drawn than
        there are different images.
        """
        beside = [None] * len(self.active) if demand.beside is None else self.demands(demand.beside)
        fresh, training = counts(self.shares, demand.fresh), counts(self.shares, demand.training)
        least, rounds = min(demand.training, 1), demand.game_rounds
        return [
            Demand(training=max(own, least), fresh=new, game_rounds=rounds, beside=other)
            for own, new, other in zip(training, fresh, beside, strict=True)
        ]
