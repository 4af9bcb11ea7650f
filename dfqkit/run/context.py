"""What every stage of a run needs, made once: teacher, target, graph, students, random numbers, stored sets."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import onnx
import torch
from torch import fx, nn

from dfqkit.config.files import find_file
from dfqkit.config.quant import QuantConfig
from dfqkit.config.reading import parse_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.images import ImageBank
from dfqkit.progress import Progress
from dfqkit.run.binding import TEACHER, bind_data, bind_student
from dfqkit.run.folder import RunFolder
from dfqkit.run.open_sizes import open_axes
from dfqkit.run.parts import Executor, InOrder
from dfqkit.run.stage import WHOLE, Part, Stage, named
from dfqkit.seeds import derive
from dfqkit.students.capture import float_graph
from dfqkit.students.naming import OPEN_AXES
from dfqkit.students.onnx_file import float_model
from dfqkit.students.placement import plan, quantized_graph
from dfqkit.students.student import Replan, build_student, calibrate_student, equalized_graph, load_student
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit.teacher.sources import located
from dfqkit.training.float_student import load_float_student, new_float_student
from dfqkit.training.loop import Batch, HeldOut
from dfqkit.training.ranks import ALONE, Ranks
from dfqkit_export.backends import get_target
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import RecipeError, RuntimeUnavailableError
from dfqkit_export.tasks import task_of

#: File of the smaller float student that is quantized in the teacher's place, where a recipe asks for one.
FLOAT_STUDENT = "float_student.safetensors"
#: The stage that chooses the scheme.
QUANTIZE = "quantize"


def recipe_of(folder: RunFolder) -> Recipe:
    """Return the recipe that a run folder was made for."""
    directory = folder.run_facts().get("recipe_dir")
    recipe = parse_recipe(folder.recipe_text(), str(folder.path / "recipe.yaml"))
    return recipe.found_in(Path(str(directory)) if directory else None)


def teacher_of(recipe: Recipe, known: Mapping[str, Any] | None = None) -> Teacher:
    """Load and verify the teacher that a recipe names.

    Args:
        recipe: What names it.
        known: Its task as it was recognised before, where the recipe names none.
    """
    section = recipe.teacher
    weights = None if section.weights is None else find_file(section.weights, recipe.directory)
    factory = located(section.factory, lambda name: find_file(name, recipe.directory))
    return load_teacher(
        factory,
        recipe.image.spec(),
        weights,
        factory_args=section.args,
        task=recipe.named_task() or (task_of(known) if known else None),
        weights_key=section.weights_key,
    )


def on_device(teacher: Teacher, device: torch.device) -> Teacher:
    """Return the teacher on the device; a caller's own model stays where it is."""
    if all(parameter.device.type == device.type for parameter in teacher.model.parameters()):
        return teacher
    # Convolutions on tensor cores are faster with channels last; on a CPU other kernels would change every result.
    moved = copy.deepcopy(teacher.model).to(device)
    return replace(teacher, model=moved.to(memory_format=torch.channels_last) if device.type == "cuda" else moved)


def resolve_device(name: str) -> torch.device:
    """Return ``auto``, ``cpu`` or ``cuda`` as a device that is there."""
    if name not in ("auto", "cpu", "cuda"):
        message = f"Unknown device '{name}'. Allowed: auto, cpu, cuda."
        raise RecipeError(message)
    if name == "cuda" and not torch.cuda.is_available():
        message = "Device 'cuda' was asked for, but torch sees no usable GPU here. Use --device cpu or auto."
        raise RuntimeUnavailableError(message)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32 rounds products of codes and scales, and nondeterministic kernels would break resuming.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it alone
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def resolved_synthesis(recipe: Recipe) -> SynthesizerConfig:
    """Return a recipe's section, the files that it names found."""
    return recipe.synthesis.resolved(lambda name: str(find_file(name, recipe.directory)))


