"""What each deployment target accepts, as data: one module a target, one line in the table here.

The same table chooses the student's quantizers before any compute is spent and is the reference that the exported file
is held against. No runtime is imported.
"""

from __future__ import annotations

from dfqkit_export.backends.onnxruntime.targets import ONNXRUNTIME, ONNXRUNTIME_ARM, ONNXRUNTIME_AVX2
from dfqkit_export.backends.openvino.targets import OPENVINO
from dfqkit_export.backends.target import Bias, Cell, Family, Granularity, OperatorRule, Placement, QuantSpace, Target
from dfqkit_export.backends.tensorrt.targets import ONNXRUNTIME_TENSORRT, TENSORRT, TENSORRT_RTX
from dfqkit_export.errors import TargetError
from dfqkit_export.words import did_you_mean

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        ONNXRUNTIME,
        ONNXRUNTIME_AVX2,
        ONNXRUNTIME_ARM,
        OPENVINO,
        TENSORRT,
        TENSORRT_RTX,
        ONNXRUNTIME_TENSORRT,
    )
}

__all__ = [
    "TARGETS",
    "Bias",
    "Cell",
    "Family",
    "Granularity",
    "OperatorRule",
    "Placement",
    "QuantSpace",
    "Target",
    "as_written",
    "get_target",
]


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TargetError: for an unknown name; gives the nearest and all allowed ones.
    """
    if name in TARGETS:
        return TARGETS[name]
    message = f"Unknown target '{name}'.{did_you_mean(name, TARGETS)} Allowed: {', '.join(sorted(TARGETS))}."
    raise TargetError(message)


def as_written(name: str) -> bool:
    """Whether ONNX Runtime computes what a file for a target says only without its optimizations.

    These turn float biases into int32 with a scale that the file does not have, and the runtimes that ask for float
    biases do not. Of a target that is not in the table nothing is known, and the answer is no.
    """
    return name in TARGETS and TARGETS[name].bias == "float"
