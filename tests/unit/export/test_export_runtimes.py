from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dfqkit_export.backends import get_backend
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import open_session
from dfqkit_export.backends.session import Session, batched
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from tests._messages import raises_naming

Write = Callable[..., Path]


def images(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    """What runs on any CPU, and is asked in the same way."""
    pytest.importorskip(request.param)
    return request.param


def test_the_session_fulfils_the_protocol(runtime: str, residual_net: Write) -> None:
    assert get_backend(runtime).missing() == ""
    session = open_session(runtime, residual_net(), threads=1)
    assert isinstance(session, Session)
    assert session.run(images(2)).shape == (2, 10)


def test_every_output_comes_by_its_name_and_the_first_is_the_one_of_run(residual_net: Write) -> None:
    session = OrtSession(residual_net(), threads=1)
    found = session.run_all(images(2))
    assert list(found) == list(session.output_names)
    np.testing.assert_array_equal(found[session.output_name], session.run(images(2)))


def test_float_models_match_numpy(runtime: str, tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    weight = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
    b.constant("w", weight)
    path = b.save(tmp_path / "m.onnx", b.node("MatMul", [b.node("Flatten", ["x"]), "w"], "fc"), rank=2)
    x = images(4)
    # bfloat16, which OpenVINO takes where it may, would be off by about 1e-2.
    found = open_session(runtime, path, threads=1).run(x)
    np.testing.assert_allclose(found, x.reshape(4, -1) @ weight, rtol=1e-4, atol=1e-4)


def test_prediction_is_deterministic_and_does_not_depend_on_the_batch(runtime: str, residual_net: Write) -> None:
    path, x = residual_net(), images(7)
    session = open_session(runtime, path, threads=1)
    whole = session.predict(x, batch=7)
    np.testing.assert_array_equal(session.predict(x, batch=3), whole)
    np.testing.assert_array_equal(open_session(runtime, path, threads=1).predict(x), whole)
    assert whole.dtype == np.float32


def test_sums_of_full_products_do_not_saturate_whatever_the_processor(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    conv = b.conv(b.qdq("x", "in"), "conv", (3, 8))
    path = b.save(tmp_path / "m.onnx", b.qdq(conv, "out", scale=1.0, zero_point=128))
    x = np.full((2, 3, 8, 8), 255 * 0.02, np.float32)
    found, written = (OrtSession(path, threads=1, optimized=optimized).run(x) for optimized in (True, False))
    np.testing.assert_allclose(found, written, atol=1.0)  # a step of the output; saturation is dozens of them


def test_nor_where_a_runtime_that_was_not_told_so_optimized_the_file(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    path = b.save(tmp_path / "m.onnx", b.qdq(b.conv(b.qdq("x", "in"), "conv", (3, 8)), "out", zero_point=128))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = images(4) * 2 + 3
    found = OrtSession(tmp_path / "optimized.onnx", threads=1).run(x)
    np.testing.assert_allclose(found, OrtSession(path, threads=1, optimized=False).run(x), atol=0.02)


def test_optimizations_can_be_switched_off(residual_net: Write, tmp_path: Path) -> None:
    OrtSession(residual_net(), optimized=False, optimized_path=tmp_path / "plain.onnx", threads=1)
    operators = {node.op_type for node in onnx.load(str(tmp_path / "plain.onnx")).graph.node}
    assert {"Conv", "Gemm"} <= operators
    assert "QLinearConv" not in operators


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_truncated_models_are_refused(residual_net: Write, keep: int) -> None:
    path = residual_net()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactError, match=r"not (an ONNX file|a complete ONNX file)"):
        OrtSession(path)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ArtefactError, match="not an ONNX file"):
        OrtSession(tmp_path / "text.onnx")
    with pytest.raises(ArtefactError, match="not a file"):
        OrtSession(tmp_path / "missing.onnx")


def test_models_with_two_inputs_are_refused(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "m.onnx")
    )
    with pytest.raises(ArtefactError, match=r"2 input\(s\)"):
        OrtSession(tmp_path / "m.onnx")


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 1, 8, 8), (3, 8, 8)])
def test_images_of_another_shape_are_refused(runtime: str, residual_net: Write, shape: tuple[int, ...]) -> None:
    session = open_session(runtime, residual_net(), threads=1)
    with pytest.raises(ArtefactError, match="takes images of shape"):
        session.run(np.zeros(shape, np.float32))


def test_unknown_outputs_are_refused(residual_net: Write) -> None:
    session = OrtSession(residual_net(), threads=1)
    with pytest.raises(ArtefactError, match="could not run"):
        session.outputs(images(1), ["nope"])


def test_options_are_checked(residual_net: Write) -> None:
    with pytest.raises(ArtefactError, match="Threads must be at least 1"):
        OrtSession(residual_net(), threads=0)
    with pytest.raises(ArtefactError, match="batch size of at least 1"):
        list(batched(images(1), 0))


def test_a_missing_runtime_says_what_to_install(residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install onnxruntime") as caught:
        OrtSession(residual_net())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_is_not_there_says_what_to_install(name: str, residual_net: Write) -> None:
    missing = get_backend(name).missing()
    if not missing:
        pytest.skip(f"{name} is present on this machine")
    assert "pip install onnxruntime-gpu" in missing
    with pytest.raises(RuntimeUnavailableError, match="pip install onnxruntime-gpu"):
        open_session(name, residual_net())


def test_a_provider_that_falls_back_to_the_cpu_is_refused(residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str]) -> object:
        assert providers == present
        return session(path, options, providers=providers[1:])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with raises_naming(RuntimeUnavailableError, "CPU"):
        open_session("onnxruntime-cuda", residual_net())
