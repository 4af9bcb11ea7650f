"""The generator network of the adversarial methods, how its weights are drawn, and the latents of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dfqkit_export.images.spec import ImageSpec


class Generator(nn.Module):
    """Latent vector to image: a linear layer to a small map, then upsample and convolve, two times or more.

    The shape is that of the DCGAN-like generators of the data-free literature (Micaelli and Storkey, "Zero-shot
    Knowledge Transfer via Adversarial Belief Matching", 2019; Fang et al., "Contrastive Model Inversion", 2021).
    Differs from the generator known for Choi et al. (2020), Tanh and a BatchNorm without affine part, in the output: a
    sigmoid gives a valid image in [0, 1], which is then normalised for the teacher, so that stored 8-bit images are
    what the teacher saw.

    The second block's map, the last one of images up to 45 pixels, has ``width`` channels. Maps before have twice as
    many; after it every block halves them, down to a quarter, since at 224 pixels wide maps would cost many times what
    the teacher does. Initial weights are N(0, 0.02) for convolutions as in DCGAN (Radford et al., 2016).
    """

    def __init__(self, image: ImageSpec, latent: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        channels, height, wide = image.shape
        self.image, self.latent = image, latent
        # Small images start at a quarter of their size (the literature's two blocks), large ones at about 8 pixels.
        blocks = max(2, round(math.log2(max(height, wide) / 8)))
        sizes = [(-(-height // 2**k), -(-wide // 2**k)) for k in range(blocks, -1, -1)]
        self.start = (2 * width, *sizes[0])
        with torch.random.fork_rng(devices=[]):  # module constructors draw from the global state
            self.project = nn.Linear(latent, 2 * width * sizes[0][0] * sizes[0][1])
            maps = [2 * width, *(max(2 * width // 2**k, width // 4, 1) for k in range(blocks))]
            layers: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
            for size, into, out in zip(sizes[1:], maps, maps[1:], strict=False):
                layers += [
                    nn.Upsample(size=size),
                    nn.Conv2d(into, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            output = nn.BatchNorm2d(channels)
            layers += [nn.Conv2d(maps[-1], channels, 3, padding=1), output, nn.Sigmoid()]
            self.body = nn.Sequential(*layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    std = 0.02 if "body" in name else latent**-0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=rng, device=rng.device) * std)
                elif name.endswith("bias"):
                    parameter.zero_()
            for channel, (mean, std) in enumerate(zip(*image.plain_moments(), strict=True)):
                weight, bias = _sigmoid_of_gaussian(mean, std)
                output.weight[channel], output.bias[channel] = weight, bias
        self.train()

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, latent) to normalised images (N, C, H, W)."""
        x = self.project(z).reshape(-1, *self.start)
        images: Tensor = self.image.normalize(self.body(x))
        return images


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


class LatentBatch:
    """Latents N(0, 1) and labels of one batch, drawn anew, and what `keep` was given in its step of lowest loss."""

    def __init__(self, n: int, latent: int, classes: int, rng: torch.Generator) -> None:
        self.z = torch.randn((n, latent), generator=rng, device=rng.device, requires_grad=True)
        self.labels = torch.randint(max(classes, 1), (n,), generator=rng, device=rng.device)
        self.best: dict[str, Tensor] = {}

    def keep(self, loss: Tensor, **tensors: Tensor) -> None:
        """Remember what a step gave, if its loss is the lowest so far."""
        if not self.best or bool(loss < self.best["loss"]):
            self.best = {name: value.detach().clone() for name, value in {"loss": loss, **tensors}.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what it was drawn as, and has become."""
        return {"z": self.z, "labels": self.labels}

    def load(self, tensors: dict[str, Tensor], best: dict[str, Tensor]) -> None:
        """Put back copies of what `tensors` and ``best`` were."""
        self.z.data.copy_(tensors["z"])
        self.labels = tensors["labels"].clone()
        self.best = {name: value.clone() for name, value in best.items()}
