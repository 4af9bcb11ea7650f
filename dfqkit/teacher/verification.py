"""The checks that a teacher must pass before any compute is spent on it.

What belongs here: finite weights, usable outputs, determinism, independence of the batch, and messages that say what to
do when one of them fails. Nothing here changes the model.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dfqkit.students.capture import export_graph
from dfqkit.students.user_code import at, place_of_node
from dfqkit.tasks import found_in, named
from dfqkit.teacher.sources import USER_CODE_ERRORS
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import Task
from dfqkit_export.tasks.recognition import recognise
from dfqkit_export.words import first_line, some

_BATCH_TOLERANCE = 1e-3  # of the largest value: kernels may sum in another order for another batch size


def listed(label: str, names: list[str]) -> str:
    """Count names and show the first few, as in `5 missing: a, b, c and 2 more`; empty for no names."""
    return f"{len(names)} {label}: {some(names, 3)}" if names else ""


def verify_weights(tensors: dict[str, Tensor], name: str) -> None:
    """Check that every parameter and BatchNorm statistic of the teacher called ``name`` is finite.

    Other buffers may be infinite, as masks of attention and open bounds are, but not NaN.
    """
    bad = [
        f"{key} ({int(count)} of {tensor.numel()} values)"
        for key, tensor in tensors.items()
        if (count := _is_bad(key, tensor).sum())
    ]
    if bad:
        message = (
            f"Teacher '{name}' holds NaN or infinite values in {listed('tensor(s)', bad)}. Every weight and every "
            "BatchNorm statistic must be finite. Use a checkpoint from before training diverged."
        )
        raise TeacherError(message)


def _is_bad(key: str, tensor: Tensor) -> Tensor:
    learnt = isinstance(tensor, nn.Parameter) or key.endswith(("running_mean", "running_var"))
    return ~torch.isfinite(tensor) if learnt else torch.isnan(tensor)


def settled(model: nn.Module, image: ImageSpec, name: str, task: Task | None) -> Task:
    """Return a frozen model's task, what it leaves open taken from the outputs; the task itself, where none is named.

    Raises:
        TeacherError: The outputs are not the task's, or of no task that can be told; says what was found.
    """
    if task is not None and type(task).fitted is Task.fitted:
        return task  # it leaves nothing open
    try:
        result = found_in(_forward(model, probes(image), image, name))
        found = {key: value.detach().float().cpu().numpy() for key, value in result.items()}
        return recognise(found, image).required() if task is None else task.fitted(found, image)
    except (ValueError, ArtefactError) as error:
        message = f"Teacher '{name}' {error}. " if isinstance(error, ValueError) else f"Teacher '{name}': {error} "
        advice = "" if isinstance(error, ArtefactError) else "Wrap it in a module whose forward returns such outputs."
        raise TeacherError((message + advice).strip()) from error


def probes(image: ImageSpec) -> Tensor:
    """Return two images (2, C, H, W) of random pixels, normalised; the same for the same image specification."""
    return image.normalize(torch.rand((2, *image.shape), generator=torch.Generator().manual_seed(0)))


def verify_outputs(model: nn.Module, image: ImageSpec, name: str, task: Task) -> None:
    """Check that a frozen model maps images to its task's outputs, finite, the same in every batch and each time."""
    try:
        task.require_image(image)
    except ArtefactError as error:
        message = f"Teacher '{name}': {error}"
        raise TeacherError(message) from error
    x = probes(image)
    outputs = functools.partial(_outputs, model, image=image, name=name, task=task)
    out, again = outputs(x), outputs(x)
    if not all(torch.equal(out[key], again[key]) for key in out):
        message = (
            f"Teacher '{name}' gives different {task.words} for the same images. It must be deterministic in eval "
            "mode: look for dropout called with training=True, or random operations in forward."
        )
        raise TeacherError(message)
    single = [outputs(one) for one in (x[:1], x[1:])]
    for key, both in out.items():
        alone = torch.cat([one[key] for one in single])
        difference = float((alone - both).abs().max())
        if difference <= _BATCH_TOLERANCE * float(both.abs().max()) + 1e-6:
            continue
        norms = nn.modules.batchnorm._BatchNorm
        bare = [key for key, layer in model.named_modules() if isinstance(layer, norms) and layer.running_mean is None]
        cause = (
            f"{listed('BatchNorm layer(s) without running statistics', bare)}; train with track_running_stats=True."
            if bare
            else "Make its forward treat every image of a batch alone."
        )
        message = (
            f"Teacher '{name}' gives an image other {task.words} alone than in a batch of two (largest difference "
            f"{difference:.3g}). They must not depend on the other images. {cause}"
        )
        raise TeacherError(message)


