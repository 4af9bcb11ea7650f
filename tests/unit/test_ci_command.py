"""The workflow that `dfqkit ci` writes, and the history that a check keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dfqkit.cli import main
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.history import current_commit, keep_history
from dfqkit_export.gate.verdicts import CaseOutcome, Outcome, Row


@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_a_workflow_is_written_once(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ci", service, "--bundle", "net.zip"]) == 0
    assert "net.zip is not there yet" in capsys.readouterr().err
    (file,) = tmp_path.rglob("*.yml")
    text = file.read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    assert "net.zip" in text
    assert "pytest" not in text.replace("junit", "")
    assert main(["ci", service]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["ci", service, "--out", "-", "--tests", "tests/mine"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)
    assert "pytest tests/mine" in printed


def outcome(value: float) -> Outcome:
    return Outcome(cases=[CaseOutcome(name="net", rows=[Row(metric="agreement", verdict="ok", now=value, stderr=0.5)])])


def test_history_grows_by_commit_and_a_check_again_replaces_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    keep_history(file, outcome(99.0), "aaa")
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    assert "<circle" in page, "one check is a point, since a line of one point shows nothing"
    assert "check 1 is of commit aaa." in page
    keep_history(file, outcome(98.0), "bbb")
    rows = keep_history(file, outcome(97.5), "bbb")
    assert [(row["commit"], row["value"]) for row in rows] == [("aaa", "99"), ("bbb", "97.5")]
    assert file.read_text(encoding="utf-8").count("\n") == 3
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    assert "<polyline" in page
    assert current_commit({"GITHUB_SHA": "0123456789abcdef"}) == "0123456789ab"


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "commit,case,metric,value,stderr,verdict\na,b,c,many,,ok\n", "\0"])
def test_another_table_is_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    file.write_text(text)
    with pytest.raises(ArtefactError, match="no history"):
        keep_history(file, outcome(1.0), "a")
    assert file.read_text() == text
