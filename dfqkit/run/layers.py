"""Teacher, student and file compared layer by layer, on a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dfqkit_export.backends.realised import realised_precision
from dfqkit_export.measure import metrics
from dfqkit_export.measure.activations import layer_outputs
from dfqkit_export.report import LayerRow, layer_rows

#: Images of the comparison: enough for a ratio, few enough to hold every activation in memory.
LAYER_IMAGES = 32

Images = NDArray[np.float32]


def compare_layers(
    student: fx.GraphModule,
    path: Path,
    images: Images,
    device: torch.device,
    *,
    as_written: bool = False,
    reference: fx.GraphModule | None = None,
) -> tuple[LayerRow, ...]:
    """Per layer: the student against the teacher, and the runtime against the student, both in dB.

    Args:
        student: frozen.
        path: folder of ``teacher.onnx`` and ``model.onnx``.
        images: (N, C, H, W), normalised.
        device: where the student is.
        as_written: run ``model.onnx`` without ONNX Runtime's optimizations.
        reference: takes the place of ``teacher.onnx`` where its features are scaled otherwise (`equalized_graph`).
    """
    inputs = torch.from_numpy(images).to(device)
    real = layer_outputs(path / "teacher.onnx", images) if reference is None else _student_layers(reference, inputs)
    runtime = layer_outputs(path / "model.onnx", images, optimized=not as_written)
    torch_side = _student_layers(student, inputs)
    student_db = {n: metrics.sqnr_db(real[n], torch_side[n]) for n in torch_side if n in real}
    runtime_db = {n: metrics.sqnr_db(torch_side[n], runtime[n]) for n in torch_side if n in runtime}
    return layer_rows(realised_precision(path / "model.onnx").layers, student_db=student_db, runtime_db=runtime_db)


def _student_layers(student: fx.GraphModule, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Output of every layer, behind the activation and the quantizer that follow it, as a runtime shows it."""
    modules = dict(student.named_modules())

    def follows(node: fx.Node) -> bool:
        return node.op == "call_module" and (
            str(node.target).startswith("quant.") or isinstance(modules[str(node.target)], (nn.ReLU, nn.ReLU6))
        )

    wanted: dict[fx.Node, str] = {}
    for node in student.graph.nodes:
        if node.target is torch.add or isinstance(modules.get(str(node.target)), (nn.Conv2d, nn.Linear)):
            last = node
            while len(last.users) == 1 and follows(next(iter(last.users))):
                last = next(iter(last.users))
            wanted[last] = node.name if node.target is torch.add else str(node.target)
    values: dict[str, NDArray[np.float32]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                values[wanted[n]] = value.float().cpu().numpy()
            return value

    with torch.no_grad():
        Recorder(student).run(images)
    return values
