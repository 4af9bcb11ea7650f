"""What each layer of an ONNX file puts out, seen in the runtime that executes it.

What belongs here: exposing layers' outputs as outputs of the model, so that two files, or a file and the student it was
written from, can be compared layer by layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, UNOPTIMIZED, all_backends, get_backend
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import open_session
from dfqkit_export.backends.session import FileSession, Session
from dfqkit_export.errors import ArtefactError
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx


class LayerProbe:
    """A file in a runtime that `sees_layers`, with the outputs of its layers laid open.

    A layer's output is taken after the bias (an Add of a constant), the BatchNormalization and the Relu or Clip that
    follow it and, in a quantized file, after the Q/DQ pair behind that. There a runtime's fusions are disturbed least,
    so that its integer kernels are what is seen. Layers without a name are left out, and those that are not in `layers`
    where names are given. In ONNX Runtime a `lean` one takes less memory for a large file (`OrtSession`).

    Attributes:
        tensors: For each layer, in the file's order, the tensor that its output is taken from.
        scales: For each layer, in the file's order, the scale of the codes that its output was quantized to; None where
            it was not, or not with one scale.
        batches: Cuts images into batches that the file takes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: str = DEFAULT.name,
        threads: int | None = None,
        layers: Collection[str] | None = None,
        lean: bool = False,
    ) -> None:
        model = load_onnx(path, weights=not lean)
        graph = SourceGraph(model.graph)
        visible = _visible_tensors(graph)
        self.tensors = {name: visible[name] for name in visible if layers is None or name in layers}
        self.scales = {name: _scale(tensor, graph) for name, tensor in self.tensors.items()}
        self._own = [value.name for value in model.graph.output]
        more = [tensor for tensor in dict.fromkeys(self.tensors.values()) if tensor not in self._own]
        if lean:
            optimized = runtime == DEFAULT.name
            session: Session = OrtSession(path, threads=threads, optimized=optimized, lean=True, exposed=more)
        else:
            model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in more)  # whatever type they have
            with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
                exposed = Path(folder) / "exposed.onnx"
                onnx.save(model, str(exposed))
                session = open_session(runtime, exposed, threads=threads)
        if not isinstance(session, FileSession) or not get_backend(runtime).sees_layers:
            able = [name for name, backend in all_backends().items() if backend.sees_layers]
            message = f"Runtime {runtime!r} gives outputs only; layers can be seen in {', '.join(able)}."
            raise ArtefactError(message)
        self._session = session
        self.batches = session.whole_batches

    def run(self, images: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
        """Run one batch (n, C, H, W), normalised; return the file's own outputs and the layers', both by name."""
        names = list(dict.fromkeys([*self._own, *self.tensors.values()]))
        values = dict(zip(names, self._session.outputs(images, names), strict=True))
        layers = {layer: values[tensor] for layer, tensor in self.tensors.items()}
        return {name: values[name] for name in self._own}, layers


def layer_outputs(
    path: str | Path,
    images: NDArray[np.float32],
    *,
    batch: int = 64,
    threads: int | None = None,
    optimized: bool = True,
    lean: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Run a file in ONNX Runtime and return the output of each of its layers, as `LayerProbe` sees it.

    Args:
        path: The ONNX file; layers without a name are left out.
        images: Shape (N, C, H, W), normalised. All outputs are kept in memory, so a few dozen images are enough.
        batch: Images in one call of the runtime.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: False executes the file as written, in float.
        lean: Whether memory is worth more than time (`OrtSession`).

    Returns:
        Name of the layer to its output, float32, in the file's order; of a file of a fixed batch that of the last image
        once more for each that fills the last batch.

    Raises:
        ArtefactError: The file is not a complete ONNX model, or the images do not fit it.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    probe = LayerProbe(path, runtime=(DEFAULT if optimized else UNOPTIMIZED).name, threads=threads, lean=lean)
    parts = [probe.run(part)[1] for part in probe.batches(images, batch)]
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in probe.scales}


def layer_scales(model: onnx.ModelProto) -> dict[str, float | None]:
    """Return, without running anything, what `LayerProbe.scales` is for all layers of a model."""
    graph = SourceGraph(model.graph)
    return {name: _scale(tensor, graph) for name, tensor in _visible_tensors(graph).items()}


def layer_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Return, without running anything, what `LayerProbe.tensors` is for all layers of a model."""
    return _visible_tensors(SourceGraph(model.graph))


def _visible_tensors(graph: SourceGraph) -> dict[str, str]:
    return {layer.name: _visible_tensor(layer, graph) for layer in graph.layers() if layer.name}


def _visible_tensor(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    behind = tensor = _activated(layer, graph)
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        readers = [node for node in graph.readers(tensor) if node.op_type in (operator, "Clip")]
        while operator == "DequantizeLinear" and readers and readers[0].op_type == "Clip":
            # Fewer than 8 bits: Q -> Clip -> DQ.
            readers = graph.readers(readers[0].output[0])
        matching = [node for node in readers if node.op_type == operator]
        if not matching:
            return behind
        tensor = matching[0].output[0]
    return tensor


def _activated(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    for follows in (_adds_bias, lambda node, _: node.op_type == "BatchNormalization"):
        readers = graph.readers(layer.output[0])
        if len(readers) == 1 and follows(readers[0], graph) and not graph.is_output(layer.output[0]):
            layer = readers[0]
    return graph.fused_outputs(layer)[-1]


def _adds_bias(node: onnx.NodeProto, graph: SourceGraph) -> bool:
    return node.op_type == "Add" and sum(name in graph.activations for name in node.input) == 1


def _scale(tensor: str, graph: SourceGraph) -> float | None:
    producer = graph.producer(tensor)
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    values = graph.constant(producer.input[1])
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None
