"""The JSON Schema of recipes: what the reader refuses by range or pattern the schema refuses, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfqkit.cli import main
from dfqkit.config.files import list_recipes
from dfqkit.config.methods import METHODS
from dfqkit.config.reading import load_recipe, parse_recipe
from dfqkit.config.schema import recipe_schema
from dfqkit_export.errors import RecipeError, TargetError

SCHEMA = recipe_schema()
ROOT = Path(__file__).parents[2]
KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}


def faults(value: Any, schema: dict[str, Any], place: str = "recipe") -> list[str]:
    """Where a value breaks a schema, as far as ours go: types, ranges, patterns, keys, unions."""
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], place)
    for word, wanted in (("oneOf", [1]), ("anyOf", range(1, 99))):
        if word in schema:
            fitting = [not faults(value, part, place) for part in schema[word]]
            return [] if sum(fitting) in wanted else [f"{place}: fits {sum(fitting)} of {word}"]
    return list(_faults(value, schema, place))


def _faults(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "boolean")):
        yield f"{place}: is no {kind}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{place}: is not among what is allowed"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: breaks {schema['pattern']}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        high, below = schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1)
        if not (low <= value <= high and above < value < below):
            yield f"{place}: is out of range"
    if isinstance(value, list):
        yield from _list_faults(value, schema, place)
    if isinstance(value, dict):
        yield from _mapping_faults(value, schema, place)


def _list_faults(value: list[Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{place}: has a wrong number of items"
    items = [*schema.get("prefixItems", []), *[schema.get("items", {})] * len(value)]
    for index, item in enumerate(value):
        yield from faults(item, items[index], f"{place}.{index}")


def _mapping_faults(value: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    yield from (f"{place}.{key}: is missing" for key in schema.get("required", []) if key not in value)
    for key, inner in value.items():
        if key in properties:
            yield from faults(inner, properties[key], f"{place}.{key}")
        elif others is False:
            yield f"{place}.{key}: unknown key"


def read(*overrides: str) -> dict[str, Any]:
    """A shipped recipe as an editor sees it, with values changed unchecked."""
    data: dict[str, Any] = yaml.safe_load(list_recipes()["digits/dfq-w4a4-ort"].read_text(encoding="utf-8"))
    for override in overrides:
        path, _, value = override.partition("=")
        *parents, leaf = path.split(".")
        section = data
        for part in parents:
            section = section.setdefault(part, {})
        section[leaf] = yaml.safe_load(value)
    return data


def test_every_shipped_recipe_fits_as_written_and_as_resolved() -> None:
    for name, path in list_recipes().items():
        for text in (path.read_text(encoding="utf-8"), load_recipe(name).to_yaml()):
            assert faults(yaml.safe_load(text), SCHEMA) == [], name


@pytest.mark.parametrize(
    "override",
    [
        "quant.bits=w9a9",
        "quant.bits=xw8a8",
        "quant.bits=w8a8x",
        "quant.first_last=9",
        "quant.scales=twos",
        "quant.percentile=50",
        "distill.partners=[w4a4, w1a4]",
        "distill.lr=0",
        "image.shape=[1, 16]",
        "image.shape=[0, 16, 16]",
        "image.std=[0]",
        "image.mean=[]",
        "image.classes=1",
        "synthesis.method=dqf",
        "synthesis.steps=many",
        "synthesis={}",
        "synthesis={low_pass: 0.5}",
        "synthesis={sources: [{share: 1}]}",
        "synthesis={sources: [{method: dfq, share: -1}]}",
        "synthesis={sources: [{method: dfq, share: 1, warm_up: 3}]}",
        "bank.batch=0",
        "seed=-1",
        "target=[]",
        "target=onnxruntim",
        "target=[openvino, onnxruntim]",
        "task=[]",
        "task.name=nothing",
        "schema=2",
        "nothing=1",
    ],
)
def test_both_refuse(override: str) -> None:
    data = read(override)
    assert faults(data, SCHEMA)
    with pytest.raises((RecipeError, TargetError)):
        parse_recipe(yaml.safe_dump(data), "a.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "target=[onnxruntime, openvino]",
        "target=openvino",
        "task=classification",
        "task={name: classification}",
        "distill.layers=[a, {teacher: b, student: c}]",
        "synthesis={sources: [{method: dfq, share: 0.5, warmup: 3}, {method: noise, accept_noise: true}]}",
        "synthesis={method: mixture, sources: [{method: dfq}]}",
        "quant.first_last=null",
        "distill=null",
        "$schema=recipe.schema.json",
    ],
)
def test_both_take(override: str) -> None:
    data = read(override)
    assert faults(data, SCHEMA) == []
    parse_recipe(yaml.safe_dump(data), "a.yaml")


def test_it_says_what_it_is_and_where_an_editor_finds_it() -> None:
    assert SCHEMA["$schema"].startswith("https://json-schema.org/draft/")
    assert SCHEMA["$id"]
    named = load_recipe("digits/dfq-w8a8-ort").found_in(None)
    data = yaml.safe_load(named.to_yaml()) | {"$schema": "file:///recipe.schema.json"}
    again = parse_recipe(yaml.safe_dump(data, sort_keys=False), "a.yaml")
    assert again == named
    assert again.to_yaml() == named.to_yaml()


def test_every_section_is_closed_and_every_method_there() -> None:
    sections = [part for part in SCHEMA["$defs"].values() if part["type"] == "object"]
    assert [part["title"] for part in sections if part["additionalProperties"] is not False] == []
    assert set(SCHEMA["properties"]["synthesis"]["discriminator"]["mapping"]) == set(METHODS)


def test_the_command_prints_it_whole_or_for_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    assert main(["recipe", "schema", "digits/zeroq-w8a8-ort"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["properties"]["synthesis"] == {"$ref": "#/$defs/ZeroQConfig"}
    assert {"ZeroQConfig", "ZeroQWeights", "QuantConfig"} <= set(one["$defs"])
    assert "DFQConfig" not in one["$defs"]


def test_what_is_read_needs_no_torch() -> None:
    program = (
        "import sys; from dfqkit.config.reading import load_recipe; from dfqkit.config.schema import recipe_schema; "
        "load_recipe('digits/dfq-w4a4-ort').to_yaml(); recipe_schema(); "
        "print([name for name in ('torch', 'brevitas', 'numpy', 'onnx') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
