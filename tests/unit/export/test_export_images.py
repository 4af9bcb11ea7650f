from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dfqkit_export.errors import ArtefactError, CheckFailedError, DfqkitError, RuntimeUnavailableError, TargetError
from dfqkit_export.images.spec import ImageSpec

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
        ({"classes": 1}, "at least 2"),
        ({"classes": 10.0}, "at least 2"),
    ],
)
def test_bad_specifications_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        ImageSpec(**{**SPEC.to_dict(), **changes})


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
