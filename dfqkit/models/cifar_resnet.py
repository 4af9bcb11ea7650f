"""The CIFAR ResNets of He et al. (2016a), with the parameter-free option A shortcut.

What belongs here: the 6n+2 layer networks for 32x32 images and their factories. They are smaller than, and different
from, the ImageNet ResNets of torchvision.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and an identity shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, before, self.new_channels - before))


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers for small images; ``blocks`` is n.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: widths 16, 32
    and 64, n blocks per stage, shortcut option A (every second pixel, new channels zero, half of them on each side).
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W), usually 32x32, to logits (N, classes)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(torch.flatten(self.pool(out), 1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _Block(in_channels, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))


#: The networks of the paper's table 6 and, before them, the family's smallest, a usual student; of 0.08, 0.27, 0.46,
#: 0.66, 0.85 and 1.7 M parameters.
cifar_resnet8 = functools.partial(CifarResNet, 1)
cifar_resnet20 = functools.partial(CifarResNet, 3)
cifar_resnet32 = functools.partial(CifarResNet, 5)
cifar_resnet44 = functools.partial(CifarResNet, 7)
cifar_resnet56 = functools.partial(CifarResNet, 9)
cifar_resnet110 = functools.partial(CifarResNet, 18)
