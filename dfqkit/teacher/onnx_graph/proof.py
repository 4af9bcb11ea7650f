"""The proof that a translated file computes what the file does: both on the same images, output by output.

What belongs here: the images, the comparison and its words. The file runs in a process of its own (`reference`).
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfqkit.students.onnx_tail import joined
from dfqkit.tasks import named
from dfqkit.teacher.onnx_graph.reading import Source
from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.isolation import call_isolated, foreign_limits
from dfqkit_export.errors import DfqkitError, TeacherError
from dfqkit_export.images.pixels import PIXELS
from dfqkit_export.images.spec import ImageSpec

#: Largest difference of an output, relative to its largest number: two orders in which float32 is summed.
LARGEST = 1e-4
#: What counts as the largest number of an output of probabilities that are all near zero. ONNX Runtime's sigmoid and
#: softmax miss theirs by up to 1.2e-7 whatever they are (measured, 1.32, beside float64).
_LEAST_PROBABILITY = 0.01
_PROBABILITIES = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})
_MOVES = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def require_equal(module: nn.Module, source: Source, image: ImageSpec, name: str) -> float:
    """Compare a module with the file it was made of, and return the largest relative error.

    Raises:
        TeacherError: An output differs; names it, and the first node that does.
    """
    images = tried_images(source.taken)
    wanted = answers(source.model, images, source)
    with torch.no_grad():
        found = named(module(images), source.names.outputs)
    shares = _probabilities(source)
    errors = {
        each: _error(wanted[each], found[each].numpy(), _LEAST_PROBABILITY if each in shares else 1e-12)
        for each in source.names.outputs
    }
    worst = max(errors, key=lambda each: errors[each] if errors[each] == errors[each] else float("inf"))
    if errors[worst] <= LARGEST:
        return errors[worst]
    told = "another shape" if errors[worst] == float("inf") else f"relative error {errors[worst]:.2g}"
    message = (
        f"'{name}' was translated to torch, but output '{worst}' is not what the file gives ({told}, allowed "
        f"{LARGEST:g}; output {source.names.outputs.index(worst) + 1} of {len(errors)}). Please report it with the "
        "file; meanwhile simplify it (onnxsim), or give the torch module that it was made from."
    )
    raise TeacherError(message)


def require_tail(whole: Source, front: Source, name: str) -> None:
    """Run a file, and its network with its tail behind it, operator by operator as written, and compare all outputs.

    Raises:
        TeacherError: An output differs in a single bit; names it.
    """
    assert front.names.tail is not None
    images = tried_images(whole.taken)
    model = joined(front.model, front.names.tail)
    wanted, found = (answers(each, images, whole, as_written=True) for each in (whole.model, model))
    wrong = [each for each in whole.names.outputs if not np.array_equal(wanted[each], found[each], equal_nan=True)]
    if wrong:
        message = (
            f"'{name}' was cut in front of {front.names.tail.kind}, but both parts together give another '{wrong[0]}' "
            "than the file. Please report it with the file; meanwhile cut it with onnx.utils.extract_model."
        )
        raise TeacherError(message)


def tried_images(image: ImageSpec) -> Tensor:
    """Return normalised images (5, C, H, W): noise, a ramp, blocks, dark strokes on white, and one colour."""
    channels, height, width = image.shape
    rng = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, height)[:, None] * torch.linspace(1, 0.25, width)
    blocks = torch.rand((channels, -(-height // 8), -(-width // 8)), generator=rng)
    blocks = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    strokes = torch.rand((1, -(-height // 3), -(-width // 3)), generator=rng).repeat_interleave(3, 1)
    strokes = (strokes.repeat_interleave(3, 2)[:, :height, :width] > 0.4).float()
    strokes[:, (torch.arange(height) // 16) % 2 == 1] = 1  # rows of them, as text has
    pictures = [torch.rand(image.shape, generator=rng), ramp, blocks, strokes, torch.tensor(0.6)]
    stacked = torch.stack([each.expand(image.shape) for each in pictures])
    return image.normalize(torch.round(stacked * 255) / 255 if image.dtype == PIXELS else stacked)


def answers(
    model: onnx.ModelProto, images: Tensor, source: Source, *, as_written: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Return what a file gives of images (N, C, H, W), by output.

    ``as_written``: without the runtime's optimizer, each image's numbers in a row, as many as there are.
    """
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        file, given, out = (Path(folder) / each for each in ("file.onnx", "images.npy", "out.npz"))
        file.write_bytes(_told(model, source.taken).SerializeToString())
        np.save(given, images.numpy())
        request = {"model": str(file), "images": str(given), "out": str(out), "batch": source.batch or 1}
        request |= {"as_written": as_written}
        try:
            call_isolated(
                "dfqkit.teacher.onnx_graph.reference:answer",
                request,
                runtime=DEFAULT.title,
                doing="the file was run to compare its translation with it",
                limits=foreign_limits(),
            )
        except DfqkitError as error:
            message = f"The file cannot be run, so that nothing proves its translation: {error}"
            raise TeacherError(message) from error
        with np.load(out, allow_pickle=False) as stored:
            return {each: stored[str(place)] for place, each in enumerate(source.names.outputs)}


def _told(model: onnx.ModelProto, taken: ImageSpec) -> onnx.ModelProto:
    """Return a model that says what it takes, its initializers no inputs, which stops a runtime from folding them."""
    found = copy.deepcopy(model)
    del found.metadata_props[:]
    found.metadata_props.add(key="dfqkit.image", value=json.dumps(taken.to_dict()))
    stored = {tensor.name for tensor in found.graph.initializer}
    kept = [value for value in found.graph.input if value.name not in stored]
    del found.graph.input[:]
    found.graph.input.extend(kept)
    return found


def _probabilities(source: Source) -> set[str]:
    """Return the outputs that a sigmoid or softmax gives, whatever moves or joins its values behind."""
    kinds = {name: node for node in source.operators for name in node.outputs}

    def gives(name: str, left: int) -> bool:
        node = kinds.get(name)
        if node is None or node.kind in _PROBABILITIES or not left:
            return node is not None and node.kind in _PROBABILITIES
        return node.kind in _MOVES and all(gives(each, left - 1) for each in node.inputs[:1])

    return {name for name in source.names.outputs if gives(name, 8)}


def _error(wanted: NDArray[np.float32], found: NDArray[np.float32], least: float) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    largest = float(np.abs(wanted).max(initial=0.0))
    return float(np.abs(wanted.astype(np.float64) - found).max(initial=0.0)) / max(largest, least)
