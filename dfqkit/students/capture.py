"""From a trained network to the float graph that everything downstream shares.

What belongs here: `torch.export` capture and the check that nothing was lost on the way. The normal form is
`normal_form`, what changes it `folding` and `rewriting`; where quantizers go is `placement`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.batches import SIZES, for_any_batch
from dfqkit.students.constants import fold_constants
from dfqkit.students.folding import fold_affines
from dfqkit.students.functional import plain, without_mutation
from dfqkit.students.inputs import dynamic, gathered, split, unstacked
from dfqkit.students.naming import FILE_NAMES, IMAGE, FileNames
from dfqkit.students.normal_form import Normaliser
from dfqkit.students.rewriting import cancel_permutations
from dfqkit.students.user_code import at, place_of_error, watched_export
from dfqkit.tasks import named
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task
from dfqkit_export.words import first_line

#: Largest relative difference of outputs between a model and its graph: folding BatchNorm rounds, nothing else differs.
LARGEST_ERROR = 1e-3


def export_graph(model: nn.Module, image: ImageSpec) -> fx.GraphModule:
    """Capture a network in eval mode with `torch.export`, in functional ATen operators, for any batch size.

    Grad and autocast islands stand in the graph like the rest; modules in train mode are in eval mode meanwhile. A
    network that takes its batch size as a number is captured at two sizes, and what differs follows the batch.

    Raises:
        TeacherError: When the model cannot be captured; says where in the user's code and what to do.
    """
    # A batch of 1 would make the exporter specialise on it.
    with _in_eval(model), unstacked(model), watched_export(__file__) as constants:
        try:
            return _exported(model, image, 2, dynamic(image))
        except TeacherError:
            raise
        except Exception as error:
            if not constants.place and "Constraints violated" not in str(error):
                raise TeacherError(_uncapturable(error)) from error
        try:
            return for_any_batch(*(_exported(model, image, size, None) for size in SIZES))
        except TeacherError as error:
            message = f"The model makes the batch size a constant{at(constants.place)}. "
            raise TeacherError(message + str(error)) from error
        except Exception as error:
            raise TeacherError(_uncapturable(error)) from error


def _exported(model: nn.Module, image: ImageSpec, batch: int, axes: Any) -> fx.GraphModule:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = split(torch.zeros((batch, *image.shape), device=device), image)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = without_mutation(torch.export.export(model, example, dynamic_shapes=axes))
        return gathered(plain(program.module(check_guards=False), device), image)


@contextlib.contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """Put every module of a model into eval mode, and back into its own."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _uncapturable(error: Exception) -> str:
    reason = first_line(error).partition(" For more information")[0]
    place = place_of_error(error)
    return (
        f"The model cannot be captured by torch.export{at(place)}: {type(error).__name__}: "
        f"{reason.strip().rstrip('.')}. Capture needs a forward without branches, loops or Python numbers that depend "
        "on tensor values, for any batch size. Rewrite that line (torch.where for a branch, a fixed size for a "
        "computed one), or give a module that leaves it out; `dfqkit inspect` repeats this check in seconds."
    )


def float_graph(
    model: nn.Module, image: ImageSpec, task: Task = DEFAULT_TASK, names: FileNames | None = None
) -> fx.GraphModule:
    """Return the model as a plain float `fx.GraphModule` in normal form, BatchNorm folded.

    Convolutions and linear layers become modules that keep the names of the parameters they came from; activations and
    pooling become `torch.nn` modules; in-place operators become functional; dropout goes. What is computed from
    parameters alone is computed once; BatchNorms and constant scales and shifts are folded into layers, see
    `folding.fold_affines`. The result computes the same function as ``model`` in eval mode.

    Its parameters are copies: the model itself is not touched. Outputs that are not the task's own are left out; one
    is returned as it is, several by name. ``names`` are those of the file that the network came from, where it has one.
    """
    return normal_form(export_graph(model, image), model, image, task, names)


def normal_form(
    exported: fx.GraphModule, model: nn.Module, image: ImageSpec, task: Task, names: FileNames | None = None
) -> fx.GraphModule:
    """Return what `export_graph` gave of a model in normal form; see `float_graph`."""
    fold_constants(exported)
    graph = Normaliser(exported, task.names).build()
    graph.meta[IMAGE] = image
    if names is not None:
        graph.meta[FILE_NAMES] = names
    graph.graph.eliminate_dead_code()  # what nobody reads would count as a reader
    fold_affines(graph)
    cancel_permutations(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    graph.eval()
    _require_same(model, graph, image, task.names)
    return graph


#: Batch sizes at which a graph must compute what its model does; batches of one are special in torch.
_TRIED = (1, 2, 3, 5)


def _require_same(model: nn.Module, graph: fx.GraphModule, image: ImageSpec, names: Sequence[str]) -> None:
    """Compare the graph with the model on random images: a wrong translation must not be found in the accuracy."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = torch.randn((max(_TRIED), *image.shape), generator=torch.Generator().manual_seed(0)).to(device)
    errors: dict[int, float] = {}
    for batch in _TRIED:
        with torch.no_grad(), _in_eval(model):
            wanted = named(model(images[:batch]), names)
            try:
                found = named(graph(images[:batch]), names)
            except RuntimeError as error:
                message = f"The captured graph fails on {batch} image(s), where the model does not: {error}"
                raise TeacherError(message) from error
        errors[batch] = max(_relative_error(wanted[name], found[name]) for name in names)
    wrong = {batch: error for batch, error in errors.items() if not error < LARGEST_ERROR}
    if wrong:
        batch = next(iter(wrong))
        only = "" if len(wrong) == len(_TRIED) else " Other batch sizes agree: the model treats this one apart."
        message = (
            f"The captured graph does not compute what the model does: {_told(wrong[batch])} on {batch} "
            f"random image(s), allowed {LARGEST_ERROR}.{only} Some operator was translated wrongly; please report it "
            "with the model."
        )
        raise TeacherError(message)


def _told(error: float) -> str:
    return "another shape" if error == float("inf") else f"relative error {error:.2g}"


def _relative_error(wanted: Tensor, found: Tensor) -> float:
    if wanted.numel() != found.numel():
        return float("inf")
    return float((wanted.reshape(found.shape) - found).norm() / wanted.norm().clamp_min(1e-12))
