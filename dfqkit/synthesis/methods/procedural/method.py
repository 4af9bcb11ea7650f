"""Drawing scenes; what they are made of is told in the package."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from dfqkit.synthesis.base import DrawnSynthesizer
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.scenes import Scenery, draw_scenes


class Procedural(DrawnSynthesizer):
    """Leaves that hide each other, 1/f textures, gradients, glyphs, fractals: drawn by rules, no network involved."""

    config: ProceduralConfig

    def _set_up(self) -> None:
        super()._set_up()
        self.scenery = Scenery(**{field.name: getattr(self.config, field.name) for field in fields(Scenery)})

    def sample(self, n: int) -> Tensor:
        """Return new images (n, C, H, W), each drawn by itself."""
        return self.teacher.image.normalize(draw_scenes(n, self.teacher.image.shape, self.rng, self.scenery))
