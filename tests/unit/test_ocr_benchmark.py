"""What the benchmark of text networks measures with: lines read by CTC, images as the networks take them, the table."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow draws the text")

from tests.benchmarks.ocr import fitted, page, read


def test_equal_neighbours_are_one_character_and_class_0_is_none() -> None:
    assert read(np.eye(4)[[0, 1, 1, 0, 1, 2, 2, 3]], "ab ") == "aab "


def test_lines_are_as_high_as_the_network_takes_them_bgr_and_padded_with_0() -> None:
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[..., 2] = 255
    found = fitted(pixels, (48, 192))
    assert found.shape == (1, 3, 48, 192)
    assert found[0, :, 0, 0].tolist() == [1, -1, -1]
    assert not found[..., 96:].any()


def test_the_table_has_a_row_a_network() -> None:
    row = {"model": "a.onnx", "what": "lines", "images": 10, "size": (48, 320), "float": 1, "int8": 0.5, "asked": 0.9}
    row |= {"quantize_static": 0.25, "integer": "3 of 4", "float_ops": {"Softmax": 2}, "verdict": "ok"}
    assert "| 1.0000 | 0.5000 | 0.2500 | 0.9000 | 3 of 4 | Softmax 2 | ok |" in page([row])
