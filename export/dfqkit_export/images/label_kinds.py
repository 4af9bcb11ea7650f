"""Labelled images that are more than a class: boxes and points of a COCO file, masks, lines of text.

What belongs here: one reader for each kind, (source, spec, limit) -> `Read`. Pictures are brought to the size that the
network takes, and labels with them. Every file is foreign input: nothing is unpickled, and names stay in their folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.preprocess import Preprocess
from dfqkit_export.images.readers import spread
from dfqkit_export.images.spec import ImageSpec

_MAX_BYTES = 512 * 1024 * 1024
#: How much more than its box a picture of one person shows.
_MARGIN = 1.25
_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Read:
    """Pictures uint8 (N, H, W, C), a label for each, and the names of the classes where the source has some."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    classes: tuple[str, ...] = ()


def read_kind(source: str, spec: ImageSpec, limit: int | None) -> Read | None:
    """Read a source that names its kind, such as ``coco:annotations.json:images``; None of any other.

    - ``coco:FILE.json:FOLDER``: an array (boxes, 5) for each picture, its class (the place of its category among those
      of the file, by id) and corners in pixels of the network's image. Crowds are left out.
    - ``points:FILE.json:FOLDER``: the points (points, 3) of each person, or other thing, of the same kind of file: x
      and y in pixels of the network's image, and 0 where a point is not labelled. The picture is what is around its
      box, a quarter more of it and of the network's proportions, black beyond the edges. Crowds and those without a
      labelled point are left out.
    - ``masks:FOLDER``: ``images/`` and ``masks/`` in it, of equal names; masks are pictures of one channel whose
      numbers are classes, 255 where there is none.
    - ``text:FILE:FOLDER``: lines of a picture's name, a tabulator and its text. Pictures keep their proportions; what
      is right of them is of the mean colour.

    Raises:
        ArtefactError: Something is missing, damaged, or outside of its folder.
    """
    kind, _, rest = source.partition(":")
    readers: dict[str, Callable[[Path, Path, ImageSpec, int | None], Read]] = {
        "coco": _coco,
        "points": _points,
        "masks": _masks,
        "text": _text,
    }
    if kind not in readers:
        return None
    first, _, second = rest.partition(":")
    if not first or bool(second) == (kind == "masks"):
        wanted = f"{kind}:FOLDER" if kind == "masks" else f"{kind}:FILE:FOLDER"
        message = f"Image source {source!r} is not complete. Allowed is {wanted}, the folder that of the pictures."
        raise ArtefactError(message)
    for place in filter(None, (first, second)):
        if not Path(place).exists():
            message = f"Image source {source!r}: {place!r} does not exist (looked in {Path.cwd()})."
            raise ArtefactError(message)
    return readers[kind](Path(first), Path(second), spec, limit)


def is_kind(source: str) -> bool:
    """Return whether a source names its kind, and files or folders behind it."""
    return source.partition(":")[0] in ("coco", "points", "masks", "text") and ":" in source


def resolved(source: str, find: Callable[[str], Path]) -> str:
    """Return a source with the files and folders that it names found."""
    kind, *places = source.split(":", 2)
    return ":".join([kind, *(str(find(place)) for place in places)])


def _coco(file: Path, folder: Path, spec: ImageSpec, limit: int | None) -> Read:
    document = _document(file)
    try:
        categories = sorted((int(each["id"]), str(each["name"])) for each in document["categories"])
        pictures = sorted((str(each["file_name"]), int(each["id"])) for each in document["images"])
        marks = [
            (int(mark["image_id"]), int(mark["category_id"]), [float(number) for number in mark["bbox"]])
            for mark in document["annotations"]
            if not mark.get("iscrowd")
        ]
    except (KeyError, TypeError, ValueError) as error:
        message = (
            f"'{file}' is no COCO file ({type(error).__name__}: {error}). It needs images (id, file_name), categories "
            "(id, name) and annotations (image_id, category_id, bbox of x, y, width, height)."
        )
        raise ArtefactError(message) from None
    places = {number: place for place, (number, _) in enumerate(categories)}
    known = {number for _, number in pictures}
    wrong = next((mark for mark in marks if mark[1] not in places or mark[0] not in known or len(mark[2]) != 4), None)
    if wrong is not None and pictures:
        what = f"an annotation of picture {wrong[0]}, category {wrong[1]}"
        message = f"'{file}' contradicts itself: it has {what}, which it lists nowhere. Export it again."
        raise ArtefactError(message)
    if not pictures:
        message = f"'{file}' lists no pictures. Give a file with at least one under 'images'."
        raise ArtefactError(message)
    chosen = [pictures[place] for place in spread(len(pictures), limit)]
    found = [_picture(folder, name, spec) for name, _ in chosen]
    labels = np.empty(len(chosen), object)
    by_picture: dict[int, list[list[float]]] = {}
    for number, category, box in marks:
        by_picture.setdefault(number, []).append([places[category], *box])
    for row, ((_, number), (_, size)) in enumerate(zip(chosen, found, strict=True)):
        boxes = np.array(by_picture.get(number, []), np.float64).reshape(-1, 5)
        boxes[:, 3:] += boxes[:, 1:3]
        scale = np.array([spec.shape[2] / size[0], spec.shape[1] / size[1]])
        boxes[:, 1:] *= np.tile(scale, 2)
        labels[row] = boxes
    images = np.stack([pixels for pixels, _ in found])
    return Read(images=images, labels=labels, classes=tuple(name for _, name in categories))


