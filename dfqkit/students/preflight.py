"""Whether a network can be quantized and written, tried with the network itself before any compute is spent.

What belongs here: the steps of a run from capture to file, without images and without calibration.
"""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import export_graph, normal_form
from dfqkit.students.inputs import is_part
from dfqkit.students.nodes import op_name
from dfqkit.students.normal_form import SUPPORTED_OPS
from dfqkit.students.onnx_file import float_model
from dfqkit.students.student import build_student
from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task


def examine(model: nn.Module, image: ImageSpec, task: Task = DEFAULT_TASK) -> tuple[Counter[str], tuple[str, ...]]:
    """Capture a network, quantize its graph for the usual target and write it as ONNX.

    Returns:
        How often each operator occurs in the captured graph, and the names of those that stay in float.

    Raises:
        TeacherError: A run would end with the same one.
    """
    exported = export_graph(model, image)
    graph = normal_form(exported, model, image, task)
    found = operators(exported)  # without what is computed once
    build_student(graph, QuantConfig(), DEFAULT_TARGET, image)
    float_model(graph, DEFAULT_TARGET.opset)
    return found


def operators(exported: fx.GraphModule) -> tuple[Counter[str], tuple[str, ...]]:
    """Count the operators of a captured graph, and name those that stay in float."""
    called = [node for node in exported.graph.nodes if node.op == "call_function" and not is_part(node)]
    counts = Counter(op_name(node.target) for node in called)
    return counts, tuple(sorted(set(counts) - SUPPORTED_OPS))