def provisional_student(
    recipe: Recipe, teacher: Teacher, device: torch.device, student: fx.GraphModule | None = None
) -> fx.GraphModule:
    """Return a student of the recipe's scheme, calibrated on noise, for methods that need one before there is one.

    ``student`` is one of that scheme just built from the teacher, where there is one.
    """
    scheme = recipe.quant
    if student is None:
        graph = float_graph(teacher.model, teacher.image, teacher.task, teacher.names)
        student = build_student(graph, scheme, get_target(recipe.targets[0]), teacher.image)
    low, high = teacher.image.bounds()
    shape, rng = (recipe.bank.batch, *teacher.image.shape), derive(recipe.seed, "opponent", device=device)
    noise = torch.randn(shape, generator=rng, device=device).clamp(low, high)
    calibrate_student(student, [noise], scheme, teacher.image)
    return student


#: Teachers of this process as ONNX, by opset.
_FLOAT_FILES: WeakKeyDictionary[Teacher, dict[int, onnx.ModelProto]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every stage needs.

    Attributes:
        given: A teacher that is loaded already.
        stages: All stages, in order.
        part: The part of a stage that is done.
        ranks: The processes that train together.
        executor: Where parts are done that need nothing of each other.
    """

    folder: RunFolder
    recipe: Recipe
    device: torch.device
    progress: Progress
    given: Teacher | None = None
    stages: Sequence[Stage] = ()
    part: Part = WHOLE
    ranks: Ranks = ALONE
    executor: Executor = field(default_factory=InOrder)
    _equalized: dict[tuple[int, float], fx.GraphModule] = field(default_factory=dict)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, on the run's device."""
        known = self.folder.bound(TEACHER).get("task")
        return on_device(self.given or teacher_of(self.recipe, known), self.device)

    def about(self, part: Part) -> Context:
        """Return the context of one part of a stage; where that is about one target, with the recipe of this target."""
        if part == self.part:
            return self
        recipe = self.recipe
        if part.target is not None:
            recipe = recipe.model_copy(update={"targets": (part.target,)}).found_in(recipe.directory)
        return replace(self, part=part, recipe=recipe, given=self.teacher)

    def file(self, name: str) -> Path:
        """Return where the part that is done has a file of that name."""
        return self.folder.path / named(name, self.part)

    def facts(self, stage: str) -> dict[str, Any]:
        """Return what an earlier stage found out about the part that is done."""
        found = self.folder.facts(stage)
        return dict(found.get(self.part.name, found))

    @cached_property
    def target(self) -> Target:
        """The deployment target; of several, the first, where a stage is the same for all."""
        return get_target(self.recipe.targets[0])

    @cached_property
    def teacher_graph(self) -> fx.GraphModule:
        """The teacher as a float graph in normal form."""
        graph = float_graph(self.teacher.model, self.teacher.image, self.teacher.task, self.teacher.names)
        graph.meta[OPEN_AXES] = open_axes(self.teacher, graph, self.target.opset)
        return graph

    @property
    def teacher_file(self) -> onnx.ModelProto:
        """The teacher as ONNX; made once, since runs try it before they compute anything, and several may share it."""
        known, opset = _FLOAT_FILES.setdefault(self.teacher, {}), self.target.opset
        if opset not in known:
            known[opset] = float_model(self.teacher_graph, opset)
        return known[opset]

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The float graph that is quantized: the teacher's, or that of the smaller student that was trained for it."""
        if self.recipe.student is None:
            return self.teacher_graph
        student = self.untrained_student()
        load_float_student(student, self.folder.path / FLOAT_STUDENT)
        return float_graph(student, self.teacher.image, self.teacher.task, self.teacher.names)

    def untrained_student(self) -> nn.Module:
        """Return the smaller float student as it starts, in eval mode; there must be such a section."""
        assert self.recipe.student is not None
        bind_student(self)
        find = partial(find_file, recipe_dir=self.recipe.directory)
        return new_float_student(self.recipe.student, self.teacher, self.recipe.seed, find)

    @property
    def scheme(self) -> QuantConfig:
        """The deployed student's scheme: the recipe's or, once its ladder was tried, the candidate that was kept."""
        ladder, quant = self.recipe.ladder, self.recipe.quant
        if ladder is None or not self.folder.ended(QUANTIZE):
            return quant
        return ladder.schemes(quant)[self.facts(QUANTIZE)["chosen"]]

    def ensemble(self, scheme: QuantConfig) -> list[QuantConfig]:
        """Return the schemes of the ensemble whose deployed student has that scheme, which comes first."""
        partners = self.recipe.distill.partners if self.recipe.distill else ()
        schemes = [scheme, *(scheme.model_copy(update={"bits": bits}) for bits in partners)]
        for each in schemes:
            each.check(self.target)
        return schemes

    @property
    def schemes(self) -> list[QuantConfig]:
        """The schemes of the ensemble, the deployed student's first, checked against the target."""
        return self.ensemble(self.scheme)

    def reference(self, scheme: QuantConfig) -> fx.GraphModule:
        """Return the float graph that a scheme quantizes, with the features of its students (`equalized_graph`)."""
        key = scheme.equalize, scheme.equalize_values
        if key not in self._equalized:
            wanted = scheme.equalize or scheme.equalize_values
            images = [images for images, _ in self.batches("calibration")] if wanted else ()
            self._equalized[key] = equalized_graph(self.graph, scheme, images)
        return self._equalized[key]

    def new_student(self, scheme: QuantConfig) -> fx.GraphModule:
        """Return a student that is not calibrated; building one costs no more than copying it."""
        return quantized_graph(self.reference(scheme), scheme, self.target, self.teacher.image)

    def replan(self, scheme: QuantConfig) -> Replan:
        """Return how a scheme's students are planned once measured tensors stay in float."""
        return partial(plan, self.reference(scheme), scheme, self.target, self.teacher.image)

    def stored_student(self, scheme: QuantConfig, name: str) -> fx.GraphModule:
        """Return the student that a stage of this run left in file ``name``."""
        student = self.new_student(scheme)
        load_student(student, self.file(name), scheme)
        return student

    def rng(self, *names: str | int) -> torch.Generator:
        """Return a component's random numbers, derived from the run's seed."""
        return derive(self.recipe.seed, *names, device=self.device)

    def bank(self, name: str) -> ImageBank:
        """Return a stored set of this run."""
        return ImageBank.load(self.folder.path / "images" / f"{name}.safetensors", self.teacher)

    def batches(self, name: str) -> list[Batch]:
        """Return a stored set as batches on the run's device."""
        return list(self.bank(name).batches(self.recipe.bank.batch, self.device))

    def held_out(self) -> HeldOut:
        """Return the stored images that choose a student's state, on the run's device."""
        return HeldOut(batches=self.batches("held_out"), task=self.teacher.torch_task)

    def new_synthesizer(self, *, grading: bool = False) -> Synthesizer:
        """Return the recipe's synthesizer, or the separate one that only grades."""
        bank, config = self.recipe.bank, self.synthesis
        rounds = sum(section.rounds for section in (self.recipe.student, self.recipe.distill) if section)
        main = Demand(training=max(bank.calibration, bank.training or 0), fresh=bank.held_out, game_rounds=rounds)
        graded = Demand(training=0, fresh=bank.grading)
        if grading:
            config = config.grading()
        bind_data(self)
        demand = replace(graded, beside=main) if grading else replace(main, beside=graded)
        return build_synthesizer(config, self.teacher, self.rng("grading" if grading else "synthesis"), demand)

    @property
    def synthesis(self) -> SynthesizerConfig:
        """The recipe's section, the files that it names found."""
        return resolved_synthesis(self.recipe)

    @cached_property
    def opponents(self) -> list[fx.GraphModule]:
        """What a method that cannot do without a student plays against before there is one.

        A student of the recipe's scheme, calibrated on Gaussian noise. Only the opponent is: what ships is calibrated
        on the images that come of it.
        """
        if "student" not in self.synthesis.needed:
            return []
        own = build_student(self.teacher_graph, self.scheme, self.target, self.teacher.image)
        return [provisional_student(self.recipe, self.teacher, self.device, own)]
