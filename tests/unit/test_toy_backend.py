"""A runtime that another package offers: it is seen everywhere where ours are, without a line of it in this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from dfqkit.cli import main
from dfqkit_export.backends import GROUP, all_backends, all_targets, backend_of, get_backend, get_target, witness_for
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.checker import all_rules, check_file, rules_for
from dfqkit_export.env import environment
from dfqkit_export.errors import RuntimeUnavailableError, TargetError
from dfqkit_export.measure.activations import LayerProbe
from tests._messages import names, raises_naming
from tests.unit.test_compare_command import write

Output = pytest.CaptureFixture[str]

# It computes in ONNX Runtime, and is all the rest of a runtime by itself.
TOY = """
from collections.abc import Iterator
from dataclasses import replace

from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET
from dfqkit_export.backends.base import Backend
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Rule, Violation


def find_flattens(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("Flatten"):
        yield Violation(node=graph.name(node), message="the toy cannot flatten")


BACKEND = Backend(
    name="toy",
    title="Toy NPU",
    package="dfqkit-toy",
    load=DEFAULT.load,
    missing=lambda: "",
    targets=(replace(DEFAULT_TARGET, name="toy-npu", title="Toy NPU, first edition", backend="toy"),),
    executed=DEFAULT.executed,
    rules=lambda: (
        Rule(id="T1", severity="warning", title="Nothing is flattened", repair="reshape", find=find_flattens),
    ),
    sees_layers=True,
)
NOT_ONE = "a text"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy as pip would have left it."""
    (tmp_path / "dfqkit_toy.py").write_text(TOY)
    info = tmp_path / "dfqkit_toy-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit-toy\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntoy = dfqkit_toy:BACKEND\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return info / "entry_points.txt"


@pytest.fixture
def file(install: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx")


@pytest.mark.usefixtures("install")
def test_it_joins_the_table() -> None:
    assert [*all_backends()][-1] == "toy"
    assert [*all_targets()][-1] == "toy-npu"
    assert backend_of(get_target("toy-npu")).title == "Toy NPU"
    assert witness_for(get_target("toy-npu")) == get_backend("toy")
    assert environment()["packages"]["dfqkit-toy"] == "3.1"


@pytest.mark.usefixtures("install")
def test_unknown_names_are_told_of_it() -> None:
    with raises_naming(TargetError, "'toi'", "Did you mean 'toy'"):
        get_backend("toi")
    with raises_naming(TargetError, "'toy-gpu'", "Did you mean 'toy-npu'"):
        get_target("toy-gpu")


@pytest.mark.usefixtures("install")
def test_the_command_line_lists_it(capsys: Output) -> None:
    assert main(["list", "runtimes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["toy", "available"]
    assert main(["list", "targets"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("toy-npu")
    assert main(["list", "targets", "toy-npu"]) == 0
    assert capsys.readouterr().out.startswith("Toy NPU, first edition (toy-npu), run by toy\n")


@pytest.mark.usefixtures("install")
def test_recipes_take_its_target(capsys: Output) -> None:
    assert main(["recipe", "show", "digits/dfq-w8a8-ort", "--set", "target=toy-npu"]) == 0
    names(capsys.readouterr().out, "target: toy-npu")


def test_its_rules_judge_files_for_its_target(file: Path) -> None:
    ids = {rule.id for rule in rules_for("toy-npu")}
    assert "T1" in ids
    assert "E3" in ids, "the rules for all hold for it, too"
    assert not {"O4", "E4"} & ids, "those of other runtimes do not"
    assert "T1" in {rule.id for rule in all_rules()}
    assert "T1" not in {rule.id for rule in rules_for("onnxruntime")}
    assert [problem.node for problem in check_file(file, "toy-npu").warnings if problem.rule == "T1"] == ["flatten"]


def test_files_are_inspected_in_it(file: Path, capsys: Output) -> None:
    assert main(["inspect", str(file), "--target", "toy-npu", "--runtime", "toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "T1" in {problem["rule"] for problem in found["problems"]}
    assert [layer["name"] for layer in found["precision"]["toy"]["layers"]] == ["fc"]
    assert realised_precision(file, "toy") == realised_precision(file)


def test_files_are_compared_and_timed_in_it(file: Path, capsys: Output) -> None:
    assert main(["compare", str(file), "--runtime-b", "toy", "--limit", "4"]) == 0
    names(capsys.readouterr().out, "toy", "fc")
    assert main(["profile", str(file), "--runtime", "toy", "--repeats", "2"]) == 0
    names(capsys.readouterr().out, "toy")
    images = np.zeros((2, 1, 4, 4), np.float32)
    assert list(open_session("toy", file).run_all(images)) == [onnx.load(str(file)).graph.output[0].name]
    assert list(LayerProbe(file, runtime="toy").scales) == ["fc"]


@pytest.mark.parametrize(
    ("point", "fact"), [("no_such_module:BACKEND", "No module named"), ("dfqkit_toy:NOT_ONE", "is not a")]
)
def test_a_package_that_offers_no_backend_is_named_and_stops_nothing_else(
    install: Path, file: Path, point: str, fact: str, capsys: Output
) -> None:
    install.write_text(f"[{GROUP}]\ntoy = {point}\n")
    assert main(["list", "runtimes"]) == 0
    names(capsys.readouterr().out.splitlines()[-1], "toy", "missing", point, fact)
    with raises_naming(RuntimeUnavailableError, "toy", point, fact):
        open_session("toy", file)
    assert witness_for(get_target("onnxruntime")) == get_backend("onnxruntime")
    assert environment()["packages"]["onnx"]


def test_own_names_win(install: Path) -> None:
    install.write_text(f"[{GROUP}]\nonnxruntime = dfqkit_toy:BACKEND\n")
    assert all_backends()["onnxruntime"].title == "ONNX Runtime"
