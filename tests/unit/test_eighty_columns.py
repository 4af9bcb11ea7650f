"""On a terminal of 80 columns nothing is cut and no number is broken, whatever the command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dfqkit.cli import command_line, main
from dfqkit_export.backends import all_targets
from dfqkit_export.words import table, wrapped
from tests._parsers import parsers
from tests._shared import finished_run

WIDTH = 80
#: A line that ends within a figure: behind a sign, an opened interval, or a number whose unit stands in the next line.
BROKEN = re.compile(r"(±|\[-?[\d.]+,)$")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "run"
    shutil.copytree(finished_run(tmp_path_factory), folder)
    return folder


@pytest.fixture(autouse=True)
def _eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def check(text: str) -> None:
    lines = text.splitlines()
    assert [line for line in lines if len(line) > WIDTH and " " in line.strip()] == []
    assert [line for line in lines if BROKEN.search(line)] == []


def test_help_of_every_command() -> None:
    for parser in parsers(command_line()):
        check(parser.format_help())


LISTS = ("recipes", "synthesizers", "targets", "runtimes", *map("targets {}".format, all_targets()))


@pytest.mark.parametrize("words", LISTS)
def test_lists(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words.split()]) == 0
    check(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        "report RUN", "inspect RUN/model.onnx", "inspect RUN/model.onnx --target tensorrt", "env",
        "inspect RUN/model.onnx --runtime onnxruntime", "inspect digits/dfq-w8a8-ort",
        "compare RUN/teacher.onnx RUN/model.onnx", "profile RUN/model.onnx --repeats 2",
        "bundle RUN --out RUN/../bundle.zip", "check RUN/report.json --baseline RUN/../none.json --update-in-ci",
        "run --resume RUN", "run --resume RUN --verbose", "bank info RUN/images/calibration.safetensors",
    ],
)  # fmt: skip
def test_what_commands_print(words: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.replace("RUN", str(run)).split()) in (0, 1)
    said = capsys.readouterr()
    check(said.out.replace(str(run), "RUN"))
    assert said.out


def test_a_run_ends_in_five_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--resume", str(run)])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"[a-zA-Z ]+ +", line)]
    heads = [line.split()[0] for line in lines if not line.startswith((" ", "WARNING"))]
    assert heads[0] in ("OK", "FAILED", "NOT")
    assert [head for head in heads if head in ("drop", "kept", "speed", "size", "files")][-1] == "files"
    assert len(heads) <= 5


def test_narrow_tables_fold_words_and_keep_figures_whole() -> None:
    rows = [("name", "value", "what"), ("a", "1.00 [0.50, 1.50] points", "many words " * 12)]
    lines = table(rows, ruler=True)
    assert max(map(len, lines)) <= WIDTH
    assert "1.00 [0.50, 1.50] points" in "\n".join(lines)
    records = table([("name", *"abcd"), ("first", *["100.00 [99.44, 100.00] %"] * 4)], ruler=True)
    assert records[0] == "first"
    assert records[1] == "  a  100.00 [99.44, 100.00] %"
    assert wrapped("loses 12.5 points of these", 14) == ["loses", "12.5 points of", "these"]


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert table([("a", "word " * 40)]) == [f"a  {'word ' * 40}".rstrip()]
