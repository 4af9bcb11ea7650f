"""Wide residual networks, the pre-activation kind that the data-free distillation literature uses as teachers.

What belongs here: `wrn(depth, width, classes)` and the members of the family that papers name.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from dfqkit_export.errors import TeacherError


class _Block(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; the shortcut is a 1x1 convolution only where the width changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # The camel-case name is the one in the checkpoints that the literature shares.
        self.convShortcut = (
            None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        # Where the width changes, the shortcut starts after the shared activation, as in the authors' code.
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width for 32x32 images, without dropout.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1: three stages of (depth - 4) / 6
    blocks with 16, 32 and 64 times `width` channels. Parameter names follow the PyTorch checkpoints of the data-free
    literature (`block1.layer.0.conv1`, `convShortcut`).
    """

    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0 or width < 1:
            message = (
                f"WRN-{depth}-{width} does not exist: depth must be 6n + 4 (10, 16, 22, 28, 40, ...) and width at "
                "least 1. Give the two numbers of the network's name, for example depth 40 and width 2."
            )
            raise TeacherError(message)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, 16 * width, blocks, 1)
        self.block2 = _stage(16 * width, 32 * width, blocks, 2)
        self.block3 = _stage(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W), usually 32x32, to logits (N, classes)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = self.pool(torch.relu(self.bn1(out)))
        logits: Tensor = self.fc(torch.flatten(out, 1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Make blocks of one width, under the name that they have in the shared checkpoints."""
    first = _Block(in_channels, channels, stride)
    layer = nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))


#: Any size, and those that papers name: 16-1 (0.18 M parameters) is the usual student of the data-free literature, 40-2
#: (2.2 M) its usual teacher; 16-2 has 0.69 M, 40-1 0.56 M.
wrn = WideResNet
wrn_16_1 = functools.partial(WideResNet, 16, 1)
wrn_16_2 = functools.partial(WideResNet, 16, 2)
wrn_40_1 = functools.partial(WideResNet, 40, 1)
wrn_40_2 = functools.partial(WideResNet, 40, 2)
