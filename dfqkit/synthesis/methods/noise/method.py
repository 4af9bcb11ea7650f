"""Drawing noise; what it is and who gets what is told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.methods.noise import NoiseConfig


class Noise(Synthesizer):
    """Gaussian or uniform noise, a baseline; only with accept_noise: true, and reports warn of it."""

    config: NoiseConfig

    def _set_up(self) -> None:
        super()._set_up()
        ends, channels = torch.tensor([0.0, 1.0], device=self.device), self.teacher.image.shape[0]
        ends = ends.reshape(2, 1, 1, 1).expand(2, channels, 1, 1)
        self.low, self.high = self.teacher.image.normalize(ends)

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
        """Return the random state."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.set_state(state["rng"].cpu())
