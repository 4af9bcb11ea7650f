"""What tasks say of objects to losses: the same scores and sizes as their decoding finds, with gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from dfqkit.tasks import torch_task
from dfqkit_export.tasks.decoding import decoded
from dfqkit_export.tasks.dense import Dense
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.segmentation import Segmentation

HEIGHT, WIDTH = 32, 48
ANCHORS = (((8.0, 16.0), (10.0, 6.0)), ((20.0, 12.0), (9.0, 30.0)))
LEVELS: dict[str, Any] = {"boxes": ("b0", "b1"), "scores": ("s0", "s1"), "strides": (8, 16)}
ONE: dict[str, Any] = {"boxes": ("b0",), "scores": ("s0",)}
#: Parameters, and the shapes of an image's outputs.
FORMS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "corners": (ONE, {"b0": (7, 4), "s0": (7, 2)}),
    "corners of the image": (ONE | {"unit": "image"}, {"b0": (7, 4), "s0": (7, 2)}),
    "centre": (ONE | {"form": "centre"}, {"b0": (7, 4), "s0": (7, 2)}),
    "distances": (LEVELS | {"form": "distances"}, {"b0": (24, 4), "s0": (24, 2), "b1": (6, 4), "s1": (6, 2)}),
    "distributions": (
        LEVELS | {"form": "distributions"},
        {"b0": (12, 4, 6), "s0": (2, 4, 6), "b1": (12, 2, 3), "s1": (2, 2, 3)},
    ),
    "anchors": (
        LEVELS | {"form": "anchors", "anchors": ANCHORS},
        {"b0": (8, 4, 6), "s0": (4, 4, 6), "b1": (8, 2, 3), "s1": (4, 2, 3)},
    ),
    "anchors of all levels": (
        ONE | {"form": "anchors", "strides": (8, 16), "anchors": ANCHORS, "unit": "image"},
        {"b0": (60, 4), "s0": (60, 2)},
    ),
    "rows": ({"boxes": ("b0",), "form": "rows"}, {"b0": (7, 6)}),
    "columns": ({"boxes": ("b0",), "form": "columns"}, {"b0": (6, 7)}),
    "objectness_rows": ({"boxes": ("b0",), "form": "objectness_rows"}, {"b0": (7, 7)}),
    "objectness": (
        LEVELS | {"form": "distances", "objectness": ("o0", "o1")},
        {"b0": (24, 4), "s0": (24, 2), "b1": (6, 4), "s1": (6, 2), "o0": (1, 4, 6), "o1": (6,)},
    ),
}


def made(shapes: dict[str, tuple[int, ...]], form: str, *, logits: bool) -> dict[str, Tensor]:
    """Random outputs of two images; boxes have a width and a height."""
    rng = torch.Generator().manual_seed(1)
    found = {}
    for name, shape in shapes.items():
        values = torch.rand((2, *shape), generator=rng, dtype=torch.float64)
        if name[0] == "b" and form.startswith(("corners", "rows")):
            values[..., 2:4] += values[..., :2] + 0.1
        if name[0] == "b" and form in ("corners", "centre"):
            values[..., :4] *= 12
        found[name] = (values - 0.5) * 6 if logits and name[0] in "so" else values
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scores_are", ["probabilities", "logits", "softmax"])
def test_detection_says_what_it_decodes(form: str, scores_are: str) -> None:
    parameters, shapes = FORMS[form]
    if scores_are != "probabilities" and (len(shapes) == 1 or (scores_are == "softmax" and "o0" in shapes)):
        pytest.skip("scores beside boxes are probabilities, and a softmax has no factor")
    background = 0 if scores_are == "softmax" else -1
    task = Detection(
        **parameters, size=(HEIGHT, WIDTH), scores_are=scores_are, background=background, nms=1.0, floor=0.0
    )  # type: ignore[arg-type]
    outputs = {
        name: value.requires_grad_() for name, value in made(shapes, form, logits=scores_are != "probabilities").items()
    }
    part = torch_task(task)
    probabilities, sizes = part.objectness(outputs), part.object_sizes(outputs)
    assert probabilities is not None
    assert sizes is not None
    assert probabilities.shape[:2] == sizes.shape
    boxes = decoded(task, {name: value.detach().numpy() for name, value in outputs.items()}, 0.0)
    whole = 1 if task.unit == "image" else math.sqrt(HEIGHT * WIDTH)
    found = np.sqrt(np.prod(boxes.box[:, 2:] - boxes.box[:, :2], 1)) / whole
    order, ours = np.argsort(boxes.score), probabilities.detach().flatten().argsort()  # no two scores are equal
    np.testing.assert_allclose(probabilities.detach().flatten()[ours], boxes.score[order], rtol=1e-5)
    each = sizes.detach()[..., None].expand_as(probabilities).flatten()
    np.testing.assert_allclose(each[ours], found[order], rtol=1e-5)
    if form != "rows":  # each of its own class
        np.testing.assert_array_equal(ours % probabilities.shape[2], boxes.kind[order])
    np.testing.assert_array_equal(ours // probabilities[0].numel(), boxes.image[order])
    losses.objects(probabilities, sizes).backward()
    assert all(bool(value.grad.isfinite().all()) and bool(value.grad.any()) for value in outputs.values())


@pytest.mark.parametrize("axis", [0, -1])
def test_segmentation_says_the_probability_of_what_is_no_background(axis: int) -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn((2, 3, 4, 5), generator=rng)
    outputs = {"mask": values.movedim(1, -1) if axis else values}
    found = torch_task(Segmentation(shape=(3, 4, 5), axis=axis, background=1)).objectness(outputs)  # type: ignore[arg-type]
    assert found is not None
    torch.testing.assert_close(found, values.softmax(1)[:, [0, 2]].flatten(2).mT)
    known = {"mask": outputs["mask"].softmax(-1 if axis else 1)}
    same = torch_task(Segmentation(shape=(3, 4, 5), axis=axis, background=1, scores="probabilities"))  # type: ignore[arg-type]
    torch.testing.assert_close(same.objectness(known), found)


def test_one_mask_is_one_class_and_other_tasks_find_nothing() -> None:
    outputs = {"mask": torch.tensor([[[0.0, 2.0]]])}
    part = torch_task(Segmentation(shape=(1, 2)))
    torch.testing.assert_close(part.objectness(outputs), outputs["mask"].sigmoid().reshape(1, 2, 1))
    assert part.object_sizes(outputs) is None
    assert torch_task(Dense(shape=(1, 2))).objectness({"map": outputs["mask"]}) is None
