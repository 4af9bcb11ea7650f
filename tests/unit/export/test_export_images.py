from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from dfqkit_export.errors import (
    ArtefactError,
    CheckFailedError,
    DfqkitError,
    RecipeError,
    RuntimeUnavailableError,
    TargetError,
)
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming

SPEC = ImageSpec(shape=(3, 4, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5), classes=10)


def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)


def test_normalize_matches_the_formula_channel_by_channel() -> None:
    x = images()
    y = SPEC.normalize(x)
    for channel in range(3):
        expected = (x[:, channel].astype(np.float64) - SPEC.mean[channel]) / SPEC.std[channel]
        np.testing.assert_allclose(y[:, channel], expected, rtol=1e-5, atol=1e-6)
    assert y.dtype == np.float32


def test_denormalize_inverts_normalize() -> None:
    x = images()
    np.testing.assert_allclose(SPEC.denormalize(SPEC.normalize(x)), x, atol=1e-6)


def test_torch_and_numpy_give_the_same_bits() -> None:
    x = images()
    y = SPEC.normalize(torch.from_numpy(x))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), SPEC.normalize(x))
    np.testing.assert_array_equal(SPEC.denormalize(y).numpy(), SPEC.denormalize(SPEC.normalize(x)))


def test_normalize_keeps_gradient_and_dtype_of_tensors() -> None:
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = SPEC.normalize(x)
    assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[0, :, 0, 0].numpy(), 1 / np.array(SPEC.std))


def test_bounds_are_the_extremes_over_channels() -> None:
    ends = [SPEC.normalize(np.full((1, 3, 4, 5), v)) for v in (0.0, 1.0)]
    assert SPEC.bounds() == pytest.approx((min(e.min() for e in ends), max(e.max() for e in ends)))


def test_dict_round_trip_accepts_lists() -> None:
    assert ImageSpec.from_dict(SPEC.to_dict()) == SPEC
    assert hash(ImageSpec.from_dict(SPEC.to_dict())) == hash(SPEC)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (3, 0, 5)}, "shape"),
        ({"shape": (3, 4)}, "shape"),
        ({"shape": (3, 4.5, 5)}, "integers"),
        ({"mean": (0.5,)}, "1 value"),
        ({"std": (0.2, 0.0, 0.2)}, "above zero"),
        ({"std": (0.2, float("nan"), 0.2)}, "finite"),
        ({"mean": "abc"}, "numbers"),
        ({"mean": 0.5}, "numbers"),
        ({"classes": 1}, "tells 2 classes apart"),
        ({"classes": 10.0}, "at least 2"),
    ],
)
def test_bad_specifications_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        ImageSpec(**{**SPEC.to_dict(), **changes})


