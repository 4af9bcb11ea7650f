"""NVIDIA TensorRT for RTX: the rules of TensorRT, whose importer it shares, as they were measured."""

from __future__ import annotations

import dataclasses

from dfqkit_export.backends.target import Cell
from dfqkit_export.backends.tensorrt.targets import GUIDE, RTX_SEEN, TENSORRT, UNSUPPORTED, operators_of

TENSORRT_RTX = dataclasses.replace(
    TENSORRT,
    name="tensorrt-rtx",
    title="NVIDIA TensorRT for RTX",
    backend="tensorrt-rtx",
    opsets=Cell(value=(10, 25), source="measured: TensorRT for RTX 1.7.1 parses and builds 10 to 25"),
    operators=operators_of(RTX_SEEN, GUIDE),
    unsupported=Cell(value=UNSUPPORTED, source="measured: parser of TensorRT for RTX 1.7.1, supports_operator"),
    quirks=(
        *TENSORRT.quirks,
        "Engines are built without a GPU or driver (measured); 1.4 to 1.6 refuse every int8 convolution (measured).",
    ),
)
