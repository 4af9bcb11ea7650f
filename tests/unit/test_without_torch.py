"""The command line where only the plain install is: every command works, or says which extra it needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.export._bundles import write_run
from tests.unit.export.conftest import QdqBuilder

ROOT = Path(__file__).parents[2]
#: What the extra `torch` brings, and what nobody needs to have.
ABSENT = (
    "torch",
    "torchvision",
    "brevitas",
    "onnxscript",
    "pkg_resources",
    "timm",
    "openvino",
    "tensorrt_rtx",
    "sklearn",
)

# One process for all commands; each starts with the modules that the ones before it loaded, but for dfqkit's.
PROGRAM = f"""
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from dfqkit.cli import main

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""

WORKS = """
list recipes | list synthesizers | list targets | list runtimes | list targets onnxruntime
recipe show digits/dfq-w4a4-ort | recipe schema | env | env --json
inspect RUN/model.onnx --runtime onnxruntime | inspect RUN/model.onnx --target tensorrt --fix OUT/fixed.onnx
compare RUN/model.onnx RUN/teacher.onnx --images IMAGES | compare RUN RUN
profile RUN/model.onnx --against RUN/teacher.onnx --repeats 2
sentinel --model RUN/model.onnx --teacher RUN/teacher.onnx --images IMAGES --out OUT/s.safetensors
bundle RUN --out OUT/b.zip
check OUT/b.zip --baseline OUT/base.json --update | check OUT/b.zip --baseline OUT/base.json
prove RUN/model.onnx --on avx-vnni --images IMAGES | ci github --out OUT/ci.yml | completion bash
report RUN | report RUN RUN --out OUT/two.html
bank info IMAGES | bank verify IMAGES
bank export IMAGES --npz OUT/a.npz | bank export IMAGES --png OUT/png
bank sheet IMAGES --out OUT/sheet.png
"""
NEEDS = """
run digits/dfq-w4a4-ort --out OUT/run | synthesize digits/dfq-w4a4-ort --n 2 --out OUT/set
inspect digits/dfq-w4a4-ort | inspect --factory torchvision:resnet18 --shape 3,32,32 --classes 10
run OUT/calibrated.yaml --out OUT/run
init torchvision:resnet18 --no-weights | quantize RUN/teacher.onnx --mean 0 --std 1 --out OUT/run
record digits/dfq-w4a4-ort --data train.npz --out OUT/r.safetensors | bench digits/dfq-w8a8-ort --out OUT/bench
"""


#: A student that only calibration makes, of a teacher in ONNX.
CALIBRATED = """
name: calibrated
why: nothing trains
teacher: {factory: "onnx:RUN/teacher.onnx"}
image: {shape: [1, 8, 8], mean: [0], std: [1], classes: 10}
synthesis: {method: noise, accept_noise: true}
"""


def commands(text: str) -> list[str]:
    return [command.strip() for line in text.splitlines() if line for command in line.split("|")]


class Light:
    """A process without torch that does one command after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, write_run(folder / "run", QdqBuilder)
        manifest = json.loads((self.run / "manifest.json").read_text())
        manifest["stages"]["validate"] = {**manifest["stages"]["export"], "files": {}}
        (self.run / "manifest.json").write_text(json.dumps(manifest))
        (folder / "calibrated.yaml").write_text(CALIBRATED.replace("RUN", str(self.run)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def __call__(self, command: str) -> tuple[int, str, str]:
        """Return the exit code and both outputs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        places = {"RUN": str(self.run), "OUT": str(self.folder), "IMAGES": f"{self.run}/images/grading.safetensors"}
        words = [re.sub("^(RUN|OUT|IMAGES)", lambda found: places[found[0]], word) for word in command.split()]
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return int(code), str(out), str(err)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory):
    found = Light(tmp_path_factory.mktemp("light"))
    yield found
    found.process.communicate("", timeout=60)


def test_every_command_works_or_names_the_extra_that_it_needs(light: Light) -> None:
    code, text, _ = light("--help")
    listed = set(re.findall(r"^    ([a-z]+) ", text, re.M))
    assert code == 0
    assert {command.split()[0] for command in commands(WORKS + NEEDS)} == listed
    failed = []
    for command in commands(WORKS):
        code, out, err = light(command)
        # A processor that nothing here runs, and of which nothing is proven, was not looked at.
        ended = (0, 1, 3) if command.startswith("prove") else (0, 1)
        if code not in ended or "Traceback" in err or not out + err:
            failed.append((command, code, err))
    assert failed == []


def test_what_needs_torch_says_how_to_get_it(light: Light) -> None:
    failed = []
    for command in commands(NEEDS):
        code, _, err = light(command)
        if code != 3 or "Traceback" in err or "torch" not in err or "pip install" not in err or "[torch]'" not in err:
            failed.append((command, code, err))
    assert failed == []


def test_help_of_every_command(light: Light) -> None:
    names = sorted({command.split()[0] for command in commands(WORKS + NEEDS)})
    assert [name for name in names if light(f"{name} --help")[0] != 0] == []


@pytest.mark.parametrize("name", ["quantize", "Teacher", "BankDataset"])
def test_the_api_says_so_too(name: str) -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"import dfqkit\nfrom dfqkit_export.errors import MissingExtraError\n"
        f"try: dfqkit.{name}\n"
        "except MissingExtraError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "[torch]'" in done.stdout


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install 'dfqkit[torch]'"),
        ('{"url": "file://FOLDER", "dir_info": {}}', "pip install 'FOLDER[torch]'"),
        ('{"url": "file://FOLDER/gone", "dir_info": {}}', "pip install 'FOLDER-OR-WHEEL-OF-DFQKIT[torch]'"),
        ('{"url": "file://FOLDER/d-0.2.0.whl", "archive_info": {}}', "pip install 'FOLDER/d-0.2.0.whl[torch]'"),
        (
            '{"url": "https://host/d.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "pip install 'dfqkit[torch] @ git+https://host/d.git@abc'",
        ),
    ],
)
def test_the_command_names_where_the_installed_package_came_from(
    tmp_path: Path, origin: str | None, expected: str
) -> None:
    packages = tmp_path / "packages"
    shutil.copytree(ROOT / "export" / "dfqkit_export", packages / "dfqkit_export", ignore=lambda *_: ["__pycache__"])
    info = packages / "dfqkit-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqkit\nVersion: 0.2.0\n")
    (tmp_path / "d-0.2.0.whl").write_text("")
    if origin is not None:
        (info / "direct_url.json").write_text(
            origin.replace("FOLDER/", f"{tmp_path}/").replace("FOLDER", str(tmp_path))
        )
    program = "from dfqkit_export.lazy import install_hint; print(install_hint('torch'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(packages)}, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == re.sub(r"FOLDER\b(?!-)", str(tmp_path), expected)


def test_the_command_in_a_checkout() -> None:
    program = "from dfqkit_export.lazy import install_hint; print(install_hint('torch'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "export")}
    for folder, expected in ((ROOT, "."), (ROOT / "tests", str(ROOT))):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder, check=True
        )
        assert done.stdout.strip() == f"pip install '{expected}[torch]'"
