"""NVIDIA TensorRT: what 10.13 to 11 both take, and 10 (Jetson) and 11 by themselves.

One set of rules, which TensorRT for RTX and ONNX Runtime's provider share: explicit quantization with strong typing.
What was measured was measured with TensorRT for RTX, which builds without a GPU.
"""

from __future__ import annotations

import dataclasses

from dfqkit_export.backends.spaces import S8_ZERO, W8, W8_FULL, W8_TENSOR, row
from dfqkit_export.backends.target import Cell, OperatorRule, Target

RTX_SEEN = "measured: TensorRT for RTX 1.7.1, build for SM86, types of layers in its log"
_HEADER = "read: NvInfer.h, IQuantizeLayer and IDequantizeLayer"
GUIDE = "read: TensorRT developer guide, Q/DQ layer placement recommendations"
_WEIGHTS = (W8_FULL, W8_TENSOR)

#: What the parser of TensorRT for RTX 1.7.1 says `supports_operator` is false for, of ONNX 1.23's own domain.
UNSUPPORTED = frozenset(
    (
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"),
        *("BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd"),
        *("DFT", "DeformConv", "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool"),
        *("MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional"),
        *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch"),
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat"),
        *("StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
    )
)


def operators_of(seen: str, told: str) -> tuple[OperatorRule, ...]:
    """Return the rows, with the source of what RTX showed and of what the vendor's documents say."""
    cited = {
        "": seen,
        "placement": f"{told}: quantize the inputs of weighted layers, not their outputs",
        "bias": f"{seen}; a DequantizeLinear of int32 is refused",
    }
    activations = (S8_ZERO,)
    return (
        row(
            "Conv", "Gemm", placement="inputs", activations=activations, weights=_WEIGHTS, bias=("float",),
            source=cited,
        ),
        row(
            "MatMul", placement="inputs", activations=activations, weights=_WEIGHTS,
            source=cited | {"activations": f"{seen}; two activations may be multiplied, too"},
        ),
        row(
            "Add", placement="inputs", activations=activations,
            source=cited | {"placement": f"{told}: the residual input, not the branch that the convolution makes"},
        ),
        row(
            "GlobalAveragePool", "AveragePool", "ReduceMean", placement="inputs", activations=activations,
            source=cited,
        ),
        row("MaxPool", placement="through", activations=activations, source=f"{told}: it commutes with Q/DQ"),
        row(
            "Relu", "Clip", placement="through", activations=activations,
            source=f"{told}: no Q/DQ between a convolution and its activation",
        ),
        row(
            "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat",
            placement="through", activations=activations, source=f"{told}: they commute with Q/DQ",
        ),
        row(
            "ConvTranspose", placement="float",
            source=f"{seen}: accepted, computes in float; read: NVIDIA/TensorRT #2380: kernels take one scale an input "
            "channel, never one an output channel",
        ),
    )  # fmt: skip


TENSORRT = Target(
    name="tensorrt",
    title="NVIDIA TensorRT",
    backend="tensorrt",
    opset=18,
    opsets=Cell(value=(9, 25), source="read: TensorRT 11 ONNX opset guide: 9 and above, at most 25"),
    weights=W8,
    unsigned_activations=S8_ZERO,
    signed_activations=S8_ZERO,
    bias="float",
    quantize_outputs=False,
    clip_before_quantize=True,
    dtypes=Cell(
        value=("int8",), source="read: ONNX importer of TensorRT: 10 refuses a uint8 zero point, 11 warns and uses int8"
    ),
    zero_point_zero=Cell(value=True, source=f"{_HEADER}: the zero point is constant and 0"),
    relu_zero_point=Cell(value="any", source="measured: TensorRT for RTX 1.7.1, int8 with zero point 0 behind Relu"),
    operators=operators_of(f"{RTX_SEEN}; not measured in TensorRT itself", GUIDE),
    unsupported=Cell(
        value=UNSUPPORTED, source="measured: parser of TensorRT for RTX 1.7.1; not measured in TensorRT itself"
    ),
    pairs_only="TensorRT reads quantization as Q/DQ pairs only",
    constant_scales="TensorRT needs it while it builds the engine (TensorRT-RTX crashes)",
    quirks=(
        "INT8 only, zero point 0, for activations after ReLU too: a uint8 zero point is read as int8 (TensorRT 11 "
        "importer).",
        "A DequantizeLinear on an int32 bias is refused: the bias stays float (TensorRT importer message).",
        "Per-tensor scales are scalars of rank 0; shape [1] makes the convolution run in float (NvInfer.h).",
        "The residual input of an addition is quantized, the convolution output it is added to is not (developer "
        "guide).",
    ),
)

_PARSER_10 = "read: onnx-tensorrt 10.1, docs/operators.md"

TENSORRT_10 = dataclasses.replace(
    TENSORRT,
    name="tensorrt-10",
    title="NVIDIA TensorRT 10 (Jetson)",
    opsets=Cell(value=(9, 20), source=f"{_PARSER_10}: opsets 9 to 20; later versions of 10 read more"),
    dtypes=Cell(value=("int8",), source=f"{_PARSER_10}: UINT8 is only an input or output of the network"),
    zero_point_zero=Cell(value=True, source=f"{_PARSER_10}: y_zero_point must be 0"),
    unsupported=Cell(
        value=UNSUPPORTED - {"DeformConv"} | {"BlackmanWindow", "HammingWindow", "HannWindow", "STFT"},
        source=f"{_PARSER_10}, operators marked N, and those that are younger than its opsets",
    ),
    operators=operators_of(f"{RTX_SEEN}; not run in TensorRT 10, whose header (10.3) says the same of Q/DQ", GUIDE),
    constant_scales="TensorRT 10 takes no other (NvInfer.h 10.3: Constant, or Constant and Cast)",
    quirks=(
        *TENSORRT.quirks[1:],
        "INT8 only, zero point 0, for activations after ReLU too: a uint8 zero point is refused (onnx-tensorrt 10.1).",
        "JetPack 6.1 has TensorRT 10.3 (Torch-TensorRT, JetPack page). No Jetson was at hand, and TensorRT for RTX, "
        "which says what runs in int8, is of 11's family: on a Jetson, read what --exportLayerInfo writes.",
        "Build with --stronglyTyped, which trtexec has since 10.0 (sampleOptions.cpp), and without --int8: else the "
        "types in the file are hints alone.",
        "In a strongly typed network a scale has the type of what it scales (NvInfer.h 10.3).",
    ),
)

TENSORRT_11 = dataclasses.replace(
    TENSORRT,
    name="tensorrt-11",
    title="NVIDIA TensorRT 11",
    operators=operators_of(f"{RTX_SEEN}; not run in TensorRT 11, whose importer it shares", GUIDE),
    quirks=(
        *TENSORRT.quirks,
        "Explicit Q/DQ with strong typing is the only way: implicit quantization, calibrators, --int8, --fp16 and "
        "--best are gone (NvInfer.h and trtexec 11.0).",
        "Scales may be computed (NvInfer.h 11.1 wants a constant zero point alone); those of dfqkit's files are not.",
    ),
)

TENSORRT_10_FP16, TENSORRT_11_FP16 = (
    dataclasses.replace(
        target,
        name=f"{target.name}-fp16",
        title=f"{target.title}, float16 around the codes",
        opset=19,
        floats="float16",
        quirks=(
            *target.quirks,
            "float16 is in the file, because a strongly typed network computes in its types: scales behind the image, "
            "biases, additions, layers in float (NvInfer.h 10.3 and 11.1: kHALF in and out of Q/DQ, with scales of the "
            "same type; in TensorRT for RTX 1.7.1 a float16 convolution between Q/DQ ran in int8). Sums are rounded to "
            "11 bits in front of a Q, so that codes differ from the student's: see student_agreement in the report.",
        ),
    )
    for target in (TENSORRT_10, TENSORRT_11)
)
