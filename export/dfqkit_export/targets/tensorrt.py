"""TensorRT 10.13 to 11: explicit quantization with strong typing. A file for it is checked statically, not run here."""

from __future__ import annotations

from .base import QuantSpace, Target

_INT8 = QuantSpace(bits=(2, 3, 4, 5, 6, 7, 8), signed=True, symmetric=True, granularity="per_tensor")

TENSORRT = Target(
    name="tensorrt",
    title="NVIDIA TensorRT",
    runtime="tensorrt",
    opset=18,
    weights=QuantSpace(
        bits=(2, 3, 4, 5, 6, 7, 8), signed=True, symmetric=True, granularity="per_channel", narrow_range=True
    ),
    unsigned_activations=_INT8,
    signed_activations=_INT8,
    bias="float",
    quantize_outputs=False,
    clip_before_quantize=True,
    quirks=(
        "INT8 only, zero point 0, for activations after ReLU too: a uint8 zero point is read as int8 (TensorRT 11 "
        "importer).",
        "A DequantizeLinear on an int32 bias is refused: the bias stays float (TensorRT importer message).",
        "Per-tensor scales are scalars of rank 0; shape [1] makes the convolution run in float (NvInfer.h).",
        "The residual input of an addition is quantized, the convolution output it is added to is not (developer "
        "guide).",
    ),
)
