"""Names of synthesizers: the nearest to a wrong one, and plugins, installed as other packages install them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dfqkit.config.registry import GROUP, synthesizer, synthesizer_names, synthesizers
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.methods.dfq import DFQ
from dfqkit_export.errors import RecipeError

PLUGIN = """
from typing import Literal
from dfqkit.synthesis.base import Synthesizer, SynthesizerConfig

class HissConfig(SynthesizerConfig):
    method: Literal["hiss"] = "hiss"
    strength: float = 1.0

class Hiss(Synthesizer):
    Config = HissConfig
    needs = frozenset()

class NotOne:
    pass
"""
POINTS = {
    "hiss": "plugin:Hiss",
    "wrong": "plugin:NotOne",
    "gone": "plugin:Gone",
    "absent": "no_such_module:Thing",
    "dfq": "plugin:Hiss",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a plugin, as pip would have left it."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    info = tmp_path / "dfqkit_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit-plugin\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    return tmp_path


def test_own_methods_load_and_say_what_they_need() -> None:
    assert synthesizer("dfq") is DFQ
    for name, kind in synthesizers().items():
        assert issubclass(kind, Synthesizer)
        assert kind.Config.model_fields["method"].default == name
        assert kind.needs <= {"batchnorm", "linear_head", "features", "records", "student", "images"}


def test_an_unknown_name_comes_with_the_nearest_and_with_all() -> None:
    with pytest.raises(RecipeError, match=r"Unknown synthesizer 'dqf'. Did you mean 'dfq'. Known: .*dfq"):
        synthesizer("dqf")
    with pytest.raises(RecipeError, match=r"Unknown synthesizer 'xyz'. Known: .*dfq"):
        synthesizer("xyz")


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_found_and_its_section_is_checked() -> None:
    from dfqkit.config.recipe import load_recipe

    assert synthesizer_names()["hiss"] == "plugin:Hiss"
    assert synthesizer("hiss").__name__ == "Hiss"
    recipe = load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: hiss, strength: 2}"])
    assert recipe.synthesis.model_dump() == {"method": "hiss", "strength": 2.0, "low_pass": None}
    assert "strength: 2.0" in recipe.to_yaml()
    with pytest.raises(RecipeError, match=r"synthesis.strenght: unknown key. Did you mean 'strength'"):
        load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: hiss, strenght: 2}"])


@pytest.mark.usefixtures("installed")
def test_a_plugin_cannot_take_the_place_of_an_own_method() -> None:
    assert synthesizer("dfq") is DFQ


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "'wrong' .plugin:NotOne. is not a subclass of dfqkit.synthesis.base.Synthesizer"),
        ("gone", "'gone' .plugin:Gone. cannot be imported: .*Gone.*entry point 'dfqkit.synthesizers'"),
        ("absent", "'absent' .no_such_module:Thing. cannot be imported: .*no_such_module"),
    ],
)
def test_a_broken_plugin_is_named(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        synthesizer(name)
