"""Names of synthesizers: the nearest to a wrong one, and plugins, installed as other packages install them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqkit.config.methods import GROUP, plugins, synthesizer_names
from dfqkit.config.registry import synthesizer_config, synthesizer_configs
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import implementation
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.methods.dfq.method import DFQ
from dfqkit_export.errors import RecipeError
from tests._messages import raises_naming
from tests._methods import rejoin

PLUGIN = """
from typing import ClassVar, Literal
from dfqkit.config.synthesis import SynthesizerConfig

class HissConfig(SynthesizerConfig):
    '''Hisses.'''

    implementation: ClassVar[str] = "plugin:NotOne"
    method: Literal["hiss"] = "hiss"
    strength: float = 1.0

class NotOne:
    pass
"""
POINTS = {
    "hiss": "plugin:HissConfig",
    "wrong": "plugin:NotOne",
    "gone": "plugin:Gone",
    "absent": "no_such_module:Thing",
    "broken": "broken_plugin:Thing",
    "dfq": "plugin:HissConfig",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with a plugin, as pip would have left it."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('built for another version')")
    info = tmp_path / "dfqkit_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit-plugin\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    plugins.cache_clear()
    rejoin()
    yield tmp_path
    monkeypatch.undo()
    plugins.cache_clear()
    rejoin()


def test_own_methods_load_and_say_what_they_need() -> None:
    assert implementation(DFQConfig) is DFQ
    for name, kind in synthesizer_configs().items():
        assert issubclass(implementation(kind), Synthesizer)
        assert kind.model_fields["method"].default == name
        assert kind.summary()
        assert kind.needs <= {
            "batchnorm",
            "classes",
            "linear_head",
            "features",
            "tokens",
            "records",
            "student",
            "images",
            "pipeline",
        }


def test_an_unknown_name_comes_with_the_nearest_and_with_all() -> None:
    with pytest.raises(RecipeError, match=r"Unknown synthesizer 'dqf'. Did you mean 'dfq'. Known: .*dfq"):
        synthesizer_config("dqf")
    with pytest.raises(RecipeError, match=r"Unknown synthesizer 'xyz'. Known: .*dfq"):
        synthesizer_config("xyz")


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_found_and_its_section_is_checked() -> None:
    from dfqkit.config.reading import load_recipe

    assert synthesizer_names()["hiss"] == "plugin:HissConfig"
    assert synthesizer_configs()["hiss"].summary() == "Hisses."
    recipe = load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: hiss, strength: 2}"])
    assert recipe.synthesis.model_dump() == {"method": "hiss", "strength": 2.0, "low_pass": None}
    assert "strength: 2.0" in recipe.to_yaml()
    with raises_naming(RecipeError, "synthesis.strenght", "did you mean 'strength'"):
        load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: hiss, strenght: 2}"])


@pytest.mark.usefixtures("installed")
def test_a_plugin_cannot_take_the_place_of_an_own_method() -> None:
    assert synthesizer_config("dfq") is DFQConfig


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "'wrong' .plugin:NotOne. is not a subclass of dfqkit.config.synthesis.SynthesizerConfig"),
        ("gone", "'gone' .plugin:Gone. cannot be imported: .*Gone.*entry point 'dfqkit.synthesizers'"),
        ("absent", "'absent' .no_such_module:Thing. cannot be imported: .*no_such_module"),
        ("broken", "'broken' .broken_plugin:Thing. cannot be imported: built for another version"),
    ],
)
def test_a_broken_plugin_is_named_and_left_out(name: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RecipeError, match=message):
        synthesizer_config(name)
    assert name not in synthesizer_configs()
    assert f"'{name}'" in caplog.text


@pytest.mark.usefixtures("installed")
def test_a_section_whose_class_is_no_synthesizer_is_named() -> None:
    with pytest.raises(RecipeError, match=r"plugin.HissConfig.implementation is 'plugin:NotOne', no subclass of"):
        implementation(synthesizer_config("hiss"))

    class NowhereConfig(SynthesizerConfig):
        """Nothing behind it."""

    with pytest.raises(RecipeError, match=r"NowhereConfig.implementation is None, which cannot be imported"):
        implementation(NowhereConfig)
