"""The layer table that TensorRT-RTX writes into its verbose build log.

What belongs here: reading that text. It is no interface of the vendor's and may change, so whatever is not understood
is left out instead of being refused; a file then shows fewer layers, and those count as float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.backends.precision import Realised
from dfqkit_export.backends.tensorrt.engine_layers import EngineLayer, match_layers, nodes_in, read_file, types_in
from dfqkit_export.backends.tensorrt_rtx.session import build
from dfqkit_export.backends.tensorrt_rtx.targets import TENSORRT_RTX
from dfqkit_export.errors import ArtefactError

if TYPE_CHECKING:
    from dfqkit_export.backends.tensorrt.engines import Build

# Only the fields of the layer itself: those of its tensors stand behind "{ " or have other names.
_FIELD = re.compile(r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ?")
_DATA_TYPE = re.compile(r"Data ?type: ?([^,}]*)", re.IGNORECASE)


def realised_in_tensorrt_rtx(path: str | Path) -> Realised:
    """Build a file with TensorRT-RTX, without a GPU, and report how each convolution and matrix product is executed."""
    return realised_in_build(build(path))


def realised_in_build(built: Build) -> Realised:
    """Read the log of a build by TensorRT-RTX."""
    built.require()
    layers = parse_rtx_log(built.log)
    if not layers:
        message = (
            f"The log of TensorRT-RTX {built.version} holds no layer table that this version of dfqkit can read. "
            "The file was accepted; what runs in integers is not known. Use version 1.7."
        )
        raise ArtefactError(message)
    return match_layers(read_file(built.path), layers, target=TENSORRT_RTX)


def parse_rtx_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Read the layers, in the engine's order, out of a build's messages of any severity.

    There are none where there is no table: DETAILED profiling verbosity writes it.
    """
    lines = (line.strip() for message in messages if "LayerType:" in message for line in message.split("\n"))
    return tuple(_layer(line) for line in lines if line.startswith("Name:") and "LayerType:" in line)


def _layer(line: str) -> EngineLayer:
    parts = _FIELD.split(line)
    # The first of each: a field's name inside a later value must not replace it.
    fields: dict[str, str] = {}
    for key, value in zip(parts[1::2], parts[2::2], strict=True):
        fields.setdefault(key, value)
    return EngineLayer(
        name=fields.get("Name", ""),
        kind=fields.get("LayerType", ""),
        inputs=types_in(_DATA_TYPE.findall(fields.get("Inputs", ""))),
        outputs=types_in(_DATA_TYPE.findall(fields.get("Outputs", ""))),
        nodes=nodes_in(fields.get("Metadata", "")),
    )
