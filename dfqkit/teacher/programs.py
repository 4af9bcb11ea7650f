"""Networks that come as stored programs: what `torch.export` and TorchScript wrote, made modules with layers again.

What belongs here: how such a program becomes a network that synthesizers can read like any other, with convolutions,
linear layers and BatchNorms as modules at the paths of their parameters.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.capture import export_graph
from dfqkit.students.inputs import split
from dfqkit.students.nodes import op_name, tensor_at
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.words import first_line

Program = torch.export.ExportedProgram | torch.jit.ScriptModule

_DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout"}
_TRAINING = {"_native_batch_norm_legit", "_native_batch_norm_legit_functional"}


def as_module(program: Program, image: ImageSpec, name: str) -> nn.Module:
    """Return a program as a module for any batch size, in eval mode; the program itself is not touched.

    Raises:
        TeacherError: It was stored in train mode, takes one batch size alone, or cannot be read.
    """
    graph = export_graph(_converted(program, image, name), image)
    for node in graph.graph.nodes:
        kind = op_name(node.target)
        if kind in _TRAINING or (kind == "batch_norm" and node.args[5]) or (kind in _DROPOUTS and node.args[2]):
            message = (
                f"Teacher '{name}' was exported in train mode: its {kind} trains. Call model.eval() before "
                "torch.export.export."
            )
            raise TeacherError(message)
    for node in list(graph.graph.nodes):
        _put_layer(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return copy.deepcopy(graph).eval()


def _converted(program: Program, image: ImageSpec, name: str) -> nn.Module:
    """Return what `torch.export` can trace."""
    if isinstance(program, torch.export.ExportedProgram):
        return program.module(check_guards=False)
    from torch._export.converter import TS2EPConverter  # the only way from TorchScript to operators

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = io.BytesIO()
            torch.jit.save(program, stored)  # a copy; that of copy.deepcopy hangs on the gradients of its origin
            stored.seek(0)
            load: Any = torch.jit.load
            script = load(stored, map_location="cpu").eval()
            for parameter in script.parameters():
                parameter.requires_grad_(False)
            converted = TS2EPConverter(script, split(torch.zeros((2, *image.shape)), image), {}).convert()
            return converted.module(check_guards=False)
    except Exception as error:  # whatever torch's converter stumbles over
        reason = first_line(error)
        message = (
            f"Teacher '{name}' is a TorchScript module that torch cannot convert to an exported program "
            f"({type(error).__name__}: {reason}). Export the model that it was made from with torch.export.export, or "
            "give the module itself."
        )
        raise TeacherError(message) from error


def _put_layer(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let a node with stored parameters call a layer at their path instead, which holds them."""
    make = {"conv2d": _convolution, "linear": _linear, "batch_norm": _batch_norm}.get(op_name(node.target))
    stored = [a for a in node.args[1:5] if isinstance(a, fx.Node)]
    if make is None or not stored or any(a.op != "get_attr" for a in stored):
        return
    path = str(stored[0].target).rpartition(".")[0]
    holder = graph.get_submodule(path)
    if not path or any(str(a.target).rpartition(".")[0] != path for a in stored) or list(holder.children()):
        return
    given = [tensor_at(graph, a.target) if isinstance(a, fx.Node) else a for a in node.args[1:]]
    layer = make(given, node.meta["val"].dim())
    if type(holder) is nn.Module:
        for key, value in (*holder.named_parameters(), *holder.named_buffers()):
            if key == "num_batches_tracked" and key in layer._buffers:
                layer._buffers[key] = value
            elif not isinstance(own := getattr(layer, key, None), Tensor) or own.data_ptr() != value.data_ptr():
                return  # it holds more than the layer reads
        graph.set_submodule(path, layer.eval())
    elif repr(layer) != repr(holder):
        return  # called again, with other options
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(path, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _at(given: list[Any], index: int, default: Any) -> Any:
    return given[index] if index < len(given) else default


def _convolution(given: list[Any], _: int) -> nn.Module:
    weight, groups = given[0], _at(given, 5, 1)
    stride, padding, dilation = (_at(given, i, default) for i, default in ((2, 1), (3, 0), (4, 1)))
    layer = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation, groups,
        bias=_at(given, 1, None) is not None, device="meta",
    )  # fmt: skip
    return _holding(layer, weight=weight, bias=_at(given, 1, None))


def _linear(given: list[Any], _: int) -> nn.Module:
    weight, bias = given[0], _at(given, 1, None)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _holding(layer, weight=weight, bias=bias)


def _batch_norm(given: list[Any], rank: int) -> nn.Module:
    weight, bias, mean, variance = given[:4]
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    layer = kind(len(mean), eps=given[6], momentum=given[5], affine=weight is not None, device="meta")
    layer.num_batches_tracked = None
    layer.running_mean, layer.running_var = mean, variance
    return _holding(layer, weight=weight, bias=bias)


def _holding(layer: nn.Module, **parameters: Tensor | None) -> nn.Module:
    for key, value in parameters.items():
        if value is not None:
            setattr(layer, key, value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False))
    return layer
