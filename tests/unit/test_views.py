"""Views of images: windows against torch's own padding and resizing, gradients, and what the generator decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfqkit.synthesis.augmentation import cropped, shifted, usual_shift
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, images

NARROW = ImageSpec(shape=(1, 10, 7), mean=(0.3,), std=(0.3,), classes=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def black_padded(x: Tensor, by: int, image: ImageSpec) -> Tensor:
    plain = torch.nn.functional.pad(image.denormalize(x), [by] * 4)
    height, width = x.shape[2] + 2 * by, x.shape[3] + 2 * by
    return (
        (plain - torch.tensor(image.mean)[:, None, None])
        .div(torch.tensor(image.std)[:, None, None])
        .reshape(len(x), -1, height, width)
    )


@pytest.mark.parametrize("image", [IMAGE, NARROW], ids=["square", "narrow"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_shift_is_a_window_of_the_padded_image(image: ImageSpec, flip: bool) -> None:
    x = images(40, image=image)
    seen = shifted(x, image, 2, rng(), flip=flip)
    padded = black_padded(x, 2, image)
    _, height, width = image.shape
    places, mirrors = set(), set()
    for one, whole in zip(seen, padded, strict=True):
        for down in range(5):
            for right in range(5):
                window = whole[:, down : down + height, right : right + width]
                for mirrored in (False, True):
                    if torch.allclose(one, window.flip(2) if mirrored else window, atol=1e-5):
                        places.add((down, right))
                        mirrors.add(mirrored)
    assert len(places) > 12
    assert mirrors == ({False, True} if flip else {False})


def test_no_shift_changes_no_bit() -> None:
    x = images(4)
    assert torch.equal(shifted(x, IMAGE, 0, rng(), flip=False), x)


def test_a_crop_is_what_torch_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of rows 2 to 10 and columns 4 to 12, enlarged: torch's bilinear resizing of the same piece."""
    x = images(1)
    # Of the four draws: area 1/4, aspect 1, and the place as a share of what is free.
    draws = torch.tensor([[0.0], [0.5], [2 / 8], [4 / 8]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    seen = cropped(x, 0.25, rng(), flip=False)
    expected = torch.nn.functional.interpolate(x[:, :, 2:10, 4:12], size=(16, 16), mode="bilinear", align_corners=False)
    # A window's inner edge sees the pixel beyond it, where a piece that was cut out repeats its last.
    assert torch.allclose(seen[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)


def test_a_crop_stays_inside() -> None:
    ramp = torch.linspace(0, 1, 7).expand(200, 1, 10, 7)
    seen = cropped(ramp, 0.25, rng(), flip=False)
    assert seen.min() >= 0
    assert seen.max() <= 1
    spans = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]
    assert float(spans.min()) > 0.25
    assert float(spans.max()) > 0.95
    assert (cropped(ramp, 0.25, rng(), flip=True)[:, 0, 0, -1] < seen.mean()).any(), "nothing was mirrored"


def test_gradients_reach_every_image() -> None:
    x = images(6).requires_grad_()
    (shifted(x, IMAGE, 2, rng(), flip=True).sum() + cropped(x, 0.5, rng(), flip=True).sum()).backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_one_generator_decides() -> None:
    x = images(8)
    before = torch.get_rng_state()
    for view in (lambda g: shifted(x, IMAGE, 2, g, flip=True), lambda g: cropped(x, 0.25, g, flip=True)):
        assert torch.equal(view(rng(1)), view(rng(1)))
        assert not torch.equal(view(rng(1)), view(rng(2)))
    assert torch.equal(before, torch.get_rng_state())


def test_usual_shift() -> None:
    sizes = {(1, 16, 16): 2, (3, 32, 32): 4, (1, 10, 7): 1, (3, 224, 224): 28}
    for shape, expected in sizes.items():
        mean = (0.5,) * shape[0]
        assert usual_shift(ImageSpec(shape=shape, mean=mean, std=mean, classes=2)) == expected
