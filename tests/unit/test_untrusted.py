"""A stranger's recipe under `--untrusted`: no code but the allowed factories, no file but its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dfqkit.cli import main
from dfqkit.config.files import find_recipe
from dfqkit.config.reading import load_recipe
from dfqkit.config.untrusted import require_harmless
from dfqkit_export.errors import RecipeError
from tests._messages import names

RECIPE = "digits/dfq-w8a8-ort"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DFQKIT_ASSETS", raising=False)
    (tmp_path / "mine").mkdir()
    return Path(shutil.copy(find_recipe(RECIPE), tmp_path / "mine" / "recipe.yaml"))


@pytest.mark.parametrize("factory", ["dfqkit.models:digits_cnn", "torchvision:resnet18", "timm:resnet10t"])
def test_factories_that_make_networks_are_taken(factory: str, recipe: Path) -> None:
    require_harmless(load_recipe(recipe, [f"teacher.factory={factory}"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("teacher.factory=os:system", "'os:system'"),
        ("teacher.factory=dfqkit.models.evil:run", "'dfqkit.models.evil:run'"),
        ("teacher.factory=my_model.py:build", "'my_model.py:build'"),
        ("teacher.factory=torch.hub:load", "'torch.hub:load'"),
        ("teacher.args={repo: github.com/x}", "teacher.args.repo"),
        ("teacher.args={widths: [1, {a: b}]}", "teacher.args.widths"),
        ("teacher.weights=/etc/passwd", "/etc/passwd"),
        ("teacher.weights=../../other.pt", "../../other.pt"),
        ("validate.data=../images.npz", "../images.npz"),
        ("validate.data=torchvision:CIFAR10:data", "unpickles"),
        ("synthesis={method: images, path: 'torchvision:CIFAR10:data'}", "synthesis.path"),
        ("synthesis={method: zeroq, start_from: 'torchvision:CIFAR10:data'}", "synthesis.start_from"),
        ("synthesis={sources: [{method: images, path: 'torchvision:CIFAR10:d'}, {method: zeroq}]}", "unpickles"),
        ("synthesis={method: images, path: /home/you/photos}", "/home/you/photos"),
        ("student={factory: 'subprocess:run', steps: 1}", "student.factory"),
        ("student={factory: 'dfqkit.models:digits_cnn', start: /etc/passwd}", "/etc/passwd"),
    ],
)
def test_whatever_else_could_be_run_or_read_is_refused(change: str, told: str, recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        require_harmless(load_recipe(recipe, [change]))
    names(str(caught.value), "--untrusted", told)


def test_a_link_that_leads_out_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.pt").write_bytes(b"x")
    (recipe.parent / "weights.pt").symlink_to(tmp_path / "secret.pt")
    with pytest.raises(RecipeError, match="link"):
        require_harmless(load_recipe(recipe, ["teacher.weights=weights.pt"]))


def test_the_command_refuses_before_anything_is_imported(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(recipe), "--dry-run", "--set", "teacher.factory=antigravity:run"]
    assert main(command) == 0
    assert main([*command, "--untrusted"]) == 2
    names(capsys.readouterr().err, "antigravity:run", "dfqkit.models:")


@pytest.mark.parametrize(
    "command",
    [
        "inspect {evil}",
        "bench {good} {evil} --out out",
        "bench {good} --distill {evil} --out out",
        "recipe show {evil}",
    ],
)
def test_every_command_that_reads_a_recipe_refuses_it(
    command: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text(encoding="utf-8")
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    stranger = tmp_path / "mine" / "evil.yaml"
    stranger.write_text(text.replace("dfqkit.models:digits_cnn", "evil:run"), encoding="utf-8")
    assert main([*command.format(evil=stranger, good=recipe).split(), "--untrusted"]) == 2
    names(capsys.readouterr().err, "--untrusted", "evil:run")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_no_recipe_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--factory", "os:system", "--shape", "1,8,8", "--classes", "2", "--untrusted"]) == 2
    names(capsys.readouterr().err, "--untrusted goes with a RECIPE")