def _points(file: Path, folder: Path, spec: ImageSpec, limit: int | None) -> Read:
    document = _document(file)
    try:
        names = {int(each["id"]): str(each["file_name"]) for each in document["images"]}
        found = [
            (names[int(each["image_id"])], int(each["id"]), each["bbox"], each["keypoints"])
            for each in document["annotations"]
            if not each.get("iscrowd") and any(each.get("keypoints", ())[2::3])
        ]
        people = [
            (name, number, np.array(box, np.float64).reshape(4), np.array(points, np.float64).reshape(-1, 3))
            for name, number, box, points in sorted(found, key=lambda each: each[:2])
        ]
    except (KeyError, TypeError, ValueError) as error:
        message = (
            f"'{file}' is no COCO file of points ({type(error).__name__}: {error}). It needs images (id, file_name) "
            "and annotations (id, image_id, bbox of x, y, width, height, keypoints of x, y, visibility each)."
        )
        raise ArtefactError(message) from None
    counts = {len(points) for *_, points in people}
    if len(counts) != 1:
        what = f"annotations of {' and '.join(map(str, sorted(counts)))} points" if counts else "no labelled points"
        message = f"'{file}' has {what}. Give a file with at least one annotation, all of as many points."
        raise ArtefactError(message)
    chosen = [people[place] for place in spread(len(people), limit)]
    crops = [_around(folder, name, box, spec) for name, _, box, _ in chosen]
    labels = np.stack([points for *_, points in chosen])
    for row, (_, corner, scale) in enumerate(crops):
        labels[row, :, :2] = (labels[row, :, :2] - corner) * scale
    return Read(images=np.stack([pixels for pixels, *_ in crops]), labels=labels)


