"""Networks whose middle computes what 8 bits do not hold: written out by hand, as users write it, weights random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfqkit_export.images.spec import ImageSpec
from tests._toys import randomise

PLAIN = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=6)
WIDTH = 12

Middle = Callable[["Between", Tensor], Tensor]


class Between(nn.Module):
    """Convolution and ReLU, the middle, convolution, pooling and a linear layer; ``one`` and ``two`` are spare."""

    def __init__(self, middle: Middle, channels: int = WIDTH, image: ImageSpec = PLAIN) -> None:
        super().__init__()
        self.middle = middle
        self.first = nn.Conv2d(image.shape[0], WIDTH, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.one, self.two = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.last = nn.Linear(WIDTH, image.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, torch.relu(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


def layer_norm(net: Between, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


def rms_norm(net: Between, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


def instance_norm(net: Between, x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)


def normalised(net: Between, x: Tensor) -> Tensor:
    return functional.normalize(x, dim=1) * 3


def response_norm(net: Between, x: Tensor) -> Tensor:
    return x / (1 + 0.1 * functional.avg_pool2d(x * x, 3, 1, 1)).pow(0.75)


def generalised_mean(net: Between, x: Tensor) -> Tensor:
    return functional.avg_pool2d(x.clamp(min=1e-6).pow(6.3), 2).pow(1 / 6.3)


def response_gate(net: Between, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return x * (norm / (norm.mean(1, keepdim=True) + 1e-6)) + x


def linear_attention(net: Between, x: Tensor) -> Tensor:
    queries, keys = torch.relu(net.one(x)).flatten(2), torch.relu(net.two(x)).flatten(2)
    values = x.flatten(2)
    found = (values @ keys.transpose(1, 2)) @ queries
    weight = keys.sum(2, keepdim=True).transpose(1, 2) @ queries
    return x + (found / (weight + 1e-6)).reshape(x.shape)


def masked_attention(net: Between, x: Tensor) -> Tensor:
    queries, keys, values = net.one(x).flatten(2), net.two(x).flatten(2), x.flatten(2)
    logits = queries.transpose(1, 2) @ keys / WIDTH**0.5
    hidden = values.sum(1, keepdim=True) < 1
    weights = logits.masked_fill(hidden, -1e9).softmax(-1)
    return x + (values @ weights.transpose(1, 2)).reshape(x.shape)


def pooled_exponentials(net: Between, x: Tensor) -> Tensor:
    return functional.avg_pool2d(x.mul(2).exp(), 2).log()


def mish(net: Between, x: Tensor) -> Tensor:
    y = net.one(x)
    return y * torch.tanh(torch.log(1 + torch.exp(y)))


def hard_swish(net: Between, x: Tensor) -> Tensor:
    y = net.one(x)
    return y * functional.relu6(y + 3) / 6


def masked_maximum(net: Between, x: Tensor) -> Tensor:
    return functional.max_pool2d(net.one(x).masked_fill(x < 0.1, -float("inf")).clamp(min=-1e9), 8)


def bordered(value: float) -> Middle:
    """A constant pad in front of an unpadded convolution."""
    return lambda net, x: functional.pad(x, (1, 1, 1, 1), value=value)


def bordered_maximum(value: float) -> Middle:
    """Maximum pooling over a constant pad at two sides, of values on both sides of 0."""
    return lambda net, x: functional.max_pool2d(functional.pad(net.one(x), (0, 1, 0, 1), value=value), 3, 2)


KINDS: dict[str, Middle] = {
    "layer_norm": layer_norm, "rms_norm": rms_norm, "instance_norm": instance_norm, "normalised": normalised,
    "response_norm": response_norm, "generalised_mean": generalised_mean, "response_gate": response_gate,
    "linear_attention": linear_attention, "masked_attention": masked_attention,
    "pooled_exponentials": pooled_exponentials, "mish": mish, "hard_swish": hard_swish,
    "pad -1": bordered(-1.0), "pad -4": bordered(-4.0), "pad 8": bordered(8.0),
    "maximum over -inf": bordered_maximum(-float("inf")), "maximum over -1e4": bordered_maximum(-1e4),
    "maximum over -100": bordered_maximum(-100.0),
}  # fmt: skip


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return randomise(Between(KINDS[name]))


def apart(height: float) -> nn.Module:
    """A network one of whose channels lies far from 0 and tells nothing: no other reads it."""
    with torch.random.fork_rng(devices=[]):
        net = randomise(Between(lambda net, x: net.one(x)))
    with torch.no_grad():
        net.one.bias[0] += height
        net.second.weight[:, 0] = 0
    return net
