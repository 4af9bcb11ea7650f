"""The JSON that TensorRT's EngineInspector and `trtexec --exportLayerInfo` write about an engine.

What belongs here: reading both of its forms. TensorRT 10 gives each tensor one field "Format/Datatype" and lists names
under "Bindings"; TensorRT 11 gives "Format" and "Datatype" and lists objects under "I/O Tensors" (NVIDIA's developer
guide).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqkit_export.backends.precision import Realised
from dfqkit_export.backends.tensorrt.engine_layers import EngineLayer, match_layers, nodes_in, read_file, types_in
from dfqkit_export.backends.tensorrt.session import build
from dfqkit_export.backends.tensorrt.targets import TENSORRT
from dfqkit_export.errors import ArtefactError

_TYPE_FIELDS = ("Datatype", "DataType", "Format/Datatype", "Format")


def realised_in_tensorrt(path: str | Path, layer_info: str | Path | None = None) -> Realised:
    """Report how TensorRT executes each convolution and matrix product of a file.

    Args:
        path: The ONNX file.
        layer_info: What `trtexec --exportLayerInfo` wrote about the engine that was built from the file, maybe on
            another machine; None builds the file here, which needs TensorRT and its GPU.
    """
    if layer_info is not None:
        text = _read(Path(layer_info))
    else:
        built = build(path)
        built.require()
        text = built.layer_info
    return match_layers(read_file(path), parse_layer_info(text), target=TENSORRT)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"Layer information {str(path)!r} cannot be read: {error}. Give the JSON file that trtexec wrote."
        raise ArtefactError(message) from None


def parse_layer_info(text: str) -> tuple[EngineLayer, ...]:
    """Read an engine's layers, in its order, from the JSON document of TensorRT 10 or 11.

    One that was built without detailed profiling verbosity holds nothing but names, and is refused.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"The engine's layer information is not JSON ({error}). Export it again."
        raise ArtefactError(message) from None
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        message = (
            "The engine's layer information has no list 'Layers'. Give what EngineInspector or trtexec wrote as JSON."
        )
        raise ArtefactError(message)
    if any(not isinstance(layer, dict) for layer in layers):
        message = (
            "The engine's layer information holds names alone. Build the engine with detailed profiling verbosity "
            "(trtexec --profilingVerbosity=detailed)."
        )
        raise ArtefactError(message)
    return tuple(_layer(layer) for layer in layers)


def _layer(layer: Mapping[str, Any]) -> EngineLayer:
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")),
        inputs=types_in(_formats(layer.get("Inputs"))),
        outputs=types_in(_formats(layer.get("Outputs"))),
        nodes=nodes_in(str(layer.get("Metadata", ""))),
    )


def _formats(tensors: Any) -> list[str]:
    """For each tensor the text that names its type."""
    if not isinstance(tensors, list):
        return []
    fields = [tensor if isinstance(tensor, dict) else {} for tensor in tensors]
    return [str(next((tensor[key] for key in _TYPE_FIELDS if key in tensor), "")) for tensor in fields]
