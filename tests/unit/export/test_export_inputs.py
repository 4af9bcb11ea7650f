from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dfqkit_export.comparison.inputs import read_inputs
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import model_image, own_batch, random_inputs
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.tensors import write_tensors
from dfqkit_export.sentinel import PLAIN, Sentinel, write_sentinel
from tests._messages import raises_naming

SPEC = ImageSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), classes=10)


@pytest.fixture
def model(residual_net: Any) -> onnx.ModelProto:
    found: onnx.ModelProto = onnx.load(str(residual_net()))
    onnx.helper.set_model_props(found, {"dfqkit.image": json.dumps(SPEC.to_dict())})
    return found


def codes(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 8, 8)).astype(np.uint8)


def normalized(values: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    mean, std = (np.array(part).reshape(1, 3, 1, 1) for part in (SPEC.mean, SPEC.std))
    return (values / 255.0 - mean) / std


def test_random_images_are_seeded_and_say_so(model: onnx.ModelProto) -> None:
    first, second = random_inputs(model, 5), random_inputs(model, 5)
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.images.shape, first.images.dtype, first.random) == ((5, 3, 8, 8), np.float32, True)
    assert "seed 0" in first.source
    assert not np.array_equal(first.images, random_inputs(model, 5, seed=1).images)


def test_open_sizes_come_from_the_metadata(model: onnx.ModelProto) -> None:
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = "side"
    assert random_inputs(model, 2).images.shape == (2, 3, 8, 8)
    del model.metadata_props[:]
    with raises_naming(ArtefactError, "shape of an image"):
        random_inputs(model, 2)


def test_the_batch_of_a_file(model: onnx.ModelProto) -> None:
    assert own_batch(model) is None
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert own_batch(model) == 4


def test_arrays_of_pixels_are_normalised(model: onnx.ModelProto, tmp_path: Path) -> None:
    stored = codes(7)
    np.savez(tmp_path / "i.npz", images=stored.transpose(0, 2, 3, 1), labels=np.zeros(7))
    found = read_inputs(tmp_path / "i.npz", model, 100)
    np.testing.assert_allclose(found.images, normalized(stored), atol=1e-5)
    assert not found.random
    np.testing.assert_array_equal(read_inputs(tmp_path / "i.npz", model, 3).images, found.images[[0, 3, 6]])


def test_grey_pictures_need_no_axis_of_channels(model: onnx.ModelProto, tmp_path: Path) -> None:
    grey = ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.2,), classes=10)
    onnx.helper.set_model_props(model, {"dfqkit.image": json.dumps(grey.to_dict())})
    np.savez(tmp_path / "i.npz", images=codes(3)[:, 0])
    np.testing.assert_allclose(read_inputs(tmp_path / "i.npz", model, 3).images, normalized(codes(3))[:, :1], atol=1e-5)


def test_arrays_of_floats_are_taken_as_they_are(model: onnx.ModelProto, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    np.save(tmp_path / "i.npy", values)
    np.testing.assert_array_equal(read_inputs(tmp_path / "i.npy", model, 9).images, values.astype(np.float32))


def test_stored_sets_and_sentinels_are_read(model: onnx.ModelProto, tmp_path: Path) -> None:
    stored, logits = codes(6), np.zeros((6, 10), np.float32)
    sentinel = Sentinel(
        spec=SPEC,
        teacher_name="t",
        teacher_sha256="0" * 64,
        images=stored,
        answers={"logits": logits},
        sources=("x",),
        source=np.zeros(6, np.int16),
        kind=np.full(6, PLAIN, np.uint8),
    )
    write_sentinel(tmp_path / "sentinel.safetensors", sentinel)
    found = read_inputs(tmp_path / "sentinel.safetensors", model, 6)
    np.testing.assert_allclose(found.images, normalized(stored), atol=1e-5)


def test_what_holds_no_images_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="do not exist"):
        read_inputs(tmp_path / "missing.npz", model, 1)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ArtefactError, match="cannot be read as images"):
        read_inputs(tmp_path / "text.npz", model, 1)
    np.savez(tmp_path / "other.npz", pixels=codes(1))
    with pytest.raises(ArtefactError, match="cannot be read as images"):
        read_inputs(tmp_path / "other.npz", model, 1)
    np.save(tmp_path / "flat.npy", np.zeros((4, 9)))
    with pytest.raises(ArtefactError, match=r"array of shape \(4, 9\)"):
        read_inputs(tmp_path / "flat.npy", model, 1)
    write_tensors(tmp_path / "any.safetensors", {"weights": np.zeros(3, np.float32)})
    with pytest.raises(ArtefactError, match=r"any\.safetensors"):
        read_inputs(tmp_path / "any.safetensors", model, 1)


def test_pixels_need_a_file_that_says_how_to_normalise_them(model: onnx.ModelProto, tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", codes(2).transpose(0, 2, 3, 1))
    del model.metadata_props[:]
    assert model_image(model) is None
    with raises_naming(ArtefactError, "normalised"):
        read_inputs(tmp_path / "i.npy", model, 1)
    onnx.helper.set_model_props(model, {"dfqkit.image": "{"})
    with pytest.raises(ArtefactError, match=r"'dfqkit.image' is not JSON"):
        read_inputs(tmp_path / "i.npy", model, 1)


def test_sizes_that_no_machine_holds_are_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 10**9, 10**9])
    model = helper.make_model(helper.make_graph([], "g", [value], []))
    with raises_naming(ArtefactError, "536870912", "fewer"):
        random_inputs(model, 1)
