"""Noise: what a result is worth when nothing at all is known of the images; a baseline.

What belongs here: Gaussian and uniform noise behind the interface of a synthesizer. There is no paper, no loss and no
need of the teacher but its normalisation. A recipe has to accept it in so many words, and every report about what came
of it opens with a warning, because a file calibrated on noise looks like any other.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from dfqkit.config.synthesis import SynthesizerConfig


class NoiseConfig(SynthesizerConfig):
    """Gaussian or uniform noise, a baseline; only with accept_noise: true, and reports warn of it."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.noise.method:Noise"
    origin: ClassVar[str] = "random numbers (no network involved)"
    warning: ClassVar[str | None] = (
        "Random noise took the place of images (synthesis method noise). It holds nothing that the network was made "
        "for: the result is a baseline, and what is measured on noise says nothing about real images."
    )

    method: Literal["noise"] = "noise"
    accept_noise: bool = Field(
        False, validate_default=True, description="Must be true: says that a baseline is wanted, and no good result."
    )
    kind: Literal["gaussian", "uniform"] = Field(
        "gaussian",
        description="gaussian: N(0, 1) in the normalised space, cut off where no image can be; uniform: every pixel "
        "value is as likely. Ours.",
    )

    @field_validator("accept_noise")
    @classmethod
    def _accepted(cls, value: bool) -> bool:
        if not value:
            message = (
                "must be true for method noise (found false). Noise holds nothing that the network was made for, so "
                "that ranges and weights fitted on it do not fit real images. Use method dfq, or images where there "
                "are similar ones; for a baseline write accept_noise: true"
            )
            raise ValueError(message)
        return value
