"""Ultra-Light face detector, version RFB: a small SSD with a receptive-field block.

What belongs here: the network, its priors and its factory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_WIDTHS = (16, 32, 32, 32, 64, 64, 64, None, 128, 128, 128, 256, 256)
_STRIDES = (2, 1, 2, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1)
#: Layers of the base whose outputs heads read, and the place of the receptive-field block.
_SOURCES, _BLOCK = (7, 10, 12), 7
#: Sizes of the boxes at each position, in pixels, and pixels from one position to the next, for each level.
BOX_SIZES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
STEPS = (8, 16, 32, 64)
#: Units in which centres and sizes are regressed (Liu et al., SSD, ECCV 2016).
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
#: Background and face.
CLASSES = 2


class _Part(nn.Sequential):
    """A convolution without bias, BatchNorm and, unless ``linear``, ReLU."""

    def __init__(self, before: int, after: int, kernel: int = 1, *, dilation: int = 1, linear: bool = False) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(after)
        if not linear:
            self.relu = nn.ReLU()


class ReceptiveFieldBlock(nn.Module):
    """Three branches of growing dilation beside a shortcut, added and rectified.

    Source: Liu, Huang, Wang, "Receptive Field Block Net", ECCV 2018, figure 4, with the widths of the face detector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        i = width // 8
        self.branch0 = nn.Sequential(
            _Part(width, i, linear=True), _Part(i, 2 * i, 3), _Part(2 * i, 2 * i, 3, dilation=2, linear=True)
        )
        self.branch1 = nn.Sequential(
            _Part(width, i, linear=True), _Part(i, 2 * i, 3), _Part(2 * i, 2 * i, 3, dilation=3, linear=True)
        )
        self.branch2 = nn.Sequential(
            _Part(width, i, linear=True),
            _Part(i, 3 * i // 2, 3),
            _Part(3 * i // 2, 2 * i, 3),
            _Part(2 * i, 2 * i, 3, dilation=5, linear=True),
        )
        self.ConvLinear = _Part(6 * i, width, linear=True)
        self.shortcut = _Part(width, width, linear=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to the same shape."""
        branches = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        found: Tensor = self.relu(self.ConvLinear(branches) + self.shortcut(x))
        return found


class UltraLightFace(nn.Module):
    """Ultra-Light-Fast-Generic-Face-Detector, version RFB, for one image size.

    Source: Linzaer, Ultra-Light-Fast-Generic-Face-Detector-1MB (MIT), version RFB-320; SSD's decoding of boxes.
    Parameter names follow the checkpoints in circulation.

    Args:
        size: Height and width of the images, in pixels.
    """

    priors: Tensor

    def __init__(self, size: tuple[int, int] = (240, 320)) -> None:
        super().__init__()
        base: list[nn.Module] = [_first(16)]
        before = 16
        for width, stride in zip(_WIDTHS[1:], _STRIDES[1:], strict=True):
            base.append(ReceptiveFieldBlock(before) if width is None else _separable(before, width, stride))
            before = width or before
        self.base_net = nn.ModuleList(base)
        self.extras = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(before, 64, 1), nn.ReLU(), _head(64, before, stride=2), nn.ReLU())]
        )
        widths = (*(_WIDTHS[i] or _WIDTHS[i - 1] or 0 for i in _SOURCES), before)
        self.classification_headers = nn.ModuleList(_headers(widths, CLASSES))
        self.regression_headers = nn.ModuleList(_headers(widths, 4))
        self.register_buffer("priors", priors(size), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images (N, 3, H, W) to scores and boxes.

        Returns:
            Probabilities (N, n, 2), background first, and corners x1 y1 x2 y2 (N, n, 4) in units of the image.
        """
        levels = []
        for place, layer in enumerate(self.base_net):
            x = layer(x)
            if place in _SOURCES:
                levels.append(x)
        levels.append(self.extras[0](x))
        scores, places = (
            torch.cat(
                [
                    header(level).permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)
                    for header, level in zip(headers, levels, strict=True)
                ],
                1,
            )
            for headers, last in ((self.classification_headers, CLASSES), (self.regression_headers, 4))
        )
        return scores.softmax(2), decoded(places, self.priors)


def decoded(places: Tensor, prior: Tensor) -> Tensor:
    """Return boxes (N, n, 4) as corners from what SSD regresses and its priors (n, 4), centre and size each."""
    centre = places[..., :2] * CENTRE_VARIANCE * prior[:, 2:] + prior[:, :2]
    half = torch.exp(places[..., 2:] * SIZE_VARIANCE) * prior[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 2)


def priors(size: Sequence[int]) -> Tensor:
    """Return the priors (n, 4) of all levels for images of this height and width: centre and size, on [0, 1]."""
    height, width = size
    found = []
    for step, boxes in zip(STEPS, BOX_SIZES, strict=True):
        rows, columns = math.ceil(height / step), math.ceil(width / step)
        for j, i in itertools.product(range(rows), range(columns)):
            found += [[(i + 0.5) / columns, (j + 0.5) / rows, box / width, box / height] for box in boxes]
    return torch.tensor(found).clamp(0, 1)


def _first(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _separable(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False),
        nn.BatchNorm2d(before),
        nn.ReLU(),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def _head(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before), nn.ReLU(), nn.Conv2d(before, after, 1)
    )


def _headers(widths: Sequence[int], numbers: int) -> list[nn.Module]:
    outputs = [numbers * len(boxes) for boxes in BOX_SIZES]
    last = nn.Conv2d(widths[-1], outputs[-1], 3, padding=1)
    return [*(_head(width, out) for width, out in zip(widths[:-1], outputs[:-1], strict=True)), last]


def rfb_320() -> UltraLightFace:
    """Return version RFB-320, 0.28 M parameters, for images of 240 rows and 320 columns."""
    return UltraLightFace((240, 320))
