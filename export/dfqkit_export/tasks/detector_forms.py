"""What a detector's outputs tell of themselves: which place boxes, which score them, and in what form.

What belongs here: the reading of shapes and of the values of a few images. What cannot be told from these (anchors,
whether logits are for a softmax) is asked of the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks.base import Outputs
from dfqkit_export.tasks.decoding import grid
from dfqkit_export.tasks.parameters import DetectionParameters

#: Strides that positions are tried at.
_STRIDES = (4, 8, 16, 32, 64, 128)
_FEWEST_BINS = 4
#: Share of the boxes that must be corners, and of the image that they may leave it by.
_MOST, _OUTSIDE = 0.99, 2.0


class UnclearBoxesError(ArtefactError):
    """The outputs of a detector do not tell how they are read."""


def fitted_detection(task: DetectionParameters, found: Outputs, image: ImageSpec) -> dict[str, Any]:
    """Return the parameters that are left open, as a network has them.

    Args:
        task: What is known.
        found: Outputs of a few images, by name.
        image: What these are.

    Raises:
        ArtefactError: The outputs do not fit; says what was found and what to add.
    """
    if list(found) == [""]:
        found = {(task.boxes or ("boxes",))[0]: found[""]}
    if not task.boxes:
        read = read_forms(found, image)
        open_ = {field.name for field in fields(task) if getattr(task, field.name) == field.default}
        known = {name: value for name, value in read.items() if name in open_}
        return known | {"shapes": _shapes(DetectionParameters(**{**read, **known}), found)}
    return {"size": (image.shape[1], image.shape[2]), "shapes": _shapes(task, found)}


def _shapes(task: DetectionParameters, found: Outputs) -> tuple[tuple[int, ...], ...]:
    names = (*task.boxes, *task.scores, *task.objectness)
    missing = [name for name in names if name not in found]
    if missing:
        message = (
            f"The task names the output {missing[0]!r}, which the network does not give; it gives "
            f"{told(found)}. Correct task.boxes, task.scores or task.objectness."
        )
        raise ArtefactError(message)
    return tuple(tuple(found[name].shape[1:]) for name in names)


def read_forms(found: Outputs, image: ImageSpec) -> dict[str, Any]:
    """Return the parameters of a detector that gives such outputs.

    Raises:
        UnclearBoxesError: They cannot be told; says why, and what to say.
    """
    size = (image.shape[1], image.shape[2])
    if len(found) == 1:
        return {"size": size, **_of_one(*next(iter(found.items())), size)}
    levels = _levels(found)
    boxes, scores, objectness = (tuple(level[part] for level in levels if part in level) for part in _PARTS)
    if objectness and len(objectness) != len(boxes):
        raise UnclearBoxesError(_unclear(found, "not every level has an objectness"))
    bins = {found[name].shape[_axis(found[name])] // 4 for name in boxes}
    read: dict[str, Any] = {"size": size, "boxes": boxes, "scores": scores, "objectness": objectness}
    read |= _scored([found[name] for name in scores], found)
    if bins == {1}:
        return read | _placed([found[name] for name in boxes], size, found)
    return read | {"form": "distributions", "strides": _strides([found[name] for name in boxes], size, found)}


_PARTS = ("boxes", "scores", "objectness")


def _axis(values: NDArray[Any]) -> int:
    return 1 if values.ndim == 4 else -1


def _of_one(name: str, values: NDArray[Any], size: tuple[int, int]) -> dict[str, Any]:
    named: dict[str, Any] = {"boxes": (name,)}
    if values.ndim == 3:
        first, second = values.shape[1:]
        kinds = values[..., 5] if second > 5 else values[..., :0]
        if second == 6 and np.array_equal(kinds, np.round(kinds)) and _inside(values[..., 4]):
            return {**named, "form": "rows", "nms": 1.0}
        if first > second >= 6 and _inside(values[..., 4:]):
            return {**named, "form": "objectness_rows"}
        if second > first >= 5 and _inside(values[:, 4:]):
            return {**named, "form": "columns"}
    message = _unclear({name: values}, "one output of boxes is (n, 6), (4 + classes, n) or (n, 5 + classes)")
    raise UnclearBoxesError(message)


def _inside(values: NDArray[Any]) -> bool:
    return bool(values.size) and float(values.min()) >= 0 and float(values.max()) <= 1 + 1e-4


def _levels(found: Outputs) -> list[dict[str, str]]:
    """Return the names of boxes, scores and objectness by level, the finest first."""
    by_positions: dict[tuple[int, ...], list[str]] = {}
    for name, values in found.items():
        by_positions.setdefault(values.shape[2:] if values.ndim == 4 else values.shape[1:2], []).append(name)
    levels = []
    for positions in sorted(by_positions, key=lambda sizes: -int(np.prod(sizes))):
        names = by_positions[positions]
        wide = {name: found[name].shape[_axis(found[name])] if found[name].ndim > 2 else 1 for name in names}
        level: dict[str, str] = {}
        ones = [name for name in names if wide[name] == 1]
        if len(names) == 3 and len(ones) == 1:
            level["objectness"] = ones[0]
            names = [name for name in names if name != ones[0]]
        places = [name for name in names if wide[name] == 4]
        if not places:
            places = [name for name in names if wide[name] % 4 == 0 and wide[name] >= 4 * _FEWEST_BINS]
        if len(names) != 2 or not places:
            raise UnclearBoxesError(
                _unclear(found, "boxes (n, 4) or (n, 4 x bins) and scores (n, classes) go in pairs")
            )
        if len(places) == 2:
            # Classes may be a multiple of four: distributions have few values of any meaning below zero and above.
            places = [name for name in places if not _inside(found[name])]
        if len(places) != 1:
            raise UnclearBoxesError(_unclear(found, f"either of {' and '.join(names)} may be the boxes"))
        level["boxes"] = places[0]
        level["scores"] = next(name for name in names if name != places[0])
        levels.append(level)
    return levels


def _scored(scores: list[NDArray[Any]], found: Outputs) -> dict[str, Any]:
    if all(map(_inside, scores)):
        axis = _axis(scores[0])
        classes = scores[0].shape[axis] if scores[0].ndim > 2 else 1
        if classes > 1 and all(np.allclose(each.sum(axis), 1, atol=1e-3) for each in scores):
            likely = np.mean([np.moveaxis(each, axis, -1).reshape(-1, classes).mean(0) for each in scores], axis=0)
            return {"scores_are": "probabilities", "background": 0 if likely[0] >= likely[-1] else classes - 1}
        return {"scores_are": "probabilities"}
    why = (
        "scores are no probabilities: say scores_are (logits, each class for itself, or softmax), and which class is "
        "the background"
    )
    raise UnclearBoxesError(_unclear(found, why))


def _placed(boxes: list[NDArray[Any]], size: tuple[int, int], found: Outputs) -> dict[str, Any]:
    flat = np.concatenate([np.moveaxis(each, _axis(each), -1).reshape(-1, 4) for each in boxes])
    ordered = float(((flat[:, 2] >= flat[:, 0]) & (flat[:, 3] >= flat[:, 1])).mean())
    largest, longest = float(np.abs(flat).max()), max(size)
    if ordered >= _MOST and largest <= _OUTSIDE * longest:
        return {"form": "corners", "unit": "image" if largest <= _OUTSIDE else "pixels"}
    why = (
        "boxes are no corners: say form (centre, distances, or anchors with their widths and heights) and strides, "
        "with boxes and scores by name"
    )
    raise UnclearBoxesError(_unclear(found, why))


def _strides(boxes: list[NDArray[Any]], size: tuple[int, int], found: Outputs) -> tuple[float, ...]:
    strides = []
    for each in boxes:
        positions = each.shape[2] * each.shape[3] if each.ndim == 4 else each.shape[1]
        fitting = [stride for stride in _STRIDES if np.prod(grid(size, stride)) == positions]
        if not fitting:
            why = f"{positions} positions are those of none of the strides {_STRIDES}: say strides"
            raise UnclearBoxesError(_unclear(found, why))
        strides.append(float(fitting[0]))
    return tuple(strides)


def told(found: Mapping[str, NDArray[Any]]) -> str:
    """Return names and shapes for people."""
    return ", ".join(
        f"{name or 'one tensor'} (N{''.join(f', {size}' for size in values.shape[1:])})"
        for name, values in found.items()
    )


def _unclear(found: Mapping[str, NDArray[Any]], why: str) -> str:
    return f"The outputs {told(found)} may be a detector's, but {why}."
