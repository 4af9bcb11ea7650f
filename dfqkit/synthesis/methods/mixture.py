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

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_serializer, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from dfqkit.config.registry import synthesizer
from dfqkit.synthesis.base import NO_DEMAND, UNKNOWN, Demand, Losses, Synthesizer, SynthesizerConfig
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.optimizers import under
from dfqkit.synthesis.turns import counts, turns, until_empty
from dfqkit.teacher.load import Teacher


class Source(BaseModel):
    """One source of a mixture: ``method`` and its own keys, and ``share``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    share: float = Field(1.0, ge=0, description="Its part of the images, relative to the other sources' shares.")
    config: SerializeAsAny[SynthesizerConfig] = Field(description="The method's own section.")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """The method's keys stand beside ``share``, and errors name them there."""
        if not isinstance(value, Mapping) or isinstance(value.get("config"), SynthesizerConfig):
            return value
        fields = dict(value)
        share = {"share": fields.pop("share")} if "share" in fields else {}
        if "sources" in fields or fields.get("method") == "mixture":
            message = "is a mixture within a mixture; list its sources here, with their shares multiplied by its own"
            raise ValueError(message)
        if "method" not in fields:
            message = "needs a method, e.g. {method: dfq, share: 0.5}"
            raise ValueError(message)
        return {"config": synthesizer(str(fields["method"])).Config.model_validate(fields), **share}

    @model_serializer(mode="wrap")
    def _joined(self, handler: Callable[[Source], dict[str, Any]]) -> dict[str, Any]:
        fields = handler(self)
        own = fields.pop("config")
        return {"method": own.pop("method"), **fields, **own}

    @property
    def kind(self) -> type[Synthesizer]:
        """The method's class."""
        return synthesizer(self.config.method)

    def with_config(self, config: SynthesizerConfig) -> Source:
        """The same share of another configuration."""
        return self.model_copy(update={"config": config})


