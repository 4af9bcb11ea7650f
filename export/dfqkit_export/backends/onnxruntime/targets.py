"""ONNX Runtime: its CPU provider on every CPU, x86 with VNNI, without, and Arm, and its TensorRT and QNN providers."""

from __future__ import annotations

import dataclasses

from dfqkit_export.backends.openvino.targets import OPENVINO
from dfqkit_export.backends.spaces import (
    S8,
    U8,
    U8_ZERO,
    W7,
    W7_FULL,
    W7_TENSOR,
    W8,
    W8_FULL,
    W8_TENSOR,
    W8_UNSIGNED,
    row,
)
from dfqkit_export.backends.target import Bias, Cell, OperatorRule, QuantSpace, Target
from dfqkit_export.backends.tensorrt.targets import GUIDE, RTX_SEEN, TENSORRT, operators_of

_ONE_OP = "measured: ONNX Runtime 1.32, a graph of this operator between Q/DQ, as the runtime optimized it"
_FUSED = "measured: ONNX Runtime 1.32, one pattern a graph, as the runtime optimized it"
_PAGE = "read: ONNX Runtime, Quantize ONNX Models (data type selection; when to use reduce-range)"
_ARM_KERNELS = "read: ONNX Runtime, core/mlas/lib/platform.cpp: U8S8 and S8S8 both have dot product kernels on Arm64"
_ARM_INT8 = (
    "read: ONNX Runtime, qdq_selector_action_transformer.h: int8 is allowed where the machine is Arm; QLinearConv "
    "takes one type for input and output"
)

_FLOAT = (
    *("Pad", "ReduceMean", "Resize", "HardSigmoid", "HardSwish", "Sub", "Div", "Tanh", "Gelu", "Elu"),
    *("ConvTranspose", "InstanceNormalization", "BatchNormalization"),
)
_WEIGHTS = (W8_FULL, W8_TENSOR)
_WEIGHTS_SOURCE = (
    "measured: ONNX Runtime 1.32, all fuse; int8 per channel and per tensor 3.1x over float32 on ResNet-18, uint8 1.25x"
)
_BIAS_SOURCE = (
    "measured: ONNX Runtime 1.32, a float bias is quantized by the runtime itself, so that results move; a final Gemm "
    "with a float bias stays float"
)


def _operators(
    activations: tuple[QuantSpace, ...], weights: tuple[QuantSpace, ...], sources: dict[str, str]
) -> tuple[OperatorRule, ...]:
    """Return the rows of one machine: what fuses is decided by the same code on all, which types are fast is not."""
    elsewhere = {"": _ONE_OP} | {key: text for key, text in sources.items() if key == "activations"}
    matmul = {"": _FUSED, "weights": _WEIGHTS_SOURCE} | sources
    forms: tuple[Bias, ...] = ("int32", "float")
    biased = {"bias": _BIAS_SOURCE} | matmul
    pooled = elsewhere | {"placement": f"{_ONE_OP}; a Flatten between it and Q keeps it float"}
    relu = f"{_FUSED}: it disappears where the Q behind it starts at 0, a Clip only where it ends there, too"
    split = f"{_FUSED}: without Q behind it what follows is float"
    moves = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Slice", "Gather")
    return (
        row("Conv", placement="around", activations=activations, weights=weights, bias=forms, source=biased),
        row("Gemm", placement="inputs", activations=activations, weights=weights, bias=forms, source=biased),
        row("MatMul", placement="inputs", activations=activations, weights=weights, source=matmul),
        row("Add", "Mul", "Concat", placement="around", activations=activations, source=elsewhere),
        row("Sigmoid", "Softmax", "LeakyRelu", placement="around", activations=activations, source=elsewhere),
        row("AveragePool", "GlobalAveragePool", placement="around", activations=activations, source=pooled),
        row("Relu", "Clip", placement="through", activations=activations, source=relu),
        row(*moves, placement="through", activations=activations, source=_FUSED),
        row("Split", placement="around", activations=activations, source=split),
        row(*_FLOAT, placement="float", source=f"{_ONE_OP}: float kernels, whatever is around it"),
    )


_X86 = _operators((U8, S8), (*_WEIGHTS, W8_UNSIGNED), {
    "activations": "measured: ONNX Runtime 1.32, uint8 fuses with any zero point; int8 in plain chains alone, not at "
    "branches nor behind Relu",
})  # fmt: skip

