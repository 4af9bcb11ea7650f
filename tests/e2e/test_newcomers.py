"""Newcomers' ways, from an empty folder: the commands of a page, word for word, none of which may fail; the site."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._documented import CI, ROOT, commands, files

pytestmark = pytest.mark.slow
#: More than these a newcomer does not type.
MOST = 10


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a shell in which `dfqkit` and `python` are this checkout's, without a CI's variables."""
    programs = folder / "bin"
    programs.mkdir()
    for name, words in {"dfqkit": "-m dfqkit", "python": "", "pip": "-m pip"}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    paths = [str(folder / "site"), str(ROOT), str(ROOT / "export"), *filter(None, [kept.get("PYTHONPATH")])]
    kept |= {"CHECKOUT": str(ROOT), "PIP_TARGET": str(folder / "site"), "PIP_NO_BUILD_ISOLATION": "0"}
    return {**kept, "PATH": f"{programs}:{kept['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}


def walk(page: str, folder: Path) -> list[str]:
    """Do what a page says, and return what each of its commands wrote."""
    said, shell = [], surroundings(folder)
    work = folder / "work"
    work.mkdir()
    for name, text in files(ROOT / page).items():
        (work / name).write_text(text, encoding="utf-8")
    chosen = [command for command in commands(ROOT / page) if command.tier == CI]
    assert 0 < len(chosen) <= MOST
    for command in chosen:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.text],
            cwd=work, env=shell, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command.text}\n{ended.stdout}\n{ended.stderr}"
        said.append(ended.stdout)
    return said


def test_from_a_checkpoint_to_a_bundle(tmp_path: Path) -> None:
    walk("docs/tutorials/own-model.md", tmp_path)
    made = {path.name for path in (tmp_path / "work").iterdir()}
    assert {"runs", "model.zip", "dfqkit-baseline.json"} <= made


def test_from_a_file_of_another_tool_to_the_gate(tmp_path: Path) -> None:
    walk("docs/tutorials/gate-in-github-actions.md", tmp_path)
    work = tmp_path / "work"
    assert (work / ".github" / "workflows" / "accuracy.yml").is_file()
    assert "agreement" in (work / "history.csv").read_text(encoding="utf-8")


def test_from_a_method_to_a_comparison(tmp_path: Path) -> None:
    walk("docs/tutorials/write-a-synthesizer.md", tmp_path)
    assert "shifted" in (tmp_path / "work" / "runs" / "bench" / "bench.md").read_text(encoding="utf-8")


def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "site" / "reference" / "commands" / "index.html").is_file()
