"""ONNX Runtime: on the CPU, and through its other execution providers where they are present.

What belongs here: loading and running an ONNX file, with settings that make the result the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.session import FileSession, Images, check_threads, require_one_image
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.files import require_model

_ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"


class OrtSession(FileSession):
    """One ONNX file, loaded into one of ONNX Runtime's providers, by default the CPU.

    The session runs its operators one after another and with the runtime's deterministic kernels, so that the same
    images give the same outputs every time.

    Attributes:
        path: The file.
        input_name: Name of the model's input.
        output_names: Names of the model's outputs, in the file's order.
        input_shape: Shape of the input as the file states it; symbolic sizes are strings or None.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: Whether graph optimizations are on.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        optimized: bool = True,
        optimized_path: str | Path | None = None,
        profile_prefix: str | Path | None = None,
        provider: str = _CPU,
    ) -> None:
        """Load the file.

        Args:
            path: The ONNX file.
            threads: Threads inside one operator, at least 1; None leaves the choice to the runtime.
            optimized: False switches all graph optimizations off, which executes Q/DQ as written, in float.
            optimized_path: Where to write the graph that is really executed, or None.
            profile_prefix: How the name of the runtime's own profile begins, which `end_profile` ends; None takes none.
            provider: Name of the execution provider that must take the file.

        Raises:
            RuntimeUnavailableError: onnxruntime is not installed, or the provider could not be loaded.
            ArtefactError: The file is not a model with one input and at least one output that onnxruntime accepts.
        """
        check_threads(threads)
        self.path = Path(path)
        self.threads = threads
        self.optimized = optimized
        settings = _settings(threads, optimized, optimized_path, profile_prefix)
        self._session = _inference_session(self.path, settings, provider)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        told = [(value.name, value.type) for value in inputs]
        require_one_image(self.path, told, len(outputs), float32="tensor(float)")
        self.input_name: str = inputs[0].name
        self.output_names = tuple(value.name for value in outputs)
        self.input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs; see `FileSession.outputs`."""
        self.check(images)
        feed = {self.input_name: np.ascontiguousarray(images, dtype=np.float32)}
        try:
            return list(self._session.run(names and list(names), feed))
        except _rejections() as error:
            message = f"Model {str(self.path)!r} could not run on images of shape {images.shape}: {error}"
            raise ArtefactError(message) from None

    def end_profile(self) -> Path:
        """Stop profiling and return the file of events that was written, for sessions with a `profile_prefix`."""
        return Path(self._session.end_profiling())


def present_providers() -> list[str]:
    """Return the execution providers that the installed onnxruntime brings."""
    return list(_onnxruntime().get_available_providers())


def _settings(
    threads: int | None, optimized: bool, optimized_path: str | Path | None, profile_prefix: str | Path | None
) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    return options


def _inference_session(path: Path, settings: Any, provider: str) -> Any:
    onnxruntime = _onnxruntime()
    require_model(path)
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=list(dict.fromkeys((provider, _CPU))))
    except _rejections() as error:
        message = f"Model {str(path)!r} is not accepted by ONNX Runtime: {error} Is the file a complete ONNX model?"
        raise ArtefactError(message) from None
    # A provider whose libraries are missing is replaced by the CPU with no more than a log line.
    if session.get_providers()[0] != provider:
        message = (
            f"ONNX Runtime could not load its {provider} and would run {str(path)!r} on the CPU in its place. Install "
            "the libraries that it names in its log, or choose the runtime 'onnxruntime'."
        )
        raise RuntimeUnavailableError(message)
    return session


def _onnxruntime() -> Any:
    # import_module, because onnxruntime has no type information.
    try:
        return import_module("onnxruntime")
    except ImportError:
        message = "Running ONNX files needs onnxruntime, which is not installed. Run pip install onnxruntime."
        raise RuntimeUnavailableError(message) from None


def _rejections() -> tuple[type[Exception], ...]:
    # onnxruntime's exceptions share no base class of their own.
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (ValueError, *(getattr(state, name) for name in (*names, "RuntimeException")))
