"""Completion, what was meant, and what a result looks like."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfqkit.api import Result
from dfqkit.cli import command_line, main
from dfqkit.cli.completion_command import _names
from dfqkit.cli.examples import EXAMPLES
from dfqkit.config.registry import synthesizer_configs
from dfqkit_export.report import Report
from tests._messages import names
from tests._parsers import parsers
from tests._shared import finished_run


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of some words."""
    line, last = " ".join(words), len(words) - 1
    program = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={last}\n"
    program += '_dfqkit; printf "%s\\n" "${COMPREPLY[@]}"'
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert {"quantize", "quit"} & set(completed(script, "dfqkit", "qu")) == {"quantize"}
    assert completed(script, "dfqkit", "quantize", "--tar") == ["--target"]
    assert "openvino" in completed(script, "dfqkit", "quantize", "--target", "open")
    assert "digits/dfq-w8a8-ort" in completed(script, "dfqkit", "run", "digits/dfq")
    assert "show" in completed(script, "dfqkit", "recipe", "sh")
    assert "digits/dfq-w8a8-ort" in completed(script, "dfqkit", "recipe", "show", "digits/dfq-w8a8")
    assert set(synthesizer_configs()) <= set(completed(script, "dfqkit", "quantize", "--method", ""))


def test_completion_looks_once_for_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    _names.cache_clear()
    monkeypatch.setattr("dfqkit_export.backends.all_targets", lambda: looks.append("look") or {})
    assert main(["completion", "bash"]) == 0
    assert looks == ["look"]
    _names.cache_clear()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_sound(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    assert "--target" in script.read_text() or "-l target" in script.read_text()
    if shutil.which(shell) is not None:
        assert subprocess.run([shell, "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("quantise x.onnx", "quantize"),
        ("run digits/dfq-w8a8-ort --sed 1", "--seed"),
        ("list target", "targets"),
        ("run digits/dfq-w8a8-or", "digits/dfq-w8a8-ort"),
        ("recipe shew digits/dfq-w8a8-ort", "show"),
    ],
)
def test_what_was_meant_is_asked(words: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    names(capsys.readouterr().err, f"Did you mean '{meant}'")


def test_a_result_is_shown_in_five_lines(tmp_path: Path) -> None:
    report = Report(title="net <b>", verdict="not judged", reasons=["Noise tells nothing."])
    result = Result(folder=tmp_path, model=tmp_path / "model.onnx", report=report)
    assert repr(result).splitlines()[0] == "NOT JUDGED net <b>: Noise tells nothing."
    assert len(repr(result).splitlines()) <= 5
    assert "net &lt;b&gt;" in result._repr_html_()


def test_every_help_has_examples_that_can_be_typed() -> None:
    assert set(EXAMPLES) == {parser.prog.partition(" ")[2] for parser in parsers(command_line())}
    for parser in parsers(command_line()):
        name = parser.prog.partition(" ")[2]
        text = parser.format_help()
        for line in EXAMPLES[name]:
            assert f"  dfqkit {line}" in text
            words = shlex.split(line.replace("\\\n", " "), comments=True)
            args = command_line().parse_args(words[: words.index(">")] if ">" in words else words)
            assert args.parser.prog.startswith(parser.prog), "an example is of its own command"


@pytest.mark.parametrize("words", [["--help"], ["completion", "bash"]])
def test_what_a_shell_asks_for_at_once_loads_nothing_that_takes_long(words: list[str]) -> None:
    heavy = "{'dfqkit_export.report', 'numpy', 'onnx', 'pydantic', 'torch', 'yaml'}"
    program = f"import sys, dfqkit.cli; dfqkit.cli.main({words}); sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_command_takes_json() -> None:
    without = [
        one.prog for one in parsers(command_line()) if one.get_default("handler") and "--json" not in one.format_usage()
    ]
    assert without == []


RESULTS = (
    "list recipes", "list synthesizers", "list targets", "list targets tensorrt", "list runtimes", "env",
    "recipe show digits/dfq-w8a8-ort", "recipe schema", "completion bash", "inspect RUN/model.onnx", "report RUN",
    "report RUN RUN --out RUN/../comparison.html", "compare RUN RUN", "profile RUN/model.onnx --repeats 2",
    "bundle RUN --out RUN/../bundle.zip", "check RUN/report.json --baseline RUN/../none.json --update-in-ci",
    "run --resume RUN", "run digits/dfq-w8a8-ort --dry-run --quiet",
    "ci github --out -", "ci gitlab --out RUN/../ci.yml",
    "bank info RUN/images/calibration.safetensors", "bank verify RUN/images/calibration.safetensors",
    "bank export RUN/images/calibration.safetensors --npz RUN/../images.npz",
    "bank sheet RUN/images/calibration.safetensors --out RUN/../sheet.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json") / "run"
    shutil.copytree(finished_run(tmp_path_factory), folder)
    return folder


@pytest.mark.parametrize("words", RESULTS)
def test_json_is_one_document(words: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.replace("RUN", str(run)).split(), "--json"]) in (0, 1)
    assert isinstance(json.loads(capsys.readouterr().out), dict)
