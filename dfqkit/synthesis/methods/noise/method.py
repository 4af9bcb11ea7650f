"""Drawing noise; what it is and who gets what is told in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from dfqkit.synthesis.base import DrawnSynthesizer
from dfqkit.synthesis.methods.noise import NoiseConfig


class Noise(DrawnSynthesizer):
    """Gaussian or uniform noise, a baseline; only with accept_noise: true, and reports warn of it."""

    config: NoiseConfig

    def _set_up(self) -> None:
        super()._set_up()
        ends, channels = torch.tensor([0.0, 1.0], device=self.device), self.teacher.image.shape[0]
        ends = ends.reshape(2, 1, 1, 1).expand(2, channels, 1, 1)
        self.low, self.high = self.teacher.image.normalize(ends)

    def sample(self, n: int) -> Tensor:
        """Independent noise (n, C, H, W) within the bounds of each channel."""
        shape = (n, *self.teacher.image.shape)
        if self.config.kind == "uniform":
            return self.teacher.image.normalize(torch.rand(shape, generator=self.rng, device=self.device))
        drawn = torch.randn(shape, generator=self.rng, device=self.device)
        return torch.clamp(drawn, self.low, self.high)
