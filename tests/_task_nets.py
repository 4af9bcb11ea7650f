"""Small networks of every task but classification, with random weights and BatchNorm statistics, and their recipes.

What belongs here: the networks, and what a recipe says of each. They take images of 3 x 32 x 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(given: int, out: int, stride: int = 1) -> nn.Sequential:
    norm = nn.BatchNorm2d(out)
    nn.init.normal_(norm.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.2, 0.6)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(given, out, 3, stride, 1, bias=False), norm, nn.ReLU())


class UNet(nn.Module):
    """Classes at each position, from two scales."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.down, self.deep = block(3, 8), block(8, 16, 2)
        self.up, self.head = block(24, 8), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        coarse = nn.functional.interpolate(self.deep(fine), scale_factor=2.0)
        return self.head(self.up(torch.cat([fine, coarse], 1)))


class Depth(UNet):
    """One number a position."""

    def __init__(self) -> None:
        super().__init__(1)


class Embedder(nn.Module):
    """A vector of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(block(3, 8, 2), block(8, 16, 2)), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(self.features(x).mean((2, 3))))


class Boxes(nn.Module):
    """Corners in pixels and probabilities of two kinds, of positions 8 pixels apart, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 16, 2))
        self.scores, self.sides = nn.Conv2d(16, 2, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        place = (torch.arange(4.0) + 0.5) * 8
        y, x = torch.meshgrid(place, place, indexing="ij")
        self.register_buffer("centre", torch.stack([x, y]).flatten(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        sides = torch.nn.functional.softplus(self.sides(features)).flatten(2) * 8
        boxes = torch.cat([self.centre - sides[:, :2], self.centre + sides[:, 2:]], 1)
        return boxes.transpose(1, 2), torch.sigmoid(2 * self.scores(features).flatten(2)).transpose(1, 2)


class Raw(nn.Module):
    """Distributions and logits of two scales by name, as a detector without its decoder gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 16, 2)), block(16, 16, 2)
        self.scores, self.sides = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        both = {"8": fine, "16": coarse}
        return {f"cls_{k}": self.scores(v) for k, v in both.items()} | {
            f"reg_{k}": self.sides(v) for k, v in both.items()
        }


class Heatmaps(UNet):
    """A map for each of four points."""

    def __init__(self) -> None:
        super().__init__(4)


class Reader(nn.Module):
    """Logits of 12 classes at 16 steps across the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(block(3, 8, 2), block(8, 16)), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(2).transpose(1, 2))


class YesOrNo(nn.Module):
    """One probability."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = block(3, 8, 2), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.features(x).mean((2, 3))))


class Pair(nn.Module):
    """Two outputs of no meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = block(3, 8, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.head(features.mean((2, 3))), features


class Siamese(Embedder):
    """The vectors of two images."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(left), super().forward(right)


#: Inputs of those that take more than one batch of images.
INPUTS = {"Siamese": "inputs: {left: 3, right: 3}, "}

#: Task of a recipe, by network; "" where the outputs tell it.
TASKS = {
    "UNet": "{name: segmentation}",
    "Depth": "dense",
    "Embedder": "",
    "Boxes": "",
    "Raw": "{name: detection, boxes: [reg_8, reg_16], scores: [cls_8, cls_16], form: distributions, strides: [8, 16], "
    "scores_are: logits}",
    "Heatmaps": "keypoints",
    "Reader": "sequence",
    "YesOrNo": "{name: classification, form: binary, scores: probabilities}",
    "Pair": "generic",
    "Siamese": "generic",
}


def recipe(network: str) -> str:
    """Return a small recipe for a network of this module."""
    task = f"task: {TASKS[network]}" if TASKS[network] else ""
    return f"""
schema: 1
name: toy/{network.lower()}
why: a task goes the whole way
{task}
teacher: {{factory: "tests._task_nets:{network}"}}
target: onnxruntime-avx2
image: {{{INPUTS.get(network, "")}shape: [3, 32, 32], mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
synthesis: {{method: zeroq, batch: 32, steps: 2}}
bank: {{calibration: 32, held_out: 16, grading: 32, batch: 16}}
quant: {{bits: w8a8, weight_range: max, activation_range: percentile}}
distill: {{steps: 2, batch: 8, judge_every: 1, partners: [w4a4]}}
validate: {{latency_repeats: 0}}
"""
