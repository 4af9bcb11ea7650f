"""What a reader must know of the runtimes in a comparison.

What belongs here: what runtimes do that the file does not say, as seen in ONNX Runtime 1.32 and OpenVINO 2026.4, and
what looking at layers does to them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from dfqkit_export.measure.activations import layer_scales
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.words import some

__all__ = ["bias_notes", "disturbance_note"]


def disturbance_note(runtime: str, model: onnx.ModelProto, hidden: Mapping[str, str]) -> str:
    """Say that layers were looked at one by one, and which could not be.

    Args:
        runtime: Name of the runtime.
        model: The file.
        hidden: Layers that it computes in one kernel with a later one, which is the value.
    """
    text = (
        f"Looking at all layers at once changes what {runtime} computes, because it then fuses less; so each was "
        "looked at alone"
    )
    if hidden:
        shown = [f"{name} with {last}" for name, last in hidden.items()]
        text += f", without the {len(hidden)} that it computes in one kernel with a later one ({some(shown, 3)})"
    scales = layer_scales(model)
    rounded = [name for name in hidden if scales.get(name) is not None]
    if rounded and runtime == "openvino":
        text += f". For {len(rounded)} the file rounds to codes in between, which OpenVINO then leaves out"
    return f"{text}."


def bias_notes(sides: Mapping[str, tuple[str, onnx.ModelProto]]) -> list[str]:
    """Say where ONNX Runtime rounds float biases, which matters for weights of few bits, whose scales are large.

    Args:
        sides: What a side is called, with the name of its runtime and its model.
    """
    found = []
    for side, (runtime, model) in sides.items():
        graph = SourceGraph(model.graph)
        count = sum(_float_bias(layer, graph) for layer in graph.layers())
        if runtime == "onnxruntime" and count:
            found.append(
                f"In {side}, onnxruntime rounds the float biases of {count} convolution(s) to multiples of input scale "
                "x weight scale, which the file does not say; onnxruntime-unoptimized does not."
            )
    return found


def _float_bias(layer: onnx.NodeProto, graph: SourceGraph) -> bool:
    if layer.op_type != "Conv" or len(layer.input) < 3 or graph.constant(layer.input[2]) is None:
        return False
    makers = [graph.producer(name) for name in layer.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
