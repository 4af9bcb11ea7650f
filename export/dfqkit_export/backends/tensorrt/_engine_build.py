"""Building an engine with TensorRT or TensorRT-RTX; runs in a child process only.

What belongs here: the vendor's builder interface, which 10.13 to 11 of TensorRT and 1.7 of TensorRT-RTX share. Nothing
that 11 removed is touched (precision flags, calibrators, EXPLICIT_BATCH): explicit Q/DQ with strong typing is the one
path that all of them have.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dfqkit_export.backends.precision import with_unique_names
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.images.inputs import model_image
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.model import load_onnx

# First and first-too-new version: RTX compiles int8 convolutions since 1.7, TensorRT takes our files since 10.13.
_VERSIONS = {"tensorrt": ((10, 13), (12, 0)), "tensorrt_rtx": ((1, 7), (2, 0))}
_SPOKEN = ("INTERNAL_ERROR", "ERROR", "WARNING")


def vendor_module(name: str) -> Any:
    """Import "tensorrt" or "tensorrt_rtx", of a version that this code was written for."""
    try:
        module = import_module(name)
    except ImportError as error:
        message = f"{name} cannot be imported: {error}"
        raise RuntimeUnavailableError(message) from None
    first, end = _VERSIONS[name]
    found = tuple(int(part) for part in str(module.__version__).split(".")[:2])
    if not first <= found < end:
        message = (
            f"{name} {module.__version__} is installed; dfqkit works with {_dotted(first)} up to, not including, "
            f"{_dotted(end)}. Install one of these."
        )
        raise RuntimeUnavailableError(message)
    return module


def build_engine(
    module: str,
    path: str,
    plan: str,
    profile: list[int],
    compute_capability: str | None = None,
    timing_cache: str | None = None,
) -> dict[str, Any]:
    """Parse an ONNX file and build an engine from it.

    Args:
        module: "tensorrt" or "tensorrt_rtx".
        path: The ONNX file, absolute.
        plan: Where to write the engine, absolute.
        profile: Smallest, best and largest batch of a file whose batch is symbolic.
        compute_capability: Name of the one to build for ("SM86"); None for the GPU of this machine.
        timing_cache: File with the timings of earlier builds, read where it exists, and written; None for none.

    Returns:
        version, accepted, problems (of the parser), messages (severity and text), seconds.
    """
    trt = vendor_module(module)
    # What the engine says of a layer must name one node, so nodes without a name get the one that every reader gives.
    named = with_unique_names(load_onnx(path), Path(path), Path(plan).parent)
    started = time.monotonic()
    logger, messages = _logger(trt)
    builder = trt.Builder(logger)
    # The flag's number differs between 10 and 11; both have the name.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(named))
    problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    engine = None
    if parsed:
        config = _config(trt, builder, compute_capability)
        _add_profile(builder, network, config, profile, model_image(load_onnx(path, weights=False)))
        cache = _read_cache(config, timing_cache)
        sys.stderr.write("The file is parsed; building the engine.\n")
        engine = builder.build_serialized_network(network, config)
        _write_cache(cache, timing_cache)
    if engine is not None:
        Path(plan).write_bytes(bytes(engine))
    return {
        "version": str(trt.__version__),
        "accepted": engine is not None,
        "problems": problems,
        "messages": messages,
        "seconds": time.monotonic() - started,
    }


def _logger(trt: Any) -> tuple[Any, list[list[str]]]:
    """Return the process's only logger (further ones are ignored), and where its messages go."""
    messages: list[list[str]] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append([severity.name, message])
            # For the case of a crash: these lines are what is left of the process.
            if severity.name in _SPOKEN or message.startswith("Parsing node:"):
                sys.stderr.write(f"{severity.name}: {message}\n")

    return Logger(), messages


def _config(trt: Any, builder: Any, compute_capability: str | None) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, compute_capability), 0)
    return config


def _add_profile(builder: Any, network: Any, config: Any, batches: list[int], image: ImageSpec | None) -> None:
    """Declare the batches of every input whose batch is open; without, the builder refuses the network.

    Height and width that the file leaves open are those of the image that it names.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {value.name: tuple(value.shape) for value in inputs}
    given = image.to_file(np.zeros((1, *image.shape), np.float32)) if image is not None else {}
    for name, one in {name or next(iter(shapes)): values.shape for name, values in given.items()}.items():
        pairs = list(zip(shapes.get(name, ()), one, strict=False))
        shapes |= {name: (*shapes[name][:1], *(b if a < 0 else a for a, b in pairs[1:]))} if pairs else {}
    for name, shape in shapes.items():
        if any(size < 0 for size in shape[1:]):
            message = (
                f"Input {name!r} has the shape {shape}: sizes other than the batch are open (-1). "
                "Export the model for one image size."
            )
            raise ArtefactError(message)
    opened = {name: shape for name, shape in shapes.items() if shape and shape[0] < 0}
    if opened:
        profile = builder.create_optimization_profile()
        for name, shape in opened.items():
            profile.set_shape(name, *((batch, *shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)


def _read_cache(config: Any, path: str | None) -> Any:
    if path is None:
        return None
    file = Path(path)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    # Timings of another GPU or version are refused, and the build then takes them anew.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _write_cache(cache: Any, path: str | None) -> None:
    if path is None or cache is None:
        return
    file = Path(path)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(bytes(cache.serialize()))
    part.replace(file)


def _problem(error: Any) -> dict[str, str]:
    code = error.code()
    return {
        "code": str(getattr(code, "name", code)),
        "node": str(error.node_name()),
        "operator": str(error.node_operator()),
        "text": str(error.desc()),
    }


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
