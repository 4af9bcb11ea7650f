"""TensorRT 10.13 to 11: engines built from explicit Q/DQ with strong typing, and run on this machine's GPU.

What belongs here: the adapter. The project's maintainers have not executed it: they have neither TensorRT nor its GPU.
It is tested against stand-ins written from the documented interfaces of both versions; TensorRT-RTX, which shares the
ONNX importer, is what really reads our files in the continuous integration.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from dfqkit_export.backends.isolation import call_isolated
from dfqkit_export.backends.tensorrt.engines import Build, build_isolated, check_batches
from dfqkit_export.backends.tensorrt.session import EngineSession, load_built, missing_gpu
from dfqkit_export.errors import RuntimeUnavailableError
from dfqkit_export.files import write_bytes

__all__ = ["TensorRtRuntime"]

_MODULE = "tensorrt"


class TensorRtRuntime:
    """The adapter of TensorRT.

    Building and a first run on zeros happen in child processes, so that a crash of the library is an error message.
    Only an engine that survived both is loaded into this process.
    """

    name: ClassVar[str] = "tensorrt"

    def available(self) -> str | None:
        """Return None where TensorRT and a GPU are there, else what is missing."""
        if find_spec(_MODULE) is None:
            return (
                "tensorrt is not installed, and no extra of dfqkit brings it, because its libraries are on NVIDIA's "
                "own index alone; install 'tensorrt>=10.13,<12' as NVIDIA's installation guide says, or "
                "check the file without a GPU by --runtime tensorrt-rtx (pip install 'dfqkit[tensorrt-rtx]')"
            )
        return missing_gpu()

    def build(
        self,
        path: str | Path,
        out: str | Path | None = None,
        *,
        batches: tuple[int, int, int] = (1, 8, 32),
        timing_cache: str | Path | None = None,
        timeout: float = 1800.0,
    ) -> Build:
        """Build an engine for this machine's GPU, and run it once; each in a process of its own.

        Args:
            path: The ONNX file; nothing but its batch may be symbolic.
            out: Where to keep the engine; None keeps none.
            batches: Smallest, best and largest batch.
            timing_cache: File with the timings of earlier builds on this GPU, read where it exists, and written.
            timeout: Seconds after which the builder is stopped.

        Returns:
            What came of it, with the inspector's report; a file that is refused is a result and no error.

        Raises:
            RuntimeUnavailableError: TensorRT is not installed, of a version not supported, or there is no GPU.
            RuntimeCrashedError: Builder or engine died or took too long.
            ArtefactError: The file does not exist, sizes other than its batch are open, or the engine does not run.
        """
        missing = self.available()
        if missing is not None:
            msg = f"TensorRT cannot be used here: {missing}."
            raise RuntimeUnavailableError(msg)
        cache = str(Path(timing_cache).resolve()) if timing_cache is not None else None
        options = {"profile": check_batches(batches), "timing_cache": cache}
        with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
            plan = Path(folder) / "engine"
            built = build_isolated(self.name, path, plan, options, timeout=timeout)
            if not built.accepted:
                return built
            found = call_isolated(
                "backends.tensorrt.session:inspect_engine",
                {"module": _MODULE, "engine": str(plan)},
                runtime=self.name,
                doing=f"running the engine of {str(path)!r} once",
                timeout=timeout,
            )
            if out is not None:
                write_bytes(Path(out), plan.read_bytes())
        return replace(built, engine=Path(out) if out is not None else None, layer_info=found["layer_info"])

    def load(self, path: str | Path, **options: Any) -> EngineSession:
        """Build an ONNX file and load the engine; the options are those of `build`.

        Raises:
            RuntimeUnavailableError: TensorRT is not installed, of a version not supported, or there is no GPU.
            RuntimeCrashedError: Builder or engine died or took too long.
            ArtefactError: The file is not accepted.
        """
        return load_built(lambda engine: self.build(path, engine, **options))
