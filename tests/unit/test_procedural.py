"""Drawn images: each rule alone against what it says, any shape, seeds and state, and that no network takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import NO_DEMAND
from dfqkit.seeds import derive
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.scenes import Scenery, draw_scenes
from dfqkit.teacher.load import Teacher
from dfqkit_export.images.spec import ImageSpec

BARE = {"leaves": (0, 0), "amplitude": (0.0, 0.0), "gradients": 0.0, "strokes": 0.0, "fractals": 0.0}


def drawn(n: int, shape: tuple[int, int, int], seed: int = 0, **options: object) -> Tensor:
    scenery = Scenery(**{**BARE, **options})  # type: ignore[arg-type]
    return draw_scenes(n, shape, derive(seed, "scenes"), scenery)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 61), (16, 40, 100), (4, 37, 13), (3, 416, 320)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    images = draw_scenes(6, shape, derive(0), Scenery(strokes=1.0, fractals=1.0))
    assert images.shape == (6, *shape)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < 0.2
    assert 0.8 < float(images.max()) <= 1
    assert float(images.flatten(1).std(1).min()) > 0.03
    assert draw_scenes(0, shape, derive(0), Scenery()).shape == (0, *shape)


def test_neighbours_are_alike_and_channels_too_as_in_natural_images() -> None:
    images = draw_scenes(12, (3, 96, 96), derive(0), Scenery())
    centred = images - images.mean((2, 3), keepdim=True)
    spread = centred.square().mean()
    assert float((centred[..., 1:] * centred[..., :-1]).mean() / spread) > 0.7
    assert float((centred[:, 0] * centred[:, 1]).mean() / spread) > 0.2


@pytest.mark.parametrize("exponent", [0.8, 1.6])
def test_a_textures_spectrum_falls_as_a_power_of_frequency(exponent: float) -> None:
    images = drawn(8, (1, 128, 128), amplitude=(0.02, 0.02), spectrum=(exponent, exponent)).double().numpy()
    assert np.median(images.std((1, 2, 3))) == pytest.approx(0.018, abs=0.004)  # 0.7 to 1 of it, and a little tint
    inside = images[(images > 0.01).all((1, 2, 3)) & (images < 0.99).all((1, 2, 3))]
    power = np.square(np.abs(np.fft.fft2(inside - inside.mean((2, 3), keepdims=True)))).mean((0, 1))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    rings = [(frequency >= low) & (frequency < 1.4 * low) for low in 0.03 * 1.4 ** np.arange(7)]
    x = [np.log(frequency[ring]).mean() for ring in rings]
    slope = np.polyfit(x, [np.log(power[ring].mean()) / 2 for ring in rings], 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_a_gradient_is_a_plane() -> None:
    flat, leaning = drawn(4, (2, 32, 48)), drawn(4, (2, 32, 48), gradients=1.0)
    assert torch.equal(flat, flat[..., :1, :1].expand_as(flat))
    assert float((leaning[..., 0, 0] - leaning[..., -1, -1]).abs().max()) > 0.1
    free = ((leaning > 0) & (leaning < 1)).all(1, keepdim=True).expand_as(leaning)
    bend = leaning[..., 2:] - 2 * leaning[..., 1:-1] + leaning[..., :-2]
    assert float((bend * free[..., 2:] * free[..., :-2]).abs().max()) < 1e-5


def test_leaves_hide_each_other_and_are_of_many_sizes() -> None:
    for image in drawn(6, (3, 96, 96), leaves=(30, 30)):
        colours, counts = torch.unique(image.flatten(1), dim=1, return_counts=True)
        assert 10 < colours.shape[1] <= 31
        assert counts.max() > 20 * counts.min()
    assert len(torch.unique(drawn(1, (3, 96, 96), leaves=(1, 1)).flatten(2), dim=2)[0, 0]) <= 2


@pytest.mark.parametrize("option", ["strokes", "fractals"])
def test_what_is_laid_over_leaves_room(option: str) -> None:
    share = []
    for image in drawn(8, (3, 64, 64), **{option: 1.0}):
        colours, counts = torch.unique((image * 255).round().flatten(1), dim=1, return_counts=True)
        assert colours.shape[1] > 2  # ground, ink and what lies between them
        share.append(float(counts.max()) / 64**2)
    assert 0.3 < np.mean(share) < 0.99
    none = drawn(200, (1, 8, 8), **{option: 0.3})
    assert 0.15 < np.mean([len(torch.unique(image)) > 1 for image in none]) < 0.45


def test_it_takes_any_teacher_and_only_its_image() -> None:
    image = ImageSpec(shape=(2, 12, 20), mean=(0.2, 0.7), std=(0.1, 0.3), classes=3)
    bare = Teacher.from_module(nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), image, "bare")
    config = ProceduralConfig(strokes=0.5)
    made = build_synthesizer(config, bare, derive(1, "a"), NO_DEMAND)
    plain = draw_scenes(5, image.shape, derive(1, "a"), Scenery(strokes=0.5))
    assert torch.equal(made.training_batch(5), image.normalize(plain))
    state = made.state_dict()
    expected = made.sample(3)
    other = build_synthesizer(config, bare, derive(2, "b"), NO_DEMAND)
    assert not torch.equal(other.sample(3), expected)
    other.load_state_dict(state)
    assert torch.equal(other.sample(3), expected)
    assert (made.warmup_rounds, made.cost, made.available, made.synthesize()) == (0, 0, None, {})


@pytest.mark.parametrize(
    "fields",
    [{"leaves": (5, 2)}, {"leaves": (-1, 2)}, {"amplitude": (0.2, 0.1)}, {"spectrum": (2, 1)}, {"strokes": 1.5}],
)
def test_what_cannot_be_drawn_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        ProceduralConfig(**fields)  # type: ignore[arg-type]
