"""What each layer of an ONNX file puts out, seen in the runtime that executes it.

What belongs here: exposing layers' outputs as outputs of the model, so that two files, or a file and the student it was
written from, can be compared layer by layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .modelfile import load_onnx
from .runtimes.base import batched
from .runtimes.ort import OrtSession
from .source_graph import SourceGraph

__all__ = ["layer_outputs"]


def layer_outputs(
    path: str | Path,
    images: NDArray[np.float32],
    *,
    batch: int = 64,
    threads: int | None = None,
    optimized: bool = True,
) -> dict[str, NDArray[np.float32]]:
    """Run a file and return the output of each of its layers.

    A layer's output is taken after the Relu or Clip that follows it and, in a quantized file, after the Q/DQ pair
    behind that. There the runtime's fusions are not disturbed, so that with `optimized` the integer kernels are what is
    seen.

    Args:
        path: The ONNX file; layers without a name are left out.
        images: Shape (N, C, H, W), normalised. All outputs are kept in memory, so a few dozen images are enough.
        batch: Images in one call of the runtime.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: False executes the file as written, in float.

    Returns:
        Name of the layer to its output, float32, in the file's order.

    Raises:
        ArtefactError: The file is not a complete ONNX model, or the images do not fit it.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    model = load_onnx(path)
    graph = SourceGraph(model.graph)
    tensors = {layer.name: _visible_tensor(layer, graph) for layer in graph.layers() if layer.name}
    present = {value.name for value in model.graph.output}
    for tensor in dict.fromkeys(tensors.values()):
        if tensor not in present:
            model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        exposed = Path(folder) / "exposed.onnx"
        onnx.save(model, str(exposed))
        session = OrtSession(exposed, threads=threads, optimized=optimized)
    names = list(dict.fromkeys(tensors.values()))
    parts = [session.outputs(part, names) for part in batched(images, batch)]
    values = {name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(names)}
    return {layer: values[tensor] for layer, tensor in tensors.items()}


def _visible_tensor(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    tensor = graph.fused_outputs(layer)[-1]
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        readers = [node for node in graph.readers(tensor) if node.op_type in (operator, "Clip")]
        while operator == "DequantizeLinear" and readers and readers[0].op_type == "Clip":
            # Fewer than 8 bits: Q -> Clip -> DQ.
            readers = graph.readers(readers[0].output[0])
        matching = [node for node in readers if node.op_type == operator]
        if not matching:
            return graph.fused_outputs(layer)[-1]
        tensor = matching[0].output[0]
    return tensor
