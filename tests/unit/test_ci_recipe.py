"""The workflow files that users copy: what they say is run here, word for word, with nothing but what they install."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
import yaml

import dfqkit_export
from dfqkit.config.files import list_recipes
from dfqkit_export._version import __version__
from dfqkit_export.gate import Baseline, Options, check, write_baseline
from tests._gate_toy import make_bundle

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "ci"
NAMES = ("github-actions.yml", "gitlab-ci.yml")
LIGHT = {"numpy", "onnx", "onnxruntime", "pytest"}
ABSENT = ("torch", "torchvision", "brevitas", "onnxscript", "sklearn")
TESTS = """
from pathlib import Path

def test_classifier(accuracy_check):
    accuracy_check(Path(__file__).parents[2] / "models" / "classifier.zip")
"""


def steps(name: str) -> tuple[dict[str, str], list[str]]:
    """The variables of a workflow's job and its shell blocks, one for each that a CI runs in a shell of its own."""
    job: dict[str, Any] = load(name)
    job = job["jobs"]["accuracy"] if name.startswith("github") else job["accuracy"]
    if name.startswith("github"):
        return job["env"], [step["run"] for step in job["steps"] if "run" in step]
    return job["variables"], ["\n".join([*job["before_script"], *job["script"]])]


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a bundle, its baseline and a test, as a user commits them."""
    project = tmp_path_factory.mktemp("project")
    bundle = make_bundle(project / "classifier")
    (project / "models").mkdir()
    with ZipFile(project / "models" / "classifier.zip", "w") as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
            file.unlink()
    bundle.rmdir()
    outcome = check([project / "models" / "classifier.zip"], Baseline(), Options(update=True))
    assert outcome.baseline is not None
    write_baseline(project / "dfqkit-baseline.json", outcome.baseline)
    (project / "tests" / "accuracy").mkdir(parents=True)
    (project / "tests" / "accuracy" / "test_accuracy.py").write_text(TESTS)
    return project


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where a CI would have installed dfqkit and its few packages, and nothing else can be imported."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    for folder in (programs, packages / "dfqkit_here-0.dist-info"):
        folder.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    scripts = {
        "python": f'[ "$1 $2" = "-m pip" ] && echo "$*" >> {shlex.quote(str(tmp_path / "pip.log"))} && exit\n'
        f'exec {python} "$@"\n',
        "dfqkit": f'exec {python} -c "import sys; from dfqkit.cli import main; sys.exit(main())" "$@"\n',
    }
    for name, text in scripts.items():
        (programs / name).write_text("#!/bin/sh\n" + text)
        (programs / name).chmod(0o755)
    # What installing dfqkit would have told pytest.
    points = re.search(r"\[project\.entry-points\.pytest11\]\n(.+)\n", (ROOT / "pyproject.toml").read_text())
    assert points is not None
    info = packages / "dfqkit_here-0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit_here\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + points[1].replace('"', ""))
    (packages / "sitecustomize.py").write_text(
        "import sys\n\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ABSENT!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    source = [str(packages), str(ROOT), str(Path(dfqkit_export.__file__).parents[1])]
    return {
        "PATH": f"{programs}{os.pathsep}{os.defpath}",
        "PYTHONPATH": os.pathsep.join(source),
        "HOME": str(tmp_path),
        "CI": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def shell(block: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-e", "-o", "pipefail", "-c", block]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_its_commands_make_what_it_publishes(
    name: str, recorded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    project = shutil.copytree(recorded, tmp_path / "project")
    variables, blocks = steps(name)
    summary = tmp_path / "summary.md"
    environment |= variables | ({"GITHUB_STEP_SUMMARY": str(summary)} if name.startswith("github") else {})
    assert all(
        shell(f"python -c 'import {module}'", project, environment).returncode for module in ("torch", "brevitas")
    )
    for block in blocks:
        done = shell(block, project, environment)
        assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name: path for path in (project / "reports").iterdir()}
    assert sorted(made) == ["accuracy.md", "accuracy.xml", "pytest.md", "pytest.xml"]
    for report, least in (("accuracy.xml", 8), ("pytest.xml", 1)):
        suite = next(ElementTree.parse(made[report]).iter("testsuite"))
        assert int(suite.get("tests", 0)) >= least
        assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert "dfqkit.toy.agreement" in made["pytest.xml"].read_text()
    for report in ("accuracy.md", "pytest.md"):
        assert made[report].read_text().startswith("### dfqkit check: ok: 1 case")
    if name.startswith("github"):
        assert summary.read_text() == made["accuracy.md"].read_text()
    assert "/dfqkit-" in (tmp_path / "pip.log").read_text()


def test_a_file_that_got_worse_fails_the_job_and_is_still_published(
    recorded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    project = shutil.copytree(recorded, tmp_path / "project")
    baseline = project / "dfqkit-baseline.json"
    document = json.loads(baseline.read_text())
    document["cases"]["toy"]["floors"] = {"agreement": 99.9}
    baseline.write_text(json.dumps(document))
    variables, blocks = steps("github-actions.yml")
    codes = [shell(block, project, environment | variables).returncode for block in blocks]
    assert codes == [0, 1, 1]
    for report in ("accuracy.xml", "pytest.xml"):
        suite = next(ElementTree.parse(project / "reports" / report).iter("testsuite"))
        assert suite.get("failures") == "1"
    assert "**regressed**" in (project / "reports" / "pytest.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_pinned_and_only_what_a_check_needs_is_installed(name: str) -> None:
    lines = [shlex.split(line) for block in steps(name)[1] for line in block.splitlines() if " pip install " in line]
    ((*command, dfqkit), packages) = lines[0][:5], lines[0][5:]
    assert (len(lines), command, dfqkit) == (1, ["python", "-m", "pip", "install"], "$DFQKIT")
    assert steps(name)[0]["DFQKIT"].endswith(f"/dfqkit-{__version__}-py3-none-any.whl")
    light = dict(package.split("==") for package in packages)
    assert set(light) == LIGHT
    for package, version in light.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        # Tested with this major version at least: that of the environment that runs this test.
        assert version.split(".")[0] == metadata.version(package).split(".")[0], package


def test_every_action_and_image_is_pinned_by_a_full_version() -> None:
    used = [step["uses"] for step in load(NAMES[0])["jobs"]["accuracy"]["steps"] if "uses" in step]
    assert len(used) == 3
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", action)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-[a-z-]+", load(NAMES[1])["accuracy"]["image"])


def test_reports_are_published_even_where_a_check_fails() -> None:
    github = load(NAMES[0])["jobs"]["accuracy"]["steps"][-1]
    assert github["if"] == "${{ !cancelled() }}"
    assert github["with"]["path"] == "reports/"
    gitlab = load(NAMES[1])["accuracy"]["artifacts"]
    assert (gitlab["when"], gitlab["paths"], gitlab["reports"]) == ("always", ["reports/"], {"junit": "reports/*.xml"})


def test_they_are_no_recipes() -> None:
    assert not [name for name in list_recipes() if name.startswith("ci/")]
    assert sorted(path.name for path in FOLDER.iterdir()) == list(NAMES)
