"""`dfqkit quantize`: what it asks for, what it knows by itself, and the recipe that it runs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dfqkit
from dfqkit.api import prepare
from dfqkit.cli import main
from dfqkit.config.reading import load_recipe, parse_recipe
from dfqkit.run.folder import RunFolder
from dfqkit_export.errors import RecipeError, TeacherError
from dfqkit_export.report import Report
from tests._messages import names, raises_naming
from tests._onnx_files import file, op

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "recipes" / "digits"
CHECKPOINT = ["quantize", "best.pth", "--factory", "my_model.py:build"]
IMAGE = ["--shape", "1,16,16", "--mean", "0.3", "--std", "0.32", "--classes", "10"]
SMALL = [
    "bank.calibration=64", "bank.held_out=32", "bank.grading=32", "bank.batch=32", "validate.limit=64",
    "quant.weight_range=max", "quant.activation_range=percentile", "validate.latency_repeats=0",
]  # fmt: skip

Output = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what people hold: a checkpoint as training scripts save it, and the code of its network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DFQKIT_ASSETS", raising=False)
    torch.save({"epoch": 3, "state_dict": load_file(DIGITS / "teacher.safetensors")}, "best.pth")
    Path("my_model.py").write_text("from dfqkit.models import digits_cnn\n\ndef build():\n    return digits_cnn(10)\n")
    file(tmp_path / "model.onnx", [op("Relu", "x", "y")], shape=("N", 3, 8, 8))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "best.pth"], ["is a checkpoint", "dfqkit quantize best.pth --factory my_model.py:build --shape"]),
        (["run", "model.onnx"], ["is an ONNX file", "dfqkit quantize model.onnx --mean M,... --std S,..."]),
        (["quantize", "best.pth"], ["holds weights alone", "--factory my_model.py:build", "torchscript:best.pth"]),
        (["quantize", "other.pth"], ["no file 'other.pth'"]),
        (
            ["quantize", "best.pht", *CHECKPOINT[2:]],
            ["goes with a checkpoint", "'best.pht'", "Did you mean 'best.pth'"],
        ),
        (
            ["quantize", "best.pth", "--factory", "resnet18"],
            ["'resnet18' is no factory", "torchvision:NAME", "FILE.py:"],
        ),
        (
            ["quantize", "best.pth", "--factory", "torchvision:resnet1"],
            ["no network 'resnet1'", "Did you mean 'resnet1"],
        ),
        ([*CHECKPOINT, *IMAGE, "--dry-run", "--data", "my_model.py"], ["my_model.py", "class folders"]),
        ([*CHECKPOINT, *IMAGE, "--dry-run", "--images", "photo"], ["photo'"]),
        ([*CHECKPOINT, *IMAGE, "--dry-run", "--data", "my_model.pyy"], ["my_model.pyy", "Did you mean 'my_model.py'"]),
        ([*CHECKPOINT, *IMAGE, "--data", "my_model.pyy"], ["my_model.pyy", "Did you mean 'my_model.py'"]),
        (["report", "nothing"], ["'nothing'", "not there", "report.json"]),
        (["quantize", "digits/dfq-w8a8-ort"], ["dfqkit run digits/dfq-w8a8-ort", "FILE.onnx"]),
        (["quantize", "model.onnx", "--factory", "timm:resnet18"], ["--factory goes with a checkpoint"]),
        (["quantize", "model.onnx"], ["mean, std", "(3, 8, 8)", "--mean 0.485,0.456,0.406 --std 0.229"]),
        (CHECKPOINT, ["--shape C,H,W", "guess", "--shape 3,224,224", "--mean 0.485,0.456,0.406"]),
        ([*CHECKPOINT, "--mean", "0.3"], ["shape, std", "--shape 1,224,224 --std 0.5"]),
        ([*CHECKPOINT, *IMAGE[:-2]], ["--classes", "(10)"]),
        ([*CHECKPOINT, *IMAGE, "--no-weights"], ["contradicts"]),
        ([*CHECKPOINT, *IMAGE, "--weights-key", "ema"], ["ema", "state_dict"]),
        ([*CHECKPOINT, *IMAGE, "--set", "teacher.wights=x"], ["teacher.wights"]),
        ([*CHECKPOINT, *IMAGE, "--set", "bank.callibration=3"], ["bank.callibration", "calibration"]),
        ([*CHECKPOINT, *IMAGE, "--bits", "w9"], ["w9"]),
        ([*CHECKPOINT, *IMAGE, "--target", "onnxruntim"], ["onnxruntime"]),
        (
            ["quantize", "torchvision:resnet18"],
            ["random", "--no-weights", "dfqkit quantize FILE --factory"],
        ),
        (["quantize", "my_model.py:build", *IMAGE], ["random", "--no-weights"]),
    ],
)
def test_what_is_missing_is_asked_for(words: Sequence[str], told: Sequence[str], here: Path, capsys: Output) -> None:
    before = sorted(here.rglob("*"))
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    names(error, *told)
    assert "Traceback" not in error
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == before


def test_the_recipe_is_that_of_the_arguments_and_holds_anywhere(here: Path, capsys: Output) -> None:
    shutil.copy(DIGITS / "test.npz", here)
    words = [*CHECKPOINT, *IMAGE, "--seed", "7", "--bits", "w4a8", "--method", "procedural", "--data", "test.npz"]
    words += ["--target", "openvino", "--weights-key", "state_dict", "--set", "bank.grading=9", "--dry-run"]
    assert main([*words, "--set", "distill.steps=5"]) == 0
    recipe = parse_recipe(capsys.readouterr().out.partition("\n\nschema: 1\n")[2].join(["schema: 1\n", ""]), "shown")
    assert recipe.teacher.model_dump(exclude_defaults=True) == {
        "factory": f"{here / 'my_model.py'}:build", "weights": str(here / "best.pth"), "weights_key": "state_dict",
    }  # fmt: skip
    assert (recipe.image.shape, recipe.image.mean, recipe.image.classes) == ((1, 16, 16), (0.3,), 10)
    assert (recipe.seed, recipe.quant.bits, recipe.target, recipe.synthesis.method) == (
        *(7, "w4a8", "openvino", "procedural"),
    )
    assert recipe.validation.data == str(here / "test.npz")
    assert (recipe.bank.grading, recipe.distill and recipe.distill.steps) == (9, 5)
    assert not (here / "runs").exists()


def test_the_library_says_what_images_its_network_takes(here: Path, capsys: Output) -> None:
    for name in ("cat", "dog"):
        (here / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(here / "photos" / name / "0.png")
    words = ["quantize", "torchvision:squeezenet1_1", "--no-weights", "--data", "photos", "--dry-run"]
    assert main(words) == 0
    assert "resize: 256\n  crop: 224\n" in capsys.readouterr().out
    words += ["--shape", "3,64,64"]
    assert main(words) == 2
    repair = "--set validate.resize=64 --set validate.crop=64"
    names(capsys.readouterr().err, repair)
    assert main([*words, *repair.split()]) == 0
    shown = capsys.readouterr()
    recipe = parse_recipe(shown.out.partition("\n\nschema: 1\n")[2].join(["schema: 1\n", ""]), "shown")
    assert recipe.image.spec() == dfqkit.ImageSpec(
        shape=(3, 64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000
    )
    fits = {"resize": 64, "crop": 64}
    assert recipe.teacher.weights is None
    assert recipe.validation.model_dump(exclude_defaults=True) == {**fits, "data": str(here / "photos")}


def test_random_weights_are_taken_only_where_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with raises_naming(TeacherError, "torchvision:resnet18", "random", "options={'teacher': {'weights': FILE}}"):
        dfqkit.quantize("torchvision:resnet18")
    with raises_naming(RecipeError, "teacher.wights"):
        dfqkit.quantize("torchvision:resnet18", options={"teacher": {"wights": None}})
    image = {"shape": (3, 32, 32)}
    options = {"teacher": {"weights": None}}
    _, teacher = prepare("torchvision:resnet18", image=image, bits="w8a8", target="onnxruntime", options=options)
    assert teacher.untrained
    assert "random weights" in caplog.text


def test_a_factory_that_loads_its_weights_is_taken_at_its_word(here: Path) -> None:
    text = "import torch\nfrom dfqkit.models import digits_cnn\n\ndef build():\n    net = digits_cnn(10)\n"
    text += "    net.load_state_dict(torch.load('best.pth', weights_only=True)['state_dict'])\n    return net\n"
    (here / "trained.py").write_text(text)
    image = {"shape": (1, 16, 16), "mean": (0.3,), "std": (0.32,), "classes": 10}
    options = {"teacher": {"weights": None}}
    recipe, teacher = prepare("trained.py:build", image=image, bits="w8a8", target="onnxruntime", options=options)
    assert not teacher.untrained
    assert (recipe.teacher.weights, recipe.synthesis.method) == (None, "dfq")
    needed = [f"synthesis.path={DIGITS / 'test.npz'}"]  # what a method cannot do without may be set beside its name
    more = {"options": options, "method": "images", "overrides": needed}
    recipe, _ = prepare("trained.py:build", image=image, bits="w8a8", target="onnxruntime", **more)  # type: ignore[arg-type]
    assert recipe.synthesis.path == str(DIGITS / "test.npz")  # type: ignore[attr-defined]


def test_from_an_empty_folder_to_a_bundle(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """As a user does it: a checkpoint, the int8 file from a process of its own, the same once more, what deploys."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    more = ["--method", "procedural", "--data", str(DIGITS / "test.npz"), "--out", "out", "--threads", "1"]
    words = [*CHECKPOINT, *IMAGE, *more, *(word for item in SMALL for word in ("--set", item))]
    command = [sys.executable, "-P", "-m", "dfqkit", *words]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert made.returncode == 0, made.stderr
    report = Report.from_json((here / "out" / "report.json").read_text())
    agreement = report.metric("agreement", "onnxruntime")
    assert report.verdict == "ok"
    assert agreement is not None
    assert agreement.value > 95
    assert "dfqkit bundle out" in made.stderr
    assert RunFolder.open(here / "out").run_facts()["command"] == f"dfqkit {shlex.join(words)}"
    again = load_recipe(here / "out" / "recipe.yaml", ["quant.bits=w4a8"])
    assert (again.quant.bits, again.validation.data) == ("w4a8", str(DIGITS / "test.npz"))
    model = (here / "out" / "model.onnx").read_bytes()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    (here / "out" / "report.json").unlink()  # so that there is something to do again
    assert main(["run", "--resume", str(here / "out"), "-q"]) == 0
    assert (here / "out" / "model.onnx").read_bytes() == model
    names(capsys.readouterr().out, "ok      best/w8a8-onnxruntime")
    assert main(["bundle", str(here / "out"), "--out", "model.zip"]) == 0
    assert Path("model.zip").stat().st_size > 10_000
