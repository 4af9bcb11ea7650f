"""ONNX Runtime, CPU execution provider (x86 with VNNI measured; see each quirk's source)."""

from __future__ import annotations

from .base import QuantSpace, Target

ONNXRUNTIME = Target(
    name="onnxruntime",
    title="ONNX Runtime (CPU)",
    runtime="onnxruntime",
    opset=18,
    weights=QuantSpace(
        bits=(2, 3, 4, 5, 6, 7, 8), signed=True, symmetric=True, granularity="per_channel", narrow_range=True
    ),
    unsigned_activations=QuantSpace(bits=(2, 3, 4, 5, 6, 7, 8), signed=False, symmetric=True, granularity="per_tensor"),
    signed_activations=QuantSpace(bits=(2, 3, 4, 5, 6, 7, 8), signed=False, symmetric=False, granularity="per_tensor"),
    bias="int32",
    quantize_outputs=True,
    clip_before_quantize=False,
    quirks=(
        "Relu disappears into a convolution only where the zero point of the Q behind it is the lowest code: uint8 "
        "with zero "
        "point 0 (selectors of QDQ transformers; measured 3.0x against 1.1x over float32 on ResNet-18).",
        "uint8 activations with int8 per-channel weights is the fast kernel; uint8 weights run 2.5x slower (measured).",
        "4-bit weights are stored as int8 codes: DequantizeLinear(INT4) in front of Conv is not fused (measured, "
        "1.32).",
        "The final Gemm needs an int32 bias to become QGemm with a float output (measured).",
        "On x86 without VNNI, u8 x s8 products can saturate: use 7-bit weights there (ONNX Runtime quantization page).",
    ),
)
