"""Distillation into quantized students: the loop over an ensemble of them.

What belongs here: what is particular to fake-quantized students - their layers, their learnable ranges, the partners
that steer but do not ship. The loop itself is `loop`, what it minimises `objective`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dfqkit.config.distill import DistillConfig, LayerPair
from dfqkit.config.quant import QuantConfig
from dfqkit.seeds import derive
from dfqkit.students.freezing import integer_biases
from dfqkit.students.student import restore
from dfqkit.teacher.taps import FeatureTap
from dfqkit.training.loop import HeldOut, Loop
from dfqkit.training.objective import Objective, measuring_points, reference_graph, require_names
from dfqkit.training.stream import LiveStream


def measured_pairs(student: fx.GraphModule, config: DistillConfig) -> list[LayerPair]:
    """Return the quantized tensors of a student that a section compares with those of the float graph.

    Raises:
        RecipeError: For a name that no quantized tensor has.
    """
    if not config.weights.of_layers:
        return []
    points = measuring_points(student)
    if config.layers is None:
        return [LayerPair(teacher=name, student=name) for name in points]
    names = [name for pair in config.layers for name in (pair.teacher, pair.student)]
    require_names(names, points, "distill", "the quantized graph")
    return list(config.layers)


class QuantizedStudentTrainer(Loop[DistillConfig, fx.GraphModule]):
    """The loop over an ensemble of quantized students, the first of which is deployed.

    They are calibrated; ``reference``, the float graph that they were built from (`equalized_graph`), labels every
    batch.

    Raises:
        RecipeError: When the layers that the section names are not there, or cannot be compared.
    """

    section: ClassVar[str] = "distill"
    not_finite: ClassVar[str] = (
        "The calibrated student's answers are not finite, so there is nothing to train from. Try more calibration "
        "images, quant.activation_range: percentile, or more bits."
    )

    def __init__(
        self,
        students: Sequence[fx.GraphModule],
        schemes: Sequence[QuantConfig],
        reference: fx.GraphModule,
        stream: LiveStream,
        held_out: HeldOut,
        config: DistillConfig,
    ) -> None:
        self.schemes, self.task = list(schemes), held_out.task
        pairs = measured_pairs(students[0], config)
        names, ours = [pair.teacher for pair in pairs], [pair.student for pair in pairs]
        self.reference = reference_graph(reference, list(dict.fromkeys(names)))
        image = held_out.batches[0][0][:1]  # shows the shapes of features
        objectives = []
        for index, student in enumerate(students):
            # Only a recipe that crosses layers needs projections, so that their seed may be the same in every run.
            rng = derive(0, "projections", index, device=image.device)
            with torch.no_grad(), FeatureTap(self.reference, names) as wanted, FeatureTap(student, ours) as found:
                self.reference(image), student(image)
                objectives.append(Objective(config, pairs, found.features, wanted.features, rng, self.task))
        self.points = objectives[0].student_names
        optimizers = [self._optimizer(*both, config) for both in zip(students, objectives, strict=True)]
        super().__init__(students, objectives, optimizers, stream, held_out, config)

    def _optimizer(self, student: fx.GraphModule, objective: Objective, config: DistillConfig) -> torch.optim.Adam:
        trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
        ranges = [parameter for name, parameter in trainable.items() if name.startswith("quant.")]
        others = [parameter for name, parameter in trainable.items() if not name.startswith("quant.")]
        groups: list[dict[str, Any]] = [
            {"params": others, "base": config.lr},
            {"params": ranges, "base": config.lr_ranges},
            {"params": list(objective.parameters()), "base": config.lr},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]])

    def _turns(self) -> Iterator[tuple[int, str]]:
        for index in range(len(self.students)):
            if not index or self.step % self.config.partner_every == 0:
                yield index, f"_{self.config.partners[index - 1]}" if index else ""

    def _terms(self, index: int, images: Tensor) -> dict[str, Tensor]:
        student, objective = self.students[index], self.objectives[index]
        with (
            FeatureTap(self.reference, objective.teacher_names) as wanted,
            FeatureTap(student, objective.student_names) as found,
            self._as_it_ships(index),
        ):
            with torch.no_grad():
                reference = self.task.named(self.reference(images))
            answer, features = self._weighed(reference, self.task.named(student(images)), found.features)
            return objective.terms(answer, reference, features, wanted.features)

    def _as_it_ships(self, index: int) -> AbstractContextManager[None]:
        return integer_biases(self.students[index]) if self.config.integer_biases else nullcontext()

    def _restore(self, index: int, state: dict[str, Tensor]) -> None:
        restore(self.students[index], state, self.schemes[index])

    def disagreement(self) -> float | None:
        """How far the ensemble's members part: percent of held-out images on which any two give another answer."""
        if len(self.students) < 2:
            return None
        with torch.no_grad():
            parted, count = 0, 0
            for images, _ in self.held_out.batches:
                first, *others = [self.task.named(student(images)) for student in self.students]
                parted += int((~torch.stack([self.task.same(first, other) for other in others])).any(0).sum())
                count += len(images)
        return 100 * parted / count
