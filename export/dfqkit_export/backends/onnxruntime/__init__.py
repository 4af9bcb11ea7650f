"""ONNX Runtime: on the CPU with and without its optimizations, and through its other execution providers."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

from dfqkit_export.backends import openvino, tensorrt
from dfqkit_export.backends.base import Backend, not_installed
from dfqkit_export.backends.onnxruntime import targets

__all__ = ["CPU", "CUDA", "OPENVINO", "QNN", "TENSORRT", "UNOPTIMIZED"]

_INSTALL = "run pip install onnxruntime"
_INSTALL_GPU = "run pip install onnxruntime-gpu"
_SESSION = f"{__name__}.session:OrtSession"


def _lacks(provider: str, install: str) -> Callable[[], str]:
    """Return what says that a provider is missing; one that is there can still fail to load its own libraries."""

    def missing() -> str:
        absent = not_installed("onnxruntime", install)
        if absent or provider in (present := resolve_name(f"{__name__}.session:present_providers")()):
            return absent
        return f"this onnxruntime has no {provider} (it has {', '.join(present)}); {install}"

    return missing


CPU = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    package="onnxruntime",
    load=lambda path, options: resolve_name(_SESSION)(path, threads=options.threads),
    missing=lambda: not_installed("onnxruntime", _INSTALL),
    targets=(targets.ONNXRUNTIME, targets.ONNXRUNTIME_VNNI, targets.ONNXRUNTIME_AVX2, targets.ONNXRUNTIME_ARM),
    executed=lambda path: resolve_name(f"{__name__}.precision:realised_in_onnxruntime")(path),
    rules=lambda: resolve_name(f"{__name__}.rules:RULES"),
    sees_layers=True,
    rounds_biases=True,
)

#: Executes Q/DQ as written, in float.
UNOPTIMIZED = Backend(
    name="onnxruntime-unoptimized",
    title="ONNX Runtime without optimizations",
    package=CPU.package,
    load=lambda path, options: resolve_name(_SESSION)(path, threads=options.threads, optimized=False),
    missing=CPU.missing,
    sees_layers=True,
)

#: Has no int8 convolutions: Q/DQ is computed as written. Not executed by the maintainers, who had no GPU.
CUDA = Backend(
    name="onnxruntime-cuda",
    title="ONNX Runtime (CUDA provider)",
    package="onnxruntime-gpu",
    load=lambda path, options: resolve_name(_SESSION)(path, provider="CUDAExecutionProvider"),
    missing=_lacks("CUDAExecutionProvider", _INSTALL_GPU),
    on_cpu=False,
)

#: Linked to TensorRT 10. Not executed by the maintainers, who had no GPU.
TENSORRT = Backend(
    name="onnxruntime-tensorrt",
    title="ONNX Runtime (TensorRT provider)",
    package=CUDA.package,
    load=lambda path, options: resolve_name(_SESSION)(path, provider="TensorrtExecutionProvider"),
    missing=_lacks("TensorrtExecutionProvider", f"{_INSTALL_GPU}, and TensorRT 10 beside it"),
    targets=(targets.ONNXRUNTIME_TENSORRT,),
    rules=tensorrt.TENSORRT.rules,
    on_cpu=False,
    trtexec=True,
)

#: Its package for x86-64 has the NPU's compiler, and emulates the NPU.
QNN = Backend(
    name="onnxruntime-qnn",
    title="ONNX Runtime (QNN provider)",
    package="onnxruntime-qnn",
    load=lambda path, options: resolve_name(f"{__name__}.qnn:QnnSession")(path),
    missing=lambda: CPU.missing() or not_installed("onnxruntime_qnn", extra="qnn"),
    targets=(targets.ONNXRUNTIME_QNN,),
    executed=lambda path: resolve_name(f"{__name__}.qnn:realised_in_qnn")(path),
    rules=lambda: resolve_name(f"{__name__}.qnn:RULES"),
)

#: A plugin beside the plain runtime, with OpenVINO inside.
OPENVINO = Backend(
    name="onnxruntime-openvino",
    title="ONNX Runtime (OpenVINO provider)",
    package="onnxruntime-ep-openvino",
    load=lambda path, options: resolve_name(f"{__name__}.openvino_provider:OpenVinoProviderSession")(
        path, threads=options.threads
    ),
    missing=lambda: (
        CPU.missing()
        or not_installed("onnxruntime_ep_openvino", extra="openvino-ep")
        or resolve_name(f"{__name__}.openvino_provider:missing_device")()
    ),
    targets=(targets.ONNXRUNTIME_OPENVINO,),
    rules=openvino.OPENVINO.rules,
    rounds_inside=False,
)
