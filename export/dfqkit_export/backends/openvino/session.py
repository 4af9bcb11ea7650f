"""OpenVINO on the CPU.

What belongs here: loading and running an ONNX file, with settings that make the result the same every time. What
OpenVINO made of the file is `dfqkit_export.backends.openvino.precision`'s question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.session import FileSession, Images, check_threads
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import entrance
from dfqkit_export.lazy import imported
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters


class OpenVinoSession(FileSession):
    """One ONNX file, compiled for OpenVINO's CPU plugin.

    One stream, so that a call is one inference after the other; what the file leaves in float is computed in float32,
    where OpenVINO would choose bfloat16 by itself on processors that have it.

    Attributes:
        threads: Threads of an inference; None leaves the choice to the runtime.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Load the file.

        Args:
            path: The ONNX file.
            threads: Threads of an inference, at least 1; None leaves the choice to the runtime.

        Raises:
            RuntimeUnavailableError: openvino is not installed.
            ArtefactError: The file is not a model with one input and at least one output that OpenVINO accepts.
        """
        check_threads(threads)
        self.path = Path(path)
        self.threads = threads
        self._compiled = _compiled(self.path, threads)
        self.entrance = entrance(load_onnx(self.path, weights=False), self.path)
        outputs = list(self._compiled.outputs)
        self.output_names = tuple(value.any_name for value in outputs)
        self._places = {name: place for place, value in enumerate(outputs) for name in value.names}
        self._request = self._compiled.create_infer_request()

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs; see `FileSession.outputs`."""
        self.check(images)
        wanted = self.wanted(names, self._places)
        try:
            found = self._request.infer(self.entrance.feed(images))
        except RuntimeError as error:
            message = f"Model {str(self.path)!r} could not run on images of shape {images.shape}: {_short(error)}"
            raise ArtefactError(message) from None
        # Copies: the next call writes into the same memory.
        return [np.array(found[self._places[name]]) for name in wanted]

    def executed(self) -> list[dict[str, str]]:
        """Return the nodes that are executed, in order, with OpenVINO's own account of each as text.

        Among the keys are "layerType", "runtimePrecision", "primitiveType", and "originalLayersNames": names of the
        file's nodes, and of some that OpenVINO made, with commas between them. "name" is added here.
        """
        return [
            {"name": node.get_friendly_name(), **{key: _text(value) for key, value in node.get_rt_info().items()}}
            for node in self._compiled.get_runtime_model().get_ordered_ops()
        ]


def cpu_hints(threads: int | None) -> dict[str, str]:
    """Return OpenVINO's settings on a CPU, as text: float32 for what stays in float, one call at a time."""
    # A thread that is bound to a core waits for whatever else runs there.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    hints["PERFORMANCE_HINT"] = "LATENCY"
    return hints | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})


def _compiled(path: Path, threads: int | None) -> Any:
    openvino = imported("openvino", "openvino")
    # OpenVINO takes what is no ONNX for a format of somebody else, and complains about that one.
    check_parameters(load_onnx(path, weights=False), path)
    try:
        return openvino.Core().compile_model(str(path), "CPU", cpu_hints(threads))
    except RuntimeError as error:
        message = f"Model {str(path)!r} is not accepted by OpenVINO: {_short(error)}"
        raise ArtefactError(message) from None


def _text(value: Any) -> str:
    # Values are OVAny, plain strings in other versions.
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _short(error: RuntimeError) -> str:
    # The first lines say where in OpenVINO's sources it happened.
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return " ".join(told[:6]) or str(error).strip()
