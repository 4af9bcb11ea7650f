from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit.cli import main
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Report
from tests._messages import names

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}

Output = pytest.CaptureFixture[str]


def write(path: Path, weight: float = 0.01) -> Path:
    """A quantized linear classifier of 1x4x4 images into 3 classes."""
    codes = np.arange(-24, 24).reshape(16, 3).astype(np.int8)
    stored = {
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "w": codes,
        "ws": np.array(weight, np.float32),
        "wz": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="DQ"),
        helper.make_node("Flatten", ["d"], ["f"], name="flatten"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="W"),
        helper.make_node("MatMul", ["f", "wf"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def report(path: Path, value: float) -> Path:
    metric = Metric(
        name="top1",
        subject="onnxruntime",
        data="real:x",
        value=value,
        unit="%",
        n=10,
        stderr=0.1,
        higher_is_better=True,
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(Report(title=path.parent.name, metrics=[metric]).to_json())
    return path


class TestCompare:
    def test_random_images_are_called_random(self, tmp_path: Path, capsys: Output) -> None:
        a, b = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 0.03)
        assert main(["compare", str(a), str(b), "--limit", "5", "--threads", "1"]) == 0
        output = capsys.readouterr()
        names(output.err, "margins and flips")
        assert "5 of random numbers, seed 0" in output.out
        assert "parts   first at fc: " in output.out

    def test_real_images_are_read_and_json_is_one_document(self, tmp_path: Path, capsys: Output) -> None:
        a = write(tmp_path / "a.onnx")
        np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(9, 1, 4, 4)).astype(np.float32))
        arguments = ["--images", str(tmp_path / "images.npy"), "--runtime-b", "onnxruntime-unoptimized", "--json"]
        assert main(["compare", str(a), *arguments]) == 0
        output = capsys.readouterr()
        found = json.loads(output.out)
        assert (found["schema"], found["n"], found["random"], found["first_to_part"]) == (1, 9, False, None)
        assert found["b"] == {"path": str(a), "runtime": "onnxruntime-unoptimized"}
        assert output.err == ""

    def test_the_threshold_is_the_users(self, tmp_path: Path, capsys: Output) -> None:
        a, b = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 0.0101)  # 1 % off: 40 dB
        for threshold, first in (("30", None), ("50", "fc")):
            assert main(["compare", str(a), str(b), "--min-sqnr", threshold, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["first_to_part"] == first

    def test_one_file_needs_two_runtimes(self, tmp_path: Path, capsys: Output) -> None:
        a = write(tmp_path / "a.onnx")
        assert main(["compare", str(a)]) == 2
        assert "--runtime-b openvino" in capsys.readouterr().err

    def test_reports_are_compared_metric_by_metric(self, tmp_path: Path, capsys: Output) -> None:
        a, b = report(tmp_path / "one" / "report.json", 90.0), report(tmp_path / "two" / "report.json", 91.0)
        assert main(["compare", str(a), str(b.parent)]) == 0
        text = capsys.readouterr().out
        assert "one: ok" in text
        assert text.splitlines()[-1].endswith("+1 (2 s.e. 0.28)  better")
        assert main(["compare", str(a), str(b), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"][0]["change"] == "better"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["one/report.json", "a.onnx"], "compared with another report"),
            (["one/report.json"], "compared with another report"),
            (["one/report.json", "one/report.json", "--images", "x.npy"], "leave out --images"),
        ],
    )
    def test_reports_and_files_do_not_mix(
        self,
        tmp_path: Path,
        capsys: Output,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        words: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        report(tmp_path / "one" / "report.json", 90.0)
        write(tmp_path / "a.onnx")
        assert main(["compare", *arguments]) == 2
        assert words in capsys.readouterr().err

    def test_bad_files_end_with_2_and_an_absent_runtime_with_3(
        self, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a = write(tmp_path / "a.onnx")
        assert main(["compare", str(a), str(tmp_path / "missing.onnx")]) == 2
        (tmp_path / "bad.json").write_text("{")
        assert main(["compare", str(tmp_path / "bad.json"), str(tmp_path / "bad.json")]) == 2
        assert main(["compare", str(tmp_path / "no.json"), str(tmp_path / "no.json")]) == 2
        assert main(["compare", str(a), "--runtime-b", "tvm"]) == 2
        monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None if name == "openvino" else name)
        assert main(["compare", str(a), "--runtime-b", "openvino"]) == 3
        assert "[openvino]'" in capsys.readouterr().err


class TestProfile:
    def test_text_and_json(self, tmp_path: Path, capsys: Output) -> None:
        path = write(tmp_path / "a.onnx")
        assert main(["profile", str(path), "--repeats", "2", "--batch", "2"]) == 0
        text = capsys.readouterr().out
        assert "the same file without Q/DQ" in text
        assert "batch 2, 1 thread(s), 2 calls" in text
        assert main(["profile", str(path), "--against", str(path), "--repeats", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["schema"] == 1
        assert found["bytes"] == found["float_bytes"] == path.stat().st_size
        assert set(found["latencies"]["onnxruntime"]["timings"]) == {"float", "int8"}

    def test_bad_files_end_with_2(self, tmp_path: Path) -> None:
        assert main(["profile", str(tmp_path / "missing.onnx")]) == 2


def test_both_work_with_numpy_onnx_and_onnxruntime_alone(tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 0.03)
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 4, 4), np.float32))
    program = (
        "import sys\n"
        "absent = {'torch', 'torchvision', 'brevitas', 'yaml', 'rich', 'pydantic', 'PIL', 'openvino'}\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in absent:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from dfqkit.cli import main\n"
        f"codes = [main(['compare', {str(path)!r}, {str(other)!r}, '--images', {str(tmp_path / 'images.npy')!r}]),\n"
        f"         main(['profile', {str(path)!r}, '--repeats', '1'])]\n"
        "sys.exit(max(codes))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
