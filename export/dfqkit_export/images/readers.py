"""Readers for each form in which images come: npz, zip, folders, torchvision data sets.

What belongs here: one function for each form, (source, prepare, limit) -> (images uint8 (N, H, W, C), labels or None).
Every file is foreign input: nothing is unpickled, nothing is written to disk, and names inside archives are only looked
up. torchvision is imported inside the function that needs it.
"""

from __future__ import annotations

import csv
import inspect
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.arrays import UNREADABLE, read_arrays
from dfqkit_export.images.preprocess import Preprocess

Pixels = NDArray[np.uint8]
Labelled = tuple[Pixels, NDArray[Any] | None]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
# An image or a table in an archive that claims more than this is a decompression bomb.
_MAX_ENTRY_BYTES = 256 * 1024 * 1024


_Item = TypeVar("_Item")


def spread(count: int, limit: int | None) -> list[int]:
    """Return `limit` indices of `count`, first and last among them, at even distances; all of them without a limit.

    Example:
        >>> spread(9, 3), spread(2, 5)
        ([0, 4, 8], [0, 1])
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [round(float(index)) for index in np.linspace(0, count - 1, limit)]


def _chosen(items: list[_Item], limit: int | None) -> list[_Item]:
    return [items[index] for index in spread(len(items), limit)]


def read_npz(path: Path, prepare: Preprocess, limit: int | None) -> Labelled:
    """Read `images` (N, H, W, C) or (N, H, W) uint8 and optional `labels` from an .npz.

    Labels are integers (N,), or numbers (N, ...) of any meaning, which are of pixels that no resize or crop moved.
    """
    try:
        if not zipfile.is_zipfile(path):
            message = "it is not an npz archive"
            raise ValueError(message)
        arrays, names = read_arrays(path, ["images", "labels"])
    except UNREADABLE as error:
        message = (
            f"Image file {str(path)!r} cannot be read as .npz ({error}). Is it complete? Write it with numpy.savez."
        )
        raise ArtefactError(message) from None
    images, labels = _checked_pixels(arrays.get("images"), names, path), arrays.get("labels")
    kinds = "iu" if labels is None or labels.ndim < 2 else "iuf"
    if labels is not None and (labels.dtype.kind not in kinds or labels.shape[:1] != (len(images),)):
        message = (
            f"Array 'labels' in {str(path)!r} is {labels.dtype} of shape {labels.shape}; allowed are integers of shape "
            f"({len(images)},), one for each image, or numbers ({len(images)}, ...). Store class indices, or what the "
            "task reads: masks, points, maps."
        )
        raise ArtefactError(message)
    if labels is not None and labels.ndim > 1 and prepare.active:
        message = f"Labels in {str(path)!r} are of the pixels that are stored: leave out resize and crop."
        raise ArtefactError(message)
    chosen = spread(len(images), limit)
    images = images[chosen]
    if prepare.active and images.shape[3] == prepare.channels:
        images = _stack(((image, f"[{i}]") for i, image in enumerate(images)), prepare.apply, path.name)
    if labels is None:
        return images, None
    return images, labels[chosen].astype(np.int64 if labels.dtype.kind in "iu" else np.float64)


def read_folder(path: Path, prepare: Preprocess, limit: int | None) -> Labelled:
    """Read a folder of class folders, or a flat folder of images without labels; hidden entries are skipped."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    flat = [entry for entry in entries if _is_image(entry)]
    folders = [entry for entry in entries if entry.is_dir()]
    if flat and folders:
        message = (
            f"Folder {str(path)!r} holds {len(flat)} image(s) next to {len(folders)} folder(s), so labels are not "
            "clear. Use either one folder for each class or images only."
        )
        raise ArtefactError(message)
    if flat:
        return _stack(((file, file.name) for file in _chosen(flat, limit)), prepare.decode, path.name), None
    found = [
        (file, label)
        for label, folder in _class_folders(folders)
        for file in sorted(entry for entry in folder.iterdir() if _is_image(entry))
    ]
    found = _chosen(found, limit)
    if not found:
        message = f"Folder {str(path)!r} holds no images. Allowed are {', '.join(sorted(_SUFFIXES))}, flat or by class."
        raise ArtefactError(message)
    names = ((file, f"{file.parent.name}/{file.name}") for file, _ in found)
    images = _stack(names, prepare.decode, path.name)
    return images, np.array([label for _, label in found], dtype=np.int64)


