"""ONNX Runtime: on the CPU, and through its other execution providers where they are present.

What belongs here: loading and running an ONNX file, with settings that make the result the same every time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.backends.session import FileSession, Images, check_threads
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.images.inputs import entrance
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters
from dfqkit_export.onnxfile.separate import separate_codes, shares_codes, signed_weights, unsign_weights
from dfqkit_export.onnxfile.skeleton import LARGE, skeleton

_ERRORS_ONLY = 3
#: Bytes of a file from which on memory is worth more than time where a session is asked to be `lean`.
_LARGE_FILE = 2**26
_CPU = "CPUExecutionProvider"
#: x86 without VNNI adds products of uint8 and int8 in 16 bits, which saturate: a file of 8-bit weights computes other
#: numbers there. With this, weights beyond 7 bits become uint8 on such a machine, and the numbers are right; elsewhere,
#: and to other files, it does nothing.
EXACT_PRODUCTS = "session.x64quantprecision"


class OrtSession(FileSession):
    """One ONNX file, loaded into one of ONNX Runtime's providers, by default the CPU.

    The session runs its operators one after another and with the runtime's deterministic kernels, so that the same
    images give the same outputs every time.

    Attributes:
        path: The file.
        entrance: How images go into it.
        output_names: Names of the model's outputs, in the file's order.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: Whether graph optimizations are on.
    """

    def __init__(  # noqa: PLR0913 - each is an option of the runtime
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        optimized: bool = True,
        optimized_path: str | Path | None = None,
        profile_prefix: str | Path | None = None,
        provider: str = _CPU,
        lean: bool = False,
        exposed: Collection[str] = (),
    ) -> None:
        """Load the file, after a look at what runtimes crash of (`check_parameters`).

        Args:
            path: The ONNX file.
            threads: Threads inside one operator, at least 1; None leaves the choice to the runtime.
            optimized: False switches all graph optimizations off, which executes Q/DQ as written, in float.
            optimized_path: Where to write the graph that is really executed, or None.
            profile_prefix: How the name of the runtime's own profile begins, which `end_profile` ends; None takes none.
            provider: Name of the execution provider that must take the file.
            lean: Whether a large file stays on disk, mapped into memory and not packed anew: 1.2 times its size where
                it is 2.5, slower, and with other last digits of float sums.
            exposed: Tensors that become outputs, too, behind the file's own.

        Raises:
            RuntimeUnavailableError: onnxruntime is not installed, or the provider could not be loaded.
            ArtefactError: The file is no model, has scales that no runtime may see, or not one input and at least one
                output, or onnxruntime does not accept it.
        """
        check_threads(threads)
        self.path = Path(path)
        self.threads = threads
        self.optimized = optimized
        known = load_onnx(self.path, weights=False)
        check_parameters(known, self.path)
        settings = _settings(threads, optimized, optimized_path, profile_prefix)
        content: str | bytes = str(self.path)
        if saturates(this_processor()) and (shares_codes(known) or signed_weights(known)):
            content = _separated(self.path)
        elif lean and self.path.stat().st_size >= _LARGE_FILE:
            content = _left_on_disk(self.path, settings)
        if exposed:
            content = _with_outputs(content, exposed)
        self._session: Any = _inference_session(self.path, content, settings, provider)
        self.entrance = entrance(known, self.path)
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs; see `FileSession.outputs`."""
        self.check(images)
        try:
            return list(self._session.run(names and list(names), self.entrance.feed(images)))
        except rejections() as error:
            message = f"Model {str(self.path)!r} could not run on images of shape {images.shape}: {error}"
            raise ArtefactError(message) from None

    def close(self) -> None:
        """Give the runtime's memory back; the session answers nothing any more."""
        self._session = None

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
    if saturates(this_processor()):  # elsewhere it changes nothing but memory, and refuses files that share codes
        options.add_session_config_entry(EXACT_PRODUCTS, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    return options


def _separated(path: Path) -> bytes:
    """Return a file in the form that `EXACT_PRODUCTS` can work on, with uint8 weights where that does not look."""
    model = load_onnx(path)
    separate_codes(model)
    unsign_weights(model)
    return bytes(model.SerializeToString())


def _left_on_disk(path: Path, settings: Any) -> bytes:
    """Return what to load in a large file's place, and set what keeps its tensors from being copied."""
    entries = {
        "session.model_external_initializers_file_folder_path": str(path.parent.absolute()),
        "session.disable_prepacking": "1",
        "session.optimized_model_external_initializers_file_name": "optimized.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(LARGE),
    }
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
    return skeleton(path)


def _with_outputs(content: str | bytes, tensors: Collection[str]) -> bytes:
    """Return a model, or that in a file, with more outputs."""
    model = onnx.ModelProto.FromString(content) if isinstance(content, bytes) else load_onnx(content)
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)  # whatever type they have
    made: bytes = model.SerializeToString()
    return made


def _inference_session(path: Path, content: str | bytes, settings: Any, provider: str) -> Any:
    onnxruntime = _onnxruntime()
    try:
        session = onnxruntime.InferenceSession(content, settings, providers=list(dict.fromkeys((provider, _CPU))))
    except rejections() as error:
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


def rejections() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises where it does not take a file."""
    # onnxruntime's exceptions share no base class of their own.
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (ValueError, *(getattr(state, name) for name in (*names, "RuntimeException")))
