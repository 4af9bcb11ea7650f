"""OpenVINO on the CPU."""

from __future__ import annotations

from pkgutil import resolve_name

from dfqkit_export.backends.base import Backend, not_installed
from dfqkit_export.backends.openvino import targets

__all__ = ["OPENVINO"]

OPENVINO = Backend(
    name="openvino",
    title="OpenVINO",
    package="openvino",
    load=lambda path, options: resolve_name(f"{__name__}.session:OpenVinoSession")(path, threads=options.threads),
    missing=lambda: not_installed("openvino", extra="openvino"),
    targets=(targets.OPENVINO,),
    executed=lambda path: resolve_name(f"{__name__}.precision:realised_in_openvino")(path),
    rules=lambda: resolve_name(f"{__name__}.rules:RULES"),
    # The provider of ONNX Runtime has the same library inside.
    witness_of=("onnxruntime-openvino",),
    sees_layers=True,
    rounds_inside=False,
)
