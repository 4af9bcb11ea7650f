"""QNN, the runtime of Qualcomm's NPU (HTP), as a plugin of ONNX Runtime: it compiles and emulates on x86-64.

What belongs here: running a file there, and what its compiler made of each layer. Nobody here had an NPU: what is
measured is what the vendor's own compiler takes, and what its emulation computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import onnxruntime
from dfqkit_export.backends.isolation import call_isolated
from dfqkit_export.backends.onnxruntime.rules import RULES as CPU_RULES
from dfqkit_export.backends.onnxruntime.session import rejections
from dfqkit_export.backends.precision import LayerPrecision, Realised, layer_told, realised, with_unique_names
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.backends.session import FileSession, Images, batched
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import entrance, own_batch
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters

_PROVIDER = "QNNExecutionProvider"
_TOKEN = re.compile(r"_token_\d+$")
#: QNN_DATATYPE_SFIXED_POINT_8 and UFIXED_POINT_8 (QnnTypes.h).
_CODES = frozenset({0x0308, 0x0408})

#: They compute nothing of their own.
_BOUNDARY = frozenset({"Convert", "Dequantize", "Quantize", "Reshape", "Transpose"})


class QnnSession(FileSession):
    """One ONNX file, compiled for the NPU; what QNN does not take runs on ONNX Runtime's CPU provider beside it."""

    def __init__(self, path: str | Path, *, kept: Path | None = None) -> None:
        """Compile the file for one image a call, or for its own batch.

        Args:
            path: The ONNX file.
            kept: A folder for QNN's graph and the runtime's profile, both as JSON, complete when the session has ended.

        Raises:
            RuntimeUnavailableError: onnxruntime-qnn is not installed.
            ArtefactError: QNN or ONNX Runtime do not accept the file.
        """
        self.path = Path(path)
        known = load_onnx(self.path, weights=False)
        check_parameters(known, self.path)
        self._batch = own_batch(known) or 1
        self.entrance = entrance(known, self.path)
        onnxruntime.QNN.require()
        runtime, qnn = import_module("onnxruntime"), import_module("onnxruntime_qnn")
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        sizes = [size for value in known.graph.input for size in value.type.tensor_type.shape.dim[:1]]
        for name in {size.dim_param for size in sizes} - {""}:
            settings.add_free_dimension_override_by_name(name, 1)
        options = {"backend_path": qnn.get_qnn_htp_path()}
        if kept is not None:
            settings.enable_profiling, settings.profile_file_prefix = True, str(kept / "profile")
            options |= {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(kept)}
        with _stdout_to_stderr():
            if not _devices(runtime):
                runtime.register_execution_provider_library(_PROVIDER, qnn.get_library_path())
            settings.add_provider_for_devices(_devices(runtime)[:1], options)
            try:
                self._session: Any = runtime.InferenceSession(str(self.path), settings)
            except rejections() as error:
                message = f"Model {str(self.path)!r} is not accepted by ONNX Runtime with QNN: {error}"
                raise ArtefactError(message) from None
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs, an image after the other; see `FileSession.outputs`."""
        self.check(images)
        wanted = list(self.wanted(names, self.output_names))
        parts = [self._session.run(wanted, self.entrance.feed(part)) for part in batched(images, self._batch)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def realised_in_qnn(path: str | Path) -> Realised:
    """Compile a file for the NPU, in a process of its own, and report how each layer is executed.

    A layer counts as integer where QNN's operator reads and writes 8-bit codes, or where it is left to the CPU provider
    and an integer kernel runs it there.
    """
    onnxruntime.QNN.require()
    source = load_onnx(path)
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        named = with_unique_names(source, Path(path), Path(folder))
        found: dict[str, list[Any]] = call_isolated(
            "backends.onnxruntime.qnn:compiled", {"path": str(named)}, runtime="QNN", doing=f"compiling {str(path)!r}"
        )
    graph = SourceGraph(source.graph)
    return realised(
        source,
        (_layer(node, found) for node in graph.layers()),
        float_ops=((kind, name) for name, (kind, integer) in found.items() if not integer and kind not in _BOUNDARY),
        operators=(kind for kind, _ in found.values()),
    )


def compiled(path: str) -> dict[str, list[Any]]:
    """Return what QNN and the CPU provider run, by the file's nodes: operator, and whether it computes on codes."""
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as kept:
        folder = Path(kept)
        session = QnnSession(path, kept=folder)
        shape = [size if isinstance(size, int) else session._batch for size in session.input_shape]
        session.outputs(np.zeros(shape, np.float32))
        profile = json.loads(Path(session._session.end_profiling()).read_text(encoding="utf-8"))
        session._session = None  # now the graph is written
        found: dict[str, list[Any]] = {}
        for event in profile:
            if event.get("cat") == "Node" and event["args"].get("provider") != _PROVIDER:
                kind = str(event["args"]["op_name"])
                name = _TOKEN.sub("", event["name"].removesuffix("_kernel_time"))
                found[name] = [kind, kind.startswith(("Q", "Dequantize"))]
        for file in folder.glob(f"{_PROVIDER}*.json"):
            graph = json.loads(file.read_text(encoding="utf-8")).get("graph", {})
            for name, node in graph.get("nodes", {}).items():
                ends = [graph["tensors"].get(tensor, {}) for tensor in (node["input_names"][0], *node["output_names"])]
                found[_TOKEN.sub("", name)] = [node["type"], all(end.get("data_type") in _CODES for end in ends)]
        return found


def _layer(node: onnx.NodeProto, found: Mapping[str, list[Any]]) -> LayerPrecision:
    kind, integer = found.get(node.name, ("", False))
    return layer_told(
        node,
        integer=integer,
        executed=(kind, node.name) if kind else None,
        place="graphs of QNN and the CPU provider",
        reason=lambda: "QNN computes in float what has no pair of Q/DQ of 8 bits on each side, with no Clip between",
    )


@rule("N1", "warning", "Codes are not clipped", repair="quantize activations to 8 bits; weights may have fewer")
def _find_clipped_codes(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("Clip"):
        maker = graph.producer(node.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            told = "it cuts codes to fewer than 8 bits, between pairs that QNN would fuse: it refuses the file"
            yield Violation(graph.name(node), told)


RULES = (*CPU_RULES, *rules_in(vars()))


def _devices(runtime: Any) -> list[Any]:
    return [device for device in runtime.get_ep_devices() if device.ep_name == _PROVIDER]


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep what the vendor's libraries print, in C and late, out of a command's answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
