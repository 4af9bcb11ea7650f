"""Distillation into a smaller float student: how it is made, and the loop that trains it.

What belongs here: what is particular to a student of another architecture that starts from random weights. The loop
itself is `loop`, what it minimises `objective`. The student that comes of it can be quantized like a teacher.

After the data-free distillation literature (DAFL, ZSKT, DFQ, CMI, FastDFKD), which alternates between a synthesizer's
rounds and steps of a student with SGD or Adam on what the synthesizer makes. Differs from it: the state that is kept is
chosen on held-out synthetic images, not on test images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dfqkit.config.student import FloatStudentConfig
from dfqkit.seeds import derive
from dfqkit.students.inputs import takes_stacked
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.sources import USER_CODE_ERRORS, build_model, located
from dfqkit.teacher.taps import LayerTap
from dfqkit.teacher.weights import load_weights
from dfqkit.training.loop import HeldOut, Loop
from dfqkit.training.objective import Objective, require_names
from dfqkit.training.stream import LiveStream
from dfqkit_export.errors import ArtefactError, RecipeError, TeacherError


def new_float_student(
    config: FloatStudentConfig, teacher: Teacher, seed: int, find: Callable[[str], Path] = Path
) -> nn.Module:
    """Make a student with random weights, or those of ``start``, in eval mode on the teacher's device.

    The run's seed decides the weights; the global random state stays as it is. ``find`` finds the files that the
    section names.

    Raises:
        RecipeError: When there is no such network, or it is no student for this teacher.
    """
    number = derive(seed, "float student").initial_seed()
    try:
        model = build_model(located(config.factory, find), teacher.image.classes, config.args, seed=number).float()
        state = None if config.start is None else load_weights(find(config.start))
    except TeacherError as error:
        message = f"The recipe's student section: {error}"
        raise RecipeError(message) from error
    try:
        if state is not None:
            model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        message = (
            f"student.start '{config.start}' does not fit student.factory: {' '.join(lines)[:300]} Name another file, "
            "or leave it out to start from random weights."
        )
        raise RecipeError(message) from error
    device = next(iter(teacher.model.state_dict().values())).device
    takes_stacked(model.to(device).eval(), teacher.image)
    _require_fit(model, config.factory, teacher, device)
    return model


def _require_fit(model: nn.Module, factory: str, teacher: Teacher, device: torch.device) -> None:
    """Refuse a network that does not take the teacher's images or answers otherwise than its task asks."""
    image, task = teacher.image, teacher.task
    try:
        with torch.no_grad():
            result = model(torch.zeros((2, *image.shape), device=device))
    except USER_CODE_ERRORS as error:
        message = (
            f"Student '{factory}' fails on images (2, {', '.join(map(str, image.shape))}): {type(error).__name__}: "
            f"{error}. Name a network for such images, or check student.args."
        )
        raise RecipeError(message) from error
    try:
        answer = teacher.torch_task.named(result)
    except ValueError as error:
        message = f"Student '{factory}' {error}. Name a network for the teacher's task, or check student.args."
        raise RecipeError(message) from error
    for output in task.outputs:
        found = tuple(answer[output.name].shape)
        if not output.fits(found, image) or found[0] != 2:
            wanted = tuple(size or "any" for size in (2, *output.sizes(image)))
            message = f"Student '{factory}' gives {found} where {output.name} {wanted} are needed. Check student.args."
            raise RecipeError(message)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        message = f"Student '{factory}' has no parameter that could be trained. Name another network."
        raise RecipeError(message)


def student_objective(
    student: nn.Module, teacher: Teacher, config: FloatStudentConfig, rng: torch.Generator
) -> Objective:
    """Return what the student minimises; a grey image shows the shapes of features. ``student`` must be in eval mode.

    Raises:
        RecipeError: When the layers that the section names are not there, or cannot be compared.
    """
    pairs = list(config.layers or ()) if config.weights.of_layers else []
    names, ours = [pair.teacher for pair in pairs], [pair.student for pair in pairs]
    for model, asked, whose in ((teacher.model, names, "the teacher"), (student, ours, "the student")):
        require_names(asked, [name for name, _ in model.named_modules() if name], "student", whose)
    image = torch.zeros((1, *teacher.image.shape), device=next(student.parameters()).device)
    with torch.no_grad(), LayerTap(teacher.model, names) as wanted, LayerTap(student, ours) as found:
        teacher.model(image), student(image)
        return Objective(config, pairs, found.values, wanted.values, rng, teacher.torch_task)


class FloatStudentTrainer(Loop[FloatStudentConfig, nn.Module]):
    """The loop over one float student, which is in training mode (BatchNorm on the batch) only while it takes a step.

    ``rng`` draws the projections' weights, and the seed of what layers such as dropout draw.

    Raises:
        RecipeError: When the layers that the section names are not there, or cannot be compared.
    """

    section: ClassVar[str] = "student"
    not_finite: ClassVar[str] = (
        "The untrained student's answers are not finite, so there is nothing to train from. Check student.start, or "
        "the network's initial weights."
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        stream: LiveStream,
        held_out: HeldOut,
        config: FloatStudentConfig,
        rng: torch.Generator,
    ) -> None:
        self.student, self.teacher = student.eval(), teacher
        objective = student_objective(student, teacher, config, rng)
        self.seed = rng.initial_seed()
        parameters = [p for p in (*student.parameters(), *objective.parameters()) if p.requires_grad]
        optimizer = _optimizer([{"params": parameters, "base": config.rate}], config)
        super().__init__([student], [objective], [optimizer], stream, held_out, config)

    def _terms(self, index: int, images: Tensor) -> dict[str, Tensor]:
        objective = self.objectives[index]
        with (
            LayerTap(self.teacher.model, objective.teacher_names) as wanted,
            LayerTap(self.student, objective.student_names) as found,
        ):
            reference = self.teacher.answers(images)
            answer, values = self._weighed(reference, self.task.named(self._answer(images)), found.values)
            return objective.terms(answer, reference, values, wanted.values)

    def _answer(self, images: Tensor) -> Any:
        """Return one forward in training mode; what layers draw is the step's, so that a resumed run draws the same."""
        self.student.train()
        try:
            with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
                torch.manual_seed((self.seed + self.step) % 2**63)
                answer = self.student(images)
        finally:
            self.student.eval()
        return answer

    def _restore(self, index: int, state: dict[str, Tensor]) -> None:
        self.student.load_state_dict(state)


def _optimizer(groups: list[dict[str, Any]], config: FloatStudentConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.rate, weight_decay=config.weight_decay)
    momentum, decay = config.momentum, config.weight_decay
    return torch.optim.SGD(groups, lr=config.rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)


def load_float_student(student: nn.Module, path: Path) -> None:
    """Load what `students.student.save_student` wrote into a student of the same section.

    Raises:
        ArtefactError: When the file is missing, damaged or of another network.
    """
    try:
        student.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        message = (
            f"Cannot read the float student '{path}': {str(error)[:300]} Delete it and continue the run with `dfqkit "
            "run --resume`."
        )
        raise ArtefactError(message) from error
