"""`dfqkit inspect FILE.onnx` and `dfqkit list`, with and without the packages that a deployment machine lacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dfqkit.cli import main
from dfqkit_export.backends import all_backends, all_targets
from tests._messages import names
from tests.unit.export.test_export_modelfile import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
#: What a machine that only deploys need not have.
ABSENT = (
    "PIL", "brevitas", "dependencies", "openvino", "pydantic", "rich", "tensorrt", "tensorrt_rtx",
    "torch", "torchvision", "yaml",
)  # fmt: skip
# None in sys.modules makes an import fail and a package look absent, as if it were not installed.
BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from dfqkit.cli import main
sys.exit(main(sys.argv[1:]))
"""

Output = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    model = tiny()
    model.metadata_props.add(key="dfqkit.recipe", value="toy/made-here")
    file = tmp_path / "m.onnx"
    file.write_bytes(model.SerializeToString())
    return str(file)


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where only numpy, onnx and onnxruntime can be imported."""
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=120)


class TestFile:
    def test_text_says_what_it_is_and_that_it_will_do(self, path: str, capsys: Output) -> None:
        assert main(["inspect", path, "--target", "onnxruntime-vnni"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^format +opset 18, IR 10, written by ", out, re.M)
        assert re.search(r"^input +x: float32 \(N, 3, 8, 8\)$", out, re.M)
        assert re.search(r"^nodes +6, of them 2 QuantizeLinear and 3 DequantizeLinear$", out, re.M)
        assert re.search(r"^recipe +toy/made-here$", out, re.M)
        assert re.search(
            r"^  1 x +Conv +weights int8 8 bit per channel +bias none +uint8 8 bit zero point 0 -> uint8 8 bit zero",
            out,
            re.M,
        )
        assert f"{path} for onnxruntime-vnni: nothing to say against it" in out

    def test_the_default_target_is_the_files_own(self, path: str, capsys: Output) -> None:
        model = onnx.load(path)
        model.metadata_props.add(key="dfqkit.target", value="tensorrt")
        onnx.save(model, path)
        assert main(["inspect", path]) == 1
        assert f"{path} for tensorrt: " in capsys.readouterr().out
        assert main(["inspect", path, "--target", "openvino"]) == 0

    def test_json_holds_everything(self, path: str, capsys: Output) -> None:
        assert main(["inspect", path, "--target", "tensorrt", "--runtime", "onnxruntime", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["schema"], found["target"], found["fix"], found["unavailable"]) == (1, "tensorrt", None, {})
        assert found["facts"]["layers"][0]["weight"]["granularity"] == "per_channel"
        assert {problem["rule"] for problem in found["problems"]} >= {"E1"}
        layers = found["precision"]["onnxruntime"]["layers"]
        assert [(layer["name"], layer["precision"], layer["executed_as"]) for layer in layers] == [
            ("conv", "int8", "QLinearConv")
        ]

    def test_realised_precision_is_a_table(self, path: str, capsys: Output) -> None:
        assert main(["inspect", path, "--runtime", "onnxruntime"]) == 0
        out = capsys.readouterr().out
        assert "in onnxruntime: 1 of 1 layers in integers" in out
        assert re.search(r"^  conv  Conv  int8  QLinearConv$", out, re.M)

    def test_many_places_share_a_line(self, path: str, capsys: Output) -> None:
        assert main(["inspect", path, "--target", "tensorrt"]) == 1
        out = capsys.readouterr().out
        assert len(re.findall(r"^  E1 error: ", out, re.M)) == 1
        assert re.search(r"^    also: x_dequantized, y_quantized, y_dequantized$", out, re.M)

    def test_fix_writes_a_file_that_the_target_takes(self, path: str, tmp_path: Path, capsys: Output) -> None:
        model = onnx.load(path)
        scale, zero = (next(t for t in model.graph.initializer if t.name == name) for name in ("scale", "zero"))
        # A shape of [1] is per channel for TensorRT.
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(1), "scale"))
        zero.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int8), "zero"))
        onnx.save(model, path)
        out = tmp_path / "fixed.onnx"
        assert main(["inspect", path, "--target", "tensorrt"]) == 0
        assert re.search(r"^  W3 warning: .*\n +do: .*\(--fix does it\)$", capsys.readouterr().out, re.M)
        assert main(["inspect", path, "--target", "tensorrt", "--fix", str(out)]) == 0
        text = capsys.readouterr().out
        assert f"wrote {out} with " in text
        assert "no output moved" in text
        assert "W3 warning" not in text
        assert out.is_file()

    def test_an_absent_runtime_is_3_and_says_what_to_install(self, path: str) -> None:
        done = light("inspect", path, "--runtime", "openvino", "--runtime", "onnxruntime")
        assert done.returncode == 3
        assert "[openvino]'" in done.stderr
        assert "in onnxruntime: 1 of 1 layers" in done.stdout

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--target tensort", "Did you mean 'tensorrt'?"),
            ("--runtime openvin", "Did you mean 'openvino'?"),
            ("--shape 3,8,8", "the file says this itself: leave out --shape"),
        ],
    )
    def test_wrong_words_are_2(self, words: str, message: str, path: str, capsys: Output) -> None:
        assert main(["inspect", path, *words.split()]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err

    def test_what_goes_with_files_does_not_go_with_recipes(self, capsys: Output) -> None:
        assert main(["inspect", "digits/dfq-w8a8-ort", "--target", "tensorrt", "--fix", "x.onnx"]) == 2
        names(capsys.readouterr().err, "--target, --fix", "ONNX file")


class TestList:
    def test_one_target_with_its_sources(self, capsys: Output) -> None:
        assert main(["list", "targets", "tensorrt"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("NVIDIA TensorRT (tensorrt), run by tensorrt\n")
        assert re.search(r"^  \[1\] +read: TensorRT 11 ONNX opset guide", out, re.M)

    def test_names_go_with_targets(self, capsys: Output) -> None:
        assert main(["list", "targets", "tensort"]) == 2
        assert "Did you mean 'tensorrt'?" in capsys.readouterr().err
        assert main(["list", "recipes", "tensorrt"]) == 2
        assert "NAME goes with targets" in capsys.readouterr().err

    def test_every_runtime_says_whether_it_is_there(self, capsys: Output) -> None:
        assert main(["list", "runtimes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(all_backends())
        assert lines[0].split() == ["onnxruntime", "available"]
        assert all(line.split()[1] == "available" or len(line.split()) > 4 for line in lines)


class TestLight:
    """Nothing but numpy, onnx and onnxruntime installed."""

    def test_help_and_version(self) -> None:
        for words in (["--help"], ["--version"], ["inspect", "--help"]):
            done = light(*words)
            assert (done.returncode, done.stderr) == (0, "")

    def test_targets(self) -> None:
        done = light("list", "targets")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[0] for line in done.stdout.splitlines()] == list(all_targets())
        assert light("list", "targets", "openvino").returncode == 0

    def test_runtimes(self) -> None:
        done = light("list", "runtimes")
        assert (done.returncode, done.stderr) == (0, "")
        said = {line.split()[0]: line for line in done.stdout.splitlines()}
        assert said["onnxruntime"].split()[1] == "available"
        assert "[openvino]'" in said["openvino"]
        assert "[tensorrt-rtx]'" in said["tensorrt-rtx"]

    def test_a_file(self, path: str, tmp_path: Path) -> None:
        done = light("inspect", path, "--target", "onnxruntime", "--runtime", "onnxruntime")
        assert (done.returncode, done.stderr) == (0, "")
        assert "in onnxruntime: 1 of 1 layers" in done.stdout
        assert light("inspect", path, "--target", "tensorrt", "--fix", str(tmp_path / "f.onnx")).returncode == 1
