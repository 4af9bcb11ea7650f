"""MobileNetV1 with TensorFlow's "same" padding, so that the converted Keras checkpoints give their own logits.

What belongs here: the network and one factory for each width multiplier that was published.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch
from torch import Tensor, nn

_STEM_CHANNELS = 32
_CHANNELS = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_EPS = 1e-3  # Keras' BatchNormalization; PyTorch's own default is 1e-5


class _Separable(nn.Module):
    """Depthwise 3x3 then pointwise 1x1 convolution, each with BatchNorm and ReLU6."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.pad = _same_padding(stride)
        self.dw = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=2 - stride, groups=in_channels, bias=False
        )
        self.dw_bn = nn.BatchNorm2d(in_channels, eps=_EPS)
        self.pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pw_bn = nn.BatchNorm2d(channels, eps=_EPS)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.dw_bn(self.dw(self.pad(x))))
        mapped: Tensor = self.act(self.pw_bn(self.pw(out)))
        return mapped


class MobileNetV1(nn.Module):
    """MobileNet; every channel count is multiplied by ``alpha`` and rounded down.

    Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", arXiv
    1704.04861, 2017, table 1. Differs from most PyTorch versions as TensorFlow does: ReLU6, BatchNorm eps 1e-3, and
    stride-2 convolutions padded below and to the right only. That padding is "same" for even heights and widths at
    every stage (multiples of 32).
    """

    def __init__(self, alpha: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        widths = [int(channels * alpha) for channels in (_STEM_CHANNELS, *_CHANNELS)]
        stem = {
            "pad": _same_padding(2),
            "conv": nn.Conv2d(3, widths[0], 3, stride=2, bias=False),
            "bn": nn.BatchNorm2d(widths[0], eps=_EPS),
            "act": nn.ReLU6(),
        }
        self.stem = nn.Sequential(OrderedDict(stem))
        self.blocks = nn.Sequential(*map(_Separable, widths, widths[1:], _STRIDES))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W), usually 224x224, to logits (N, classes)."""
        out = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(torch.flatten(out, 1))
        return logits


def _same_padding(stride: int) -> nn.Module:
    """Over an even size, TensorFlow pads stride 2 after the last pixel only; stride 1 needs no extra layer."""
    return nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()


#: Any width, and those that were published, of 0.5, 1.3, 2.6 and 4.2 M parameters.
mobilenet_v1 = MobileNetV1
mobilenet_v1_025 = functools.partial(MobileNetV1, 0.25)
mobilenet_v1_050 = functools.partial(MobileNetV1, 0.5)
mobilenet_v1_075 = functools.partial(MobileNetV1, 0.75)
mobilenet_v1_100 = functools.partial(MobileNetV1, 1.0)
