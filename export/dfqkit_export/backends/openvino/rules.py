"""What keeps OpenVINO's CPU plugin from running a layer of a QDQ file in integers, or from computing what it says.

What belongs here: the reasons of `reasons` as a rule, and what computes other numbers without VNNI.
"""

from __future__ import annotations

from collections.abc import Iterator

from dfqkit_export.backends.openvino.reasons import reason_in_openvino
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.backends.saturation import saturating_weights


@rule("V1", "warning", "Layers run in integers", repair="see the reason")
def _find_float_layers(graph: QdqGraph) -> Iterator[Violation]:
    for layer in graph.weighted():
        reason = reason_in_openvino(layer, graph)
        if reason:
            yield Violation(graph.name(layer), f"it runs in float: {reason}")


@rule(
    "V2",
    "warning",
    "Weights leave a bit free where products saturate",
    repair="quantize with 7-bit weights (reduce_range; overflow_fix in NNCF)",
)
def _find_saturating_weights(graph: QdqGraph) -> Iterator[Violation]:
    yield from saturating_weights(graph)


RULES = rules_in(vars())
