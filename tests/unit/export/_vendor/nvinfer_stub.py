"""A stand-in for NVIDIA's Python bindings, written from their documentation: what 10.13, 11 and RTX 1.7 have, no more.

Every class has slots, so that reading or setting what a version lacks fails as it does in the real one. Engines are
ONNX files that ONNX Runtime executes on the memory whose addresses were given. Files whose graph's doc_string is
"crash", "hang" or "exit" do that to the builder.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import onnx


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, least: Severity = Severity.WARNING) -> None:
        self.least = least

    def log(self, severity: Severity, message: str) -> None:
        if severity.value <= self.least.value:
            sys.stderr.write(f"{message}\n")


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class ErrorCode(enum.Enum):
    UNSUPPORTED_NODE = 8


class Tensor:
    __slots__ = ("name", "shape")

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


class Network:
    __slots__ = ("flags", "inputs", "model")

    def __init__(self, flags: int) -> None:
        self.flags, self.model, self.inputs = flags, onnx.ModelProto(), list[Tensor]()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]


class ParserError:
    __slots__ = ("_node",)

    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def code(self) -> ErrorCode:
        return ErrorCode.UNSUPPORTED_NODE

    def desc(self) -> str:
        return f"No importer registered for op: {self._node.op_type}."

    def node_name(self) -> str:
        return str(self._node.name)

    def node_operator(self) -> str:
        return str(self._node.op_type)


class OnnxParser:
    __slots__ = ("_errors", "_logger", "_network")

    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network, self._logger, self._errors = network, logger, list[ParserError]()

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path)
        for node in model.graph.node:
            self._logger.log(ILogger.VERBOSE, f"Parsing node: {node.name} [{node.op_type}]")
            if node.op_type == "NegativeLogLikelihoodLoss":
                self._errors.append(ParserError(node))
        self._network.model = model
        self._network.inputs = [Tensor(value) for value in model.graph.input]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class OptimizationProfile:
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(best), list(most)]


class TimingCache:
    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class BuilderConfig:
    __slots__ = ("cache", "profiles", "profiling_verbosity", "version")

    def __init__(self, version: str) -> None:
        self.profiles, self.cache, self.version = list[OptimizationProfile](), None, version
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(bytes(content))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = not cache.content or cache.content.startswith(self.version.encode())
        self.cache = cache if fits or ignore_mismatch else self.cache
        return fits or ignore_mismatch


class RtxBuilderConfig(BuilderConfig):
    __slots__ = ("capability", "num_compute_capabilities")

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capability = capability
        return 0 <= index < self.num_compute_capabilities


class Inspector:
    __slots__ = ("_model", "_version")

    def __init__(self, model: onnx.ModelProto, version: str) -> None:
        self._model, self._version = model, version

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        layers = [self._layer(node) for node in self._model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        ends = [value.name for value in (*self._model.graph.input, *self._model.graph.output)]
        if self._version.startswith("10"):
            return json.dumps({"Layers": layers, "Bindings": ends})
        return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": name} for name in ends]})

    def _layer(self, node: onnx.NodeProto) -> dict[str, Any]:
        makers = {output: maker for maker in self._model.graph.node for output in maker.output}
        integer = all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input[:2])
        kind = "Int8" if integer else "Float"
        old = {"Format/Datatype": f"Row major {kind} format"}
        new = {"Format": "Row major linear format", "Datatype": kind}
        tensor = {"Name": node.input[0], "Dimensions": [1], **(old if self._version.startswith("10") else new)}
        reader = next((n for n in self._model.graph.node if node.output[0] in n.input), node)
        return {
            "Name": f"{node.name} + {reader.name}",
            "LayerType": "CaskConvolution" if node.op_type == "Conv" else "CaskGemmMatrixMultiply",
            "Inputs": [tensor],
            "Outputs": [tensor],
            "Metadata": f"[ONNX Layer: {node.name}]\x1e[ONNX Layer: {reader.name}]",
        }


class Context:
    __slots__ = ("_addresses", "_engine", "_shape")

    def __init__(self, engine: Engine) -> None:
        self._engine, self._addresses, self._shape = engine, dict[str, int](), tuple[int, ...]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        self._shape = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == self._engine.get_tensor_name(0):
            return self._shape
        return (self._shape[0], *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        import onnxruntime

        source, *targets = (self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors))
        session = onnxruntime.InferenceSession(self._engine.model.SerializeToString())
        for target, found in zip(targets, session.run(targets, {source: self._view(source).copy()}), strict=True):
            self._view(target)[...] = found
        return stream != 0

    def _view(self, name: str) -> np.ndarray[Any, Any]:
        shape = self.get_tensor_shape(name)
        pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape)


class Engine:
    __slots__ = ("model", "profile", "version")

    def __init__(self, content: bytes, version: str) -> None:
        header, _, body = content.partition(b"\n")
        self.profile: dict[str, list[list[int]]] = json.loads(header)["profile"]
        self.model, self.version = onnx.load_from_string(body), version

    @property
    def num_io_tensors(self) -> int:
        return len(self._ends())

    def _ends(self) -> list[onnx.ValueInfoProto]:
        return [*self.model.graph.input, *self.model.graph.output]

    def get_tensor_name(self, index: int) -> str:
        return str(self._ends()[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.model.graph.input[0].name else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(Tensor(value).shape for value in self._ends() if value.name == name)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
        return self.profile.get(name) or [self.get_tensor_shape(name)] * 3

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.model, self.version)


class Builder:
    VERSION = ""
    STRONGLY_TYPED: int | None = None
    CONFIG: type[BuilderConfig] = BuilderConfig
    __slots__ = ("_logger",)

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> BuilderConfig:
        return self.CONFIG(self.VERSION)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> memoryview | None:
        _mischief(network.model.graph.doc_string)
        shapes = config.profiles[0].shapes if config.profiles else {}
        if self.STRONGLY_TYPED is not None and not network.flags & 1 << self.STRONGLY_TYPED:
            self._logger.log(ILogger.ERROR, "Int8 precision has been set but the INT8 builder flag is not")
            return None
        if any(-1 in value.shape and value.name not in shapes for value in network.inputs):
            self._logger.log(ILogger.ERROR, "Network has dynamic inputs, but no optimization profile")
            return None
        if config.cache is not None and not config.cache.content:
            config.cache.content = f"{self.VERSION} timings".encode()
        facts = {"profile": shapes, "verbosity": config.profiling_verbosity.name, "version": self.VERSION}
        return memoryview(json.dumps(facts).encode() + b"\n" + network.model.SerializeToString())


class Runtime:
    VERSION = ""
    __slots__ = ("_logger",)

    def __init__(self, logger: ILogger) -> None:
        if not getattr(sys.modules.get("torch"), "asked", False):
            os.kill(os.getpid(), signal.SIGSEGV)  # a null pointer, where nobody looked for a driver
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        made_by = json.loads(content.partition(b"\n")[0])["version"]
        return Engine(content, self.VERSION) if made_by == self.VERSION else None


def module_of(name: str, version: str) -> dict[str, Any]:
    """The names of one version's module."""
    typed_by_flag = name == "tensorrt" and version.startswith("10.")
    flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if typed_by_flag else {"STRONGLY_TYPED": 0}
    Builder.VERSION = Runtime.VERSION = version
    Builder.STRONGLY_TYPED = 1 if typed_by_flag else None
    Builder.CONFIG = RtxBuilderConfig if name == "tensorrt_rtx" else BuilderConfig
    enums = (ProfilingVerbosity, TensorIOMode, DataType, LayerInformationFormat)
    shared = (Builder, Runtime, ILogger, Logger, OnnxParser, *enums)
    found: dict[str, Any] = {item.__name__: item for item in shared}
    found["NetworkDefinitionCreationFlag"] = enum.IntEnum("NetworkDefinitionCreationFlag", flags)  # type: ignore[misc]
    if name == "tensorrt_rtx":
        capabilities = {"CURRENT": 1, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120, "SM121": 121}
        found["ComputeCapability"] = enum.IntEnum("ComputeCapability", capabilities)  # type: ignore[misc]
    return {**found, "__version__": version}


def _mischief(wish: str) -> None:
    if wish == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif wish == "exit":
        sys.stderr.write("the vendor's last words\n")
        os._exit(7)
    elif wish == "hang":
        time.sleep(600)
