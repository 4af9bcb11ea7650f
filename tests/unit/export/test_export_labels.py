"""Labels that are more than a class: boxes, masks and text are read to the network's size, and damage is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.entries import entries_of
from dfqkit_export.images.label_kinds import is_kind, resolved
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks.dense import Dense
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.keypoints import Keypoints
from tests._messages import names, raises_naming

SPEC = ImageSpec(shape=(3, 16, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size, colour in (("a.png", (64, 64), (255, 0, 0)), ("b.png", (32, 16), (0, 255, 0))):
        Image.new("RGB", size, colour).save(folder / name)
    return folder


def coco(tmp_path: Path, **changed: Any) -> Path:
    document = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 18, "bbox": [16, 32, 32, 16], "iscrowd": 0},
            {"image_id": 3, "category_id": 2, "bbox": [0, 0, 64, 64], "iscrowd": 1},
        ],
    } | changed
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def test_boxes_of_a_coco_file_are_in_pixels_of_the_networks_image(tmp_path: Path, pictures: Path) -> None:
    found = load_images(f"coco:{coco(tmp_path)}:{pictures}", SPEC)
    assert found.images.shape == (2, 16, 32, 3)
    assert (found.classes, found.name) == (("cat", "dog"), "boxes.json")
    assert found.labels is not None
    assert found.labels[0].tolist() == [[1, 8, 8, 24, 12]], "a crowd is left out"
    assert found.labels[1].shape == (0, 5)
    assert found.images[0, 0, 0].tolist() == [255, 0, 0]
    again = load_images(f"coco:{coco(tmp_path, annotations=[])}:{pictures}", SPEC)
    assert again.sha256 != found.sha256
    given = Detection(shapes=((4, 4), (4, 3)), boxes=("b",), scores=("s",))
    names(given.wrong_classes(found.classes), "2 classes", "cat, dog", "has 3")
    assert not Detection(shapes=((4, 4), (4, 2)), boxes=("b",), scores=("s",)).wrong_classes(found.classes)


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"annotations": [{"image_id": 3, "category_id": 5, "bbox": [0, 0, 1, 1]}]}, ["category 5"]),
        ({"annotations": [{"image_id": 9, "category_id": 2, "bbox": [0, 0, 1, 1]}]}, ["picture 9"]),
        ({"annotations": [{"image_id": 3, "category_id": 2}]}, ["bbox"]),
        ({"categories": 3}, ["COCO"]),
        ({"images": []}, ["no pictures"]),
        ({"images": [{"id": 3, "file_name": "../a.png"}], "annotations": []}, ["../a.png", "outside"]),
        ({"images": [{"id": 3, "file_name": "c.png"}], "annotations": []}, ["c.png"]),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_told(
    changed: dict[str, Any], facts: list[str], tmp_path: Path, pictures: Path
) -> None:
    with raises_naming(ArtefactError, *facts):
        load_images(f"coco:{coco(tmp_path, **changed)}:{pictures}", SPEC)


def test_masks_have_the_names_of_their_pictures(tmp_path: Path, pictures: Path) -> None:
    with raises_naming(ArtefactError, "masks", "no '"):
        load_images(f"masks:{tmp_path}", SPEC)
    masks = tmp_path / "masks"
    masks.mkdir()
    wanted = np.zeros((64, 64), np.uint8)
    wanted[:, 32:] = 2
    Image.fromarray(wanted).save(masks / "a.png")
    with raises_naming(ArtefactError, "no mask", "b.png"):
        load_images(f"masks:{tmp_path}", SPEC)
    Image.fromarray(np.full((16, 32), 255, np.uint8)).save(masks / "b.png")
    found = load_images(f"masks:{tmp_path}", SPEC)
    assert found.labels is not None
    assert found.labels.shape == (2, 16, 32)
    assert np.unique(found.labels[0][:, :16]).tolist() == [0]
    assert np.unique(found.labels[0][:, 16:]).tolist() == [2]
    assert np.unique(found.labels[1]).tolist() == [255]
    Image.new("RGB", (4, 4)).save(masks / "b.png")
    with raises_naming(ArtefactError, "b.png", "RGB", "one channel"):
        load_images(f"masks:{tmp_path}", SPEC)


def test_lines_of_text_keep_their_proportions(tmp_path: Path, pictures: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("a.png\tHello, world\nb.png\tz\n", encoding="utf-8")
    found = load_images(f"text:{lines}:{pictures}", SPEC)
    assert found.labels is not None
    assert found.labels.tolist() == ["Hello, world", "z"]
    assert found.images[0, 0, 15].tolist() == [255, 0, 0]
    assert found.images[0, 0, 16].tolist() == [128, 128, 128], "a square one is half as wide; the rest is the mean"
    assert len(load_images(f"text:{lines}:{pictures}", SPEC, limit=1)) == 1
    lines.write_text("a.png Hello", encoding="utf-8")
    with raises_naming(ArtefactError, "tabulator"):
        load_images(f"text:{lines}:{pictures}", SPEC)


def people(tmp_path: Path, **changed: Any) -> Path:
    marks = [
        {"id": 9, "image_id": 3, "bbox": [8, 28, 32, 8], "keypoints": [8, 28, 2, 40, 36, 1, 0, 0, 0]},
        {"id": 4, "image_id": 3, "bbox": [0, 0, 64, 64], "keypoints": [0, 0, 2, 64, 64, 2, 32, 0, 2]},
        {"id": 5, "image_id": 3, "bbox": [0, 0, 9, 9], "keypoints": [1, 1, 2, 2, 2, 2, 3, 3, 2], "iscrowd": 1},
        {"id": 6, "image_id": 7, "bbox": [0, 0, 9, 9], "keypoints": [0] * 9},
    ]
    return coco(tmp_path, **{"annotations": marks} | changed)


def test_points_of_a_coco_file_are_in_pixels_of_what_is_around_each_box(tmp_path: Path, pictures: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[28, 8] = pixels[36, 40] = 255  # where the first person's points are
    Image.fromarray(pixels).save(pictures / "a.png")
    found = load_images(f"points:{people(tmp_path)}:{pictures}", SPEC)
    assert found.labels is not None
    assert (found.labels.shape, found.labels.dtype) == ((2, 3, 3), np.float64), (
        "a crowd and the unlabelled are left out"
    )
    # 64 x 64 in 32 x 16: as wide as 128, a quarter more are 160 x 80 pixels of a picture that begins at (-48, -8).
    np.testing.assert_allclose(found.labels[0], [[9.6, 1.6, 2], [22.4, 14.4, 2], [16, 1.6, 2]])
    # 32 x 8: as high as 16, a quarter more are 40 x 20 that begin at (4, 22).
    np.testing.assert_allclose(found.labels[1, :2], [[3.2, 4.8, 2], [28.8, 11.2, 1]])
    assert found.labels[1, 2, 2] == 0
    for x, y, _ in found.labels[1, :2].astype(int):
        assert found.images[1, y, x].max() > 30, "the points are where the picture shows them"
    assert found.images[0, :, :8].max() == 0, "black beyond the picture"
    task = Keypoints(form="coordinates", shape=(3, 2), size=(16, 32), output="points")
    given = {"points": found.labels[..., :2].copy()}
    given["points"][0, 0] += 9
    (right,) = task.beside_labels(given, found.labels, subject="file", data="here")
    assert right.value == pytest.approx(100 * 4 / 5)
    more = [{"id": 1, "image_id": 3, "bbox": [0, 0, 9, 9], "keypoints": [1, 1, 2]}]
    both = json.loads(people(tmp_path).read_text())["annotations"] + more
    for changed, facts in (
        ({"annotations": []}, ["no labelled points"]),
        ({"annotations": both}, ["1 and 3 points"]),
        ({"annotations": [{"id": 1, "image_id": 3, "keypoints": [1, 1, 2]}]}, ["bbox"]),
        ({"annotations": [more[0] | {"image_id": 8}]}, ["8"]),
        ({"annotations": [more[0] | {"bbox": [0, 0, 9e9, 9]}]}, ["a.png", "not in it"]),
        ({"annotations": [more[0] | {"bbox": [70, 0, 9, 9]}]}, ["a.png", "not in it"]),
    ):
        with raises_naming(ArtefactError, *facts):
            load_images(f"points:{people(tmp_path, **changed)}:{pictures}", SPEC)


def test_an_array_of_labels_is_the_tasks_whatever_inputs_the_images_are_for(tmp_path: Path) -> None:
    pair = ImageSpec(shape=(6, 16, 32), mean=(0.5,) * 6, std=(0.25,) * 6, inputs=entries_of({"left": 3, "right": 3}))
    stored = {"images": np.zeros((5, 16, 32, 6), np.uint8), "labels": np.random.default_rng(0).random((5, 1, 16, 32))}
    np.savez(tmp_path / "pairs.npz", **stored)
    found = load_images(tmp_path / "pairs.npz", pair, limit=3)
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, stored["labels"][[0, 2, 4]])
    task = Dense(shape=(1, 16, 32))
    (wrong,) = task.beside_labels({"map": 1.1 * found.labels}, found.labels, subject="file", data="here")
    assert wrong.value == pytest.approx(10)
    np.savez(tmp_path / "other.npz", images=stored["images"], labels=stored["labels"] + 0.25)
    assert load_images(tmp_path / "other.npz", pair).sha256 != load_images(tmp_path / "pairs.npz", pair).sha256
    with raises_naming(ArtefactError, "resize and crop"):
        load_images(tmp_path / "pairs.npz", pair, crop=8)
    np.savez(tmp_path / "few.npz", images=stored["images"], labels=stored["labels"][:4])
    with raises_naming(ArtefactError, "(4, 1, 16, 32)", "(5, ...)"):
        load_images(tmp_path / "few.npz", pair)
    np.savez(tmp_path / "floats.npz", images=stored["images"], labels=np.zeros(5))
    with raises_naming(ArtefactError, "float64", "class indices"):
        load_images(tmp_path / "floats.npz", pair)


def test_a_source_that_is_not_complete_or_not_there_is_told(tmp_path: Path, pictures: Path) -> None:
    with raises_naming(ArtefactError, "coco:FILE:FOLDER"):
        load_images("coco:boxes.json", SPEC)
    with raises_naming(ArtefactError, "nowhere.json", "does not exist"):
        load_images(f"coco:nowhere.json:{pictures}", SPEC)
    with raises_naming(ArtefactError, "resize and crop"):
        load_images(f"coco:{coco(tmp_path)}:{pictures}", SPEC, resize=8)
    assert [is_kind(source) for source in ("coco:a:b", "masks:a", "torchvision:MNIST:a", "a.npz")] == [
        True,
        True,
        False,
        False,
    ]
    assert resolved("coco:a:b", lambda name: Path("/x") / name) == "coco:/x/a:/x/b"
