"""What each operator of a file costs in ONNX Runtime, by the runtime's own clock.

What belongs here: reading ONNX Runtime's profile. How long whole calls take is `latency`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.onnxruntime.precision import INTEGER_OPS
from dfqkit_export.backends.onnxruntime.session import OrtSession

Kind = Literal["integer", "Q/DQ", "float", "other"]

KINDS: tuple[Kind, ...] = ("integer", "Q/DQ", "float", "other")

_BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MOVES = frozenset({"Flatten", "Identity", "ReorderInput", "ReorderOutput", "Reshape", "Transpose"})
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """What one node of the optimized graph costs.

    Attributes:
        name: Its name there, which a layer of the file has as `LayerPrecision.kernel`.
        op: Its operator.
        kind: "integer" for kernels on codes, "Q/DQ" for what changes between codes and floats, "float" for what
            computes on floats, "other" for what only moves values or works on codes without arithmetic.
        ms: Median over the calls, in milliseconds.
    """

    name: str
    op: str
    kind: Kind
    ms: float


def node_times(
    path: str | Path, images: NDArray[np.float32], *, repeats: int = 20, threads: int | None = None
) -> tuple[NodeTime, ...]:
    """Run a file with the profiler on, which slows it a little, and return what each node takes, the slowest first.

    The images are one batch (n, C, H, W), normalised; the first two calls are not counted.
    """
    warmup = 2
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        session = OrtSession(path, threads=threads, profile_prefix=Path(folder) / "profile")
        for _ in range(warmup + repeats):
            session.run(images)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    kernels: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            kernels.setdefault(event["name"].removesuffix(_SUFFIX), []).append(event)
    found = [_node(name, calls[warmup * len(calls) // (warmup + repeats) :]) for name, calls in kernels.items()]
    return tuple(sorted(found, key=lambda node: -node.ms))


def time_by_kind(nodes: Iterable[NodeTime]) -> dict[Kind, float]:
    """Return the milliseconds of each kind of node, in `KINDS`' order."""
    found = dict.fromkeys(KINDS, 0.0)
    for node in nodes:
        found[node.kind] += node.ms
    return found


def _node(name: str, calls: list[dict[str, Any]]) -> NodeTime:
    op = str(calls[0]["args"].get("op_name", ""))
    types = {kind for value in calls[0]["args"].get("input_type_shape", []) for kind in value}
    # Half of the calls were faster: a call that another process interrupted does not count.
    ms = float(np.median([call["dur"] for call in calls])) / 1000.0
    return NodeTime(name=name.partition("_token_")[0], op=op, kind=_kind(op, types), ms=ms)


def _kind(op: str, types: set[str]) -> Kind:
    if op in INTEGER_OPS:
        return "integer"
    if op in _BOUNDARY:
        return "Q/DQ"
    return "float" if op not in _MOVES and types & {"float", "float16", "double"} else "other"