def read_zip(path: Path, prepare: Preprocess, limit: int | None) -> Labelled:
    """Read the images that `labels.csv` lists from a zip, without unpacking anything to disk.

    `labels.csv` has a header with at least `filename` and `label`; a file name may omit its folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_safe_name(name, path) for name in archive.namelist() if not name.endswith("/")]
            rows = _chosen(_label_rows(_entry(archive, _find("labels.csv", members, path)), path), limit)
            names = [_find(_safe_name(name, path), members, path) for name, _ in rows]
            entries = ((io.BytesIO(_entry(archive, name)), name) for name in names)
            images = _stack(entries, prepare.decode, path.name)
    except UNREADABLE as error:
        message = f"Image file {str(path)!r} cannot be read as .zip ({error}). Is it complete and not encrypted?"
        raise ArtefactError(message) from None
    return images, np.array([label for _, label in rows], dtype=np.int64)


def read_torchvision(source: str, prepare: Preprocess, limit: int | None) -> Labelled:
    """Read the test split of a torchvision data set that is already on disk; nothing is ever downloaded.

    The source is `torchvision:NAME:ROOT`, for example `torchvision:CIFAR10:/data`.
    """
    _, name, root = [*source.split(":", 2), "", ""][:3]
    if not name or not root:
        message = (
            f"Image source {source!r} is not complete. Allowed is torchvision:NAME:ROOT, as in torchvision:MNIST:/data."
        )
        raise ArtefactError(message)
    try:
        catalogue = import_module("torchvision.datasets")
    except ImportError:
        message = (
            f"Image source {source!r} needs torchvision, which is not installed. Install it, or store images as .npz."
        )
        raise ArtefactError(message) from None
    if name not in catalogue.__all__:
        message = (
            f"torchvision has no data set {name!r}. It has, among others, CIFAR10, CIFAR100, MNIST, SVHN, ImageFolder."
        )
        raise ArtefactError(message)
    try:
        dataset = _test_split(getattr(catalogue, name), root)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        message = f"torchvision data set {name!r} cannot be read from {root!r} ({error}). Nothing is downloaded."
        raise ArtefactError(message) from None
    pairs = [dataset[index] for index in spread(len(dataset), limit)]
    images = _stack(((image, f"{name}[{i}]") for i, (image, _) in enumerate(pairs)), prepare.convert, name)
    return images, np.array([int(label) for _, label in pairs], dtype=np.int64)


def _checked_pixels(images: NDArray[Any] | None, names: list[str], path: Path) -> Pixels:
    if images is None:
        message = f"Image file {str(path)!r} has no array 'images'; it has {names}. Name the pixels 'images'."
        raise ArtefactError(message)
    if images.dtype != np.uint8:
        message = (
            f"Array 'images' in {str(path)!r} is {images.dtype}, allowed is uint8 (0 to 255, not normalised). "
            "Undo the normalisation and store round(255 * x) as uint8."
        )
        raise ArtefactError(message)
    if images.ndim not in (3, 4) or images.size == 0:
        message = f"Array 'images' in {str(path)!r} has shape {images.shape}; allowed is (N, H, W, C) or (N, H, W)."
        raise ArtefactError(message)
    return images[..., None] if images.ndim == 3 else images


def _class_folders(folders: list[Path]) -> list[tuple[int, Path]]:
    # int() would also take "1_0" and " 1"; a label is plain digits.
    if all(folder.name.isascii() and folder.name.isdigit() for folder in folders):
        return sorted((int(folder.name), folder) for folder in folders)
    return list(enumerate(folders))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _stack(named: Iterable[tuple[_Item, str]], prepared: Callable[[_Item, str], Pixels], name: str) -> Pixels:
    images: list[Pixels] = []
    for item, image_name in named:
        pixels = prepared(item, image_name)
        if images and pixels.shape != images[0].shape:
            message = (
                f"Images of {name!r} differ in size: {image_name!r} is {pixels.shape}, the first is {images[0].shape} "
                "(height, width, channels). Add resize and crop to bring them to one size."
            )
            raise ArtefactError(message)
        images.append(pixels)
    if not images:
        message = f"Image source {name!r} holds no images. Give at least one."
        raise ArtefactError(message)
    return np.stack(images)


def _safe_name(name: str, path: Path) -> str:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        message = (
            f"Archive {str(path)!r} names {name!r}, which lies outside of it. Only plain relative names are allowed."
        )
        raise ArtefactError(message)
    return name


def _find(name: str, members: list[str], path: Path) -> str:
    if name in members:
        return name
    matches = [member for member in members if member.endswith(f"/{name}")]
    if len(matches) != 1:
        found = f"{len(matches)} entries of that name" if matches else "no such entry"
        message = f"Archive {str(path)!r} needs {name!r}, found {found}. Each listed image must be in it exactly once."
        raise ArtefactError(message)
    return matches[0]


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _MAX_ENTRY_BYTES:
        message = f"Archive entry {name!r} claims {size} bytes; allowed are {_MAX_ENTRY_BYTES}. Give smaller images."
        raise ArtefactError(message)
    return archive.read(name)


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        message = f"labels.csv in {str(path)!r}, line {reader.line_num}, is no table: {error}. Write it again."
        raise ArtefactError(message) from None


def _label_rows(table: bytes, path: Path) -> list[tuple[str, int]]:
    reader = csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline=""))
    try:
        columns = list(reader.fieldnames or [])
    except csv.Error as error:
        message = f"labels.csv in {str(path)!r} is no table: {error}. Write it again."
        raise ArtefactError(message) from None
    if not {"filename", "label"} <= set(columns):
        message = f"labels.csv in {str(path)!r} has the columns {columns}; needed are 'filename' and 'label'."
        raise ArtefactError(message)
    rows: list[tuple[str, int]] = []
    for row in _rows(reader, path):
        try:
            rows.append((row["filename"] or "", int(row["label"])))
        except (TypeError, ValueError):
            message = f"labels.csv in {str(path)!r}, line {reader.line_num}: label {row['label']!r} is not an integer."
            raise ArtefactError(message) from None
    return rows


def _test_split(factory: Callable[..., Any], root: str) -> Any:
    options: dict[str, Any] = {"train": False, "split": "test", "download": False}
    known = inspect.signature(factory).parameters
    return factory(root, **{key: value for key, value in options.items() if key in known})
