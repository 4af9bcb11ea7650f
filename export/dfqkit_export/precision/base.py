"""What a runtime did with each layer of a file, in one form for every runtime.

What belongs here: `LayerPrecision` and `Realised`, which the readers of the runtimes' own accounts fill in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..metrics import Metric

__all__ = ["LayerPrecision", "Realised"]


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """How one layer of the file was executed.

    Attributes:
        name: Name of the node in the file.
        op: Its ONNX operator.
        precision: "int8" where an integer kernel computes it, else "float".
        executed_as: The operator that really runs, "" where the layer is not found in the optimized graph.
        detail: For float layers the reason, as far as the file tells; "" otherwise.
    """

    name: str
    op: str
    precision: Literal["int8", "float"]
    executed_as: str
    detail: str


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

    def to_dict(self) -> dict[str, Any]:
        """Return counts and remaining float operators as JSON can hold them, in the form `Report.precision` takes.

        The layers are not in it; `report.layer_rows` brings those into a report.
        """
        return {
            "integer": self.integer_layers,
            "float": self.float_layers,
            "integer_ops": self.integer_ops,
            "float_ops": [{"op": op, "name": name} for op, name in self.float_ops],
            "nodes": dict(self.nodes),
        }

    def metric(self, *, subject: str = "onnxruntime", data: str = "") -> Metric:
        """Return `integer_ops` in percent as a metric; n counts layers, and there is no sampling error.

        Args:
            subject: The runtime that was asked.
            data: What it was measured on; a graph needs no images.
        """
        share = self.integer_ops
        return Metric(
            name="integer_ops",
            subject=subject,
            data=data or "graph",
            value=None if share is None else 100.0 * share,
            unit="%",
            n=len(self.layers),
            higher_is_better=True,
        )
