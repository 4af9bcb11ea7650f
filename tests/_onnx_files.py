"""Small ONNX files as exporters write them, and what ONNX Runtime says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from dfqkit.tasks import named
from dfqkit.teacher.onnx_graph.importing import translated
from dfqkit.teacher.onnx_graph.reading import read
from dfqkit_export.images.spec import ImageSpec


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, and ``_`` leaves one out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any] | None = None,
    *,
    shape: Sequence[int | str] = ("N", 3, 8, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 13,
    as_inputs: bool = False,
) -> Path:
    """Write a file whose input is ``x``; the outputs' shapes are not told."""
    stored = [
        numpy_helper.from_array(np.asarray(value, None if isinstance(value, np.ndarray) else _kind(value)), name)
        for name, value in (constants or {}).items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    if as_inputs:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in stored]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "toy", inputs, made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def _kind(value: Any) -> type:
    flat = np.asarray(value).ravel()
    return np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float32


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers of about 1 / sqrt(inputs)."""
    scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
    found: NDArray[np.float32] = (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
    return found


def spec(*shape: int) -> ImageSpec:
    """Images that are not normalised."""
    return ImageSpec(shape=(shape[0], shape[1], shape[2]), mean=(0.0,) * shape[0], std=(1.0,) * shape[0])


def module_of(path: Path, image: ImageSpec) -> fx.GraphModule:
    """The file's translation, after it gave the same as ONNX Runtime for each image of a batch of three, and of one."""
    source = read(path, image)
    module = translated(source, image)
    x = torch.randn((3, *image.shape), generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = x.permute(0, 2, 3, 1) if source.channels_last else x
    (given,) = source.names.inputs
    single = [session.run(None, {given: np.ascontiguousarray(fed[i : i + 1].numpy())}) for i in range(3)]
    for batch in (x, x[:1]):
        found = named(module(batch), source.names.outputs)
        for place, value in enumerate(found.values()):
            wanted = np.concatenate([each[place] for each in single])
            np.testing.assert_allclose(value.numpy(), wanted[: len(value)], rtol=1e-4, atol=2e-5)
    return module
