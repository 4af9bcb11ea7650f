"""Noise: its distribution and bounds, that it is never there by accident, and that it warns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dfqkit.config.reading import load_recipe
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.noise import NoiseConfig
from dfqkit.synthesis.methods.noise.method import Noise
from dfqkit_export.errors import RecipeError
from tests._messages import raises_naming
from tests._toys import IMAGE, toy_teacher


def make(seed: int = 0, **options: object) -> Noise:
    return Noise(NoiseConfig(accept_noise=True, **options), toy_teacher(), derive(seed, "noise"))  # type: ignore[arg-type]


def test_gaussian_noise_is_standard_normal_cut_off_at_each_channels_bounds() -> None:
    drawn = make().sample(400).double().numpy()
    for channel, (mean, std) in enumerate(zip(IMAGE.mean, IMAGE.std, strict=True)):
        low, high = -mean / std, (1 - mean) / std
        values = drawn[:, channel].ravel()
        assert values.min() == pytest.approx(low, abs=1e-6)
        assert values.max() == pytest.approx(high, abs=1e-6)
        inside = np.sort(np.random.default_rng(0).standard_normal(len(values)).clip(low, high))
        assert np.abs(np.sort(values) - inside).mean() < 0.02


def test_uniform_noise_has_every_pixel_value_alike() -> None:
    plain = IMAGE.denormalize(make(kind="uniform").sample(200)).double().numpy()
    counts, _ = np.histogram(plain, bins=8, range=(0, 1))
    assert counts.sum() == plain.size
    assert np.abs(counts / counts.mean() - 1).max() < 0.03


def test_seeds_and_state() -> None:
    first, same, other = make(0), make(0), make(1)
    assert torch.equal(first.training_batch(5), same.training_batch(5))
    state = first.state_dict()
    expected = first.sample(5)
    assert not torch.equal(expected, other.sample(5))
    other.load_state_dict(state)
    assert torch.equal(other.sample(5), expected)
    assert (first.warmup_rounds, first.cost, first.available, first.synthesize()) == (0, 0, None, {})


@pytest.mark.parametrize("fields", [{}, {"accept_noise": False}, {"kind": "uniform"}])
def test_it_has_to_be_accepted_in_so_many_words(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"accept_noise.*\n.*true.*dfq"):
        NoiseConfig(**fields)  # type: ignore[arg-type]
    with raises_naming(RecipeError, "synthesis.accept_noise", "true"):
        load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: noise}"])


def test_it_warns() -> None:
    (warning,) = NoiseConfig(accept_noise=True).warnings()
    assert "baseline" in warning