class MixtureConfig(SynthesizerConfig):
    """The ``synthesis`` section of a recipe that lists ``sources``."""

    method: Literal["mixture"] = "mixture"
    sources: tuple[Source, ...] = Field(
        description="Each with its method, that method's keys, and share; shares need not sum to 1.",
        json_schema_extra={
            "items": {
                "type": "object",
                "required": ["method"],
                "properties": {"method": {"type": "string"}, "share": {"type": "number", "minimum": 0, "default": 1}},
            }
        },
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
        places = [place for source in value for place in _places(source)]
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
        return sum(getattr(source.config, "memory", 0) for source in self.active)

    def resolved(self, find: Callable[[str], str]) -> Self:
        """The same with every source's files found."""
        return self.model_copy(update={"sources": tuple(s.with_config(s.config.resolved(find)) for s in self.active)})


class Mixture(Synthesizer):
    """Several sources, each with its share of the images; needs what they need."""

    Config = MixtureConfig
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, config: MixtureConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        demands = _demands(config.shares, demand)
        self.parts = [
            build_synthesizer(source.config, teacher, self._own_generator(), own)
            for source, own in zip(config.active, demands, strict=True)
        ]
        self.prefixes = self._prefixes(demands)
        self.need_student = ["student" in s.kind.needs_of(s.config) for s in config.active]
        self.done = [0] * len(self.parts)
        self.given = {"fresh": list(self.done), "training": list(self.done)}

    def _own_generator(self) -> torch.Generator:
        seed = int(torch.randint(2**62, (1,), generator=self.rng, device=self.device))
        return torch.Generator(device=self.device).manual_seed(seed)

    def _prefixes(self, demands: Sequence[Demand]) -> list[str]:
        """What precedes the names of each source's terms: nothing where only one source has any."""
        sources = self.config.active
        working = [
            part.warmup_rounds > 0 or _costs(source, own)
            for part, source, own in zip(self.parts, sources, demands, strict=True)
        ]
        if sum(working) < 2:
            return [""] * len(sources)
        methods = [source.config.method for source in sources]
        return [
            f"{method}{methods[: index + 1].count(method) if methods.count(method) > 1 else ''}."
            for index, method in enumerate(methods)
        ]

    @classmethod
    def needs_of(cls, config: MixtureConfig) -> frozenset[str]:  # type: ignore[override]
        """What any source needs."""
        return frozenset[str]().union(*(source.kind.needs_of(source.config) for source in config.active))

    @classmethod
    def warnings_of(cls, config: MixtureConfig) -> tuple[str, ...]:  # type: ignore[override]
        """The sources' warnings, each once, with the share that it is about."""
        found: dict[str, float] = {}
        for source, share in zip(config.active, config.shares, strict=True):
            for text in source.kind.warnings_of(source.config):
                found[text] = found.get(text, 0.0) + share
        return tuple(f"{100 * share:.3g} % of the images: {text}" for text, share in found.items())

    @classmethod
    def real_data_of(cls, config: MixtureConfig) -> str | None:  # type: ignore[override]
        """The sources' phrases, each once; `UNKNOWN` only where none is known."""
        told = (source.kind.real_data_of(source.config) for source in config.active)
        found = list(dict.fromkeys(phrase for phrase in told if phrase is not None))
        known = " and ".join(phrase for phrase in found if phrase != UNKNOWN)
        return known or (UNKNOWN if found else None)

    @classmethod
    def grading_config(cls, config: MixtureConfig) -> MixtureConfig:  # type: ignore[override]
        """Every source's own, with the same shares."""
        sources = tuple(s.with_config(s.kind.grading_config(s.config)) for s in config.active)
        return config.model_copy(update={"sources": sources})

    @classmethod
    def at_cost(cls, config: MixtureConfig, passes: int, demand: Demand) -> MixtureConfig:  # type: ignore[override]
        """The budget, split by share over the sources that have a cost; they take no more than their parts."""
        sources, demands = list(config.active), _demands(config.shares, demand)
        costly = [index for index, source in enumerate(sources) if _costs(source, demands[index])]
        total = sum(config.shares[index] for index in costly)
        for index in costly:
            source, own = sources[index], math.floor(passes * config.shares[index] / total)
            sources[index] = source.with_config(source.kind.at_cost(source.config, own, demands[index]))
        return config.model_copy(update={"sources": tuple(sources)}) if costly else config

    def ask(self, fresh: int) -> None:
        """Ask every source for its share; those of images that are there already have no more than they took."""
        super().ask(fresh)
        for part, own in zip(self.parts, counts(self.config.shares, fresh), strict=True):
            part.ask(own)

    @property
    def warmup_rounds(self) -> int:
        """Of all sources."""
        return sum(part.warmup_rounds for part in self.parts)

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """A round of the source whose turn it is; in a game, and after the warm-up, one of every source."""
        warming = sum(self.done) < self.warmup_rounds and not (students and not any(self.need_student))
        rounds = [part.warmup_rounds for part in self.parts]
        members = turns(self.done, rounds, 1) if warming else range(len(self.parts))
        total: Losses = {}
        for index in members:
            shown = students if self.need_student[index] or not warming else ()
            terms = self.parts[index].synthesize(shown)
            total |= {f"{self.prefixes[index]}{name}": value for name, value in terms.items()}
            self.done[index] += warming
        self.cost = sum(part.cost for part in self.parts)
        return total

    @property
    def available(self) -> int | None:
        """Until the first source that has no more is due."""
        left = [part.available for part in self.parts]
        return until_empty(self.given["fresh"], self.config.shares, left)

    def sample(self, n: int) -> Tensor:
        """Fresh images of all sources in turn."""
        return self._drawn(n, "fresh")

    def training_batch(self, n: int) -> Tensor:
        """Training images (n, C, H, W) of all sources in turn."""
        return self._drawn(n, "training")

    def _drawn(self, n: int, what: str) -> Tensor:
        given = self.given[what]
        order = torch.tensor(turns(given, self.config.shares, n), dtype=torch.int64)
        drawn: Tensor | None = None
        for index, part in enumerate(self.parts):
            places = torch.nonzero(order == index).flatten().to(self.device)
            if not len(places):
                continue
            images = part.sample(len(places)) if what == "fresh" else part.training_batch(len(places))
            drawn = images.new_empty((n, *images.shape[1:])) if drawn is None else drawn
            drawn[places] = images
            given[index] += len(places)
        return torch.empty((0, *self.teacher.image.shape), device=self.device) if drawn is None else drawn

    def state_dict(self) -> dict[str, Tensor]:
        """Every source's state, whose turn it is, and the random state."""
        state = {
            "mixture.done": torch.tensor(self.done),
            "mixture.fresh": torch.tensor(self.given["fresh"]),
            "mixture.training": torch.tensor(self.given["training"]),
            "rng": self.rng.get_state(),
        }
        for index, part in enumerate(self.parts):
            state |= {f"part.{index}.{name}": value for name, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.done = state["mixture.done"].tolist()
        self.given = {name: state[f"mixture.{name}"].tolist() for name in ("fresh", "training")}
        self.rng.set_state(state["rng"].cpu())
        for index, part in enumerate(self.parts):
            part.load_state_dict(under(state, f"part.{index}."))
        self.cost = sum(part.cost for part in self.parts)


def _places(source: Source) -> list[str]:
    """Where a source takes images from, to use them or to start from them."""
    fields = source.config.model_dump()
    named = [fields.get("path") if "images" in source.kind.needs else None, fields.get("start_from")]
    return [place if place.startswith("torchvision:") else os.path.normpath(place) for place in named if place]


def _costs(source: Source, demand: Demand) -> bool:
    """Whether the method has a cost: those without return the configuration itself."""
    return source.kind.at_cost(source.config, 1, demand) is not source.config


def _demands(shares: Sequence[float], demand: Demand) -> list[Demand]:
    """What is asked of each source: exactly what the first ``demand.fresh`` draws will ask, and so on.

    Every source keeps at least one training image, where any are asked for, because more batches are drawn than there
    are different images.
    """
    beside: Sequence[Demand | None] = [None] * len(shares)
    if demand.beside is not None:
        beside = _demands(shares, demand.beside)
    fresh, training = counts(shares, demand.fresh), counts(shares, demand.training)
    return [
        Demand(
            training=max(training[index], min(demand.training, 1)),
            fresh=fresh[index],
            game_rounds=demand.game_rounds,
            beside=beside[index],
        )
        for index in range(len(shares))
    ]
