"""Recipes: what is refused and in which words, overrides, where files are looked up, and what the digest covers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfqkit.config.files import find_file, find_recipe, library, list_recipes
from dfqkit.config.reading import load_recipe, parse_recipe
from dfqkit.config.recipe import Recipe
from dfqkit_export.errors import RecipeError, TargetError
from tests._messages import names, raises_naming

SMALLEST: dict[str, Any] = {
    "schema": 1,
    "name": "a/b",
    "why": "a test - with ümlauts: and colons",
    "teacher": {"factory": "dfqkit.models:digits_cnn"},
    "image": {"shape": [1, 16, 16], "mean": [0.3], "std": [0.32], "classes": 10},
    "synthesis": {"method": "dfq"},
}


def parse(*overrides: str, **sections: Any) -> Recipe:
    return parse_recipe(yaml.safe_dump(SMALLEST | sections), "a.yaml", overrides)


def refused(*overrides: str, **sections: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(*overrides, **sections)
    return str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "near"),
        [
            ("distil.steps=3", "distill"),
            ("validation.limit=3", "validate"),
            ("teacher.weight=x", "weights"),
            ("image.clases=3", "classes"),
            ("bank.batsch=3", "batch"),
            ("quant.bit=w4a4", "bits"),
            ("distill.step=3", "steps"),
            ("distill.weights.responce=1", "response"),
            ("synthesis.warm_up=3", "warmup"),
            ("synthesis.weights.adversary=1", "adversarial"),
            ("floors=[{metric: top1, valu: 1, value: 1}]", "value"),
        ],
    )
    def test_an_unknown_key_is_named_with_the_nearest_at_every_depth(self, override: str, near: str) -> None:
        text = refused(override)
        path = override.partition("=")[0].replace("distil.steps", "distil").replace("validation.limit", "validation")
        assert path.replace("floors", "floors.0.valu") + ": unknown key" in text
        assert f"Did you mean '{near}'?" in text

    @pytest.mark.parametrize("value", ["dfq", "[dfq]", "3", "null"])
    def test_an_unknown_key_beside_a_section_that_is_no_section(self, value: str) -> None:
        text = refused(f"synthesis={value}", "nothing=1")
        assert "synthesis: must be a section" in text
        assert "nothing: unknown key" in text

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("distill.steps=many", "distill.steps: must be a valid integer"),
            ("distill.lr=0", "distill.lr: must be greater than 0 (found 0)"),
            ("distill.lr=.inf", "distill.lr: must be a finite number"),
            ("synthesis.weights.bn=.nan", "synthesis.weights.bn: must be"),
            ("floors=[{metric: top1, value: .nan}]", "floors.0.value: must be a finite number"),
            ("quant=w4a4", "quant: must be a section, keys with values (found 'w4a4')"),
            ("bank=null", "bank: must be a section"),
            ("image.shape=[3, 32]", "image.shape.2: is missing"),
            ("teacher={}", "teacher.factory: is missing"),
            ("schema=2", "schema: must be 1 (found 2)"),
            ("seed=-1", "seed: must be greater than or equal to 0 (found -1)"),
            ("quant.bits=w1a8", "quant.bits: 'w1a8' must be w<weights>a<activations> with 2 to 8 bits each"),
            ("distill.partners=[w3a3, w9a9]", "distill.partners.1: 'w9a9' must be w<weights>a<activations>"),
            ("synthesis={}", "synthesis: needs a method, e.g. method: dfq"),
        ],
    )
    def test_a_wrong_value_says_where_what_and_what_is_allowed(self, override: str, line: str) -> None:
        assert line in refused(override)

    def test_a_game_without_loss_is_refused_before_any_compute(self) -> None:
        assert "distill.weights: all are 0" in refused("distill.weights={response: 0, feature: 0}")

    def test_all_faults_come_at_once_with_the_overrides_that_made_them(self) -> None:
        text = refused("quant.bit=w4a4", "seed=x")
        assert "'a.yaml' with --set quant.bit=w4a4 --set seed=x" in text
        assert len([line for line in text.splitlines() if line.startswith("  ")]) == 2

    def test_a_long_value_is_not_repeated_whole(self) -> None:
        assert len(refused("seed=" + "x" * 5000).splitlines()[1]) < 200

    def test_unknown_method_and_target_come_with_the_nearest(self) -> None:
        with raises_naming(RecipeError, "dqf", "did you mean 'dfq'"):
            parse("synthesis.method=dqf")
        with pytest.raises(RecipeError, match=r"Did you mean 'onnxruntime'"):
            parse("target=onnxruntim")

    @pytest.mark.parametrize("field", ["quant.bits=w8a8", "distill.partners=[w8a8]"])
    def test_bits_that_the_target_cannot_do(self, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from dataclasses import replace

        from dfqkit_export.backends import DEFAULT_TARGET, all_targets

        narrow = replace(DEFAULT_TARGET, name="narrow", weights=replace(DEFAULT_TARGET.weights, bits=(4,)))
        known = all_targets() | {"narrow": narrow}
        monkeypatch.setattr("dfqkit_export.backends.all_targets", lambda: known)
        assert parse("target=narrow", "quant.bits=w4a8", "quant.first_last=4").target == "narrow"
        with raises_naming(TargetError, "narrow", "8-bit weights", "4 bits"):
            parse("target=narrow", "quant.bits=w4a8", "quant.first_last=4", field)

    def test_images_that_contradict_themselves(self) -> None:
        with raises_naming(RecipeError, "mean has 2", "1 channel"):
            parse("image.mean=[0.1, 0.2]")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "a: !!python/object/apply:os.system ['touch hacked']",
                "not valid YAML: 'python/object/apply:os.system' is not read here",
            ),
            ("a: !!python/name:os.system", "not valid YAML"),
            ("a: [", "not valid YAML"),
            ("- a", "must be a mapping of sections, found list"),
            ("", "must be a mapping of sections, found NoneType"),
            ("{1: 2}", "1: Keys should be strings"),
        ],
    )
    def test_text_that_is_no_recipe(self, text: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RecipeError, match=r"b.yaml") as caught:
            parse_recipe(text, "b.yaml")
        assert message in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(RecipeError, match=r"Cannot read recipe '.*a.yaml'.*UTF-8"):
            load_recipe(tmp_path / "a.yaml")


class TestTargets:
    def test_one_name_is_a_name_and_several_are_a_list(self) -> None:
        one, listed = parse("target=openvino"), parse("target=[openvino]")
        assert one == listed
        assert (one.target, one.targets) == ("openvino", ("openvino",))
        assert yaml.safe_load(one.to_yaml())["target"] == "openvino"
        several = parse("target=[openvino, onnxruntime]")
        assert several.targets == ("openvino", "onnxruntime")
        assert yaml.safe_load(several.to_yaml())["target"] == ["openvino", "onnxruntime"]
        assert parse_recipe(several.to_yaml(), "again") == several

    def test_a_run_of_several_is_refused_with_what_to_do(self) -> None:
        with raises_naming(RecipeError, "2 targets", "openvino", "onnxruntime", "--set target=openvino"):
            _ = parse("target=[openvino, onnxruntime]").target

    def test_every_name_is_checked(self) -> None:
        with raises_naming(RecipeError, "onnxruntim", "Did you mean 'onnxruntime'"):
            parse("target=[openvino, onnxruntim]")
        names(refused("target=[openvino, openvino]"), "target", "'openvino' is named twice")
        names(refused("target=[]"), "target", "at least 1")
        names(refused("target=3"), "target", "must be a list", "found 3")


class TestTask:
    def test_it_is_left_out_while_it_is_the_default(self) -> None:
        for override in ("task=classification", "task={name: classification}"):
            assert parse(override) == parse()
        assert "task" not in parse().to_yaml()

    @pytest.mark.parametrize("override", ["task=classificatoin", "task={name: classificatoin}"])
    def test_an_unknown_one_comes_with_the_nearest(self, override: str) -> None:
        names(refused(override), "task: ", "classificatoin", "Did you mean 'classification'")

    def test_its_section_is_checked(self) -> None:
        names(refused("task={name: classification, classes: 3}"), "task.classes: unknown key", "Allowed here: name")
        names(refused("task={}"), "task: needs a name")

    @pytest.mark.parametrize("place", ["no_such_module:Thing", "dfqkit_export.words:some", "broken_task:Task"])
    def test_one_of_a_broken_package_is_left_out_and_named_where_it_is_asked_for(
        self, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from dfqkit.config import task
        from dfqkit_export.tasks import lookup

        (tmp_path / "broken_task.py").write_text("raise RuntimeError('built for another version')")
        monkeypatch.syspath_prepend(str(tmp_path))
        known = task.task_names()
        for module in (task, lookup):
            monkeypatch.setattr(module, "task_names", lambda: {**known, "odd": place})
        with raises_naming(RecipeError, "odd", place):
            task.task_section("odd")
        Recipe.model_rebuild(force=True)  # which asks for all tasks
        assert "odd" in caplog.text
        assert parse("task=classification") == parse()

    def test_classes_are_missing_where_the_task_has_some(self) -> None:
        image = {key: value for key, value in SMALLEST["image"].items() if key != "classes"}
        names(refused(image=image, task="classification"), "image.classes: is missing")
        assert parse(image=image).named_task() is None, "the outputs tell"


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "path", "expected"),
        [
            ("distill.steps=7", "distill.steps", 7),
            ("distill.lr=1e-3", "distill.lr", 1e-3),  # text in YAML 1.1, a number to us
            ("distill.flip=true", "distill.flip", True),
            ("distill.partners=[w3a3, w2a2]", "distill.partners", ("w3a3", "w2a2")),
            ("distill.weights={feature: 2}", "distill.weights.feature", 2.0),
            ("distill.weights.feature=2", "distill.weights.feature", 2.0),
            ("quant.first_last=null", "quant.first_last", None),
            ("distill=null", "distill", None),
            ("validate.data=a=b.npz", "validation.data", "a=b.npz"),
            ("teacher.args={depth: 3}", "teacher.args", {"depth": 3}),
        ],
    )
    def test_values_are_typed_as_in_yaml(self, override: str, path: str, expected: object) -> None:
        value: Any = parse(override)
        for part in path.split("."):
            value = getattr(value, part)
        assert value == expected

    def test_a_section_that_is_null_becomes_one(self) -> None:
        assert parse("distill.steps=7", distill=None).distill.steps == 7  # type: ignore[union-attr]

    @pytest.mark.parametrize("value", ["[1", "a: b: c", "!!python/object/apply:os.getcwd []"])
    def test_a_value_that_is_no_yaml(self, value: str) -> None:
        with raises_naming(RecipeError, "--set why=", "YAML"):
            parse(f"why={value}")

    def test_the_last_one_wins(self) -> None:
        assert parse("seed=1", "seed=2").seed == 2

    def test_into_a_value(self) -> None:
        text = refused("quant.bits.deep.er=3", quant={"bits": "w4a4"})
        names(text, "'bits'", "'w4a4'", "--set quant.bits=")
        assert "--set floors=..." in refused("floors.0.value=3", floors=[])

    @pytest.mark.parametrize("override", ["steps", "=3", ""])
    def test_without_a_key_or_a_value(self, override: str) -> None:
        assert "--set takes section.key=value" in refused(override)


class TestWhere:
    def test_every_shipped_recipe_loads_under_its_own_name_and_survives_a_round_trip(self) -> None:
        names = list_recipes()
        assert {"digits/dfq-w8a8-ort", "digits/dfq-w4a4-ort", "cifar10-resnet20/dfq-w4a4-ort"} <= set(names)
        assert len(names) == len([path for path in library().rglob("*.yaml") if path.is_file()])
        for name, path in names.items():
            recipe = load_recipe(name)
            assert recipe.name == name
            assert recipe.directory == path.parent
            again = parse_recipe(recipe.to_yaml(), "again").found_in(recipe.directory)
            assert again == recipe
            assert again.digest() == recipe.digest()

    @pytest.mark.parametrize("name", ["a", "a.yaml", "folder/a", "./folder/a.yaml"])
    def test_a_file_with_or_without_its_ending(self, name: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        for folder in (tmp_path, tmp_path / "folder"):
            (folder / "a.yaml").write_text(yaml.safe_dump(SMALLEST))
        assert load_recipe(name).name == "a/b"
        assert load_recipe(name).directory == (tmp_path / Path(name)).parent.resolve()

    @pytest.mark.parametrize("name", ["digits/nope", "digits/dfq-w8a8-orrt", ".", "..", "/", "", "digits"])
    def test_an_unknown_name_says_what_there_is(self, name: str) -> None:
        with pytest.raises(RecipeError, match="dfqkit list recipes") as caught:
            find_recipe(name)
        assert ("Did you mean 'digits/dfq-w8a8-ort'" in str(caught.value)) == name.endswith("orrt")

    def test_files_are_looked_up_beside_the_recipe_then_among_the_assets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beside, assets, here = tmp_path / "recipes", tmp_path / "assets", tmp_path / "here"
        for folder in (beside, assets, here):
            folder.mkdir()
        monkeypatch.chdir(here)
        monkeypatch.setenv("DFQKIT_ASSETS", str(assets))
        with pytest.raises(RecipeError) as caught:
            find_file("sub/w.pt", beside)
        assert f"looked at {beside / 'sub/w.pt'}, {assets / 'sub/w.pt'}" in str(caught.value)
        (here / "w.pt").touch()
        with raises_naming(RecipeError, here / "w.pt"):
            find_file("w.pt", beside)
        (assets / "w.pt").touch()
        assert find_file("w.pt", beside) == assets / "w.pt"
        (beside / "w.pt").touch()
        assert find_file("w.pt", beside) == beside / "w.pt"
        assert find_file("w.pt", None) == assets / "w.pt"
        assert find_file(str(here / "w.pt"), beside) == here / "w.pt"

    @pytest.mark.parametrize("value", [None, ""])
    def test_without_assets_the_message_says_so(self, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DFQKIT_ASSETS", raising=False)
        if value is not None:
            monkeypatch.setenv("DFQKIT_ASSETS", value)
        with pytest.raises(RecipeError, match=r"DFQKIT_ASSETS is not set"):
            find_file("nowhere.pt", None)
        with pytest.raises(RecipeError, match=r"looked at /nowhere.pt\)"):
            find_file(f"{os.sep}nowhere.pt", None)


class TestIdentity:
    def test_defaults_are_written_out(self) -> None:
        written = yaml.safe_load(parse().to_yaml())
        assert written["schema"] == 1
        assert written["quant"]["first_last"] == 8
        assert written["synthesis"]["weights"]["adversarial"] == 0.05
        assert written["why"] == SMALLEST["why"]

    def test_the_digest_does_not_depend_on_the_order_of_keys(self) -> None:
        arguments = {"width": 3, "depth": 2, "act": "relu"}
        one = parse(teacher=SMALLEST["teacher"] | {"args": arguments})
        turned = {
            key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in SMALLEST.items()
        }
        turned["teacher"] = {"args": dict(reversed(arguments.items())), **turned["teacher"]}
        other = parse_recipe(yaml.safe_dump(dict(reversed(turned.items())), sort_keys=False), "b.yaml")
        assert one.digest() == other.digest()
        assert one.to_yaml() == other.to_yaml()

    def test_the_digest_covers_the_seed_and_every_value_but_not_where_the_recipe_lies(self, tmp_path: Path) -> None:
        recipe = parse()
        changed = [recipe.with_seed(1), parse("why=else"), parse("bank.batch=127"), parse("distill.lr=1e-5")]
        assert len({item.digest() for item in [recipe, *changed]}) == 5
        assert recipe.digest() == recipe.found_in(tmp_path).digest() == recipe.with_seed(1).with_seed(0).digest()

    def test_another_seed_keeps_the_folder(self, tmp_path: Path) -> None:
        recipe = parse().found_in(tmp_path).with_seed(7)
        assert (recipe.seed, recipe.directory) == (7, tmp_path)
        assert parse().directory is None

    def test_a_resumed_run_looks_beside_the_recipe_it_came_from(self, tmp_path: Path) -> None:
        from dfqkit.run.context import recipe_of
        from dfqkit.run.execution import run_facts
        from dfqkit.run.folder import RunFolder

        for recipe in (parse().found_in(tmp_path / "there"), parse()):
            facts = run_facts(recipe)
            folder = RunFolder.create(
                tmp_path / f"run-{recipe.directory is None}",
                recipe_text=recipe.to_yaml(),
                digest=recipe.digest(),
                facts=facts,
            )
            again = recipe_of(RunFolder.open(folder.path))
            assert again == recipe
            assert again.directory == recipe.directory
            assert again.digest() == folder.digest
