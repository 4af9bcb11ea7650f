"""`dfqkit init`: what it asks at a terminal, what it knows by itself, and that elsewhere it asks nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from tests._messages import names
from tests._onnx_files import file, op

DIGITS = Path(__file__).parents[2] / "recipes" / "digits"

Output = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": load_file(DIGITS / "teacher.safetensors")}, "best.pth")
    Path("my_model.py").write_text("from dfqkit.models import digits_cnn\n\ndef build():\n    return digits_cnn(10)\n")
    file(tmp_path / "model.onnx", [op("Relu", "x", "y")], shape=("N", 3, 8, 8))
    return tmp_path


def talk(monkeypatch: pytest.MonkeyPatch, answers: str, *words: str) -> tuple[int, str]:
    """Answer the questions of a terminal, one line each; return the exit code and what was said."""
    said = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(answers))
    monkeypatch.setattr("sys.stderr", said)
    return main(["init", *words]), said.getvalue()


def test_what_no_option_says_is_asked_and_asked_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = "best.pth\nmy_model.py:build\n1,16\n1,16,16\n0.3,0.3\n0.3\n0.32\n10\nopenvno\nopenvino\nw9a9\nw4a8\n\n"
    code, said = talk(monkeypatch, answers)
    assert code == 0, said
    names(
        said, "FILE.py:function", "[3,224,224]", "(a guess) [0.5]", "takes 1 number(s)", "'w9a9' must be", "dfqkit run"
    )
    assert "Did you mean 'openvino'" in said.replace("\n  ", " ")
    recipe = load_recipe("recipe.yaml")
    assert (recipe.image.shape, recipe.image.mean, recipe.image.classes) == ((1, 16, 16), (0.3,), 10)
    assert (recipe.target, recipe.quant.bits, recipe.validation.data) == ("openvino", "w4a8", None)
    assert recipe.teacher.weights == str(here / "best.pth")


def test_the_library_and_the_file_are_believed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = talk(monkeypatch, "torchvision:squeezenet1_1\n" + "\n" * 9, "--bits", "w8a8", "--target", "openvino")
    assert code == 0, said
    names(said, "says torchvision:squeezenet1_1", "[3,224,224]", "[0.485,0.456,0.406]", "[1000]", "holds its weights")
    assert "How many bits" not in said
    recipe = load_recipe("recipe.yaml")
    assert (recipe.teacher.weights, recipe.image.shape, recipe.image.classes) == (None, (3, 224, 224), 1000)
    _, said = talk(monkeypatch, "", "model.onnx", "--out", "other.yaml")
    names(said, "[3,8,8]", "nothing was written")
    assert not Path("other.yaml").exists()


def test_without_a_terminal_nothing_is_asked(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("best.pth\n"))
    assert main(["init"]) == 2
    names(capsys.readouterr().err, "give MODEL", "a checkpoint")
    assert main(["init", "model.onnx"]) == 2
    names(capsys.readouterr().err, "mean, std", "guess", "--mean 0.485,0.456,0.406")
    assert not Path("recipe.yaml").exists()
    words = ["best.pth", "--factory", "my_model.py:build", "--shape", "1,16,16", "--mean", "0.3", "--std", "0.32"]
    assert main(["init", *words, "--classes", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "recipe.yaml"
    assert load_recipe("recipe.yaml").quant.bits == "w8a8"
    assert main(["init", *words]) == 2
    names(capsys.readouterr().err, "is there already", "--out")


def test_what_init_writes_is_what_quantize_runs(here: Path, capsys: Output) -> None:
    words = ["best.pth", "--factory", "my_model.py:build", "--shape", "1,16,16", "--mean", "0.3", "--std", "0.32"]
    assert main(["init", *words, "--classes", "10", "--out", "r.yaml"]) == 0
    capsys.readouterr()
    assert main(["quantize", *words, "--classes", "10", "--dry-run", "--quiet"]) == 0
    assert Path("r.yaml").read_text(encoding="utf-8").strip() in capsys.readouterr().out
