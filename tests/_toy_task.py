"""A task that is nothing like classification: a map as large as the image, and a vector of four numbers.

What belongs here: the task with both of its halves, its metric, and a network for it; and how a package that offers
them is told to Python, so that nothing in dfqkit need know of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfqkit.tasks import Tensors, TorchTask
from dfqkit_export.measure.kinds import AGREEMENT, STUDENT_AGREEMENT, Metric, MetricKind, Tolerance, register
from dfqkit_export.measure.metrics import share
from dfqkit_export.tasks import Labels, Outputs, OutputSpec, Task

NAME = "toy_scene"
#: An answer is the same while no output is further off than this share of its own size.
TOLERANCE = 0.25

SCENE_ERROR = register(
    MetricKind(
        name="toy_scene_error",
        title="Error beside the teacher",
        unit="%",
        decimals=2,
        higher_is_better=False,
        tolerance=Tolerance(absolute=2.0),
        headline=True,
        on_card=True,
    )
)


class Scene(Task):
    """A map and where the camera is."""

    name: ClassVar[str] = NAME
    title: ClassVar[str] = "network that sees scenes"
    outputs: ClassVar[tuple[OutputSpec, ...]] = (
        OutputSpec(name="map", shape=(1, "H", "W"), meaning="how far everything is"),
        OutputSpec(name="pose", shape=(4,), meaning="where the camera is"),
    )

    def metrics(
        self, reference: Outputs | None, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure the error beside the teacher, and how often it is large."""
        if reference is None:
            return []
        where: dict[str, Any] = {"subject": subject, "data": data}
        error = 100 * _errors(reference, outputs)
        return [
            SCENE_ERROR.metric(value=float(error.mean()), n=len(error), **where),
            share(AGREEMENT, self.same_answer(reference, outputs), **where),
        ]

    def beside(
        self, student: Outputs, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure how often the runtime is far from the student."""
        return [share(STUDENT_AGREEMENT, self.same_answer(student, outputs), subject=subject, data=data)]

    def margins(self, reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
        """Return how much further off an image may be."""
        return TOLERANCE - _errors(reference, outputs)

    def same_answer(self, reference: Outputs, outputs: Outputs) -> NDArray[np.bool_]:
        """Return which images are not too far off."""
        return np.asarray(self.margins(reference, outputs) > 0)


def _errors(reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
    """The largest error of an image's outputs, each as a share of that output's size over all images."""
    found = []
    for name in ("map", "pose"):
        wanted = reference[name].astype(np.float64).reshape(len(reference[name]), -1)
        apart = outputs[name].astype(np.float64).reshape(wanted.shape) - wanted
        found.append(np.sqrt(np.square(apart).mean(1)) / np.sqrt(np.square(wanted).mean()))
    return np.asarray(np.max(found, axis=0))


class TorchScene(TorchTask):
    """The torch part."""

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the mean squared error of both outputs, each beside its size."""
        errors = [(answer[n] - reference[n]).square().mean() / reference[n].square().mean() for n in ("map", "pose")]
        return torch.stack(errors).sum()


class SceneNet(nn.Module):
    """Two convolutions with BatchNorm, a map of what they find, and four numbers; returns both by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.depth, self.pose = nn.Conv2d(8, 1, 1), nn.Linear(8, 4)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.2, 0.6)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)))
        return {"pose": self.pose(x.mean((2, 3))), "map": self.depth(x)}


def tell_python(site: Path) -> None:
    """Write what a package with this task would have beside its modules, so that its entry points are found there."""
    folder = site / "toy_scene-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-scene\nVersion: 1.0\n", encoding="utf-8")
    points: dict[str, dict[str, Any]] = {
        "dfqkit.tasks": {NAME: "Scene"},
        "dfqkit.torch_tasks": {NAME: "TorchScene"},
        "dfqkit.metrics": {SCENE_ERROR.name: "SCENE_ERROR"},
    }
    lines = [
        line
        for group, named in points.items()
        for line in (f"[{group}]", *(f"{name} = {__name__}:{attribute}" for name, attribute in named.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
