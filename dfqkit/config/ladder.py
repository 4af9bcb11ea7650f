"""The ``ladder`` section: other schemes that are tried, of which the nearest to the teacher is kept.

What belongs here: which candidates there are, and when no more are tried. What trying one means is `run.ladder`.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_serializer, field_validator

from dfqkit.config.quant import QuantConfig
from dfqkit.config.registry import AnySynthesis
from dfqkit.config.section import Section


class Candidate(QuantConfig):
    """One of the ladder's candidates: what it sets otherwise than the quant section."""

    name: str = Field(description="What the report calls it.")

    @property
    def slower(self) -> bool:
        """Whether it may leave layers in float that others have in integers."""
        return "costly_in_float" in self.sets and self.costly_in_float < 1

    @property
    def sets(self) -> dict[str, Any]:
        """What it sets, by the keys of the quant section; the rest is as it stands there."""
        named = (key for key in QuantConfig.model_fields if key in self.model_fields_set)
        return {key: list(value) if isinstance(value := getattr(self, key), tuple) else value for key in named}


#: What is tried, the cheapest first: the best differs from network to network. On FD-MobileNet 0.5x the least
#: squares of errors were farther than errors at outputs.
USUAL: tuple[Candidate, ...] = tuple(
    Candidate.model_validate({"name": name, "activation_range": found, **sets})
    for name, found, sets in (
        ("percentile", "percentile", {}),
        ("outputs", "outputs", {}),
        ("outputs, values a little alike", "outputs", {"equalize_values": 0.25}),
        ("outputs, values alike", "outputs", {"equalize_values": 0.5}),
        ("outputs, layers alike", "outputs", {"equalize": 20}),
    )
)
#: What is made alike where codes of weights are chosen together, which takes a minute or some each time.
_ALIKE: dict[str, dict[str, Any]] = {
    "as they are": {}, "values alike": {"equalize_values": 0.5}, "layers alike": {"equalize": 20},
}  # fmt: skip
FEW_BITS: tuple[Candidate, ...] = tuple(
    Candidate.model_validate({"name": name, **sets}) for name, sets in _ALIKE.items()
)


class LadderConfig(Section):
    """The ``ladder`` section of a recipe."""

    candidates: tuple[Candidate, ...] = Field(
        USUAL,
        min_length=1,
        description="Each has a name and what it sets otherwise than quant; tried in this order, and of two that are "
        "as near the first is kept. One that leaves costly layers in float must be twice as near as one that does not.",
    )
    images: int = Field(64, ge=1, description="Images that judge them and take part in nothing else.")
    judge: AnySynthesis | None = Field(
        None,
        description="Where these come from, without files. null: zeroq from drawn images, with few steps, where the "
        "network has BatchNorm and zeroq does not calibrate; else drawn ones, by other rules than such that do.",
    )
    max_time: float | None = Field(
        None, gt=0, description="Minutes after which no further candidate is begun; the first is always tried."
    )
    enough: float | None = Field(
        None, gt=0, le=100, description="Percent of the answers that one keeps for no further one to be tried."
    )
    max_drop: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="Points that may be lost. No further candidate is tried once one keeps all but as many percent of "
        "the answers. A report is failed where labelled images, or the estimate, lose more; it is not judged where the "
        "estimate's interval reaches above, or, without both, fewer answers are kept on the images that grade.",
    )
    max_size: float | None = Field(
        None, gt=0, description="MB (10^6 bytes) of the file: a candidate with a larger one is not kept."
    )

    @field_validator("candidates")
    @classmethod
    def _apart(cls, value: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [each.name for each in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            message = f"two are called '{twice}'; give each a name of its own"
            raise ValueError(message)
        bits = next((each.name for each in value if "bits" in each.sets), None)
        if bits is not None:
            message = f"'{bits}' sets bits, and more of them are always nearer; set them in quant, for all"
            raise ValueError(message)
        return value

    @field_validator("judge")
    @classmethod
    def _by_itself(cls, value: AnySynthesis | None) -> AnySynthesis | None:
        if value is not None and (value.files() or value.real_data() is not None):
            message = f"'{value.method}' takes images or records from files; name a method that makes its own"
            raise ValueError(message)
        return value

    @field_serializer("candidates")
    def _as_given(self, value: tuple[Candidate, ...]) -> list[dict[str, Any]]:
        return [{"name": each.name, **each.sets} for each in value]

    @property
    def kept(self) -> float:
        """Percent of the answers that are enough; infinite where nothing is."""
        by_drop = math.inf if self.max_drop is None else 100.0 - self.max_drop
        return min(by_drop, math.inf if self.enough is None else self.enough)

    def schemes(self, quant: QuantConfig) -> dict[str, QuantConfig]:
        """Return every candidate's scheme by its name, in order; ``quant`` is what they start from."""
        return {
            each.name: quant.model_copy(update={k: getattr(each, k) for k in each.sets}) for each in self.candidates
        }
