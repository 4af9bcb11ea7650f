"""Completion, what was meant, and what a result looks like."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dfqkit.api import Result
from dfqkit.cli import main
from dfqkit_export.report import Report
from tests._messages import names


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
