"""Bundling a quantized file that any tool made, with the float file that it came from and images of the user's choice.

What belongs here: what such a file does not say itself, and what of it is asked for. Writing is `writing`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.bundle.reading import MODEL_FILE, Bundle
from dfqkit_export.bundle.writing import Order, write_files
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file, write_bytes
from dfqkit_export.images.bank_file import SET_FILE
from dfqkit_export.images.inputs import model_image
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.onnxfile.model import load_onnx, metadata_in
from dfqkit_export.sentinel import SENTINEL_FILE, Candidates, TeacherFile, candidates_of, choose, sentinel_bytes

#: Of a set of images, as many as may be looked at to choose from.
_MOST = 1024
_HINT = "Give --mean and --std, a number a channel, as the network's training had them (of pixels from 0 to 1)."


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A quantized file of any tool, and what goes with it.

    Attributes:
        model: The quantized ONNX file (QDQ).
        teacher: The float ONNX file that it came from.
        images: A set of `dfqkit synthesize`, or images that took no part in making the file, as `load_images` reads
            them.
        mean: Mean per channel of pixels from 0 to 1; () where the file or the set says it.
        std: Deviation per channel.
        target: Where it runs; "" for what the file says, or the default.
    """

    model: Path
    teacher: Path
    images: Path
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target: str = ""


def bundle_foreign(file: ForeignFile, order: Order) -> dict[str, int]:
    """Write a bundle of a file that no run of dfqkit made; `Order.run` is not read.

    Returns:
        Its files and their sizes in bytes.

    Raises:
        ArtefactError: A file cannot be read or run on these images, or it is not known how images become its input.
    """
    proto = load_onnx(file.model)
    metadata = metadata_in(proto)
    candidates = _candidates(file, proto)
    teacher = TeacherFile(path=file.teacher, name=file.teacher.stem, sha256=sha256_of_file(file.teacher))
    sentinel = choose(file.model, teacher, candidates)
    with tempfile.TemporaryDirectory(prefix="dfqkit-bundle-") as place:
        root = Path(place)
        shutil.copyfile(file.model, root / MODEL_FILE)
        write_bytes(root / SENTINEL_FILE, sentinel_bytes(sentinel))
        made = Bundle(
            path=root,
            root=root,
            name=file.model.stem,
            target=file.target or metadata.get("dfqkit.target", DEFAULT_TARGET.name),
            image=candidates.spec,
            teacher={"name": teacher.name, "sha256": teacher.sha256},
            # What calibrated it is not known: the gate asks for a reason once, and keeps it.
            synthesis={"method": metadata.get("dfqkit.synthesizer", ""), "data_free": None, "noise": False},
            quant={},
            command="",
            files={},
            whole=False,
        )
        return write_files(made, order)


def _candidates(file: ForeignFile, proto: onnx.ModelProto) -> Candidates:
    if (file.images / SET_FILE).is_file() or file.images.suffix == ".safetensors":
        return candidates_of([StoredBank.open(file.images)])
    spec = _spec(file, proto)
    found = load_images(file.images, spec, limit=_MOST)
    pixels = np.ascontiguousarray(found.images.transpose(0, 3, 1, 2))
    kept = np.sort(np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)[1])
    source = np.zeros(len(kept), np.int16)
    return Candidates(spec=spec, images=pixels[kept], source=source, sources=(f"given:{found.name}",))


def _spec(file: ForeignFile, proto: onnx.ModelProto) -> ImageSpec:
    """Return what the file takes: what its metadata say, or its own shape with the mean and deviation given."""
    stored = model_image(proto)
    if stored is not None:
        return stored
    if not file.mean or not file.std:
        message = f"Nothing says how pixels become the input of '{file.model}', which dfqkit did not write. {_HINT}"
        raise ArtefactError(message)
    shape, classes = _sizes(proto.graph.input[0]), _sizes(proto.graph.output[0])
    if len(shape) != 4 or not all(shape[1:]) or len(classes) < 2 or not classes[-1]:
        message = (
            f"'{file.model}' takes {shape} and gives {classes}; bundled so are classifiers of images (n, channels, "
            "height, width). Make a set with `dfqkit synthesize` of the network for --images, which says the rest."
        )
        raise ArtefactError(message)
    given: dict[str, Any] = {"mean": list(file.mean), "std": list(file.std)}
    return ImageSpec.from_dict({"shape": shape[1:], "classes": classes[-1], **given})


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim]
