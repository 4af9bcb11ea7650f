"""What stands behind a recipe's names may not be replaced while a run goes on: it is refused by name."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dfqkit.cli import main
from dfqkit.config.files import find_file
from dfqkit.config.reading import load_recipe
from dfqkit.run.binding import DATA, bind_data
from dfqkit.run.context import Context
from dfqkit.run.folder import RunFolder
from dfqkit.run.stage import StageResult
from dfqkit.run.stages import STAGES
from dfqkit.teacher.identity import code_of
from dfqkit_export.errors import ArtefactError
from tests._messages import raises_naming

RECIPE = "digits/dfq-w8a8-ort"

Output = pytest.CaptureFixture[str]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a digits teacher that may be replaced; stages write a file each and compute nothing."""

    def run(context: Context) -> StageResult:
        name = f"{len(list(context.folder.path.glob('*.bin')))}.bin"
        (context.folder.path / name).write_text("x")
        return StageResult(files=[name])

    for name, stage in list(STAGES.items()):
        monkeypatch.setitem(STAGES, name, replace(stage, run=run))
    recipe = load_recipe(RECIPE)
    assert recipe.teacher.weights
    path = tmp_path / "weights.safetensors"
    path.write_bytes(find_file(recipe.teacher.weights, recipe.directory).read_bytes())
    return path


def begin(folder: Path, weights: Path, *stages: str) -> None:
    assert (
        main(["run", RECIPE, "--out", str(folder), "--only", "synthesize", "--set", f"teacher.weights={weights}"]) == 0
    )
    for stage in stages:
        assert main(["run", str(folder), "--only", stage]) == 0


def change(weights: Path) -> None:
    state = load_file(weights)
    name = next(name for name, value in state.items() if value.is_floating_point())
    save_file({**state, name: state[name] * 1.5}, weights)


class TestTeacher:
    @pytest.mark.parametrize("arguments", [["--resume", "RUN"], ["RUN", "--only", "quantize"]])
    def test_other_weights_are_refused(
        self, tmp_path: Path, weights: Path, arguments: list[str], capsys: Output
    ) -> None:
        folder = tmp_path / "run"
        begin(folder, weights)
        change(weights)
        assert main(["run", *(str(folder) if word == "RUN" else word for word in arguments)]) == 2
        told = capsys.readouterr().err
        assert all(part in told for part in ("teacher", "sha256", str(weights), "Put back", "--out"))
        assert list(RunFolder.open(folder)._manifest["stages"]) == ["synthesize"]

    def test_also_where_nothing_is_left_to_do(self, tmp_path: Path, weights: Path) -> None:
        begin(tmp_path / "run", weights, "quantize")
        change(weights)
        assert main(["run", str(tmp_path / "run"), "--only", "quantize"]) == 2

    def test_the_same_weights_in_another_file_are_the_same_teacher(self, tmp_path: Path, weights: Path) -> None:
        begin(tmp_path / "run", weights)
        before = weights.read_bytes()
        save_file(load_file(weights), weights, metadata={"saved": "again"})
        assert weights.read_bytes() != before
        assert main(["run", str(tmp_path / "run"), "--only", "quantize"]) == 0

    def test_weights_that_are_back_continue(self, tmp_path: Path, weights: Path) -> None:
        begin(tmp_path / "run", weights)
        before = weights.read_bytes()
        change(weights)
        assert main(["run", str(tmp_path / "run"), "--only", "quantize"]) == 2
        weights.write_bytes(before)
        assert main(["run", str(tmp_path / "run"), "--only", "quantize"]) == 0


def test_code_is_every_module_that_classes_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "some_network.py"
    file.write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    pass\ndef make():\n    return Net(nn.ReLU())\n"
    )
    module = pytest.importorskip("some_network")
    model = module.make()
    before = code_of(model, "some_network:make")
    assert set(before) == {"some_network"}
    assert code_of(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1)), None) == {}
    assert code_of(None, "some_network:make") == before
    file.write_text(file.read_text().replace("ReLU", "Tanh"))
    assert code_of(model, "some_network:make") != before
    del sys.modules["some_network"]


def test_data_behind_a_name_of_the_synthesis_section(tmp_path: Path) -> None:
    data = tmp_path / "train.npz"
    np.savez(data, images=np.zeros((2, 16, 16), np.uint8))
    recipe = load_recipe(RECIPE, [f"synthesis={{method: images, path: {data}}}"])
    folder = RunFolder.create(tmp_path / "run", recipe_text="", digest="0" * 64, facts={})
    context = Context(folder=folder, recipe=recipe, device=torch.device("cpu"), progress=None)  # type: ignore[arg-type]
    bind_data(context)
    bind_data(context)
    assert list(folder.bound(DATA)) == [str(data)]
    np.savez(data, images=np.ones((2, 16, 16), np.uint8))
    with raises_naming(ArtefactError, str(data), "synthesis", "Put back"):
        bind_data(context)
