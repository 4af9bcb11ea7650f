"""The low-pass: against the whole complex spectrum in NumPy, on what it must keep and remove, and as a wrapper."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.low_pass import LowPassed, low_pass_response, low_passed
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.methods.noise import NoiseConfig
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, images, toy_teacher


def oracle(plain: np.ndarray, cutoff: float) -> np.ndarray:
    """The definition: the shifted spectrum, distances from its centre in steps."""
    height, width = plain.shape[-2:]
    spectrum = np.fft.fftshift(np.fft.fft2(plain), axes=(-2, -1))
    rows, columns = np.arange(height) - height // 2, np.arange(width) - width // 2
    distance = np.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
    filtered = np.fft.ifft2(np.fft.ifftshift(spectrum * np.exp(-(distance**2) / (2 * cutoff**2)), axes=(-2, -1)))
    assert np.abs(filtered.imag).max() < 1e-12
    return filtered.real


@pytest.mark.parametrize("size", [(16, 16), (10, 7), (7, 10), (9, 9)])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.45, 1.0])
def test_it_is_the_gaussian_of_the_distance_from_the_zero_frequency(size: tuple[int, int], share: float) -> None:
    spec = ImageSpec(shape=(3, *size), mean=IMAGE.mean, std=IMAGE.std, classes=5)
    batch = images(4, image=spec)
    plain = spec.denormalize(batch).double().numpy()
    expected = oracle(plain, share * min(size)).clip(0, 1)
    found = low_passed(batch, low_pass_response(*size, share * min(size)), spec)
    assert np.abs(spec.denormalize(found).double().numpy() - expected).max() < 1e-5


def test_a_constant_stays_and_a_checkerboard_goes() -> None:
    response = low_pass_response(16, 16, 0.2 * 16)
    flat = IMAGE.normalize(torch.full((1, 3, 16, 16), 0.3))
    assert torch.allclose(low_passed(flat, response, IMAGE), flat, atol=1e-6)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    filtered = IMAGE.denormalize(low_passed(IMAGE.normalize(board.float().expand(1, 3, 16, 16)), response, IMAGE))
    left = 0.5 * np.exp(-2 * 8**2 / (2 * 3.2**2))  # all of it is at the corner (8, 8) of the spectrum
    assert (filtered - 0.5).abs().numpy() == pytest.approx(left, rel=1e-2)
    assert left < 0.001


def test_what_overshoots_is_cut_off_at_the_bounds_of_each_channel() -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1.0
    assert oracle(edge.double().numpy(), 16.0).max() > 1.003
    found = IMAGE.denormalize(low_passed(IMAGE.normalize(edge), low_pass_response(16, 16, 16.0), IMAGE))
    assert -1e-6 < float(found.min()) < float(found.max()) < 1 + 1e-6


def built(low_pass: float | None, seed: int = 0) -> Synthesizer:
    config = DFQConfig(generators=1, batch=8, latent=4, width=4, warmup=2, memory=4, low_pass=low_pass)
    return build_synthesizer(config, toy_teacher(), derive(seed), Demand(training=8, fresh=8))


@pytest.mark.parametrize("draw", ["sample", "training_batch"])
def test_every_image_that_is_drawn_is_filtered_and_nothing_else_changes(draw: str) -> None:
    wrapped, plain = built(0.3), built(None)
    assert isinstance(wrapped, LowPassed)
    assert not isinstance(plain, LowPassed)
    assert wrapped.synthesize() == plain.synthesize()
    drawn: Tensor = getattr(wrapped, draw)(6)
    expected = low_passed(getattr(plain, draw)(6), low_pass_response(16, 16, 0.3 * 16), IMAGE)
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, getattr(built(None), draw)(6))


def test_all_else_is_the_synthesizers_own() -> None:
    wrapped = built(0.3)
    assert isinstance(wrapped, LowPassed)
    made = wrapped.made
    wrapped.synthesize()
    assert wrapped.cost == made.cost == 8
    assert wrapped.warmup_rounds == made.warmup_rounds == 2
    assert wrapped.available is None
    assert wrapped.warmed == 1
    assert wrapped.rng is made.rng
    assert wrapped.config is made.config
    with pytest.raises(AttributeError, match="no_such"):
        _ = wrapped.no_such
    assert torch.equal(copy.copy(wrapped).response, wrapped.response)


def test_state_goes_through() -> None:
    first, second = built(0.3), built(0.3, seed=9)
    first.synthesize()
    second.load_state_dict(first.state_dict())
    assert first.synthesize() == second.synthesize()
    assert torch.equal(first.sample(4), second.sample(4))
    assert second.cost == 16


def test_a_warning_goes_through() -> None:
    config = NoiseConfig(accept_noise=True, low_pass=0.1)
    wrapped = build_synthesizer(config, toy_teacher(), derive(0), Demand())
    assert wrapped.config.warnings()
