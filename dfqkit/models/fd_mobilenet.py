"""FD-MobileNet: MobileNet that downsamples by 32 within its first 12 layers.

What belongs here: the network and one factory for each width multiplier that was published.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch
from torch import Tensor, nn

_STEM_CHANNELS = 32
_CHANNELS = (64, 128, 128, 256, 256, *(512,) * 5, 1024)
_STRIDES = (2, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)


class FDMobileNet(nn.Module):
    """Fast-downsampling MobileNet; every channel count is multiplied by ``alpha`` and rounded down.

    Source: Qin, Zhang, Chen, Peng, "FD-MobileNet: Improved MobileNet with a Fast Downsampling Strategy", ICIP 2018,
    table 1. Parameter names follow the checkpoints of clavichord93/FD-MobileNet.
    """

    def __init__(self, alpha: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        widths = [int(channels * alpha) for channels in (_STEM_CHANNELS, *_CHANNELS)]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv_0"] = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        layers["norm_0"] = nn.BatchNorm2d(widths[0])
        layers["act_0"] = nn.ReLU()
        for i, (before, after, stride) in enumerate(zip(widths, widths[1:], _STRIDES, strict=False)):
            layers[f"dw_conv_{i}"] = nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False)
            layers[f"dw_norm_{i}"] = nn.BatchNorm2d(before)
            layers[f"dw_act_{i}"] = nn.ReLU()
            layers[f"pw_conv_{i}"] = nn.Conv2d(before, after, 1, bias=False)
            layers[f"pw_norm_{i}"] = nn.BatchNorm2d(after)
            layers[f"pw_act_{i}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W), usually 224x224, to logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


#: Any width, and those that were published; 0.5 has 1.0 M parameters, 1.0 has 2.9 M.
fd_mobilenet = FDMobileNet
fd_mobilenet_025 = functools.partial(FDMobileNet, 0.25)
fd_mobilenet_05 = functools.partial(FDMobileNet, 0.5)
fd_mobilenet_10 = functools.partial(FDMobileNet, 1.0)
