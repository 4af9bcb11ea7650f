"""From a trained network to the float graph that everything downstream shares.

What belongs here: `torch.export` capture and the check that nothing was lost on the way. The normal form is
`normal_form`, what changes it `folding` and `rewriting`; where quantizers go is `placement`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from dfqkit.students.folding import fold_batch_norms
from dfqkit.students.nodes import op_name
from dfqkit.students.normal_form import SUPPORTED_OPS, Normaliser
from dfqkit.students.rewriting import cancel_permutations, fold_scales
from dfqkit.tasks import named
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task

#: Largest relative difference of outputs between a model and its graph: folding BatchNorm rounds, nothing else differs.
LARGEST_ERROR = 1e-3


def export_graph(model: nn.Module, image: ImageSpec) -> fx.GraphModule:
    """Capture a network in eval mode with `torch.export`, in ATen operators, the batch dimension dynamic.

    Raises:
        TeacherError: When the model cannot be captured; says where in the user's code and what to do.
    """
    # A batch of 1 would make the exporter specialise on it.
    example = torch.zeros((2, *image.shape), device=next((p.device for p in model.parameters()), None))
    dynamic = ({0: torch.export.Dim("N", min=1, max=65536)},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.export.export(model, (example,), dynamic_shapes=dynamic)
            graph: fx.GraphModule = program.module(check_guards=False)
            return graph
    except Exception as error:
        reason = str(error).strip().splitlines()
        places = [" ".join(map(str.strip, reason[i : i + 2])) for i, line in enumerate(reason) if 'File "' in line]
        message = (
            f"The model cannot be captured by torch.export: {type(error).__name__}: "
            f"{reason[0] if reason else 'no message'}{'; at ' + places[0] if places else ''}. A model must be free of "
            "control flow that depends on tensor values and must accept any batch size. Rewrite the branch "
            "(torch.where, a fixed pooling size), or pass a module without it; `dfqkit inspect` repeats this check in "
            "seconds."
        )
        raise TeacherError(message) from error


def operators_of(model: nn.Module, image: ImageSpec) -> tuple[Counter[str], tuple[str, ...]]:
    """Count the operators of the graph that `export_graph` gives, and name those that stay in float."""
    graph = export_graph(model, image)
    counts = Counter(op_name(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return counts, tuple(sorted(set(counts) - SUPPORTED_OPS))


def float_graph(model: nn.Module, image: ImageSpec, task: Task = DEFAULT_TASK) -> fx.GraphModule:
    """Return the model as a plain float `fx.GraphModule` in normal form, BatchNorm folded.

    Convolutions and linear layers become modules that keep the names of the parameters they came from; activations and
    pooling become `torch.nn` modules; in-place operators become functional; dropout goes. A BatchNorm that follows a
    convolution used by nothing else is folded into it; any other becomes a depthwise 1x1 convolution, which integer
    kernels know how to run. The result computes the same function as ``model`` in eval mode.

    Its parameters are copies: the model itself is not touched. Outputs that are not the task's own are left out; one
    is returned as it is, several by name.
    """
    graph = Normaliser(export_graph(model, image), task.names).build()
    cancel_permutations(graph)
    fold_batch_norms(graph)
    fold_scales(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    graph.eval()
    _require_same(model, graph, image, task.names)
    return graph


def _require_same(model: nn.Module, graph: fx.GraphModule, image: ImageSpec, names: Sequence[str]) -> None:
    """Compare the graph with the model on two random images: a wrong translation must not be found in the accuracy."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = torch.randn((2, *image.shape), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        wanted, found = named(model(images), names), named(graph(images), names)
    errors = [float((wanted[name] - found[name]).norm() / wanted[name].norm().clamp_min(1e-12)) for name in names]
    if not all(each < LARGEST_ERROR for each in errors):
        message = (
            f"The captured graph does not compute what the model does: relative error {max(errors):.2g} on two random "
            f"images, allowed {LARGEST_ERROR}. Some operator was translated wrongly; please report it with the model."
        )
        raise TeacherError(message)
