"""A crash of a vendor's library, as a user meets it on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit.cli import main
from tests._messages import names


def scale_from_the_image(path: Path) -> Path:
    """Write a convolution whose input's scale is computed from the input: valid ONNX that RTX 1.7.1 dies of."""
    values = {
        "zero": np.int8(0),
        "codes": np.ones((4, 3, 3, 3), np.int8),
        "weight_scale": np.full(4, 0.01, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["scale"], name="largest", keepdims=0),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_codes"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_codes", "scale", "zero"], ["x_again"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "weight_scale", "weight_zero"], ["w"], name="weight", axis=0),
        helper.make_node("Conv", ["x_again", "w", "bias"], ["y"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def test_it_is_exit_code_3_and_everything_else_is_still_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'dfqkit[tensorrt-rtx]'")
    path = scale_from_the_image(tmp_path / "m.onnx")
    assert main(["inspect", str(path), "--target", "tensorrt", "--runtime", "tensorrt-rtx"]) == 3
    said = capsys.readouterr()
    assert "E3" in said.out
    assert "tensorrt-rtx crashed while building" in said.err
    assert "SIGSEGV" in said.err
    assert "Traceback" not in said.err


def scale_from_the_caller(path: Path) -> Path:
    """Write the same with the scale as an input of the graph."""
    model = onnx.load(scale_from_the_image(path))
    del model.graph.node[0]
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))
    onnx.save(model, str(path))
    return path


def test_a_scale_as_input_is_judged_by_the_checker_and_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(scale_from_the_caller(tmp_path / "m.onnx"))
    for target in ("onnxruntime", "tensorrt"):
        assert main(["inspect", path, "--target", target]) == 1
        names(capsys.readouterr().out, "'scale'", "input of the graph")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'dfqkit[tensorrt-rtx]'")
    assert main(["inspect", path, "--target", "tensorrt", "--runtime", "tensorrt-rtx"]) == 3
    said = capsys.readouterr()
    assert "E3" in said.out
    assert "tensorrt-rtx crashed while building" in said.err
    assert "Traceback" not in said.err
