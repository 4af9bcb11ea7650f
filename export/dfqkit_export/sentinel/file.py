"""The sentinel set: a few images with the teacher's answers, by which a file is checked again after every change.

What belongs here: what such a set is and its form on disk, one file of tensors (`images.tensors`) with a JSON text
under ``sentinel`` in its metadata. Which images are chosen, and what they can notice, is `choice`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.tensors import read_tensors, tensor_bytes
from dfqkit_export.tasks import DEFAULT_TASK, Outputs, Task, entry_of, task_of

SCHEMA = 1
SENTINEL_FILE = "sentinel.safetensors"
#: The one metadata entry.
HEADER = "sentinel"

#: Kinds of images: chosen because they notice, and drawn at random from the same images.
SENSITIVE, PLAIN = 0, 1

#: Bytes of a file that is read as a sentinel set; 2 MB is what is written.
_MAX_FILE = 256 * 2**20
_AGAIN = "Make it again with `dfqkit sentinel`; of a run, delete it and give `dfqkit run --resume RUN`."
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
_TENSORS = {"images": "uint8", "source": "int16", "kind": "uint8"}
#: What the teacher's outputs are called in the file: this and their name.
_ANSWER = "teacher_"


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """Images, what the teacher says of them, and how they were chosen.

    Attributes:
        spec: Shape and normalisation.
        teacher_name: What the teacher is called.
        teacher_sha256: Of its weights for a run of dfqkit, of its ONNX file otherwise.
        images: uint8 (N, C, H, W), at least one.
        answers: The teacher's outputs, float32 (N, ...) by name, ONNX Runtime's on exactly these 8-bit images.
        sources: What made the images, such as ``dfq:grading``.
        source: int16 (N,), which of them.
        kind: uint8 (N,), `SENSITIVE` or `PLAIN`.
        rule: How they were chosen, in words.
        power: What they can notice: `choice.power`. Empty where it could not be said.
        task: What the outputs mean.

    Raises:
        ArtefactError: Arrays do not fit each other or the specification, or outputs are not finite.
    """

    spec: ImageSpec
    teacher_name: str
    teacher_sha256: str
    images: NDArray[np.uint8]
    answers: Outputs
    sources: tuple[str, ...]
    source: NDArray[np.int16]
    kind: NDArray[np.uint8]
    rule: str = ""
    power: Mapping[str, Any] = field(default_factory=dict)
    task: Task = DEFAULT_TASK

    def __post_init__(self) -> None:
        n = len(self.images)
        shapes = {"images": (n, *self.spec.shape)}
        for name, dtype in _TENSORS.items():
            array, shape = getattr(self, name), shapes.get(name, (n,))
            if array.dtype != dtype or array.shape != shape or not n:
                message = (
                    f"Sentinel {name} must be {dtype} of {shape}, N at least 1; found {array.dtype} {array.shape}."
                )
                raise ArtefactError(message)
        try:
            self.task.check(self.answers, self.spec)
        except ArtefactError as error:
            message = f"The teacher's answers of a sentinel set cannot be used. {error}"
            raise ArtefactError(message) from error
        wrong = [name for name, values in self.answers.items() if values.dtype != np.float32 or len(values) != n]
        if wrong:
            message = f"Sentinel {_ANSWER}{wrong[0]} must be float32, one answer for each of {n} images."
            raise ArtefactError(message)
        if not 0 <= self.source.min() <= self.source.max() < len(self.sources) or self.kind.max() > PLAIN:
            message = f"Sentinel source must index {len(self.sources)} sources and kind be {SENSITIVE} or {PLAIN}."
            raise ArtefactError(message)

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.images)

    def normalized(self) -> NDArray[np.float32]:
        """Return all images as the model takes them, float32 (N, C, H, W)."""
        return normalized(self.images, self.spec)

    @property
    def sensitive(self) -> NDArray[np.bool_]:
        """Which images were chosen, (N,)."""
        return np.asarray(self.kind == SENSITIVE)

    @property
    def plain(self) -> NDArray[np.bool_]:
        """Which images were drawn at random, (N,)."""
        return np.asarray(self.kind == PLAIN)


def normalized(codes: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """8-bit images as the model takes them."""
    return spec.normalize(codes.astype(np.float32) / np.float32(255))


def write_sentinel(path: str | Path, sentinel: Sentinel) -> None:
    """Write a set, there whole or not at all."""
    write_bytes(Path(path), sentinel_bytes(sentinel))


def sentinel_bytes(sentinel: Sentinel) -> bytes:
    """Return what a set's file holds; equal for equal sets."""
    header = {
        "schema": SCHEMA,
        "image": sentinel.spec.to_dict(),
        **entry_of(sentinel.task),
        "teacher": {"name": sentinel.teacher_name, "sha256": sentinel.teacher_sha256},
        "sources": list(sentinel.sources),
        "rule": sentinel.rule,
        "power": dict(sentinel.power),
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    tensors = {name: getattr(sentinel, name) for name in _TENSORS}
    tensors |= {f"{_ANSWER}{name}": sentinel.answers[name] for name in sentinel.task.names}
    return tensor_bytes(tensors, {HEADER: text})


def read_sentinel(path: str | Path) -> Sentinel:
    """Read a set.

    Raises:
        ArtefactError: It is missing, damaged, of another version, or contradicts itself.
    """
    tensors, metadata = read_tensors(path, limit=_MAX_FILE)
    try:
        header = json.loads(metadata.get(HEADER, "{}"))
        schema = header.get("schema")
    except _DAMAGED as error:
        message = f"'{path}' is not a sentinel set: {error}. {_AGAIN}"
        raise ArtefactError(message) from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        message = (
            f"'{path}' is not a sentinel set that this version reads (schema {schema!r:.40}, needed {SCHEMA}). "
            + ("A newer version of dfqkit made it: upgrade." if newer else _AGAIN)
        )
        raise ArtefactError(message)
    try:
        task = task_of(header.get("task"))
        return Sentinel(
            spec=ImageSpec.from_dict(header["image"]),
            teacher_name=_text(header["teacher"]["name"]),
            teacher_sha256=_text(header["teacher"]["sha256"]),
            sources=tuple(_text(name) for name in header["sources"]),
            rule=_text(header["rule"]),
            power=dict(header["power"]),
            task=task,
            answers={name: tensors[f"{_ANSWER}{name}"] for name in task.names},
            **{name: tensors[name] for name in _TENSORS},
        )
    except (*_DAMAGED, ArtefactError) as error:
        message = f"Sentinel set '{path}' contradicts itself: {type(error).__name__}: {error} {_AGAIN}"
        raise ArtefactError(message) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"a text was expected, found {value!r:.40}"
        raise TypeError(message)
    return value
