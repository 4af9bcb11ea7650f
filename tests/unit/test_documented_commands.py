"""Every command of README and docs: how it is run is said, and what it asks for is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dfqkit.cli import command_line
from dfqkit.config.files import list_recipes
from tests._documented import _BLOCK, CI, PARSED, ROOT, TIERS, Command, commands, pages

ALL = [command for page in pages() for command in commands(page)]
#: What nothing but reading can check here: installing with a system's tools, and clusters.
READ_ALONE = {
    "apt",
    "apt-get",
    "sbatch",
    "ray",
    "srun",
    "scancel",
    "squeue",
    "ssh",
    "scp",
    "torchrun",
    "module",
    "salloc",
    "sudo",
}


def parts(command: Command) -> list[list[str]]:
    """The commands that one line of a shell consists of."""
    found: list[list[str]] = [[]]
    text = re.sub(r'"\$\w+"', "1", command.text) if command.script else command.text
    for word in shlex.split(text.replace("\\\n", " "), comments=True):
        if word in ("&&", "|", "||", ";"):
            found.append([])
        elif word == ">":
            found[-1].append("\0")
        else:
            found[-1].append(word)
    return [part[: part.index("\0")] if "\0" in part else part for part in found if part]


def test_every_command_is_in_one_tier() -> None:
    assert [f"{one.page}: {one.text}" for one in ALL if one.tier not in TIERS] == []
    assert {tier for tier in TIERS if not any(one.tier == tier for one in ALL)} <= {PARSED}


def test_only_what_cannot_be_run_is_read_alone() -> None:
    read = [one for one in ALL if one.tier == PARSED]
    assert [one.text for one in read if not READ_ALONE & set(one.words)] == []


def test_scripts_of_a_queue_are_run_by_a_test_of_their_page() -> None:
    scripts = {(one.page, one.script) for one in ALL if one.script}
    test = (ROOT / "tests" / "e2e" / "test_clusters_page.py").read_text(encoding="utf-8")
    assert {page for page, _ in scripts} == {"docs/clusters.md"}
    assert [script for _, script in scripts if f'submitted("{script}"' not in test] == []


def test_no_block_of_shell_is_overlooked() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        blocks = [found for found in re.findall(r"^ *(`{3,}|~{3,})(.*)$", text, re.M)[::2] if "sh" in found[1]]
        counted = [found for found in blocks if re.fullmatch(r'(sh|bash)( title="[\w.]+")?', found[1])]
        assert blocks == counted
        assert len(blocks) == len(_BLOCK.findall(text)), page


@pytest.mark.parametrize("command", ALL, ids=lambda one: f"{one.page}: {one.text[:60]}")
def test_what_it_asks_for_is_there(command: Command) -> None:
    for words in parts(command):
        program = Path(words[0]).name
        if program == "dfqkit":
            args = command_line().parse_args(words[1:])
            for name in (getattr(args, "recipe", None),):
                if name and "/" in name and not name.endswith((".yaml", "RECIPE")) and not name.startswith("runs/"):
                    assert name in list_recipes()
        elif program.startswith("python") and words[1].startswith("tests/"):
            assert (ROOT / words[1]).is_file(), command.text
        elif program.startswith("python") and words[1:2] == ["-m"] and words[2].startswith("tests."):
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), command.text


def test_the_two_commands_of_the_readme_are_run_by_ci() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for name in ("run", "test"):
        assert text.count(f"<!-- command: {name} -->\n```sh\n") == 1
    assert "for name in run test; do" in script
    assert sum(one.tier == CI for one in ALL if one.page == "README.md") == 2