ONNXRUNTIME = Target(
    name="onnxruntime",
    title="ONNX Runtime (CPU)",
    backend="onnxruntime",
    opset=18,
    opsets=Cell(value=(10, 27), source="measured: ONNX Runtime 1.32 loads and fuses a convolution of each"),
    weights=W8,
    unsigned_activations=U8_ZERO,
    signed_activations=U8,
    bias="int32",
    quantize_outputs=True,
    clip_before_quantize=False,
    dtypes=Cell(value=("uint8", "int8"), source="measured: ONNX Runtime 1.32; int4 weights of a Conv are not fused"),
    relu_zero_point=Cell(
        value="lowest", source="measured: ONNX Runtime 1.32: uint8 0 and int8 -128 fuse, int8 0, uint8 3 and 128 do not"
    ),
    operators=_X86,
    domains=frozenset({"ai.onnx.ml", "com.microsoft"}),
    quirks=(
        "Relu disappears into a convolution only where the zero point of the Q behind it is the lowest code: uint8 "
        "with zero point 0 (selectors of QDQ transformers; measured 3.0x against 1.1x over float32 on ResNet-18).",
        "uint8 activations with int8 per-channel weights is the fast kernel; uint8 weights run 2.5x slower (measured).",
        "4-bit weights are stored as int8 codes: DequantizeLinear(INT4) in front of Conv is not fused (measured, "
        "1.32).",
        "The final Gemm needs an int32 bias to become QGemm with a float output (measured).",
        "The file is for every CPU. On x86 without VNNI sums of two u8 x s8 products saturate in 16 bits: scales of "
        "channels in which one could are made larger until none can. Arm rounds additions half away from 0, x86 half "
        "to even: scales around additions are such that no sum lies half way (measured in emulation: dfqkit prove).",
    ),
    additions_agree=True,
    sums_fit=True,
)

ONNXRUNTIME_VNNI = dataclasses.replace(
    ONNXRUNTIME,
    name="onnxruntime-vnni",
    title="ONNX Runtime (CPU, x86 with VNNI)",
    quirks=(
        *ONNXRUNTIME.quirks[:-1],
        "For x86 with VNNI alone: elsewhere additions part on ties, and without VNNI u8 x s8 products saturate "
        "(measured on AVX2: a first convolution is 14 dB from what the file says) unless session.x64quantprecision is "
        "1, as in every session of dfqkit and in the samples of a bundle (measured: the bits of the file as written).",
    ),
    additions_agree=False,
    sums_fit=False,
)

ONNXRUNTIME_AVX2 = dataclasses.replace(
    ONNXRUNTIME,
    name="onnxruntime-avx2",
    title="ONNX Runtime (CPU, x86 without VNNI)",
    weights=W7,
    additions_agree=False,
    operators=_operators((U8, S8), (W7_FULL, W7_TENSOR, W8_UNSIGNED), {
        "activations": f"{_PAGE}; fusion is decided by the same code as with VNNI, where it was measured",
        "weights": f"{_PAGE}: VPMADDUBSW adds pairs of u8 x s8 products in 16 bits and saturates, not with 7-bit "
        "weights, nor with uint8 weights, which are slower",
    }),
    quirks=(
        "Weights fill 7 of their 8 bits ([-63, 63]), whatever quant.bits says above 7: two u8 x s8 products then fit "
        "the 16 bits that AVX2 and AVX-512 without VNNI add them in (2 x 255 x 64 = 32640 < 32767).",
        "Files are also right, and as fast, on machines with VNNI (measured: 6.2 against 5.5 to 6.0 ms on ResNet-18).",
        "Measured in emulation alone (qemu, Haswell): dfqkit prove.",
    ),
)  # fmt: skip

ONNXRUNTIME_ARM = dataclasses.replace(
    ONNXRUNTIME,
    name="onnxruntime-arm",
    title="ONNX Runtime (CPU, Arm64)",
    sums_fit=False,
    operators=_operators((U8, S8), _WEIGHTS, {
        "activations": f"{_ARM_KERNELS}; {_ARM_INT8.removeprefix('read: ')}",
        "weights": "read: ONNX Runtime, qlinearconv.cc: its symmetric kernel wants weights with zero point 0",
    }),
    quirks=(
        "uint8 and int8 activations have equally direct kernels (platform.cpp); what counts is one type for all, since "
        "nothing rewrites int8 to uint8 there as on x86.",
        "The files are those of target onnxruntime: uint8 with zero point 0 fuses behind Relu, int8 would need -128.",
        "No saturation in 16 bits, so 8-bit weights (ONNX Runtime quantization page).",
        "Additions have scales with which Arm's fixed point and x86 give the same codes: the student computes x86's.",
        "Measured in emulation alone (qemu, 1.27): dfqkit prove.",
    ),
)  # fmt: skip

_QNN = "measured: onnxruntime-qnn 2.7.0 with ONNX Runtime 1.32, its HTP compiler on x86-64, one operator a graph"
_GRIDS = f"{_QNN}: in integers where both pairs have the same scale, else in float"
_U8_WHOLE = tuple(dataclasses.replace(space, bits=(8,)) for space in (U8, S8))

