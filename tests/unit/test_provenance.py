"""What a report warns of, before any number, and what it says of real data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.images import ImageBank
from dfqkit.run.bank_folder import BankFolder
from dfqkit.run.disclosure import measured_on, warnings_of
from dfqkit.run.provenance import synthesis
from tests._toys import IMAGE, images, toy_teacher


def recipe_of(section: str, data: str = "null") -> Recipe:
    return load_recipe("digits/dfq-w8a8-ort", [f"synthesis={section}", f"validate.data={data}"])


def found(section: str, data: str = "null") -> tuple[str, ...]:
    return warnings_of(recipe_of(section, data))


def write_set(path: Path, facts: dict[str, Any], warnings: list[str]) -> Path:
    teacher = toy_teacher("option_a")
    request = {
        "wanted": 8, "shard": 8, "image": IMAGE.to_dict(), "source": "noise",
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
    }  # fmt: skip
    with BankFolder(path, request, facts) as folder:
        folder.add(ImageBank.collect(teacher, iter([images(8)]), "noise"), {}, {"cost": 0})
        folder.finish(warnings)
    return path


def test_most_recipes_warn_of_nothing() -> None:
    assert found("{method: dfq}", "test.npz") == ()
    assert found("{method: images, path: others.npz}", "test.npz") == ()


def test_noise_warns_whole_and_in_part() -> None:
    (whole,) = found("{method: noise, accept_noise: true}")
    assert whole.startswith("Random noise took the place of images")
    (part,) = found("{sources: [{method: dfq, share: 3}, {method: noise, accept_noise: true}]}")
    assert part == f"25 % of the images: {whole}"


class TestSets:
    def test_a_set_passes_its_warnings_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_set(tmp_path / "set", {}, ["It is noise.", "2 of 10 classes have no image: 3, 4."])
        expected = ("Image set 'set': It is noise.", "Image set 'set': 2 of 10 classes have no image: 3, 4.")
        assert found(f"{{method: bank, path: {path}}}") == expected
        monkeypatch.setenv("DFQKIT_ASSETS", str(tmp_path))  # a name that is not yet a place
        assert found("{method: bank, path: set}") == expected
        mixed = found("{sources: [{method: dfq, share: 3}, {method: bank, path: set}]}")
        assert mixed == tuple(f"25 % of the images: {text}" for text in expected)

    def test_a_lone_file_of_noise_and_a_set_that_is_gone(self, tmp_path: Path) -> None:
        path = write_set(tmp_path / "set", {}, [])
        (lone,) = found(f"{{method: bank, path: {path / 'shard-00000.safetensors'}}}")
        assert "Random noise took the place of images" in lone
        (gone,) = found("{method: bank, path: nowhere}")
        assert gone == "Image set 'nowhere' could not be read again: what it warns of is not known."


class TestMeasuredOn:
    @pytest.mark.parametrize(
        "section", ["{method: images, path: test.npz}", "{sources: [{method: dfq}, {method: images, path: test.npz}]}"]
    )
    def test_images_that_both_make_and_measure_are_named(self, section: str) -> None:
        (warning,) = found(section, "test.npz")
        assert "validate.data is 'test.npz', which the synthesis section names too" in warning
        assert found(section) == ()

    @pytest.mark.parametrize("section", ["{method: images, path: PATH}", "{method: zeroq, start_from: PATH}"])
    @pytest.mark.parametrize("form", ["absolute", "dotted", "link"])
    def test_however_the_two_are_written(self, section: str, form: str, tmp_path: Path) -> None:
        recipe = recipe_of(section, "test.npz")
        assert recipe.directory is not None
        file, link = recipe.directory / "test.npz", tmp_path / "link.npz"
        link.symlink_to(file)
        written = {"absolute": str(file), "dotted": "../digits/./test.npz", "link": str(link)}[form]
        (warning,) = found(section.replace("PATH", written), "test.npz")
        assert "which the synthesis section names too" in warning
        other = tmp_path / "other.npz"
        other.write_bytes(file.read_bytes())
        assert found(section.replace("PATH", str(other)), "test.npz") == ()

    def test_torchvision_data_sets_are_the_same_by_name_and_root(self, tmp_path: Path) -> None:
        recipe = recipe_of("{method: dfq}", f"torchvision:MNIST:{tmp_path}")
        assert measured_on(recipe, f"torchvision:MNIST:{tmp_path}/../{tmp_path.name}")
        assert not measured_on(recipe, f"torchvision:CIFAR10:{tmp_path}")
        assert not measured_on(recipe, f"torchvision:MNIST:{tmp_path}/..")
        assert not measured_on(recipe, tmp_path)
        (warning,) = found(
            f"{{method: images, path: 'torchvision:MNIST:{tmp_path}/.'}}", f"'torchvision:MNIST:{tmp_path}'"
        )
        assert "names too" in warning

    def test_a_method_that_is_called_like_the_data_is_no_place(self) -> None:
        assert found("{method: dfq}", "dfq") == ()


IMAGES, NOISE = "{method: images, path: a.npz, share: 1}", "{method: noise, accept_noise: true}"


class TestRealData:
    def document(self, section: str) -> dict[str, Any]:
        context: Any = SimpleNamespace(recipe=recipe_of(section), facts=lambda _stage: {})
        return synthesis(context)

    def said(self, section: str) -> tuple[bool | None, str | None]:
        document = self.document(section)
        return document["data_free"], document["real_data"]

    @pytest.mark.parametrize(
        ("section", "real"),
        [
            ("{method: dfq}", None),
            ("{method: zeroq}", None),
            (NOISE, None),
            ("{method: procedural}", None),
            ("{method: images, path: a.npz}", "similar images"),
            ("{method: zeroq, start_from: a.npz}", "similar images as a start"),
            ("{method: metadata, records: r.safetensors}", "records of real activations"),
            (
                "{method: metadata, records: r.safetensors, start_from: a.npz}",
                "records of real activations and similar images as a start",
            ),
            (f"{{sources: [{{method: dfq}}, {NOISE}]}}", None),
            (f"{{sources: [{{method: dfq}}, {IMAGES}]}}", "similar images"),
            (f"{{sources: [{{method: dfq}}, {IMAGES.replace('share: 1', 'share: 0')}]}}", None),
            (
                f"{{sources: [{{method: metadata, records: r}}, {IMAGES}]}}",
                "records of real activations and similar images",
            ),
        ],
    )
    def test_of_every_kind_of_source(self, section: str, real: str | None) -> None:
        assert self.said(section) == (real is None, real)

    @pytest.mark.parametrize(
        ("section", "origin"),
        [
            ("{method: dfq}", None),
            ("{method: procedural}", "rules of drawing (no network involved)"),
            (NOISE, "random numbers (no network involved)"),
            (
                "{sources: [{method: dfq}, {method: procedural}]}",
                "the teacher and rules of drawing (no network involved)",
            ),
            ("{sources: [{method: dfq}, {method: zeroq}]}", None),
        ],
    )
    def test_what_else_images_are_made_from_is_named(self, section: str, origin: str | None, tmp_path: Path) -> None:
        assert self.document(section).get("made_from") == origin

    def test_a_set_names_what_its_method_does(self, tmp_path: Path) -> None:
        path = write_set(tmp_path / "set", {"real_data": None}, [])
        assert self.document(f"{{method: bank, path: {path}}}")["made_from"] == "random numbers (no network involved)"

    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            ({"real_data": None}, (True, None)),
            ({"real_data": "similar images"}, (False, "similar images")),
            ({}, (None, "unknown")),
        ],
    )
    def test_a_set_is_what_it_was_made_of(
        self, facts: dict[str, Any], expected: tuple[bool | None, str | None], tmp_path: Path
    ) -> None:
        path = write_set(tmp_path / "set", facts, [])
        assert self.said(f"{{method: bank, path: {path}}}") == expected
        assert self.said(f"{{sources: [{{method: dfq}}, {{method: bank, path: {path}}}]}}") == expected
        assert self.said(f"{{method: bank, path: {path / 'shard-00000.safetensors'}}}") == (None, "unknown")
        mixed = f"{{sources: [{IMAGES}, {{method: bank, path: {path}}}]}}"
        assert self.said(mixed) == (False, "similar images")


def test_sets_say_what_real_data_took_part(tmp_path: Path) -> None:
    from dfqkit.progress import silent
    from dfqkit.run.bank_making import BankPlan, make_bank

    section = "{method: images, path: test.npz}"
    plan = BankPlan(n=4)
    teacher = toy_digits()
    made = make_bank(recipe_of(section), tmp_path / "set", plan, device="cpu", progress=silent(), teacher=teacher)
    assert json.loads((tmp_path / "set" / "set.json").read_text())["real_data"] == "similar images"
    assert made.facts["real_data"] == "similar images"


def toy_digits() -> Any:
    from dfqkit.teacher.load import Teacher
    from dfqkit.teacher.sources import build_model

    with torch.random.fork_rng():
        return Teacher.from_module(build_model("dfqkit.models:digits_cnn", 10), recipe_of("{method: dfq}").image.spec())
