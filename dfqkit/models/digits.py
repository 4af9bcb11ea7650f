"""A residual network small enough for the embedded digits example.

What belongs here: the network that `recipes/digits` trains, quantizes and ships. It has what larger teachers have
(BatchNorm, residual adds with and without projection, a linear head), so that the quick example exercises the whole
path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Basic residual block; a 1x1 convolution is the shortcut where the shape changes (option B)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsCnn(nn.Module):
    """ResNet-8 for 16x16 grey images: stem, three residual blocks of 16, 24 and 40 channels, linear head.

    After He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with one block
    per stage. Differs from the paper in the widths and in projection shortcuts. ``width`` multiplies all channels: 0.5
    is a student of half the width.
    """

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (max(1, round(width * channels)) for channels in (16, 24, 40))
        self.conv = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.stage1 = _Block(first, first, 1)
        self.stage2 = _Block(first, second, 2)
        self.stage3 = _Block(second, third, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 1, 16, 16) to logits (N, classes)."""
        out = torch.relu(self.bn(self.conv(x)))
        out = self.stage3(self.stage2(self.stage1(out)))
        logits: Tensor = self.fc(torch.flatten(self.pool(out), 1))
        return logits


#: Of 0.04 M parameters at width 1.
digits_cnn = DigitsCnn