ONNXRUNTIME_QNN = dataclasses.replace(
    ONNXRUNTIME,
    name="onnxruntime-qnn",
    title="ONNX Runtime (QNN provider, Qualcomm NPU)",
    backend="onnxruntime-qnn",
    opsets=Cell(value=(13, 23), source=f"{_QNN}: a convolution of opset 13, 18, 21, 22 and 23 in u8"),
    unsigned_activations=dataclasses.replace(U8_ZERO, bits=(8,)),
    signed_activations=_U8_WHOLE[0],
    operators=(
        row(
            "Conv", placement="around", activations=_U8_WHOLE, weights=(*_WEIGHTS, W8_UNSIGNED),
            bias=("int32", "float"), source={"": f"{_QNN}: Conv2d and DepthWiseConv2d in u8 x s8; without Q/DQ behind "
            "it, or where Relu does not vanish in them, in float"},
        ),
        row(
            "Gemm", placement="inputs", activations=_U8_WHOLE, weights=_WEIGHTS, bias=("int32", "float"),
            source=f"{_QNN}: FullyConnected in u8 x s8; with a float output refused (3110), and then QGemm on the CPU",
        ),
        row("MatMul", placement="around", activations=_U8_WHOLE, weights=_WEIGHTS, source=_QNN),
        row(
            "Add", "Sub", "Mul", "Div", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean",
            placement="around", activations=_U8_WHOLE, source=_QNN,
        ),
        row(
            "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Elu", "LeakyRelu", "Softmax",
            placement="around", activations=_U8_WHOLE, source=_QNN,
        ),
        row("ConvTranspose", placement="around", activations=_U8_WHOLE, weights=_WEIGHTS, source=_QNN),
        row("Relu", "Clip", placement="through", activations=_U8_WHOLE, source=f"{_QNN}, alone and behind Conv"),
        row("Slice", "Pad", "Transpose", "DepthToSpace", placement="through", activations=_U8_WHOLE, source=_QNN),
        row(
            "MaxPool", "Reshape", "Flatten", "Squeeze", "Resize", placement="through", activations=_U8_WHOLE,
            source=_GRIDS,
        ),
        row("LayerNormalization", placement="float", source=f"{_QNN}: float32 beside Dequantize and Quantize"),
    ),
    quirks=(
        "Activations have 8 bits: a Clip on codes, or a float Clip inside the range of a Q, ends what is fused, and "
        "the session is refused (measured with W4A4). Weights of 4 bits are stored as int8 codes.",
        "Shapes are fixed: dfqkit's sessions run one image a call, and so must others (free_dimension_override).",
        "A last Gemm with a float output is left to the CPU provider, which runs QGemm (measured): logits of 8 bits "
        "tie. Input images are quantized there, too.",
        "Measured by the vendor's compiler and its emulation on x86-64, on no NPU; emulated codes differ from ONNX "
        "Runtime's by roundings.",
    ),
    additions_agree=False,
    sums_fit=False,
)  # fmt: skip

ONNXRUNTIME_TENSORRT = dataclasses.replace(
    TENSORRT,
    name="onnxruntime-tensorrt",
    title="ONNX Runtime (TensorRT provider)",
    backend="onnxruntime-tensorrt",
    opsets=Cell(
        value=(9, 20), source="read: onnx-tensorrt 10.0, opsets 9 to 20; libnvinfer 10 is what ONNX Runtime links"
    ),
    operators=operators_of(f"{RTX_SEEN}; not measured in ONNX Runtime's provider", GUIDE),
    quirks=(
        *TENSORRT.quirks,
        "onnxruntime-gpu links libnvinfer 10 and lists the provider as available where it cannot load: ask "
        "InferenceSession.get_providers() (measured, 1.31).",
        "Operators that TensorRT refuses run on another provider, with copies between them (ONNX Runtime, TensorRT "
        "execution provider page).",
    ),
)

ONNXRUNTIME_OPENVINO = dataclasses.replace(
    OPENVINO,
    name="onnxruntime-openvino",
    title="ONNX Runtime (OpenVINO provider)",
    backend="onnxruntime-openvino",
    opsets=Cell(
        value=(10, 27),
        source="measured: ONNX Runtime 1.32 and OpenVINO 2026.4.1 by themselves; in the provider, opset 18 alone",
    ),
    quirks=(
        *OPENVINO.quirks,
        "The plugin (onnxruntime-ep-openvino 1.8.1, OpenVINO 2026.4.1 inside) serves processors of Intel alone: on one "
        "of AMD it is registered and offers no device (seen; microsoft/onnxruntime #31981).",
        "Run here in emulation alone (qemu 7.2, -cpu Haswell, no VNNI): all of the file on OpenVINO, with the bits of "
        "OpenVINO by itself and of the file as written.",
    ),
)