class TestPixels:
    """Pixel range and channel order have one meaning: images outside of the network are RGB on [0, 1]."""

    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_range_and_order_are_those_of_the_network(self, kind: Any) -> None:
        mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
        spec = ImageSpec(shape=(3, 4, 5), mean=mean, std=std, pixel_range=255, channels="BGR")
        x = images()
        taken = np.asarray(spec.normalize(kind(x)))
        for place, colour in enumerate((2, 1, 0)):
            expected = (255 * x[:, colour].astype(np.float64) - mean[place]) / std[place]
            np.testing.assert_allclose(taken[:, place], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.asarray(spec.denormalize(kind(taken))), x, atol=1e-6)
        low, high = spec.bounds()
        assert low <= taken.min() < taken.max() <= high
        assert spec.plain_moments()[0] == pytest.approx((0.485, 0.456, 0.406))
        assert ImageSpec.from_dict(spec.to_dict()) == spec

    def test_the_same_images_give_the_same_input_however_they_are_stated(self) -> None:
        x = images()
        scaled = ImageSpec(
            shape=(3, 4, 5),
            pixel_range=255,
            mean=[255 * m for m in SPEC.mean],
            std=[255 * s for s in SPEC.std],
            classes=10,
        )
        np.testing.assert_allclose(scaled.normalize(x), SPEC.normalize(x), rtol=1e-5, atol=1e-6)

    def test_defaults_are_left_out_so_that_older_files_stay_equal(self) -> None:
        assert set(SPEC.to_dict()) == {"shape", "mean", "std", "classes"}

    @pytest.mark.parametrize(
        ("changes", "facts"),
        [
            ({"mean": (127.5,) * 3, "std": (58,) * 3}, ("mean (127.5", "0 to 1", "0.5", "pixel_range: 255")),
            ({"std": (58.4, 57.1, 57.4)}, ("std (58.4", "0.229")),
            ({"mean": (-0.1, 0, 0)}, ("mean (-0.1",)),
            ({"mean": (300, 0, 0), "pixel_range": 255}, ("mean (300", "0 to 255")),
            ({"pixel_range": 255}, ("mean (0.4", "102", "pixel_range")),
            ({"pixel_range": 65535}, ("65535", "1, 255")),
            ({"pixel_range": True}, ("True", "1, 255")),
            ({"channels": "GBR"}, ("GBR", "RGB, BGR")),
            ({"layout": "HWCN"}, ("HWCN", "NCHW, NHWC")),
            ({"dtype": "int8"}, ("int8", "float32, uint8")),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_with_what_was_meant(
        self, changes: dict[str, Any], facts: tuple[str, ...]
    ) -> None:
        with raises_naming(ArtefactError, *facts):
            ImageSpec(**{**SPEC.to_dict(), **changes})

    def test_grey_images_have_no_order(self) -> None:
        with raises_naming(ArtefactError, "BGR", "1 channel"):
            ImageSpec(shape=(1, 4, 5), mean=(0.5,), std=(0.5,), channels="BGR")

    @pytest.mark.parametrize("mean", [(0.0,) * 3, (123.675, 116.28, 103.53)])
    def test_a_network_of_plain_pixels(self, mean: tuple[float, ...]) -> None:
        spec = ImageSpec(shape=(3, 4, 5), mean=mean, std=(1.0,) * 3, pixel_range=255)
        np.testing.assert_allclose(
            spec.normalize(images()), 255 * images() - np.reshape(mean, (3, 1, 1)), rtol=1e-4, atol=1e-4
        )

    def test_recipes_and_commands_refuse_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        with raises_naming(RecipeError, "image", "127.5", "0.5", "pixel_range: 255"):
            load_recipe("digits/dfq-w8a8-ort", ["image.mean=[127.5]", "image.std=[58]"])
        found = load_recipe("digits/dfq-w8a8-ort", ["image.mean=[76]", "image.std=[81]", "image.pixel_range=255"])
        assert found.image.spec().pixel_range == 255
        assert "pixel_range: 255" in found.to_yaml()
        assert "pixel_range" not in load_recipe("digits/dfq-w8a8-ort").to_yaml()
        model = ["--factory", "dfqkit.models:digits_cnn", "--shape", "1,16,16", "--classes", "10"]
        assert main(["inspect", *model, "--mean", "127.5", "--std", "58"]) == 2
        assert "127.5" in capsys.readouterr().err


def test_missing_and_unknown_keys_are_named() -> None:
    values = SPEC.to_dict()
    del values["std"]
    with pytest.raises(ArtefactError, match=r"missing \['std'\], unknown \['stdev'\]"):
        ImageSpec.from_dict({**values, "stdev": [1]})


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 1, 4, 5), np.float32), "found"),
        (np.zeros((3, 4, 5), np.float32), "found"),
        (np.zeros((2, 3, 4, 5), np.uint8), "255"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "255"),
        (None, "NoneType"),
    ],
)
def test_wrong_images_are_refused(x: Any, words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        SPEC.normalize(x)


def test_exit_codes() -> None:
    assert (TargetError.exit_code, ArtefactError.exit_code) == (2, 2)
    assert (RuntimeUnavailableError.exit_code, CheckFailedError.exit_code) == (3, 1)
    assert issubclass(RuntimeUnavailableError, DfqkitError)
    assert issubclass(CheckFailedError, DfqkitError)
