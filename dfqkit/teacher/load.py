"""The full-precision network that is to be quantized: loaded, frozen and verified before any compute is spent.

What belongs here: `Teacher`, the two ways to get one, and the checks that make it trustworthy. File formats are
`weights`, architectures `sources`, what it offers to synthesizers `inspection`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfqkit.students.inputs import takes_stacked
from dfqkit.students.naming import FileNames
from dfqkit.tasks import TorchTask, torch_task
from dfqkit.teacher.programs import Program, as_module
from dfqkit.teacher.sources import (
    USER_CODE_ERRORS,
    build_model,
    is_stored,
    is_translated,
    resolve_factory,
    stored_program,
)
from dfqkit.teacher.verification import listed, settled, verify_outputs, verify_weights
from dfqkit.teacher.weight_sets import CHOOSE
from dfqkit.teacher.weights import load_weights, sha256_of_weights
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.pixels import FLOAT, LAYOUT
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.words import nearest

_LOG = logging.getLogger(__name__)
#: `Teacher.weights_source` where nothing was loaded.
_RANDOM = "random"

_HINTED = 3  # missing names shown get a nearest name from the file; the search is slow


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A frozen network: eval mode, no gradients for its weights, everything finite.

    Make one with `load_teacher` or `Teacher.from_module`; both verify it. It is made on the CPU; move `model` where
    it is needed.

    Attributes:
        model: Maps normalised images (N, C, H, W), float32, to the outputs of its task.
        image: What images it takes, and how many classes it tells apart where it tells any.
        name: Short name for reports.
        sha256: Fingerprint of all parameters and buffers (`sha256_of_weights`).
        factory: Factory string it was made from; None for a module given by the user.
        factory_args: Keyword arguments that the factory got beside the number of classes.
        weights_source: Name of the weights file, `random` (nothing loaded) or `module` (given by the user).
        task: What its outputs mean.
        names: What the file that it was read from calls its input and outputs; None of what was no such file.
    """

    model: nn.Module
    image: ImageSpec
    name: str
    sha256: str
    factory: str | None = None
    factory_args: Mapping[str, object] = field(default_factory=dict)
    weights_source: str = "module"
    task: Task = DEFAULT_TASK
    names: FileNames | None = None

    @classmethod
    def from_module(
        cls, model: nn.Module | Program, image: ImageSpec, name: str | None = None, *, task: Task | None = None
    ) -> Teacher:
        """Make a teacher from a copy of a module; the module itself is not touched.

        Args:
            model: Trained network, in any mode: the copy is in eval mode. Wrappers of DataParallel and torch.compile
                are taken off, other dtypes become float32. Or what torch.export or TorchScript made of one.
            image: What images it takes.
            name: Short name for reports; the class name if None.
            task: What its outputs mean; None: what they are recognised as.

        Raises:
            TeacherError: The module cannot be copied or fails a check; the message says which.
        """
        inner: Any = model
        while isinstance(inner, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(
            inner, "_orig_mod"
        ):
            inner = getattr(inner, "_orig_mod", None) or inner.module
        name = name or type(inner).__name__
        if isinstance(inner, Program):
            return _freeze(as_module(inner, image, name).float(), image, name, task)
        # Weight norm of old leaves a computed weight in its layer, which copies only without its history.
        known = {
            id(value): value.detach().clone()
            for module in inner.modules()
            for value in vars(module).values()
            if isinstance(value, Tensor) and not value.is_leaf
        }
        try:
            copied = copy.deepcopy(inner, known)
        except USER_CODE_ERRORS as error:
            message = (
                f"Teacher '{name}' cannot be copied ({type(error).__name__}: {error}). A module must survive "
                "copy.deepcopy: keep only parameters, buffers and plain values in it."
            )
            raise TeacherError(message) from error
        return _freeze(copied.cpu().float(), image, name, task)

    @property
    def device(self) -> torch.device:
        """Where its model is now."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def untrained(self) -> bool:
        """Whether nobody trained it: its BatchNorm layers have seen nothing; without any, no weights were loaded."""
        norms = [module for module in self.model.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
        return all(map(is_untrained, norms)) if norms else self.weights_source == _RANDOM

    @property
    def torch_task(self) -> TorchTask:
        """The torch part of its task."""
        return torch_task(self.task)

    def answers(self, x: Tensor) -> dict[str, Tensor]:
        """Return its outputs (N, ...), by name, for normalised images on its device, without recording gradients."""
        with torch.no_grad():
            return self.torch_task.named(self.model(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return its first output, of a classifier the logits (N, classes), without recording gradients."""
        return next(iter(self.answers(x).values()))


def is_untrained(norm: nn.Module) -> bool:
    """Return whether a BatchNorm's running statistics are those that it is made with: mean 0, variance 1."""
    mean, variance = norm.running_mean, norm.running_var
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and not mean.any() and bool((variance == 1).all())


def load_teacher(  # noqa: PLR0913 - each is one entry of a recipe
    factory: str,
    image: ImageSpec,
    weights: str | Path | None = None,
    *,
    name: str | None = None,
    factory_args: Mapping[str, object] | None = None,
    task: Task | None = None,
    weights_key: str | None = None,
) -> Teacher:
    """Make, load, freeze and verify a teacher.

    Args:
        factory: `torchvision:NAME`, `timm:NAME` or `package.module:factory`; nothing is ever downloaded. Or a file with
            a whole network, `exported:FILE`, `torchscript:FILE` or `onnx:FILE`.
        image: What images it takes; its number of classes, where there are any, goes to the factory.
        weights: A `.safetensors`, `.pt` or `.pth` file; None keeps random weights, for tests and
            benchmarks only.
        name: Short name for reports; the factory's own name if None.
        factory_args: Further keyword arguments for the factory.
        task: What its outputs mean; None: what they are recognised as.
        weights_key: Which set of weights, in a file that holds several (`load_weights`).

    Raises:
        TeacherError: Anything about factory, weights or the loaded model is not as it must be; the message says what.
    """
    name = name or factory.partition(":")[2] or factory
    if is_stored(factory):
        return _of_stored(factory, image, weights, name, factory_args, task)
    model = build_model(factory, image.classes, factory_args).cpu().float()
    if weights is None:
        _LOG.warning("Teacher '%s' keeps random weights, unless its factory loads some: no file was given.", name)
    else:
        _load_state(model, load_weights(weights, weights_key), name, Path(weights).name)
    source = _RANDOM if weights is None else Path(weights).name
    return _freeze(
        model, image, name, task, factory=factory, factory_args=dict(factory_args or {}), weights_source=source
    )


def _of_stored(
    factory: str,
    image: ImageSpec,
    weights: str | Path | None,
    name: str,
    factory_args: Mapping[str, object] | None,
    task: Task | None,
) -> Teacher:
    if weights is not None or factory_args:
        message = f"'{factory}' holds its weights and takes no arguments: leave teacher.weights and teacher.args out."
        raise TeacherError(message)
    file = Path(factory.partition(":")[2]).name
    name = file if name == factory.partition(":")[2] else name
    if is_translated(factory):
        found: Any = resolve_factory(factory)(image)
        model, names = found.module, found.names
        task = _told(task, found.detection, name)
        if not found.taken.plain:  # the int8 file takes what this one does
            layout = found.taken.layout if found.taken.layout != LAYOUT else image.layout
            dtype = found.taken.dtype if found.taken.dtype != FLOAT else image.dtype
            image = replace(image, layout=layout, dtype=dtype)
        _LOG.info("'%s' computes in torch what the file does: largest relative error %.2g.", name, found.error)
    else:
        model, names = as_module(stored_program(factory), image, file).float(), None
    return _freeze(model, image, name, task, factory=factory, weights_source=file, names=names)


def _told(task: Task | None, detection: Mapping[str, Any], name: str) -> Task | None:
    """Return a detector's task with what its file says of it, where it ends in the suppression of boxes."""
    if not detection or not (task is None or (isinstance(task, Detection) and not task.boxes)):
        return task
    if task is None:
        text = "Teacher '%s' is taken for a detector, whose boxes are suppressed in the file: %s."
        _LOG.warning(text, name, detection)
    known, default = task or Detection(), Detection()
    assert isinstance(known, Detection)
    open_ = {key: value for key, value in detection.items() if getattr(known, key) == getattr(default, key)}
    return replace(known, **open_)


def _load_state(model: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    # A counter that eval mode never reads; checkpoints from before it existed lack it.
    absent = {key for key in expected if key not in state and key.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in state and key not in absent]
    extra = [key for key in state if key not in expected]
    wrong = [
        f"{key} {_form(value)} where {_form(needed)} is needed"
        for key, value in state.items()
        if (needed := expected.get(key)) is not None
        and (value.shape, value.is_floating_point()) != (needed.shape, needed.is_floating_point())
    ]
    problems = [
        text
        for text in (
            listed("missing", [key + _nearest(key, extra) for key in missing[:_HINTED]] + missing[_HINTED:]),
            listed("not in the model", extra),
            listed("of the wrong shape or type", wrong),
        )
        if text
    ]
    if problems:
        message = (
            f"Weights '{source}' do not fit teacher '{name}' ({len(expected)} tensors): {'; '.join(problems)}. "
            f"{_advice(expected, missing, extra, wrong)}"
        )
        raise TeacherError(message)
    model.load_state_dict({**state, **{key: expected[key] for key in absent}}, strict=False)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _nearest(key: str, extra: list[str]) -> str:
    near = nearest(key, extra, cutoff=0.75)
    return f" (the file has {near[0]})" if near else ""


def _advice(expected: dict[str, Tensor], missing: list[str], extra: list[str], wrong: list[str]) -> str:
    prefixes = dict.fromkeys(key.partition(".")[0] for key in extra)
    fitting = [prefix for prefix in prefixes if all(f"{prefix}.{key}" in extra for key in missing)] if missing else []
    if fitting:
        return (
            f"The file's names carry the prefix {' or '.join(repr(f'{prefix}.') for prefix in fitting)}: choose what "
            f"is meant with {CHOOSE}, e.g. weights_key: {fitting[0]}, or save that part alone."
        )
    if wrong and not missing and not extra and len(wrong) < 3:
        return "Only a layer or two differ: check image.classes (and teacher.args) against the checkpoint."
    return "Check that teacher.factory and teacher.args are the architecture this checkpoint was trained with."


def _freeze(model: nn.Module, image: ImageSpec, name: str, task: Task | None, **record: Any) -> Teacher:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not tensors or any(is_lazy(tensor) for tensor in tensors.values()):
        found = "has lazy parameters that were never initialised" if tensors else "has no parameters"
        message = f"Teacher '{name}' {found}. A trained network is needed: give the model after training."
        raise TeacherError(message)
    takes_stacked(model.eval().requires_grad_(False), image)
    verify_weights(tensors, name)
    known = settled(model, image, name, task)
    if task is None and known != DEFAULT_TASK:
        text = "Teacher '%s' is taken for a network of the task %s. Name that task, or another, where it is not so."
        _LOG.warning(text, name, known.to_dict())
    verify_outputs(model, image, name, known)
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    return Teacher(model=model, image=image, name=name, sha256=sha256_of_weights(state), task=known, **record)
