"""No published figure is silently older than the code and the recipes that it depends on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.benchmarks import figures
from tests.benchmarks.figures import FIGURES, OLDER, ROOT, Figures, make, marked, markers, meaning

#: Pages of which each part that says how its figures are made has a marker.
PAGES = ("README.md", "docs/results.md", "docs/real-size.md")


def test_figures_that_are_older_than_the_code_say_so() -> None:
    digests = {name: each.digest() for name, each in FIGURES.items()}
    found = list(markers())
    wrong = [f"{page.name}: {name}" for page, name, digest, told in found if told != (digest != digests[name])]
    assert not wrong, "make them again, or say that they are older: python tests/benchmarks/figures.py --mark"
    assert {(name, str(page.relative_to(ROOT))) for page, name, *_ in found} >= {
        (name, each.page) for name, each in FIGURES.items()
    }


@pytest.mark.parametrize("page", PAGES)
def test_each_part_with_the_command_of_a_benchmark_has_a_marker(page: str) -> None:
    for part in re.split(r"^## ", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)[1:]:
        if "python tests/benchmarks/" in part or "python -m tests.benchmarks" in part:
            assert "<!-- figures: " in part, part.splitlines()[0]


def test_every_pattern_finds_files() -> None:
    for name, each in FIGURES.items():
        assert all(any(ROOT.glob(pattern)) for pattern in each.sources), name


def test_a_digest_is_of_what_moves_figures_alone(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "code.py").write_text(text, encoding="utf-8")
        meaning.cache_clear()
        return Figures("", "", ("*.py",)).digest(tmp_path)

    one = digest('"""Doc."""\nx = Field(\n    1, description="Old "\n    "words."\n)\n')
    assert one == digest('"""Other é."""\n# A comment.\nx = Field(1, description="New é words.")\n')
    assert one != digest('"""Doc."""\nx = Field(2, description="Old words.")\n')


def test_a_page_says_what_is_older_and_takes_it_back() -> None:
    page = "## Speed\n\n<!-- figures: speed 0123456789ab -->\n\n| a |\n"
    older = marked(page, {"speed": "ba9876543210"})
    assert older == f"## Speed\n\n<!-- figures: speed 0123456789ab -->\n\n{OLDER}\n\n| a |\n"
    assert marked(older, {"speed": "ba9876543210"}) == older
    assert marked(older, {"speed": "0123456789ab"}) == page
    assert marked(older, {"speed": "ba9876543210"}, ["speed"]) == page.replace("0123456789ab", "ba9876543210")


def test_what_was_made_is_not_made_again_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code.py").write_text("x = 1\n", encoding="utf-8")
    told = tmp_path / "told"
    command = f"echo {{out}} >> {told} && {sys.executable} -c 'import sys; sys.exit(%d)'"
    source = (str(Path("code.py")),)
    toys = {"good": Figures("", command % 0, source), "bad": Figures("", command % 3, source)}
    monkeypatch.setattr(figures, "FIGURES", {**toys, "asked": Figures("", "cat BUNDLE", source)})
    out = tmp_path / "out"
    assert make(["asked", "good", "bad"], out) == 3
    assert make(["good"], out) == 0
    assert [line.rpartition("out/")[2].partition("/")[0] for line in told.read_text().split()] == ["good", "bad"]
    assert list(json.loads((out / "made.json").read_text(encoding="utf-8"))) == ["good"]
