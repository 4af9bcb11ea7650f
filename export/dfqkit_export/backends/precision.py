"""What a runtime did with each layer of a file, in one form for every runtime.

What belongs here: `LayerPrecision` and `Realised`, which the readers of the runtimes' own accounts fill in, and what
all of them do with a file first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import onnx

from dfqkit_export.onnxfile.macs import multiply_adds

#: What is said of a layer in float where no rule tells why.
UNEXPLAINED = "no known rule explains it"


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """How one layer of the file was executed.

    Attributes:
        name: Name of the node in the file.
        op: Its ONNX operator.
        precision: "int8" where an integer kernel computes it, else "float".
        executed_as: The operator that really runs, "" where the layer is not found in the optimized graph.
        detail: For float layers the reason, as far as the file tells, and the repair; "" otherwise.
        macs: Multiply-adds for one image; None for additions, and where the file's shapes do not tell.
        kernel: Name of what really runs, in the runtime's own graph; layers with the same one were fused. "" where that
            is not known.
    """

    name: str
    op: str
    precision: Literal["int8", "float"]
    executed_as: str
    detail: str
    macs: int | None = None
    kernel: str = ""


@dataclass(frozen=True, kw_only=True)
class Realised:
    """What really ran.

    Attributes:
        layers: Every Conv, ConvTranspose, Gemm, MatMul that has an activation among its inputs, and every Add of two
            activations, in the file's order.
        float_ops: (operator, node name) of what still computes on floats in the optimized graph.
        nodes: How often each operator occurs in the optimized graph.
    """

    layers: tuple[LayerPrecision, ...]
    float_ops: tuple[tuple[str, str], ...]
    nodes: dict[str, int]

    @property
    def integer_layers(self) -> int:
        """How many layers run in integer kernels."""
        return sum(layer.precision == "int8" for layer in self.layers)

    @property
    def float_layers(self) -> int:
        """How many layers run in float."""
        return len(self.layers) - self.integer_layers

    @property
    def integer_ops(self) -> float | None:
        """Share of the layers that run in integer kernels, in [0, 1]; None where the file has no layers."""
        return self.integer_layers / len(self.layers) if self.layers else None

    @property
    def integer_macs(self) -> float | None:
        """Share of the convolutions' and matrix products' multiply-adds in integer kernels, in [0, 1].

        None where the file has none, or where the shapes of one of them are not known.
        """
        weighted = [layer for layer in self.layers if layer.op != "Add"]
        known = [layer.macs for layer in weighted if layer.macs is not None]
        if len(known) < len(weighted) or not sum(known):
            return None
        return sum(layer.macs or 0 for layer in weighted if layer.precision == "int8") / sum(known)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and remaining float operators as JSON can hold them, in the form `Report.precision` takes.

        The layers are not in it; `report.layer_rows` brings those into a report.
        """
        return dict(
            integer=self.integer_layers,
            float=self.float_layers,
            integer_ops=self.integer_ops,
            integer_macs=self.integer_macs,
            float_ops=[{"op": op, "name": name} for op, name in self.float_ops],
            nodes=dict(self.nodes),
        )


def with_unique_names(model: onnx.ModelProto, path: Path, folder: Path) -> Path:
    """Give every node a name of its own, by which a runtime's account of it can be told from the others'.

    Returns the file as it is where its names are unique already; else the model, read from `path`, is renamed in place
    and written into `folder`.
    """
    if not name_uniquely(model):
        return path
    named = folder / "named.onnx"
    onnx.save(model, str(named))
    return named


def name_uniquely(model: onnx.ModelProto) -> bool:
    """Rename nodes in place so that each has a name of its own; returns whether any had to be."""
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return False
    taken, seen = set(names), set[str]()
    for index, node in enumerate(model.graph.node):
        if node.name in seen or not node.name:
            stem = f"{node.name or node.op_type}_{index}"
            node.name = next(name for name in chain([stem], (f"{stem}_{n}" for n in count())) if name not in taken)
        seen.add(node.name)
        taken.add(node.name)
    return True


def realised(
    model: onnx.ModelProto,
    layers: Iterable[LayerPrecision],
    *,
    float_ops: Iterable[tuple[str, str]],
    operators: Iterable[str],
) -> Realised:
    """Say what ran of a model; the layers get their multiply-adds, as far as the file's shapes tell."""
    counts = multiply_adds(model)
    return Realised(
        layers=tuple(replace(layer, macs=counts.get(layer.name)) for layer in layers),
        float_ops=tuple(float_ops),
        nodes=dict(sorted(Counter(operators).items())),
    )


def layer_told(
    node: onnx.NodeProto, *, integer: bool, executed: tuple[str, str] | None, place: str, reason: Callable[[], str]
) -> LayerPrecision:
    """Say how a layer was executed, from what a runtime told of it.

    Args:
        node: The layer in the file.
        integer: Whether the runtime computes it in integers.
        executed: Operator and name of the kernel that runs; None where the layer was not found.
        place: Where it was looked for, for people.
        reason: Says why it ran in float, "" where no rule tells; only asked then.
    """
    if integer:
        detail = ""
    elif executed is None:
        detail = f"not found in the {place} (fused or folded under another name); counted as float"
    else:
        detail = reason() or UNEXPLAINED
    operator, kernel = executed or ("", "")
    return LayerPrecision(
        name=node.name,
        op=node.op_type,
        precision="int8" if integer else "float",
        executed_as=operator,
        detail=detail,
        kernel=kernel,
    )