def _around(
    folder: Path, name: str, box: NDArray[np.float64], spec: ImageSpec
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Return what is around a box at the network's size, its upper left corner, and what a pixel became, (x, y) each.

    As networks of one person a picture take it: the box's middle, a quarter more, and as wide as the proportions ask
    (Xiao et al., ECCV 2018).
    """
    channels, height, width = spec.shape
    with _opened(_inside(folder, name)) as image:
        inside = box[2:].min() > 0 and (box[:2] < image.size).all() and (box[:2] + box[2:] > 0).all()
        if not (np.isfinite(box).all() and inside and (box[2:] <= 2 * np.array(image.size)).all()):
            message = f"A box of picture {name!r}, {box.tolist()}, is not in it ({image.size}). Export the file again."
            raise ArtefactError(message)
        across = _MARGIN * max(box[2], box[3] * width / height)
        wanted = np.array([across, across * height / width])
        corner = np.round(box[:2] + box[2:] / 2 - wanted / 2)
        size = np.maximum(1, np.round(wanted))
        cut = (image.convert("RGB") if image.mode in ("P", "1") else image).crop(
            (*map(int, corner), *map(int, corner + size))
        )
        pixels = Preprocess(channels=channels).convert(_resized(cut, (width, height)), name)
    return pixels, corner, np.array([width, height]) / size


def _document(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            message = f"it has {file.stat().st_size:,} bytes, allowed are {_MAX_BYTES:,}"
            raise ValueError(message)
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            message = f"it holds a {type(document).__name__}, not an object"
            raise TypeError(message)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        message = f"'{file}' cannot be read as JSON: {error}."
        raise ArtefactError(message) from None
    return document


def _masks(folder: Path, _: Path, spec: ImageSpec, limit: int | None) -> Read:
    both = [folder / name for name in ("images", "masks")]
    missing = [str(each) for each in both if not each.is_dir()]
    if missing:
        message = (
            f"Folder of masks '{folder}' has no {missing[0]!r}. Put pictures in images/ and their masks in masks/."
        )
        raise ArtefactError(message)
    masks = {path.stem: path for path in sorted(both[1].iterdir()) if path.suffix.lower() in _SUFFIXES}
    pictures = [path for path in sorted(both[0].iterdir()) if not path.name.startswith(".") and path.is_file()]
    alone = next((path for path in pictures if path.stem not in masks), None)
    if alone is not None or not pictures:
        what = f"no mask for '{alone.name}'" if alone else "no pictures in images/"
        message = f"Folder of masks '{folder}' has {what}. Masks have the names of their pictures, as .png or .bmp."
        raise ArtefactError(message)
    chosen = [pictures[place] for place in spread(len(pictures), limit)]
    images = [_picture(both[0], path.name, spec)[0] for path in chosen]
    labels = [_mask(masks[path.stem], (spec.shape[2], spec.shape[1])) for path in chosen]
    return Read(images=np.stack(images), labels=np.stack(labels).astype(np.int64))


def _mask(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    with _opened(file) as image:
        if image.mode not in ("L", "P", "1"):
            message = f"Mask '{file}' has Pillow mode {image.mode!r}; allowed is one channel of 8 bits, a class each."
            raise ArtefactError(message)
        image = image.convert("L") if image.mode == "1" else image
        return np.asarray(image.resize(size, 0), np.uint8)  # 0: the nearest pixel


def _text(file: Path, folder: Path, spec: ImageSpec, limit: int | None) -> Read:
    try:
        rows = [line.split("\t", 1) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        message = f"'{file}' cannot be read as text: {error}. Write it as UTF-8."
        raise ArtefactError(message) from None
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None or not rows:
        message = f"'{file}' has {wrong or 'no lines'}. Each line is a picture's name, a tabulator, and its text."
        raise ArtefactError(message)
    chosen = [rows[place] for place in spread(len(rows), limit)]
    images = np.stack([_line(folder, name, spec) for name, _ in chosen])
    return Read(images=images, labels=np.array([text for _, text in chosen], object))


def _line(folder: Path, name: str, spec: ImageSpec) -> NDArray[np.uint8]:
    channels, height, width = spec.shape
    with _opened(_inside(folder, name)) as image:
        across = min(width, max(1, round(image.width * height / image.height)))
        pixels = Preprocess(channels=channels).convert(_resized(image, (across, height)), name)
    mean = np.array(spec.mean, np.float64) * (255 / spec.pixel_range)
    found = np.broadcast_to(np.clip(np.round(mean), 0, 255).astype(np.uint8), (height, width, channels)).copy()
    found[:, :across] = pixels
    return found


def _picture(folder: Path, name: str, spec: ImageSpec) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return a picture at the network's size, and its own width and height."""
    channels, height, width = spec.shape
    with _opened(_inside(folder, name)) as image:
        return Preprocess(channels=channels).convert(_resized(image, (width, height)), name), image.size


def _resized(image: Any, size: tuple[int, int]) -> Any:
    """Return a picture at another size, bilinear, its proportions aside; palettes as colours before."""
    return (image.convert("RGB") if image.mode in ("P", "1") else image).resize(size, 2)


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        message = f"Picture {name!r} lies outside of '{folder}'. Only names in that folder are allowed."
        raise ArtefactError(message)
    return folder / parts


def _opened(file: Path) -> Any:
    from dfqkit_export.images.preprocess import pillow

    library = pillow()
    try:
        image = library.open(file)
        image.load()
    except (OSError, SyntaxError, ValueError, library.DecompressionBombError) as error:
        message = f"Picture '{file}' cannot be read ({error}). Replace it or take it out of the set."
        raise ArtefactError(message) from None
    return image


def hashed(labels: NDArray[Any]) -> Iterable[bytes]:
    """Return the bytes by which labels of any kind are known."""
    if labels.dtype != object:
        return [labels.astype("<i8" if labels.dtype.kind in "iu" else "<f8").tobytes()]
    parts = []
    for label in labels:
        text = isinstance(label, str)
        data = label.encode() if text else np.asarray(label, "<f8").tobytes()
        parts += [b"text" if text else b"boxes", len(data).to_bytes(8, "little"), data]
    return parts
