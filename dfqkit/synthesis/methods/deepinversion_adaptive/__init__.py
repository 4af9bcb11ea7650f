"""Adaptive DeepInversion: DeepInversion that looks for images on which the students disagree with the teacher.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, section 3.3. To
the loss of `deepinversion` it adds, with JS the Jensen-Shannon divergence in nats and the mean over students S,

    competition * mean_S [ 1 - JS( softmax(t(x') / 3) || softmax(s(x') / 3) ) ]

The gradient flows through the students to the pixels. In a game a whole new batch is made against the students of the
moment.

Needs: BatchNorm with running statistics, and students.

Differs from what is known of the authors' protocol: their pool begins with DeepInversion images that no student had a
part in; here the warm-up is played too, wherever it is given students. Their code takes the divergence with its
arguments reversed, of probabilities clamped to [0.01, 0.99] and not normalised again; ``form: author`` does so, for
comparisons on ten classes. With 1000 classes the clamp lies at ten times the uniform probability, and most gradients
are zero. The true divergence never exceeds ln 2, so the term stays above 0.307.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dfqkit.synthesis.methods.deepinversion import DeepInversionFields, DeepInversionWeights


class AdaptiveDeepInversionWeights(DeepInversionWeights):
    """Weights of the loss terms; the defaults are for CIFAR-10 and its schedule."""

    of_classes: ClassVar[frozenset[str]] = frozenset()  # the competition is about them, too

    competition: float = Field(
        10.0, ge=0, description="1 - JS in nats. Ours; 0.2 for ImageNet (authors' README), 0 in their CIFAR script."
    )


class AdaptiveDeepInversionConfig(DeepInversionFields):
    """DeepInversion against students."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.deepinversion_adaptive.method:AdaptiveDeepInversion"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes", "student"})

    method: Literal["deepinversion-adaptive"] = "deepinversion-adaptive"
    form: Literal["js", "author"] = Field(
        "js", description="The Jensen-Shannon divergence, or the clamped and reversed one of the authors' code."
    )
    weights: AdaptiveDeepInversionWeights = AdaptiveDeepInversionWeights()

    @model_validator(mode="before")
    @classmethod
    def _fill_competition(cls, values: Any) -> Any:
        """Return the ImageNet schedules' own weight, where none is given."""
        if not isinstance(values, Mapping) or values.get("schedule", "cifar") == "cifar":
            return values
        weights = values.get("weights", {})
        return {**values, "weights": {"competition": 0.2, **weights}} if isinstance(weights, Mapping) else values
