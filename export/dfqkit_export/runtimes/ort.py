"""ONNX Runtime on the CPU.

What belongs here: loading and running an ONNX file, with settings that make the result the same every time.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtefactError, RuntimeUnavailableError
from .base import Images, Logits, batched

__all__ = ["OrtRuntime", "OrtSession"]

_ERRORS_ONLY = 3


class OrtRuntime:
    """The adapter that makes `OrtSession`s."""

    name: ClassVar[str] = "onnxruntime"

    def available(self) -> str | None:
        """Return None where onnxruntime is installed, else what to install."""
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; run pip install onnxruntime"
        return None

    def load(self, path: str | Path, **options: Any) -> OrtSession:
        """Load an ONNX file; the options are those of `OrtSession`.

        Raises:
            RuntimeUnavailableError: onnxruntime is not installed.
            ArtefactError: The file is not a model with one input and at least one output that onnxruntime accepts.
        """
        return OrtSession(path, **options)


class OrtSession:
    """One ONNX file, loaded into ONNX Runtime's CPU provider.

    The session runs its operators one after another and with the runtime's deterministic kernels, so that the same
    images give the same logits every time.

    Attributes:
        path: The file.
        input_name: Name of the model's input.
        output_name: Name of the model's first output, the logits.
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
    ) -> None:
        """Load the file.

        Args:
            path: The ONNX file.
            threads: Threads inside one operator, at least 1; None leaves the choice to the runtime.
            optimized: False switches all graph optimizations off, which executes Q/DQ as written, in float.
            optimized_path: Where to write the graph that is really executed, or None.

        Raises:
            RuntimeUnavailableError: onnxruntime is not installed.
            ArtefactError: The file is not a model with one input and at least one output that onnxruntime accepts.
        """
        if threads is not None and threads < 1:
            msg = f"Threads must be at least 1, found {threads}. Leave it out to let the runtime choose."
            raise ArtefactError(msg)
        self.path = Path(path)
        self.threads = threads
        self.optimized = optimized
        self._session = _inference_session(self.path, threads, optimized, optimized_path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or not outputs or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{value.name}: {value.type}" for value in inputs)
            msg = (
                f"Model {str(path)!r} has {len(inputs)} input(s) ({found}) and {len(outputs)} output(s); allowed is "
                "one float32 input. Export the classifier alone, with weights as initializers and not as inputs."
            )
            raise ArtefactError(msg)
        self.input_name: str = inputs[0].name
        self.output_name: str = outputs[0].name
        self.input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)

    def run(self, images: Images) -> Logits:
        """Compute logits in one call of the runtime.

        Args:
            images: Shape (n, C, H, W), float32, normalised.

        Returns:
            Logits, shape (n, classes).

        Raises:
            ArtefactError: The images do not fit the model's input.
        """
        return np.asarray(self.outputs(images, [self.output_name])[0])

    def outputs(self, images: Images, names: list[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs.

        Args:
            images: Shape (n, C, H, W), float32, normalised.
            names: Output names; None for all, in the file's order.

        Raises:
            ArtefactError: The images do not fit the model's input, or an output is unknown.
        """
        self._check(images)
        feed = {self.input_name: np.ascontiguousarray(images, dtype=np.float32)}
        try:
            return list(self._session.run(names, feed))
        except _rejections() as error:
            msg = f"Model {str(self.path)!r} could not run on images of shape {images.shape}: {error}"
            raise ArtefactError(msg) from None

    def predict(self, images: Images, batch: int = 64) -> Logits:
        """Compute logits of any number of images, a batch at a time.

        Args:
            images: Shape (N, C, H, W), float32, normalised, at least one.
            batch: Images in one call of the runtime.

        Returns:
            Logits, shape (N, classes).

        Raises:
            ArtefactError: The images do not fit the model's input, or there are none.
        """
        return np.concatenate([self.run(part) for part in batched(images, batch)])

    def _check(self, images: Images) -> None:
        expected = self.input_shape
        fits = images.ndim == len(expected) and all(
            not isinstance(size, int) or size == found for size, found in zip(expected, images.shape, strict=True)
        )
        if not fits:
            msg = f"Model {str(self.path)!r} takes images of shape {expected}, found {images.shape}."
            raise ArtefactError(msg)


def _inference_session(path: Path, threads: int | None, optimized: bool, optimized_path: str | Path | None) -> Any:
    onnxruntime = _onnxruntime()
    if not path.is_file():
        msg = f"Model {str(path)!r} is not a file. Give the path of an .onnx file."
        raise ArtefactError(msg)
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _rejections() as error:
        msg = f"Model {str(path)!r} is not accepted by ONNX Runtime: {error} Is the file a complete ONNX model?"
        raise ArtefactError(msg) from None


def _onnxruntime() -> Any:
    # import_module, because onnxruntime has no type information.
    try:
        return import_module("onnxruntime")
    except ImportError:
        msg = "Running ONNX files needs onnxruntime, which is not installed. Run pip install onnxruntime."
        raise RuntimeUnavailableError(msg) from None


def _rejections() -> tuple[type[Exception], ...]:
    # onnxruntime's exceptions share no base class of their own.
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (ValueError, *(getattr(state, name) for name in (*names, "RuntimeException")))
