"""The generator network of the adversarial methods, and how its weights and latents are drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dfqkit_export.images import ImageSpec


class Generator(nn.Module):
    """Latent vector to image: a linear layer to a quarter-size map, then two times upsample and convolve.

    The shape is that of the DCGAN-like generators of the data-free literature (Micaelli and Storkey, "Zero-shot
    Knowledge Transfer via Adversarial Belief Matching", 2019; Fang et al., "Contrastive Model Inversion", 2021).
    Differs from the generator known for Choi et al. (2020), Tanh and a BatchNorm without affine part, in the output: a
    sigmoid gives a valid image in [0, 1], which is then normalised for the teacher, so that stored 8-bit images are
    what the teacher saw.

    Args:
        image: output shape (C, H, W) and normalisation; H and W must be divisible by 4.
        latent: dimension of z.
        width: channels of the last hidden map; the first has twice as many.
        rng: draws the initial weights, N(0, 0.02) for convolutions as in DCGAN (Radford et al., 2016).
    """

    def __init__(self, image: ImageSpec, latent: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        channels, height, wide = image.shape
        self.image, self.latent = image, latent
        self.start = (2 * width, height // 4, wide // 4)
        with torch.random.fork_rng(devices=[]):  # module constructors draw from the global state
            self.project = nn.Linear(latent, 2 * width * self.start[1] * self.start[2])
            self.body = nn.Sequential(
                nn.BatchNorm2d(2 * width),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Upsample(size=(height, wide)),
                nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(width, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.Sigmoid(),
            )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    std = 0.02 if "body" in name else latent**-0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=rng, device=rng.device) * std)
                elif name.endswith("bias"):
                    parameter.zero_()
            output = self.body[-2]
            for channel, (mean, std) in enumerate(zip(image.mean, image.std, strict=True)):
                weight, bias = _sigmoid_of_gaussian(mean, std)
                output.weight[channel], output.bias[channel] = weight, bias  # type: ignore[index, operator]
        self.train()

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, latent) to normalised images (N, C, H, W)."""
        x = self.project(z).reshape(-1, *self.start)
        return self.image.normalize(self.body(x))  # type: ignore[no-any-return]


def _sigmoid_of_gaussian(mean: float, std: float) -> tuple[float, float]:
    """Weight and bias with which sigmoid(weight * n + bias), n ~ N(0, 1), has about this mean and this spread.

    An image specification's mean and std usually are the training set's, so images start with its contrast; the last
    BatchNorm's two numbers a channel would need many steps to learn it.
    """
    bias = math.log(min(max(mean, 0.02), 0.98) / (1 - min(max(mean, 0.02), 0.98)))
    nodes = torch.linspace(-4, 4, 201, dtype=torch.float64)
    density = torch.softmax(-(nodes**2) / 2, 0)
    low, high = 0.05, 20.0
    for _ in range(40):
        weight = (low + high) / 2
        values = torch.sigmoid(weight * nodes + bias)
        spread = float((density * (values - (density * values).sum()) ** 2).sum().sqrt())
        low, high = (weight, high) if spread < std else (low, weight)
    return weight, bias
