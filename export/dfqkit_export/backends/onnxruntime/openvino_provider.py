"""OpenVINO as a plugin of ONNX Runtime, on the CPU.

What belongs here: finding its device, and running a file there. What runs in integers is the same library's own word
(`backends.openvino`), which the plugin carries along.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dfqkit_export.backends import onnxruntime
from dfqkit_export.backends.onnxruntime.session import rejections
from dfqkit_export.backends.openvino.session import cpu_hints
from dfqkit_export.backends.session import FileSession, Images, check_threads
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import entrance
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters

_PROVIDER = "OpenVINOExecutionProvider"


class OpenVinoProviderSession(FileSession):
    """One ONNX file on OpenVINO's CPU device, all of it: what that does not take is refused, not computed elsewhere."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Load the file, with what stays in float in float32, as `backends.openvino` does.

        Raises:
            RuntimeUnavailableError: onnxruntime-ep-openvino is not installed, or serves no device of this machine.
            ArtefactError: OpenVINO or ONNX Runtime do not accept the file.
        """
        check_threads(threads)
        self.path = Path(path)
        known = load_onnx(self.path, weights=False)
        check_parameters(known, self.path)
        self.entrance = entrance(known, self.path)
        onnxruntime.OPENVINO.require()
        runtime = import_module("onnxruntime")
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings.add_provider_for_devices(
            _devices(runtime)[:1], {"load_config": json.dumps({"CPU": cpu_hints(threads)})}
        )
        try:
            self._session: Any = runtime.InferenceSession(str(self.path), settings)
        except rejections() as error:
            message = f"Model {str(self.path)!r} is not accepted by ONNX Runtime with OpenVINO: {error}"
            raise ArtefactError(message) from None
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs; see `FileSession.outputs`."""
        self.check(images)
        return list(self._session.run(list(self.wanted(names, self.output_names)), self.entrance.feed(images)))


def missing_device() -> str:
    """Return why no processor here is served; "" where one is. The plugin takes Intel's alone (seen with 1.8.1)."""
    runtime = import_module("onnxruntime")
    if _devices(runtime):
        return ""
    found = sorted({device.device.vendor or "unknown" for device in runtime.get_ep_devices()})
    return f"onnxruntime-ep-openvino serves processors of Intel, and finds here: {', '.join(found)}"


def _devices(runtime: Any) -> list[Any]:
    def found() -> list[Any]:
        return [
            each
            for each in runtime.get_ep_devices()
            if each.ep_name == _PROVIDER and each.ep_metadata.get("ov_device") == "CPU"
        ]

    if not found() and _PROVIDER not in _REGISTERED:
        library = import_module("onnxruntime_ep_openvino").get_library_path()
        runtime.register_execution_provider_library(_PROVIDER, library)
        _REGISTERED.add(_PROVIDER)
    return found()


#: A library is registered once in a process, whether it serves a device or not.
_REGISTERED: set[str] = set()
