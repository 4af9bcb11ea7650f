"""Reading an ONNX file that somebody else may have made: complete, sane, and nothing outside its folder.

What belongs here: `load_onnx` and every way in which a file can be no model.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import onnx

from .errors import ArtefactError

__all__ = ["load_onnx"]

# import_module, because protobuf has no type information.
_DECODE_ERROR: type[Exception] = import_module("google.protobuf.message").DecodeError


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file, with its external data where it has such.

    Args:
        path: The file.

    Raises:
        ArtefactError: It does not exist, is truncated, or is not ONNX.
    """
    if not Path(path).is_file():
        msg = f"Model {str(path)!r} is not a file. Give the path of an .onnx file."
        raise ArtefactError(msg)
    try:
        model = onnx.load(str(path))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        msg = f"Model {str(path)!r} cannot be read: {error}. Is its external data beside it?"
        raise ArtefactError(msg) from None
    except _DECODE_ERROR as error:
        msg = f"Model {str(path)!r} is not a complete ONNX file ({error}). Export or copy it again."
        raise ArtefactError(msg) from None
    if not model.graph.node:
        msg = f"Model {str(path)!r} holds no operators. Is it an ONNX file, and complete?"
        raise ArtefactError(msg)
    return model
