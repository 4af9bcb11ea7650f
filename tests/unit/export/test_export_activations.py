from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure import activations
from dfqkit_export.measure.activations import LayerProbe, layer_outputs

Write = Callable[..., Path]


def images(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)


def test_outputs_lie_on_the_quantization_grid(residual_net: Write) -> None:
    outputs = layer_outputs(residual_net(), images(5), batch=2, threads=1)
    assert list(outputs) == ["conv1", "conv2", "add", "fc"]
    assert outputs["conv1"].shape == (5, 4, 8, 8)
    for name, scale, low, high in (("conv1", 0.02, 0, 255), ("conv2", 0.03, -128, 127), ("add", 0.05, 0, 255)):
        codes = outputs[name] / scale
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
        assert codes.min() >= low - 1e-3
        assert codes.max() <= high + 1e-3
    assert outputs["conv1"].std() > 0


def test_the_first_layer_matches_numpy(residual_net: Write) -> None:
    path, x = residual_net(), images(3)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    codes = np.clip(np.round(x / np.float32(0.02)), -128, 127).astype(np.int64)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("ncijuv,ocuv->noij", windows, stored["conv1.weight_int8"].astype(np.int64))
    sums += stored["conv1.bias_int32"].astype(np.int64)[None, :, None, None]
    expected = np.clip(np.round(sums * 0.01), 0, 255) * 0.02
    for optimized in (True, False):
        found = layer_outputs(path, x, threads=1, optimized=optimized)["conv1"]
        # At ties, float32 requantization may round to the other side.
        assert np.abs(found - expected).max() <= 0.02 + 1e-4
        assert np.mean(np.abs(found - expected) > 1e-4) < 0.02


def test_exposing_outputs_does_not_change_the_logits(residual_net: Write) -> None:
    path, x = residual_net(), images(4)
    np.testing.assert_array_equal(layer_outputs(path, x, threads=1)["fc"], OrtSession(path, threads=1).run(x))


def test_exposing_outputs_keeps_the_integer_kernels(
    residual_net: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized_path = tmp_path / "optimized.onnx"

    def spy(name: str, path: Path, **options: Any) -> OrtSession:
        assert name == "onnxruntime"
        return OrtSession(path, optimized_path=optimized_path, **options)

    monkeypatch.setattr(activations, "open_session", spy)
    layer_outputs(residual_net(), images(1), threads=1)
    operators = [node.op_type for node in onnx.load(str(optimized_path)).graph.node]
    assert (operators.count("QLinearConv"), operators.count("QLinearAdd"), operators.count("QGemm")) == (2, 1, 1)
    assert not {"Conv", "FusedConv", "Add", "Gemm"} & set(operators)


def test_float_files_are_seen_after_the_activation(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    b.constant("w", np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32))
    path = b.save(tmp_path / "m.onnx", b.node("Relu", [b.node("Conv", ["x", "w"], "conv")], "relu"))
    x = images(2)
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)[:, :, 0, 0]
    expected = np.maximum(np.einsum("oc,nchw->nohw", weight, x), 0)
    np.testing.assert_allclose(layer_outputs(path, x, threads=1)["conv"], expected, rtol=1e-4, atol=1e-5)


def test_codes_clipped_to_fewer_bits_are_seen_after_the_clip(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    x = b.qdq("x", "input", zero_point=128)
    r = b.node("Relu", [b.conv(x, "conv", (3, 4))], "relu")
    parameters = [b.constant("s", np.array(0.1, np.float32)), b.constant("z", np.array(0, np.uint8))]
    limits = [b.constant("low", np.array(0, np.uint8)), b.constant("high", np.array(15, np.uint8))]
    codes = b.node("Clip", [b.node("QuantizeLinear", [r, *parameters], "Q"), *limits], "clip")
    path = b.save(tmp_path / "m.onnx", b.node("DequantizeLinear", [codes, *parameters], "DQ"))
    output = layer_outputs(path, images(2), threads=1)["conv"]
    assert output.max() == pytest.approx(1.5)
    assert len(np.unique(output)) <= 16


def test_truncated_files_are_refused(residual_net: Write) -> None:
    path = residual_net()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtefactError, match="complete"):
        layer_outputs(path, images(1))


def test_a_batch_normalization_between_layer_and_activation_is_passed(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    b.constant("w", np.ones((2, 3, 1, 1), np.float32))
    parameters = [
        b.constant(name, np.full(2, value, np.float32)) for name, value in zip("gbmv", (2, 1, 0, 1), strict=True)
    ]
    normalized = b.node("BatchNormalization", [b.node("Conv", ["x", "w"], "conv"), *parameters], "bn", epsilon=0.0)
    path = b.save(tmp_path / "m.onnx", b.node("Relu", [normalized], "relu"))
    x = images(2)
    expected = np.maximum(2 * x.sum(1, keepdims=True) + 1, 0).repeat(2, axis=1)
    np.testing.assert_allclose(layer_outputs(path, x, threads=1)["conv"], expected, rtol=1e-4, atol=1e-4)


def test_a_probe_knows_scales_and_looks_only_where_told(residual_net: Write) -> None:
    path = residual_net()
    assert LayerProbe(path, threads=1).scales == {
        "conv1": pytest.approx(0.02),
        "conv2": pytest.approx(0.03),
        "add": pytest.approx(0.05),
        "fc": None,
    }
    probe = LayerProbe(path, threads=1, layers={"add"})
    own, outputs = probe.run(images(3))
    assert list(outputs) == ["add"]
    (logits,) = own.values()
    np.testing.assert_array_equal(logits, OrtSession(path, threads=1).run(images(3)))


def test_a_runtime_that_shows_outputs_only_is_refused(residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "open_session", lambda *_, **__: object())
    with pytest.raises(ArtefactError, match="'tensorrt' gives outputs only"):
        LayerProbe(residual_net(), runtime="tensorrt")


def test_a_file_of_a_fixed_batch_is_fed_whole_batches(residual_net: Write, tmp_path: Path) -> None:
    model = onnx.load(str(residual_net()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    found, wanted = (layer_outputs(path, images(5), threads=1) for path in (tmp_path / "fixed.onnx", residual_net()))
    np.testing.assert_array_equal(found["fc"][:5], wanted["fc"])
    assert len(found["fc"]) == 6
