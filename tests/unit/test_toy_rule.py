"""A rule that another package offers beside those of a runtime: the check, the repair and the list of rules have it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from dfqkit.cli import main
from dfqkit_export.backends import DEFAULT_TARGET, GROUP
from dfqkit_export.checker import all_rules, check_file, rules_for
from tests.unit.test_compare_command import write

# Another edition of the default runtime, with one rule more.
TOY = """
from dataclasses import replace

from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET
from dfqkit_export.backends.rule import Rule, Violation


def find(graph):
    for node in graph.of_type("MatMul"):
        if node.name != "classifier":
            yield Violation(node=graph.name(node), message="the last layer has another name")


def mend(editor, name):
    editor.node(name).name = "classifier"
    return f"called {name} classifier"


RULE = Rule(
    id="T7", severity="warning", title="The last layer is called classifier", repair="rename it", find=find,
    fixable=True, mend=mend,
)
BACKEND = replace(
    DEFAULT, name="strict", targets=(replace(DEFAULT_TARGET, name="strict", backend="strict"),),
    rules=lambda: (*DEFAULT.rules(), RULE),
)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that breaks the rule; the package that offers it is there as pip would have left it."""
    (tmp_path / "dfqkit_strict.py").write_text(TOY)
    info = tmp_path / "dfqkit_strict-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit-strict\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nstrict = dfqkit_strict:BACKEND\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return write(tmp_path / "m.onnx")


@pytest.mark.usefixtures("file")
def test_it_is_in_the_list_of_rules_and_in_no_other_targets() -> None:
    assert [rule.title for rule in all_rules() if rule.id == "T7"] == ["The last layer is called classifier"]
    assert "T7" in {rule.id for rule in rules_for("strict")}
    assert "T7" not in {rule.id for rule in rules_for(DEFAULT_TARGET.name)}
    assert {rule.id for rule in rules_for(DEFAULT_TARGET.name)} < {rule.id for rule in rules_for("strict")}


def test_inspect_finds_what_breaks_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "--target", "strict", "--json"]) == 0
    (found,) = (one for one in json.loads(capsys.readouterr().out)["problems"] if one["rule"] == "T7")
    assert (found["node"], found["severity"], found["fixable"]) == ("fc", "warning", True)
    assert main(["inspect", str(file), "--target", "strict"]) == 0
    assert "T7" in capsys.readouterr().out


def test_its_repair_is_made_and_proved(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = tmp_path / "fixed.onnx"
    assert main(["inspect", str(file), "--target", "strict", "--fix", str(fixed)]) == 0
    assert "called fc classifier" in capsys.readouterr().out
    assert [node.name for node in onnx.load(fixed).graph.node if node.op_type == "MatMul"] == ["classifier"]
    assert "T7" not in {problem.rule for problem in check_file(fixed, "strict").problems}
