"""Labelled images from the formats people have, checked before anything is measured with them.

What belongs here: `LabelledImages`, the dispatch from a source to its reader, and preprocessing by resize and crop. The
readers themselves are in `readers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images import TORCHVISION
from dfqkit_export.images.label_kinds import hashed, read_kind
from dfqkit_export.images.preprocess import Preprocess
from dfqkit_export.images.readers import read_folder, read_npz, read_torchvision, read_zip
from dfqkit_export.images.spec import ImageSpec

_FORMS = (
    "Allowed are an .npz with uint8 'images' and optional 'labels', a .zip with labels.csv and images, a folder of "
    "class folders, a folder of images, torchvision:NAME:ROOT, coco:FILE:FOLDER, "
    "points:FILE:FOLDER, masks:FOLDER and text:FILE:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images that are ready to be normalised, and their labels where there are any.

    Attributes:
        images: uint8 pixels, shape (N, H, W, C).
        labels: Class indices int64, shape (N,); or a label of another kind for each image (`label_kinds`, or an array
            (N, ...) of numbers that its task reads: masks, points, maps, labels of 0 and 1); or None.
        name: Where they come from, short enough for a report.
        classes: What the source calls its classes, in order; empty where it does not say.
        sha256: Hash over shape, pixels and labels, so that equal content has an equal hash whatever the container.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any] | None
    name: str
    sha256: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def batches(self, spec: ImageSpec, size: int) -> Iterator[NDArray[np.float32]]:
        """Yield the images in order, normalised.

        Args:
            spec: Shape and normalisation; the images must have its shape.
            size: Images in a batch, at least 1; the last batch may be smaller.

        Yields:
            Images float32 (n, C, H, W) in the normalised space.

        Raises:
            ArtefactError: The size is below 1 or the images do not have the shape of `spec`.
        """
        if size < 1:
            message = f"Batch size must be at least 1, found {size}."
            raise ArtefactError(message)
        _check_shape(self.images.shape[1:], spec, self.name)
        for start in range(0, len(self.images), size):
            pixels = self.images[start : start + size].transpose(0, 3, 1, 2)
            yield spec.normalize(np.ascontiguousarray(pixels).astype(np.float32) / np.float32(255.0))


def load_images(
    source: str | Path, spec: ImageSpec, *, resize: int | None = None, crop: int | None = None, limit: int | None = None
) -> LabelledImages:
    """Read images and labels from a file, a folder or an installed data set.

    Args:
        source: One of: an `.npz` with `images` uint8 (N, H, W, C) or (N, H, W), of several inputs stacked by channel,
            and optionally `labels`, class indices or what the task reads (masks, points, maps); a `.zip` with
            `labels.csv` (columns filename and label, others ignored; file names with or without their folder); a
            folder of class folders (label = index in sorted order, or the folder's name where all names are integers);
            a flat folder of images (no labels); `torchvision:NAME:ROOT`, the test split of a data set already in ROOT;
            or one of `label_kinds.read_kind`, with boxes, masks or text.
        spec: What the images must be after preprocessing.
        resize: Length in pixels that the shorter side is resized to (bicubic), before the crop.
        crop: Side in pixels of the centred square that is cut out.
        limit: Read only so many images, evenly spread over the source, so that sorted classes all take part.

    Returns:
        The images in a reproducible order: that of the file, or sorted by name for folders.

    Raises:
        ArtefactError: The source is missing, empty, damaged, not uint8, of another shape than `spec` after
            preprocessing, or its labels do not fit.
    """
    for option, value in (("resize", resize), ("crop", crop), ("limit", limit)):
        if value is not None and value < 1:
            message = f"Option {option} must be at least 1, found {value}. Leave it out to switch it off."
            raise ArtefactError(message)
    read = read_kind(str(source), spec, limit)
    if read is not None:
        name = str(source).split(":")[1].rpartition("/")[2]
        if resize is not None or crop is not None:
            message = f"Pictures of '{source}' get the network's own size, labels with them: leave out resize and crop."
            raise ArtefactError(message)
        digest = _digest(read.images, read.labels)
        return LabelledImages(images=read.images, labels=read.labels, name=name, sha256=digest, classes=read.classes)
    prepare = Preprocess(channels=spec.shape[0], resize=resize, crop=crop)
    images, labels, name = _read(str(source), prepare, limit)
    _check_shape(images.shape[1:], spec, name)
    _check_labels(labels, len(images), spec.classes, name)
    return LabelledImages(images=images, labels=labels, name=name, sha256=_digest(images, labels))


def _read(source: str, prepare: Preprocess, limit: int | None) -> tuple[NDArray[np.uint8], NDArray[Any] | None, str]:
    if source.startswith(TORCHVISION):
        return (*read_torchvision(source, prepare, limit), source.split(":")[1])
    path = Path(source)
    if not path.exists():
        message = f"Image source {source!r} does not exist (looked in {Path.cwd()}). {_FORMS}."
        raise ArtefactError(message)
    if path.is_dir():
        return (*read_folder(path, prepare, limit), path.resolve().name)
    readers = {".npz": read_npz, ".zip": read_zip}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        message = f"Image source {source!r} has the unknown type {path.suffix!r}. {_FORMS}."
        raise ArtefactError(message)
    return (*reader(path, prepare, limit), path.stem)


def _check_shape(found: tuple[int, ...], spec: ImageSpec, name: str) -> None:
    channels, height, width = spec.shape
    if found == (height, width, channels):
        return
    side = min(height, width)
    hint = f"Add resize and crop: {side} (--set validate.resize={side} --set validate.crop={side} where they measure)"
    if found[2] != channels:
        hint = "Give images with that many channels"
    elif height != width:
        hint = "Give images of that size (crop makes squares only)"
    message = (
        f"Images from {name!r} are {found[0]}x{found[1]} pixels with {found[2]} channel(s); the model takes "
        f"{height}x{width} with {channels}. {hint}."
    )
    raise ArtefactError(message)


def _check_labels(labels: NDArray[Any] | None, count: int, classes: int, name: str) -> None:
    if labels is None or (labels.ndim > 1 and len(labels) == count):
        return  # the task knows what they must be
    if labels.shape != (count,):
        message = (
            f"Data set {name!r} has {count} images but labels of shape {labels.shape}. Give one label for each image."
        )
        raise ArtefactError(message)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or 0 < classes <= high:
        message = (
            f"Labels of {name!r} run from {low} to {high}; the model has {classes} classes, so they must lie in "
            f"[0, {classes}). Check that labels start at 0 and belong to this model."
        )
        raise ArtefactError(message)


def _digest(images: NDArray[np.uint8], labels: NDArray[Any] | None) -> str:
    digest = hashlib.sha256(f"uint8 {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    for part in [b"no labels"] if labels is None else hashed(labels):
        digest.update(part)
    return digest.hexdigest()
