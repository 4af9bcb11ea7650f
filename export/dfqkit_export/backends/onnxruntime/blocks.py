"""How many channels ONNX Runtime puts in a block where its optimizer lays maps out in blocks: 8 or 16, by the CPU.

What belongs here: asking it. A file does not say so, and computes something else on a CPU with other blocks.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.onnxfile.canonical.blocked import DOMAIN

_CHANNELS = 17  # fill 24 in blocks of 8, and 32 in blocks of 16


def block_of(model: onnx.ModelProto) -> int:
    """Return the channels of a block here where a model has operators on blocks; else, or where there are none, 0."""
    return _block() if any(node.domain == DOMAIN for node in model.graph.node) else 0


@cache
def _block() -> int:
    """Return what the weights of a convolution are filled up to by the optimizer."""
    weight = numpy_helper.from_array(np.ones((_CHANNELS, 1, 1, 1), np.float32), "w")
    sizes = {"x": 1, "y": _CHANNELS}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, each, 2, 2)) for name, each in sizes.items()]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", ends[:1], ends[1:], [weight])
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        plain, made = Path(folder, "plain.onnx"), Path(folder, "made.onnx")
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(plain))
        OrtSession(plain, threads=1, optimized_path=made)
        filled = max(tensor.dims[0] for tensor in onnx.load(str(made)).graph.initializer)
    return {24: 8, 32: 16}.get(filled, 0)
