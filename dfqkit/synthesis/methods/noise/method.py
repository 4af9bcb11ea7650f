"""Drawing noise; what it is and who gets what is told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit.config.synthesis import NO_DEMAND, Demand
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.methods.noise import NoiseConfig
from dfqkit.teacher.load import Teacher


class Noise(Synthesizer):
    """Gaussian or uniform noise, a baseline; only with accept_noise: true, and reports warn of it."""

    config: NoiseConfig

    def __init__(
        self, config: NoiseConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        ends = torch.tensor([0.0, 1.0], device=self.device).reshape(2, 1, 1, 1).expand(2, teacher.image.shape[0], 1, 1)
        self.low, self.high = teacher.image.normalize(ends)

    @property
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    def sample(self, n: int) -> Tensor:
        """Independent noise (n, C, H, W) within the bounds of each channel."""
        shape = (n, *self.teacher.image.shape)
        if self.config.kind == "uniform":
            return self.teacher.image.normalize(torch.rand(shape, generator=self.rng, device=self.device))
        drawn = torch.randn(shape, generator=self.rng, device=self.device)
        return torch.clamp(drawn, self.low, self.high)

    def state_dict(self) -> dict[str, Tensor]:
        """The random state."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.set_state(state["rng"].cpu())