def _outputs(model: nn.Module, x: Tensor, image: ImageSpec, name: str, task: Task) -> dict[str, Tensor]:
    try:
        found = named(_forward(model, x, image, name), task.names)
    except ValueError as error:
        message = (
            f"Teacher '{name}' {error}. Wrap the model in a module whose forward returns its {task.words} alone, or "
            "name the task that it was trained for."
        )
        raise TeacherError(message) from error
    for output in task.outputs:
        value = found[output.name]
        if len(x) == 1 and value.dim() == len(output.sizes(image)):
            message = (
                f"Teacher '{name}' loses the batch's axis of one image{at(_squeezed(model, image))}: it gives "
                f"{tuple(value.shape)}. A squeeze() without a dimension does that: write squeeze(-1), or flatten(1)."
            )
            raise TeacherError(message)
        if not output.fits(value.shape, image) or len(value) != len(x):
            of_classes = "classes" in output.shape
            asks = f"image.classes {image.classes} asks" if of_classes else f"the task '{task.name}' asks"
            advice = (
                "Set image.classes to the number the model was trained for, or use a model that returns one number per "
                "class."
                if of_classes
                else "Use a model that was trained for it, or name another task."
            )
            wanted = tuple(size or "any" for size in (len(x), *output.sizes(image)))
            message = (
                f"Teacher '{name}' maps images {tuple(x.shape)} to an output of shape {tuple(value.shape)}; {asks} for "
                f"{wanted}. {advice}"
            )
            raise TeacherError(message)
        if not bool(torch.isfinite(value).all()):
            message = (
                f"Teacher '{name}' has finite weights but gives NaN or infinite {output.name} for normalised images. "
                "Check image.mean and image.std, and look for BatchNorm variances that are negative."
            )
            raise TeacherError(message)
    return found


def _squeezed(model: nn.Module, image: ImageSpec) -> str:
    """Return the line of the user's first `squeeze()` of every axis; empty where none is found."""
    try:
        nodes = export_graph(model, image).graph.nodes
    except TeacherError:
        return ""
    return next((place_of_node(n) for n in nodes if n.target is torch.ops.aten.squeeze.default), "")


def _forward(model: nn.Module, x: Tensor, image: ImageSpec, name: str) -> Any:
    """Run a model without gradients; on failure, say which layer was entered last and what it got."""
    entered: list[tuple[str, nn.Module, Any]] = []

    def note(key: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        entered.append((key, layer, given[0] if given else None))

    try:
        with torch.no_grad(), ExitStack() as hooks:
            for key, layer in model.named_modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    hooks.enter_context(layer.register_forward_pre_hook(functools.partial(note, key)))
            return model(x)
    except USER_CODE_ERRORS as error:
        reason = first_line(error)
        where = _describe(*entered[-1]) if entered else "It failed before any convolution or linear layer."
        message = (
            f"Teacher '{name}' cannot run on an image of image.shape {image.shape}: {type(error).__name__}: {reason}. "
            f"{where} Set image.shape (channels, height, width) to what the model was trained with, and name its "
            "inputs where it takes several (image.inputs; `dfqkit inspect --inputs`)."
        )
        raise TeacherError(message) from error


def _describe(key: str, layer: nn.Module, given: Any) -> str:
    wanted = f"{layer.in_channels} channels" if isinstance(layer, nn.Conv2d) else f"{layer.in_features} features"
    shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
    return f"The last layer entered was '{key}' ({type(layer).__name__}), which takes {wanted} and got {shape}."
