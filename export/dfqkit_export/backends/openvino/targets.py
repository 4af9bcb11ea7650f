"""OpenVINO, CPU plugin: Q/DQ pairs become FakeQuantize, which its low precision transformations turn into integers."""

from __future__ import annotations

from dfqkit_export.backends.spaces import S8_ZERO, U8, U8_ZERO, W7, W7_FULL, W7_TENSOR, row
from dfqkit_export.backends.target import Cell, Target

_SEEN = "measured: OpenVINO 2026.4.1, execution graph on x86 with AVX-512 VNNI"
_PLUGIN = (
    "read: OpenVINO, intel_cpu transformation_pipeline.cpp: a convolution multiplies u8 x i8, and i8 x i8 only with "
    "AMX or AVX2-VNNI-2"
)
_LPT = "read: OpenVINO, low precision transformations: a convolution's activations have one scale for all channels"
_NNCF = "read: NNCF, hardware setup for CPU: int8 weights, symmetric, per channel or per tensor"
_SATURATES = (
    "measured: OpenVINO 2026.4.1 held to AVX2 (ONEDNN_MAX_CPU_ISA=AVX2) saturates sums of two u8 x i8 products with "
    "8-bit codes, and not with 7-bit ones"
)
_ACTIVATIONS = (U8, S8_ZERO)

OPENVINO = Target(
    name="openvino",
    title="OpenVINO (CPU)",
    backend="openvino",
    opset=18,
    opsets=Cell(value=(10, 28), source="measured: OpenVINO 2026.4.1 runs a quantized convolution of each in u8"),
    weights=W7,
    unsigned_activations=U8_ZERO,
    signed_activations=U8,
    bias="float",
    quantize_outputs=False,
    clip_before_quantize=False,
    dtypes=Cell(value=("uint8", "int8"), source=_SEEN),
    relu_zero_point=Cell(value="any", source=f"{_SEEN}: uint8 and int8 with zero point 0 behind Relu both fuse"),
    unsupported=Cell(
        value=frozenset(("com.microsoft.QGemm", "com.microsoft.QLinearGlobalAveragePool")),
        source="measured: OpenVINO 2026.4.1 refuses them in files of quantize_static; not looked into further",
    ),
    operators=(
        row(
            "Conv", placement="inputs", activations=_ACTIVATIONS, weights=(W7_FULL, W7_TENSOR),
            bias=("float", "int32"),
            source={
                "": f"{_SEEN}: u8 convolutions, files with int8 activations too, which it rewrites; {_PLUGIN}",
                "placement": f"{_SEEN}: pairs on the inputs are enough, one on the output that an Add reads is dropped",
                "weights": f"{_SEEN}; {_NNCF}; {_SATURATES}",
                "activations": f"{_SEEN}; {_PLUGIN}; {_LPT}",
                "bias": f"{_SEEN}: both forms, same numbers",
            },
        ),
        row(
            "Gemm", "MatMul", placement="inputs", activations=_ACTIVATIONS, weights=(W7_FULL, W7_TENSOR),
            bias=("float", "int32"), source={"": f"{_SEEN}: u8 or i8", "weights": f"{_SEEN}; {_NNCF}; {_SATURATES}"},
        ),
        row(
            "ConvTranspose", placement="inputs", activations=(U8_ZERO, S8_ZERO), weights=(W7_FULL, W7_TENSOR),
            bias=("float",), source=f"{_SEEN}: u8 and i8 with zero point 0; float with uint8 and zero point 128",
        ),
        row("Add", "Sub", placement="inputs", activations=_ACTIVATIONS, source=_SEEN),
        row("Mul", placement="inputs", activations=(U8_ZERO, S8_ZERO), source=f"{_SEEN}: float with zero point 128"),
        row(
            "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", placement="inputs", activations=_ACTIVATIONS,
            source=_SEEN,
        ),
        row(
            "Concat", placement="inputs", activations=_ACTIVATIONS,
            source=f"{_SEEN}; NNCF gives all its inputs one scale, which saves requantizing",
        ),
        row(
            "MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Transpose", "Relu",
            placement="through", activations=_ACTIVATIONS, source=_SEEN,
        ),
        row("Pad", placement="through", activations=(U8_ZERO, S8_ZERO), source=f"{_SEEN}: float with zero point 128"),
        row(
            "Sigmoid", "Softmax", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Elu", "Div", placement="float",
            source=f"{_SEEN}: f32, whatever is around it",
        ),
    ),
    domains=frozenset({"com.microsoft"}),
    quirks=(
        "Weights fill 7 of their 8 bits ([-63, 63]), whatever quant.bits says above 7: without VNNI the kernels add "
        "two u8 x i8 products in 16 bits, where 8-bit codes saturate, and no setting prevents it. 7-bit codes "
        "give the file's numbers on both kinds of processor (measured, 2026.4.1, the second held to AVX2).",
        "A Q/DQ pair between a convolution and the Add it feeds is dropped, so its rounding is missing: with pairs "
        "behind every operator results move by a step; with pairs on inputs alone they equal the student's bit for bit "
        "(measured, 2026.4.1, power-of-two scales).",
        "Without AMX, int8 activations are rewritten to uint8 (transformation_pipeline.cpp; seen in the execution "
        "graph).",
        "The default inference precision is bf16 where the CPU has it: INFERENCE_PRECISION_HINT f32 keeps what is not "
        "integer in float32 (OpenVINO CPU device page).",
    ),
)  # fmt: skip
