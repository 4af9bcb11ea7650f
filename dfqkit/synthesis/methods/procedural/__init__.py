"""Images that are drawn by rules, from no network at all: for calibration, and for teachers that offer outputs alone.

What belongs here: the options of `dfqkit.synthesis.scenes`, which draws and names its sources, and the source behind
the interface of a synthesizer. There is no loss, nothing is optimised, and of the teacher only the image's shape and
normalisation are used: the same seed gives the same pixels for every network. Measured on networks of 224 pixels, some
dozens of these images give ranges as good as those of real ones, where as much noise loses most of the accuracy.

Needs: nothing. The number of channels is free; colours and textures of a channel beyond the third are as any other's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from dfqkit.config.synthesis import SynthesizerConfig


class ProceduralConfig(SynthesizerConfig):
    """Leaves that hide each other, 1/f textures, gradients, glyphs, fractals: drawn by rules, no network involved."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.procedural.method:Procedural"
    origin: ClassVar[str] = "rules of drawing (no network involved)"

    method: Literal["procedural"] = "procedural"
    leaves: tuple[int, int] = Field(
        (20, 120), description="Fewest and most ellipses, rectangles and polygons of an image; fewer where it is tiny."
    )
    amplitude: tuple[float, float] = Field(
        (0.02, 0.18), description="Standard deviation of a texture, from and to, as a share of the range of pixels."
    )
    spectrum: tuple[float, float] = Field(
        (0.8, 1.6),
        description="Exponent of a texture's amplitude spectrum 1/f^a, from and to; natural images: about 1.",
    )
    gradients: float = Field(0.3, ge=0, le=1, description="Share of leaves whose colour changes across them.")
    strokes: float = Field(0.3, ge=0, le=1, description="Share of images with lines of glyphs.")
    fractals: float = Field(0.2, ge=0, le=1, description="Share of images with the attractor of a random map.")

    @field_validator("leaves", "amplitude", "spectrum")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 <= low <= high:
            message = (
                f"must be two numbers of which the first is at least 0 and at most the second, found [{low}, {high}]"
            )
            raise ValueError(message)
        return value
