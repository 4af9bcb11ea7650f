"""One name for each place of a graph: in torch, in the ONNX file, and so in every report.

What belongs here: the names, which depend on the `fx` graph alone, so that whoever has a student knows which node and
which tensor of its file is which node of it. `onnx_file` writes them, `run.measuring` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from torch import fx

from dfqkit.students.inputs import is_part
from dfqkit.students.onnx_tail import Tail

#: The only input of a file, where the network came from no file that calls it otherwise.
INPUT = "image"
#: Under which a graph's ``meta`` holds the `FileNames` of the file that its network came from.
FILE_NAMES = "file_names"
#: Under which it holds the axes that its file leaves open beside the batch's: their names by place, by input or output.
OPEN_AXES = "open_axes"
#: Under which it holds the `ImageSpec` of what its network takes.
IMAGE = "image"

_QUANTIZERS = "quant."


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """What a file calls its inputs and outputs, and which of their axes it leaves open; the int8 file keeps them.

    Attributes:
        inputs: Names of the inputs, in the file's order.
        outputs: Names of the outputs, in the file's order.
        axes: Names of the open axes of each, by place: ``{"x": {0: "N", 2: "height"}}``.
        opset: The version of ONNX's operators that the file is written in.
        tail: What it does behind its network, which the int8 file does, too; None where it ends with that.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    opset: int = 0
    tail: Tail | None = None

    def of(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """Return what the file calls a task's outputs: as the task does, or by their order."""
        known = all(name in self.outputs for name in outputs)
        return tuple(outputs) if known else self.outputs[: len(outputs)]


def is_quantizer(node: fx.Node) -> bool:
    """Return whether a student's node calls one of its quantizers (`placement`)."""
    return node.op == "call_module" and str(node.target).startswith(_QUANTIZERS)


def layer_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the name of every node that computes, each another, in the graph's order; quantizers have none.

    A module's first call has the module's path, every later one that and a number; a function has its node's name. A
    float graph and the students made of it have the same names at the same places.
    """
    calls = [
        n for n in graph.graph.nodes if n.op in ("call_module", "call_function") and not (is_quantizer(n) or is_part(n))
    ]
    first = {str(n.target): n for n in reversed(calls) if n.op == "call_module"}
    used, named = set(first), dict[fx.Node, str]()
    # A later call's layer must find room there in the student (`placement`).
    held = {name for name, _ in chain(graph.named_modules(), graph.named_parameters(), graph.named_buffers())}
    for node in calls:
        if node.op == "call_function":
            named[node] = unique(node.name, used)
        else:
            path = str(node.target)
            named[node] = path if first[path] is node else unique(path, used | held)
        used.add(named[node])
    return named


def pair_names(graph: fx.GraphModule) -> dict[fx.Node, dict[str, str]]:
    """Return what the nodes of each quantizer call, and their outputs, are called in the file, by ONNX operator."""
    tails = {"QuantizeLinear": "quantized", "Clip": "clipped", "DequantizeLinear": "dequantized"}
    taken = {*layer_names(graph).values(), *file_names(graph).inputs, *output_names(graph).values()}
    named: dict[fx.Node, dict[str, str]] = {}
    for node in filter(is_quantizer, graph.graph.nodes):
        owner, count, names = str(node.target).removeprefix(_QUANTIZERS), 1, dict[str, str]()
        while not names or not taken.isdisjoint(names.values()):
            names = {op: f"{owner}_{tail}" + (f"_{count}" if count > 1 else "") for op, tail in tails.items()}
            count += 1
        taken.update(names.values())
        named[node] = names
    return named


def file_names(graph: fx.GraphModule) -> FileNames:
    """Return what the graph's file calls its inputs and its outputs, these in the graph's order."""
    outputs = next(n for n in graph.graph.nodes if n.op == "output").meta["outputs"]
    found: FileNames | None = graph.meta.get(FILE_NAMES)
    if found is not None:
        return replace(found, outputs=found.of(outputs))
    inputs = tuple(entry.name for entry in graph.meta[IMAGE].inputs) if IMAGE in graph.meta else ()
    return FileNames(inputs=inputs or (INPUT,), outputs=outputs)


def output_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the nodes that the graph returns, each with the name of the file's output."""
    node = next(n for n in graph.graph.nodes if n.op == "output")
    names, returned = node.meta["outputs"], node.args[0]
    values: list[Any] = [returned[name] for name in names] if isinstance(returned, dict) else [returned]
    pairs = zip(values, file_names(graph).outputs, strict=True)
    return {value: name for value, name in pairs if isinstance(value, fx.Node)}


def tensor_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """Return which tensor of its file holds the value of each node, as far as the file has it at all."""
    outputs = output_names(graph)
    taken = {*file_names(graph).inputs, *outputs.values()}
    named = {node: unique(f"{name}/output", taken) for node, name in layer_names(graph).items()}
    named |= {node: names["DequantizeLinear"] for node, names in pair_names(graph).items()}
    return named | {n: str(n.args[1]) for n in graph.graph.nodes if is_part(n)} | outputs


def unique(name: str, used: Collection[str]) -> str:
    """``name``, or with a number where it is taken already."""
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
