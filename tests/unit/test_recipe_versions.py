"""Recipes and run folders of older versions keep their digests, so that runs continue; what is newer is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfqkit.cli import main
from dfqkit.config.files import list_recipes
from dfqkit.config.reading import load_recipe
from dfqkit.run.context import recipe_of
from dfqkit.run.folder import MANIFEST, RunFolder
from dfqkit.run.stages import STAGES
from dfqkit_export.errors import ArtefactError, RecipeError
from tests._messages import raises_naming

DATA = Path(__file__).parent / "data"
#: What 0.1.0 said of every recipe that it shipped and that trains as it did then.
DIGESTS: dict[str, str] = json.loads((DATA / "recipe_digests.json").read_text(encoding="utf-8"))

SOURCES = (
    "synthesis={sources: [{method: dfq, share: 0.6}, {method: noise, accept_noise: true, low_pass: 0.5}, "
    "{method: zeroq, start_from: a.npz, share: 2}]}"
)


def test_shipped_recipes_keep_their_digests() -> None:
    assert {name: load_recipe(name).digest() for name in list_recipes() if name in DIGESTS} == DIGESTS


@pytest.mark.parametrize(
    ("name", "overrides", "digest"),
    [
        ("digits/dfq-w8a8-ort", [SOURCES], "59139eae48f331b943b73f6d76bca4414be1ad417e61689f0a19f607bea94479"),
        (
            "digits/dfq-w8a8-ort",
            ["synthesis={method: bank, path: some}", "target=openvino"],
            "1947a9172fc7069222c443d7095f7f6ceccb327a3cbe91894e971b6d363ef266",
        ),
        (
            "digits/dfq-w4a4-ort",
            ["target=tensorrt", "distill.partners=[w3a3, w2a2]", "distill.layers=[a, {teacher: b, student: c}]"],
            "dcfa145e71eacb631bf9d16354eaefff03ef0e930090d1660cfcab0df474aa56",
        ),
        (
            "digits-half/dfq-w8a8-ort",
            ["student.args={width: 3, depth: 2}", "student.optimizer=adam", "seed=7"],
            "ded99335e22daca2e853ce5879dcf31ebabf4eea7e92d73ae0b594b13d94c4bf",
        ),
    ],
)
def test_others_keep_theirs(name: str, overrides: list[str], digest: str) -> None:
    assert load_recipe(name, overrides).digest() == digest


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """What 0.1.0 wrote of a run of digits/dfq-w8a8-ort, without the files that its stages made."""
    (tmp_path / "recipe.yaml").write_bytes((DATA / "run_0.1.0.yaml").read_bytes())
    (tmp_path / MANIFEST).write_bytes((DATA / "run_0.1.0.json").read_bytes())
    return tmp_path


def test_an_older_run_is_opened_as_the_same_run(older: Path) -> None:
    folder = RunFolder.open(older)
    recipe = recipe_of(folder)
    assert recipe.digest() == folder.digest == DIGESTS["digits/dfq-w8a8-ort"]
    assert recipe.to_yaml() == folder.recipe_text()
    assert recipe.directory == Path("/srv/recipes/digits")
    assert folder.facts("synthesize")["cost"] == 38400
    again = RunFolder.create(older, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts={})
    assert again.run_facts()["command"] == "dfqkit run digits/dfq-w8a8-ort"
    entries = json.loads((older / MANIFEST).read_text(encoding="utf-8"))["stages"]
    assert set(entries) == set(STAGES)


def test_a_run_of_a_version_that_is_not_known_says_so(older: Path) -> None:
    manifest = json.loads((older / MANIFEST).read_text(encoding="utf-8"))
    (older / MANIFEST).write_text(json.dumps(manifest | {"schema": 2}), encoding="utf-8")
    with raises_naming(ArtefactError, MANIFEST, "schema 2", "--out"):
        RunFolder.open(older)


def test_a_recipe_of_a_version_that_is_not_known_says_so(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (older / "recipe.yaml").read_text(encoding="utf-8")
    (older / "recipe.yaml").write_text(text.replace("schema: 1", "schema: 2"), encoding="utf-8")
    with raises_naming(RecipeError, "schema", "must be 1", "found 2"):
        load_recipe(older / "recipe.yaml")
    assert main(["recipe", "show", str(older / "recipe.yaml")]) == 2
    assert "schema" in capsys.readouterr().err
