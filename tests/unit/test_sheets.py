"""Contact sheets: one row a class, empty ones too, and the pixels that are in the set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dfqkit.images import ImageBank
from dfqkit.images.sheet import GAP, LINE, MARGIN, SheetForm, contact_sheet, shown
from dfqkit.run.validate import contact_sheets
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import StoredBank

SIZE, SCALE = 10, 5
TALL, WIDE = SIZE * SCALE + LINE + GAP, SIZE * SCALE + GAP


def stored(path: Path, labels: list[int], *, classes: int = 4, channels: int = 1, size: int = SIZE) -> StoredBank:
    """Image n is all of level n, and of class ``labels[n]``."""
    spec = ImageSpec(shape=(channels, size, size), mean=(0.5,) * channels, std=(0.5,) * channels, classes=classes)
    levels = torch.arange(len(labels), dtype=torch.uint8)
    pictures = levels.reshape(-1, 1, 1, 1).expand(-1, channels, size, size).contiguous()
    logits = 9 * nn.functional.one_hot(torch.tensor(labels, dtype=torch.int64), classes).float()
    ImageBank(images=pictures, answers={"logits": logits}, image=spec, teacher="0" * 64, source="test").save(path)
    return StoredBank.open(path)


def pixels(png: bytes) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture)


def levels(sheet: NDArray[np.uint8], row: int, columns: int) -> list[int | None]:
    """The level of each image of a row; None for paper."""
    found: list[int | None] = []
    for column in range(columns):
        left, top = MARGIN + column * WIDE, row * TALL
        cell = sheet[top : top + SIZE * SCALE, left : left + SIZE * SCALE]
        assert (cell == cell[0, 0]).all()
        found.append(None if cell[0, 0, 0] == 255 else int(cell[0, 0, 0]))
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_a_class_has_a_row_and_an_empty_one_an_empty_row(tmp_path: Path, channels: int) -> None:
    labels = [0, 2, 0, 2, 2]
    sheet = pixels(contact_sheet(stored(tmp_path / "a", labels, channels=channels), SheetForm(columns=4)))
    assert sheet.shape == (4 * TALL, MARGIN + 4 * WIDE, 3)
    assert [levels(sheet, row, 4) for row in range(4)] == [
        [0, 2, None, None], [None] * 4, [1, 3, 4, None], [None] * 4
    ]  # fmt: skip


def test_every_row_is_named_and_every_image_has_its_confidence(tmp_path: Path) -> None:
    sheet = pixels(contact_sheet(stored(tmp_path / "a", [0, 2, 0]), SheetForm(columns=4)))
    for row in range(4):
        assert (sheet[row * TALL : row * TALL + 40, :MARGIN] < 200).any()
    for row, column, written in ((0, 0, True), (0, 1, True), (0, 2, False), (2, 0, True), (1, 0, False)):
        left, top = MARGIN + column * WIDE, row * TALL + SIZE * SCALE
        assert bool((sheet[top : top + LINE, left : left + WIDE - GAP] < 200).any()) == written


def test_the_confidence_is_that_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageDraw

    written: list[str] = []
    for name in ("text", "multiline_text"):
        monkeypatch.setattr(ImageDraw.ImageDraw, name, lambda _self, _at, text, *_a, **_k: written.append(text))
    images = stored(tmp_path / "a", [1, 1, 3])
    contact_sheet(images)
    expected = f"{float(torch.tensor([9.0, 0, 0, 0]).softmax(0)[0]):.2f}"
    assert written == [
        "class 0\n0 images\nnone", f"class 1\n2 images\nmean p {expected}", expected, expected,
        "class 2\n0 images\nnone", f"class 3\n1 image\nmean p {expected}", expected,
    ]  # fmt: skip


def test_of_many_images_an_even_choice_is_shown(tmp_path: Path) -> None:
    sheet = pixels(contact_sheet(stored(tmp_path / "a", [0] * 9), SheetForm(columns=3)))
    assert levels(sheet, 0, 3) == [0, 4, 8]


def test_of_many_classes_the_fullest_and_the_emptiest_are_shown(tmp_path: Path) -> None:
    labels = [7] * 5 + [3] * 4 + [5] * 3 + [0] * 2 + [1] * 2 + [2] * 2 + [4] * 2 + [6]  # 8 and 9 have none
    images = stored(tmp_path / "a", labels, classes=10)
    sheet = pixels(contact_sheet(images, SheetForm(columns=6, rows=6)))
    assert sheet.shape[0] == 6 * TALL
    assert [len([x for x in levels(sheet, row, 6) if x is not None]) for row in range(6)] == [5, 4, 3, 0, 2, 1]
    few = pixels(contact_sheet(stored(tmp_path / "b", [7] * 5 + [3], classes=10), SheetForm(columns=6, rows=6)))
    assert [len([x for x in levels(few, row, 6) if x is not None]) for row in range(3)] == [5, 1, 0]
    assert few.shape[0] == 3 * TALL, "classes without images have no rows"


@pytest.mark.parametrize(("size", "side"), [(1, 48), (10, 50), (32, 64), (112, 112), (224, 112), (500, 112)])
def test_small_images_grow_and_large_ones_shrink(tmp_path: Path, size: int, side: int) -> None:
    sheet = pixels(contact_sheet(stored(tmp_path / "a", [0, 1], size=size), SheetForm(columns=2)))
    assert sheet.shape == (4 * (side + LINE + GAP), MARGIN + 2 * (side + GAP), 3)


@pytest.mark.parametrize(("channels", "words"), [(2, "channel 1 of 2"), (4, "1, 2, 3 of 4"), (13, "false colour")])
def test_channels_that_no_screen_has_are_shown_in_part_and_named(tmp_path: Path, channels: int, words: str) -> None:
    images = stored(tmp_path / "images" / "a.safetensors", [0, 1], channels=channels)
    sheet = pixels(contact_sheet(images, SheetForm(columns=2)))
    assert sheet.shape[0] == 4 * TALL + LINE
    assert (sheet[4 * TALL :] < 200).any()  # the line that says so
    assert levels(sheet, 1, 2) == [1, None]
    assert words in shown(channels)
    (caption,) = contact_sheets(tmp_path / "images")
    assert words in caption


class TestReport:
    def test_each_stored_set_has_a_sheet(self, tmp_path: Path) -> None:
        stored(tmp_path / "grading.safetensors", [0, 1, 2, 3])
        stored(tmp_path / "calibration.safetensors", [0, 0])
        found = contact_sheets(tmp_path)
        assert list(found) == [
            "test: 2 images, mean teacher confidence 1.00, 3 of 4 classes without any",
            "test: 4 images, mean teacher confidence 1.00",
        ]
        for png in found.values():
            sheet = Image.open(io.BytesIO(png))
            assert (sheet.mode, sheet.height) == ("RGBA", 4 * TALL)
            assert sheet.getpixel((sheet.width - 1, 0)) == (0, 0, 0, 0), "the page shows through, light or dark"

    def test_an_empty_folder_gives_nothing(self, tmp_path: Path) -> None:
        assert contact_sheets(tmp_path) == {}
