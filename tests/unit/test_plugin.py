"""The template for methods in packages of their own, installed as a user would and used under its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "recipes" / "plugin_template"

PROGRAM = """
import torch
from dfqkit import losses
from dfqkit.config.registry import synthesizer_config
from dfqkit.seeds import derive
from dfqkit.config.synthesis import Demand
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.config.reading import load_recipe
from dfqkit.teacher.taps import BatchNormTap
from tests._toys import toy_teacher

recipe = load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: shifted-moments, steps: 40, batch: 16, shift: 0.05}"])
config = recipe.synthesis
teacher = toy_teacher()
before = {name: value.clone() for name, value in teacher.model.state_dict().items()}


def make(seed):
    return build_synthesizer(config, teacher, derive(seed), Demand(training=24, fresh=8))


def run(maker, rounds):
    return [maker.synthesize() for _ in range(rounds)]


straight, first = make(0), make(0)
terms = run(straight, straight.warmup_rounds)
assert straight.warmup_rounds == 80 and straight.cost == 80 * 16
assert terms[39]["bn"] < 0.5 * terms[0]["bn"], (terms[0], terms[39])
assert run(first, 50) == terms[:50]
resumed = make(5)
resumed.load_state_dict(first.state_dict())
assert run(resumed, 30) == terms[50:]
fresh = straight.sample(8)
assert torch.equal(fresh, resumed.sample(8))
assert torch.equal(straight.training_batch(24), resumed.training_batch(24))

def exact(maker):
    with torch.no_grad(), maker.tap as tap:
        teacher.model(maker.pixels)
        return [(s.mean, s.variance, s.running_mean, s.running_variance) for s in tap.statistics]

# The shift that the loss aims at, derived once more.
maker = make(3)
terms = maker.synthesize()
pixels, shifts = maker.pixels, maker.shifts
again = make(3)
again._begin()
expected = 0
statistics = exact(again)
for (mean, variance, mu, var), shift in zip(statistics, shifts, strict=True):
    target = mu.double() + shift.double() * var.double() ** 0.5
    expected += ((mean - target) ** 2).mean() + ((variance - var.double()) ** 2).mean()
assert abs(float(expected) / len(statistics) - terms["bn"]) < 1e-4 * terms["bn"]
spread = torch.cat(shifts).std() / 0.05
assert 0.6 < float(spread) < 1.5, spread

assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
assert all(parameter.grad is None for parameter in teacher.model.parameters())
print(synthesizer_config("shifted-moments").__module__, type(straight).__module__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, installed without a network into a folder of its own."""
    for needed in ("pip", "setuptools"):
        try:
            metadata.distribution(needed)  # looking for the module would import setuptools' replacement of distutils
        except metadata.PackageNotFoundError:
            pytest.skip(f"{needed} is not installed here, so that a package cannot be built")
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(TEMPLATE, root / "source")  # building writes beside the sources
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    call([sys.executable, "-m", "pip", "install", *options, "--target", str(root / "target"), str(root / "source")])
    return root / "target"


def call(command: list[str], *paths: Path) -> str:
    path = os.pathsep.join(map(str, [*paths, ROOT, ROOT / "export"]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_is_listed(installed: Path) -> None:
    listing = call([sys.executable, "-m", "dfqkit", "list", "synthesizers"], installed)
    (line,) = [line for line in listing.splitlines() if line.split()[:1] == ["shifted-moments"]]
    assert "needs batchnorm" in line
    assert "Pixels matched to BatchNorm statistics" in line
    without = call([sys.executable, "-m", "dfqkit", "list", "synthesizers"])
    assert "shifted-moments" not in without


@pytest.mark.slow
def test_it_synthesizes_and_keeps_the_interface(installed: Path) -> None:
    package = "dfqkit_shifted_moments"
    assert call([sys.executable, "-c", PROGRAM], installed).split() == [package, f"{package}.method"]


def test_the_template_is_not_taken_for_tests() -> None:
    assert not [path.name for path in TEMPLATE.rglob("*.py") if path.name.startswith("test_")]


def test_the_readme_names_what_there_is() -> None:
    text = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    for name in ("pyproject.toml", "dfqkit_shifted_moments/__init__.py", "dfqkit_shifted_moments/method.py"):
        assert name in text
        assert (TEMPLATE / name).is_file()
    declared = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8")
    assert 'shifted-moments = "dfqkit_shifted_moments:ShiftedMomentsConfig"' in declared
