"""Drawing scenes; what they are made of is told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor, nn

from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.scenes import Scenery, draw_scenes


class Procedural(Synthesizer):
    """Leaves that hide each other, 1/f textures, gradients, glyphs, fractals: drawn by rules, no network involved."""

    config: ProceduralConfig

    def _set_up(self) -> None:
        super()._set_up()
        self.scenery = Scenery(**{field.name: getattr(self.config, field.name) for field in fields(Scenery)})

    @property
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    def sample(self, n: int) -> Tensor:
        """Return new images (n, C, H, W), each drawn by itself."""
        return self.teacher.image.normalize(draw_scenes(n, self.teacher.image.shape, self.rng, self.scenery))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the random state, which is all there is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.set_state(state["rng"].cpu())
