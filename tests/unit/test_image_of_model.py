"""What images a library's model takes is known by itself where a recipe, a command or a caller does not say it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from dfqkit.config.image_of_model import image_values, spec_values
from dfqkit.config.reading import parse_recipe, recipe_from
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def recipe(factory: str, **more: Any) -> dict[str, Any]:
    teacher = {"factory": factory, **more.pop("teacher", {})}
    return {"name": "r", "why": "w", "teacher": teacher, "synthesis": {"method": "dfq"}, **more}


def test_torchvision(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = recipe_from(recipe("torchvision:resnet18", validate={"data": "folder"}), "r")
    assert (found.image.spec().mean, found.image.spec().std) == IMAGENET
    assert (found.image.shape, found.image.classes) == ((3, 224, 224), 1000)
    assert (found.validation.resize, found.validation.crop) == (256, 224)
    assert found.image.filled_from == "torchvision:resnet18 (shape, mean, std, classes)"
    assert "torchvision:resnet18" in caplog.text
    assert "image.mean [0.485, 0.456, 0.406]" in caplog.text
    assert parse_recipe(found.to_yaml(), "again") == found


def test_what_the_recipe_says_stays() -> None:
    image = {"shape": [3, 64, 64], "mean": [0.1, 0.2, 0.3]}
    found = recipe_from(recipe("torchvision:resnet18", image=image, validate={"data": "a.npz"}), "r").image
    assert (found.shape, found.mean, found.std) == ((3, 64, 64), (0.1, 0.2, 0.3), IMAGENET[1])
    whole = {**image, "std": [1, 1, 1], "classes": 5}
    assert recipe_from(recipe("torchvision:resnet18", image=whole), "r").image.filled_from is None


def test_the_file_of_the_weights_tells_how_they_were_trained() -> None:
    first, second = (
        image_values("torchvision:mobilenet_v2", {}, name)
        for name in ("mobilenet_v2-b0353104.pth", "x/mobilenet_v2-7ebf99e0.pth")
    )
    assert (first["resize"], second["resize"]) == (256, 232)


def test_arguments_of_the_factory_count() -> None:
    assert image_values("torchvision:resnet18", {"num_classes": 7})["classes"] == 7
    assert image_values("torchvision:resnet18", {"in_chans": 1}) == {"classes": 1000}


@pytest.mark.parametrize("factory", ["torchvision:nothing", "dfqkit.models:digits_cnn", "nonsense"])
def test_of_others_nothing_is_known_and_the_recipe_lacks_it(factory: str) -> None:
    with raises_naming(RecipeError, "image"):
        recipe_from(recipe(factory), "r")


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    found = recipe_from(recipe("timm:vit_tiny_patch16_224", teacher={"args": {"num_classes": 7}}), "r").image.spec()
    assert found == ImageSpec(shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, classes=7)
    with torch.device("meta"):
        model, grey = (timm.create_model("resnet18", num_classes=5, in_chans=channels) for channels in (3, 1))
    known = spec_values(model)
    assert known is not None
    assert ImageSpec(**known) == ImageSpec(shape=(3, 224, 224), mean=IMAGENET[0], std=IMAGENET[1], classes=5)
    assert spec_values(grey) is None
    assert spec_values(torch.nn.Linear(1, 1)) is None
