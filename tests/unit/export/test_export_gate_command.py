"""`dfqkit check` as a shell and a CI job see it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dfqkit.cli import main
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Report


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write(tmp_path / "report.json", 91.0)


def write(path: Path, value: float) -> Path:
    row = Metric(name="top1", subject="onnxruntime", data="x", value=value, unit="%", n=100, higher_is_better=True)
    path.write_text(Report(title="recipe", metrics=[row]).to_json())
    return path


def test_record_check_and_regress(report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(report), "--baseline", str(tmp_path / "base.json")]
    assert main(command) == 2
    assert "--update" in capsys.readouterr().err
    assert main([*command, "--update"]) == 0
    assert "recorded: recipe (report): new" in capsys.readouterr().out
    assert main(command) == 0
    write(report, 90.0)
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "regressed" in out
    assert "the tolerance is 0.3 (stated)" in out
    assert main([*command, "--tolerance", "top1=2"]) == 0
    assert main([*command, "--update"]) == 0
    assert "91 -> 90" in capsys.readouterr().out
    assert main(command) == 0


def test_json_is_all_of_stdout(report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(report), "--baseline", str(tmp_path / "base.json"), "--update", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "ok"


def test_update_is_refused_in_ci_unless_forced(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    command = ["check", str(report), "--baseline", str(tmp_path / "base.json")]
    assert main([*command, "--update"]) == 2
    assert "CI" in capsys.readouterr().err
    assert not (tmp_path / "base.json").exists()
    assert main([*command, "--update-in-ci"]) == 0
    assert (tmp_path / "base.json").exists()


def test_a_floor_that_does_not_hold_writes_no_baseline(report: Path, tmp_path: Path) -> None:
    command = ["check", str(report), "--baseline", str(tmp_path / "base.json")]
    floor = ["--floor", "top1 of onnxruntime on x=95"]
    assert main([*command, "--update", *floor]) == 1
    assert not (tmp_path / "base.json").exists()
    assert main([*command, *floor]) == 2  # a floor is recorded, or it would be forgotten


def test_junit_and_markdown_are_written_and_the_step_summary_grows(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    command = ["check", str(report), "--baseline", str(tmp_path / "base.json")]
    assert main([*command, "--update"]) == 0
    written = ["--junit-xml", str(tmp_path / "j" / "out.xml"), "--markdown", str(tmp_path / "out.md")]
    assert main([*command, *written]) == 0
    assert ElementTree.parse(tmp_path / "j" / "out.xml").getroot().get("failures") == "0"
    assert summary.read_text() == "before\n" + (tmp_path / "out.md").read_text()


@pytest.mark.parametrize("value", ["top1", "=3", "top1=nan", "top1=x"])
def test_a_tolerance_must_be_a_number_of_something(value: str, report: Path, tmp_path: Path) -> None:
    assert main(["check", str(report), "--baseline", str(tmp_path / "b"), "--tolerance", value]) == 2


def test_what_is_not_there_is_an_error_with_the_name(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", "--baseline", str(tmp_path / "base.json")]
    assert main([*command, str(report), "--update"]) == 0
    capsys.readouterr()
    assert main([*command, str(tmp_path / "nothing"), str(report)]) == 2
    out = capsys.readouterr().out
    assert "nothing' is not there" in out
    assert "recipe (report): ok" in out  # the others are checked all the same
