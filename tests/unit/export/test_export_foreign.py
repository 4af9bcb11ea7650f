"""Files of onnxruntime.quantization in its other forms, read for what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from dfqkit.cli import main
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.onnxfile.canonical.opened import opened
from dfqkit_export.profiling.float_twin import float_twin
from tests.unit.export._bundles import write_net
from tests.unit.export.conftest import QdqBuilder

LAYERS = {"conv1", "conv2", "add", "fc"}


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._batches: Iterator[Any] = iter([{"x": rng.normal(size=(8, 3, 8, 8)).astype(np.float32)}])

    def get_next(self) -> Any:
        return next(self._batches, None)


def static(source: Path, out: Path, form: QuantFormat, activation: QuantType, weight: QuantType, **more: Any) -> None:
    options = {"quant_format": form, "activation_type": activation, "weight_type": weight, **more}
    quantize_static(str(source), str(out), Images(), **options)


def constants(source: Path, out: Path) -> None:
    """Write a QDQ file with Constant nodes for its initializers."""
    static(source, out, QuantFormat.QDQ, QuantType.QUInt8, QuantType.QInt8, per_channel=True)
    model = onnx.load(out)
    made = [
        helper.make_node("Constant", [], [item.name], value=item, name=f"C.{item.name}")
        for item in model.graph.initializer
    ]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, out)


def by_dynamic(source: Path, out: Path) -> None:
    quantize_dynamic(str(source), str(out), weight_type=QuantType.QUInt8)


def by_static(form: QuantFormat, activation: QuantType, weight: QuantType, **more: Any) -> Callable[[Path, Path], None]:
    return lambda source, out: static(source, out, form, activation, weight, **more)


_Q, _FORM = QuantType, QuantFormat
#: What makes it; its form; whether weights have a scale a channel; types of weights and activations; integer kernels.
MAKERS: dict[str, tuple[Callable[[Path, Path], None], str, bool, str, str, bool]] = {
    "qoperator": (
        by_static(_FORM.QOperator, _Q.QUInt8, _Q.QInt8, per_channel=True),
        *("QOperator", True, "int8", "uint8", True),
    ),
    "qoperator tensor": (
        by_static(_FORM.QOperator, _Q.QUInt8, _Q.QUInt8),
        *("QOperator", False, "uint8", "uint8", True),
    ),
    "dynamic": (by_dynamic, "dynamic", False, "uint8", "uint8", True),
    "constants": (constants, "Q/DQ pairs", True, "int8", "uint8", True),
    "a16": (by_static(_FORM.QDQ, _Q.QUInt16, _Q.QInt8), "Q/DQ pairs", False, "int8", "uint16", False),
    "w16": (by_static(_FORM.QDQ, _Q.QUInt16, _Q.QInt16), "Q/DQ pairs", False, "int16", "uint16", False),
    "w4": (by_static(_FORM.QDQ, _Q.QUInt8, _Q.QInt4), "Q/DQ pairs", False, "int4", "uint8", False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    source = folder / "float.onnx"
    onnx.save(float_twin(onnx.load(write_net(QdqBuilder, source))), source)
    found = {"float": source}
    for name, (make, *_) in MAKERS.items():
        found[name] = folder / f"{name}.onnx"
        make(source, found[name])
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_inspect_says_what_it_is(name: str, made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, form, per_channel, weight, activation, integer = MAKERS[name]
    assert main(["inspect", str(made[name]), "--json", "--runtime", "onnxruntime"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [text for text in found["facts"]["quantized_as"] if form in text]
    layers = {layer["name"].removesuffix("_MatMul"): layer for layer in found["facts"]["layers"]}
    assert layers.keys() == LAYERS
    for layer in layers.values():
        if layer["op"] == "Add":
            continue
        assert layer["weight"]["dtype"] == weight
        assert layer["weight"]["bits"] <= int("".join(filter(str.isdigit, weight)))
        assert layer["weight"]["granularity"] == ("per_channel" if per_channel else "per_tensor")
        assert layer["input"]["dtype"] == activation
    ran = found["precision"]["onnxruntime"]["layers"]
    kernels = [layer["precision"] != "float" for layer in ran if not layer["op"].endswith("Add")]
    assert kernels == [integer] * 3


@pytest.mark.parametrize("name", MAKERS)
def test_compare_finds_every_layer(name: str, made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(made["float"]), str(made[name]), "--json", "--limit", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in found["layers"]} == LAYERS
    assert all(layer["sqnr_db"] > 10 for layer in found["layers"])
    opens = "QOperator" in MAKERS[name][1] or "dynamic" in name
    assert any("integer operators" in note for note in found["notes"]) == opens


@pytest.mark.parametrize("name", MAKERS)
def test_profile_times_it_against_its_float_twin(
    name: str, made: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"  # nothing beside it that could be taken for the float file
    path.write_bytes(made[name].read_bytes())
    assert main(["profile", str(path), "--repeats", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"]


@pytest.mark.parametrize("name", ["qoperator", "qoperator tensor", "dynamic", "constants"])
def test_an_opened_file_computes_the_same(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    images = np.random.default_rng(3).normal(size=(32, 3, 8, 8)).astype(np.float32)
    model = opened(onnx.load(made[name]))
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "opened.onnx")
    expected = OrtSession(made[name]).predict(images)
    found = OrtSession(tmp_path / "opened.onnx", optimized=False).predict(images)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_float_file_is_said_to_be_one(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(made["float"])]) == 0
    assert main(["inspect", str(made["float"]), "--target", "onnxruntime"]) == 2
    assert "nothing in it is quantized" in capsys.readouterr().err
