"""A quantized file against a float one: time, size, and the operators that cost time.

What belongs here: measuring a quantized file against a float one. How calls are timed is `latency`, what single
operators cost `node_times`, what is said of it in words `text`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import own_batch, random_inputs
from dfqkit_export.measure.latency import Latency, measure_latency
from dfqkit_export.onnxfile.canonical.opened import forms, opened
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.profiling.float_twin import float_twin
from dfqkit_export.profiling.node_times import NodeTime, node_times, time_by_kind

#: Names of the two sessions in every `Latency`.
FLOAT, INT8 = "float", "int8"

_TEACHER = "teacher.onnx"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An operator on floats, or between codes and floats, that takes time in ONNX Runtime.

    Attributes:
        name: Its name in the optimized graph.
        op: Its operator.
        ms: What it takes, in milliseconds.
        share: The same of all operators' time, in [0, 1].
        reason: Why a layer of the file runs in float there, with the repair; "" for other operators.
    """

    name: str
    op: str
    ms: float
    share: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What came of it.

    Attributes:
        path: The quantized file.
        against: What it was measured against, in words.
        bytes: Size of the quantized file with its external data.
        float_bytes: Size of the float file.
        batch: Images in a call.
        threads: Threads of a runtime on the CPU; None where that was left to it.
        latencies: For each runtime the timings of `FLOAT` and `INT8`, taken in turns; the ratio is int8's speed-up.
        nodes: The quantized file's nodes in ONNX Runtime, the slowest first; empty where that is not asked.
        costs: Those of them that work on floats, or change between codes and floats, the slowest first.
        warnings: Where int8 is not faster.
    """

    path: Path
    against: str
    bytes: int
    float_bytes: int
    batch: int
    threads: int | None
    latencies: dict[str, Latency]
    nodes: tuple[NodeTime, ...] = ()
    costs: tuple[Cost, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {**asdict(self), "path": str(self.path), "time_by_kind": time_by_kind(self.nodes)}


def profile_file(
    path: str | Path,
    against: str | Path | None = None,
    *,
    runtimes: Sequence[str] = (DEFAULT.name,),
    batch: int | None = None,
    threads: int | None = 1,
    repeats: int = 50,
) -> Profile:
    """Time a quantized file and a float one in turns, in each of the runtimes.

    Args:
        path: The quantized file.
        against: The float file. None takes `teacher.onnx` beside the quantized one, and where there is none the
            quantized file with its Q/DQ taken out.
        runtimes: Names of runtimes, see `backends.all_backends`.
        batch: Images in a call; None takes the batch that the file has, or 1.
        threads: Threads of runtimes on the CPU; None leaves the choice to them.
        repeats: Timed calls of each file, after five that are not counted.

    Raises:
        ArtefactError: A file is damaged, has no Q/DQ, or does not take the batch.
        RuntimeUnavailableError: A runtime is not installed.
    """
    path = Path(path)
    model = load_onnx(path)
    if not forms(model):
        message = (
            f"Model {str(path)!r} has no QuantizeLinear or DequantizeLinear and no integer operators: there is nothing "
            "to gain. Give a quantized file."
        )
        raise ArtefactError(message)
    images = random_inputs(model, batch or own_batch(model) or 1).images
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        base, words = _float_file(path, against, model, Path(folder))
        load_onnx(base)  # A damaged file is told here, and not by each runtime in its own words.
        float_bytes = _bytes(base)
        latencies = {}
        for name in dict.fromkeys(runtimes):
            sessions = {key: open_session(name, file, threads=threads) for key, file in ((FLOAT, base), (INT8, path))}
            latencies[name] = measure_latency(sessions, images, repeats=repeats, reference=FLOAT)
    nodes: tuple[NodeTime, ...] = ()
    if DEFAULT.name in latencies:
        nodes = node_times(path, images, threads=threads, repeats=min(repeats, 50))
    return Profile(
        path=path,
        against=words,
        bytes=_bytes(path),
        float_bytes=float_bytes,
        batch=len(images),
        threads=threads,
        latencies=latencies,
        nodes=nodes,
        costs=_costs(path, nodes),
        warnings=tuple(
            f"int8 is not faster than float in {name}: {ratio:.2f}x."
            for name, latency in latencies.items()
            if (ratio := latency.timings[INT8].ratio) is not None and ratio <= 1.0
        ),
    )


def _float_file(path: Path, against: str | Path | None, model: onnx.ModelProto, folder: Path) -> tuple[Path, str]:
    if against is not None:
        return Path(against), str(against)
    beside = path.with_name(_TEACHER)
    if beside.is_file() and beside != path:
        return beside, f"{beside} (beside it)"
    twin = folder / "float.onnx"
    onnx.save(float_twin(opened(model)), str(twin))
    return twin, "the same file without Q/DQ"


def _bytes(path: Path) -> int:
    model = onnx.load(str(path), load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    beside = {str(entry.value) for entry in entries if entry.key == "location"}
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in beside)))


def _costs(path: Path, nodes: Sequence[NodeTime]) -> tuple[Cost, ...]:
    costly = [node for node in nodes if node.kind in ("float", "Q/DQ")]
    if not costly:
        return ()
    total = sum(node.ms for node in nodes)
    reasons: dict[str, str] = {}
    for layer in realised_precision(path, DEFAULT.name).layers:
        # Of fused layers the first is the one that multiplies.
        reasons.setdefault(layer.kernel, layer.detail)
    return tuple(
        Cost(name=node.name, op=node.op, ms=node.ms, share=node.ms / total, reason=reasons.get(node.name, ""))
        for node in costly
    )
