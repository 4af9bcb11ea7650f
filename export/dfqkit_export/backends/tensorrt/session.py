"""Building engines with TensorRT for this machine's GPU, and running engines through device buffers.

What belongs here: asking for a build, and the vendor's runtime interface, which 10.13 to 11 of TensorRT and
TensorRT-RTX share: tensors by name, addresses of torch's CUDA tensors, one stream. torch is imported inside the
functions, and nothing of CUDA is touched before torch says that there is a GPU: without a driver the vendor's runtime
hands out null pointers.

The project's maintainers have not executed this module: they have no such GPU. It is tested against stand-ins written
from the documented interfaces of TensorRT 10.13 and 11; TensorRT-RTX, which shares the ONNX importer, is what really
reads our files in the continuous integration.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.base import not_installed
from dfqkit_export.backends.isolation import Limits, call_isolated
from dfqkit_export.backends.session import FileSession, Images, Values
from dfqkit_export.backends.tensorrt._engine_build import vendor_module
from dfqkit_export.backends.tensorrt.engines import Build, build_isolated, check_batches, module_name, require
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.inputs import Entrance
from dfqkit_export.lazy import install_hint

_MODULE = "tensorrt"


def missing_gpu() -> str:
    """Return what is missing to run an engine; "" where torch sees a CUDA device."""
    if find_spec("torch") is None:
        return f"running an engine needs torch for its device buffers; run {install_hint('torch')}"
    if not import_module("torch").cuda.is_available():
        return "running an engine needs an NVIDIA GPU with its driver, and torch sees none on this machine"
    return ""


class EngineSession(FileSession):
    """One engine, loaded onto the current CUDA device.

    Attributes:
        batches: Smallest and largest batch that it was built for.
    """

    def __init__(self, path: str | Path, module: str, engine: bytes) -> None:
        """Load what the builder of "tensorrt" or "tensorrt_rtx" wrote, on a machine with the same GPU and version."""
        self.path = Path(path)
        require("The engine", missing_gpu())
        self._torch = import_module("torch")
        trt = vendor_module(module)
        # The logger must outlive the runtime, and the runtime the engine.
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self.engine: Any = self._runtime.deserialize_cuda_engine(engine)
        self._context: Any = self.engine.create_execution_context() if self.engine is not None else None
        if self._context is None:
            message = (
                f"The engine cannot be loaded by {module} {trt.__version__} on this GPU. Engines belong to one version "
                "and one kind of GPU; build it again from the ONNX file, on this machine."
            )
            raise ArtefactError(message)
        name, self.output_names = _ends(trt, self.engine)
        shape = tuple(int(size) if size >= 0 else None for size in self.engine.get_tensor_shape(name))
        self.entrance = Entrance(names=(name,), shape=shape)
        smallest, _, largest = self.engine.get_tensor_profile_shape(self.input_name, 0)
        self.batches = (int(smallest[0]), int(largest[0]))

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the engine's outputs; see `FileSession.outputs`."""
        self.check(images)
        wanted = self.wanted(names, self.output_names)
        torch = self._torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            source = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).to("cuda")
            self._require(self._context.set_input_shape(self.input_name, tuple(images.shape)), "the input's shape")
            results = {
                name: torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device="cuda")
                for name in self.output_names
            }
            for name, buffer in {self.input_name: source, **results}.items():
                self._require(self._context.set_tensor_address(name, buffer.data_ptr()), f"the address of {name!r}")
            self._require(self._context.execute_async_v3(stream.cuda_stream), "the run")
        stream.synchronize()
        return [np.asarray(results[name].cpu().numpy()) for name in wanted]

    def predict(self, images: Images, batch: int = 64) -> Values:
        """Compute the first output in batches of at most what the engine was built for; see `FileSession.predict`."""
        return super().predict(images, min(batch, self.batches[1]))

    def check(self, images: Images) -> None:
        """Refuse images that the engine was not built for."""
        super().check(images)
        first, last = self.batches
        if not first <= len(images) <= last:
            message = (
                f"The engine of {str(self.path)!r} takes batches of {first} to {last} images, found {len(images)}. "
                "Give another batch, or build the engine with batches=(smallest, best, largest)."
            )
            raise ArtefactError(message)

    @staticmethod
    def _require(done: bool, what: str) -> None:
        if not done:
            message = f"The engine's runtime refused {what}; its log says why. Build the engine again on this machine."
            raise ArtefactError(message)


def build(
    path: str | Path,
    out: str | Path | None = None,
    *,
    batches: tuple[int, int, int] = (1, 8, 32),
    timing_cache: str | Path | None = None,
    timeout: float = 1800.0,
) -> Build:
    """Build an engine for this machine's GPU, and run it once; each in a process of its own.

    A crash of the library is then an error message, and only an engine that survived both is loaded into this process.
    A file that is refused is a result and no error.

    Args:
        path: The ONNX file; nothing but its batch may be symbolic.
        out: Where to keep the engine; None keeps none.
        batches: Smallest, best and largest batch.
        timing_cache: File with the timings of earlier builds on this GPU, read where it exists, and written.
        timeout: Seconds after which the builder is stopped.
    """
    require("TensorRT", not_installed(_MODULE, "install it as NVIDIA's guide says") or missing_gpu())
    cache = str(Path(timing_cache).resolve()) if timing_cache is not None else None
    options = {"profile": check_batches(batches), "timing_cache": cache}
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        plan = Path(folder) / "engine"
        built = build_isolated(_MODULE, path, plan, options, timeout=timeout)
        if not built.accepted:
            return built
        found = call_isolated(
            "backends.tensorrt.session:inspect_engine",
            {"module": _MODULE, "engine": str(plan)},
            runtime=_MODULE,
            doing=f"running the engine of {str(path)!r} once",
            limits=Limits(seconds=timeout),
        )
        if out is not None:
            write_bytes(Path(out), plan.read_bytes())
    return replace(built, engine=Path(out) if out is not None else None, layer_info=found["layer_info"])


def load(path: str | Path, **options: Any) -> EngineSession:
    """Build an ONNX file and load the engine; the options are those of `build`."""
    return load_built(lambda engine: build(path, engine, **options))


def load_built(build: Callable[[Path], Build]) -> EngineSession:
    """Load what a build gives, which writes the engine into the file that it is given."""
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        engine = Path(folder) / "engine"
        built = build(engine)
        built.require()
        return EngineSession(built.path, module_name(built.runtime), engine.read_bytes())


def inspect_engine(module: str, engine: str) -> dict[str, Any]:
    """Load an engine, return what its inspector says as JSON text, and run it once on zeros; called in a child process.

    Running it once here shows a crash of the vendor's library where it hurts nobody.
    """
    session = EngineSession(engine, module, Path(engine).read_bytes())
    trt = vendor_module(module)
    shape = tuple(session.engine.get_tensor_shape(session.input_name))
    session.run(np.zeros((session.batches[0], *shape[1:]), np.float32))
    inspector = session.engine.create_engine_inspector()
    return {"layer_info": str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))}


def _ends(trt: Any, engine: Any) -> tuple[str, tuple[str, ...]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    floats = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in (*inputs, *outputs))
    if len(inputs) != 1 or not outputs or not floats:
        message = (
            f"The engine has the inputs {inputs} and outputs {outputs}; allowed are one input and "
            "outputs, all float32. Export the model alone."
        )
        raise ArtefactError(message)
    return inputs[0], tuple(outputs)
