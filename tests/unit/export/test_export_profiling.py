from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends import UNOPTIMIZED
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.images.inputs import random_inputs
from dfqkit_export.measure.latency import Latency, Timing
from dfqkit_export.profiling import Profile, float_twin, node_times, profile_file, render_profile
from dfqkit_export.profiling import files as profiling_files
from dfqkit_export.profiling.node_times import KINDS, time_by_kind

Write = Callable[..., Path]


def images(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)


def twin_of(path: Path) -> tuple[onnx.ModelProto, Path]:
    twin = float_twin(onnx.load(str(path)))
    onnx.checker.check_model(twin, full_check=True)
    onnx.save(twin, str(path.with_name("twin.onnx")))
    return twin, path.with_name("twin.onnx")


class TestFloatTwin:
    def test_nothing_quantized_is_left_and_weights_mean_the_same(self, residual_net: Write) -> None:
        path = residual_net()
        before = path.read_bytes()
        twin, _ = twin_of(path)
        assert [node.op_type for node in twin.graph.node] == [
            "Conv",
            "Relu",
            "Conv",
            "Add",
            "Relu",
            "GlobalAveragePool",
            "Flatten",
            "Gemm",
        ]
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
        floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in twin.graph.initializer}
        assert set(floats) == {
            f"{name}.{part}_DQ.out" for name in ("conv1", "conv2", "fc") for part in ("weight", "bias")
        }
        np.testing.assert_allclose(floats["conv1.weight_DQ.out"], stored["conv1.weight_int8"] * 0.01, rtol=1e-6)
        assert path.read_bytes() == before

    def test_it_computes_what_the_file_means(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        # Steps so small, and a range so wide, that quantization changes almost nothing.
        fine = {"dtype": "uint16", "zero_point": 2**15, "scale": 2.0**-8}
        path = b.save(tmp_path / "m.onnx", b.qdq(b.conv(b.qdq("x", "in", **fine), "conv", (3, 4)), "out", **fine))
        model = onnx.load(str(path))
        model.opset_import[0].version = 21  # 16-bit codes
        model.ir_version = 10
        onnx.save(model, str(path))
        _, twin = twin_of(path)
        x = images(2)
        expected = OrtSession(path, threads=1, optimized=False).run(x)
        np.testing.assert_allclose(OrtSession(twin, threads=1).run(x), expected, atol=0.2)

    def test_a_relu_that_the_quantizer_took_over_is_written(self, tmp_path: Path, qdq: Any) -> None:
        def operators(zero_point: int) -> list[str]:
            b = qdq()
            x = b.qdq("x", "in", zero_point=128)
            path = b.save(tmp_path / "m.onnx", b.qdq(b.conv(x, "conv", (3, 4)), "out", zero_point=zero_point))
            return [node.op_type for node in twin_of(path)[0].graph.node]

        assert operators(0) == ["Conv", "Relu", "Identity"]
        assert operators(128) == ["Conv", "Identity"]

    def test_codes_are_followed_through_clip_and_pooling(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        parameters = [b.constant("s", np.array(0.1, np.float32)), b.constant("z", np.array(8, np.uint8))]
        limits = [b.constant("low", np.array(0, np.uint8)), b.constant("high", np.array(15, np.uint8))]
        codes = b.node("Clip", [b.node("QuantizeLinear", ["x", *parameters], "Q"), *limits], "clip")
        pooled = b.node("MaxPool", [codes], "pool", kernel_shape=[2, 2])
        path = b.save(tmp_path / "m.onnx", b.node("DequantizeLinear", [pooled, *parameters], "DQ"))
        twin, file = twin_of(path)
        assert [node.op_type for node in twin.graph.node] == ["MaxPool", "Identity"]
        assert len(twin.graph.initializer) == 0
        x = images(1)
        windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(2, 3))
        np.testing.assert_array_equal(OrtSession(file, threads=1).run(x), windows.max((4, 5)))

    def test_float_weights_behind_a_pair_are_rounded_like_there(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        b.constant("w", np.full((2, 3, 1, 1), 0.26, np.float32))
        path = b.save(tmp_path / "m.onnx", b.node("Conv", ["x", b.qdq("w", "weight", scale=0.1, dtype="int8")], "conv"))
        twin, _ = twin_of(path)
        assert [node.op_type for node in twin.graph.node] == ["Conv"]
        np.testing.assert_allclose(numpy_helper.to_array(twin.graph.initializer[0]), 0.3, rtol=1e-6)


class TestNodeTimes:
    def test_each_node_has_its_kind(self, residual_net: Write) -> None:
        nodes = {
            node.name: node for node in node_times(residual_net(relu_zero_point=128), images(1), repeats=3, threads=1)
        }
        assert (nodes["conv1"].op, nodes["conv1"].kind) == ("FusedConv", "float")
        assert (nodes["conv2"].op, nodes["conv2"].kind) == ("QLinearConv", "integer")
        assert {node.op for node in nodes.values() if node.kind == "Q/DQ"} == {"QuantizeLinear", "DequantizeLinear"}
        assert all(node.ms >= 0 for node in nodes.values())

    def test_the_slowest_comes_first_and_kinds_add_up(self, residual_net: Write) -> None:
        nodes = node_times(residual_net(), images(4), repeats=3, threads=1)
        assert [node.ms for node in nodes] == sorted((node.ms for node in nodes), reverse=True)
        kinds = time_by_kind(nodes)
        assert tuple(kinds) == KINDS
        assert sum(kinds.values()) == pytest.approx(sum(node.ms for node in nodes))

    def test_nothing_is_left_behind(self, residual_net: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = residual_net()
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        node_times(path, images(1), repeats=1, threads=1)
        assert list((tmp_path / "here").iterdir()) == []


def fixed_ratio(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    def measured(sessions: Any, batch: Any, *, repeats: int, reference: str) -> Latency:
        for session in sessions.values():
            session.run(batch)
        spread = {"min": 1.0, "max": 4.0, "p10": 1.5, "p90": 3.0}
        timings = {name: Timing(median=2.0, ratio=1.0 if name == reference else ratio, **spread) for name in sessions}
        return Latency(timings=timings, reference=reference, repeats=repeats, warmup=5, batch=len(batch))

    monkeypatch.setattr(profiling_files, "measure_latency", measured)


class TestProfile:
    def test_the_float_file_is_the_one_given_or_beside_or_made(self, residual_net: Write, tmp_path: Path) -> None:
        path = residual_net()
        _, twin = twin_of(path)
        assert "without Q/DQ" in profile_file(path, repeats=1).against
        twin.rename(tmp_path / "teacher.onnx")
        beside = profile_file(path, repeats=1)
        assert "teacher.onnx (beside it)" in beside.against
        assert beside.float_bytes == (tmp_path / "teacher.onnx").stat().st_size
        (tmp_path / "teacher.onnx").rename(tmp_path / "other.onnx")
        assert profile_file(path, tmp_path / "other.onnx", repeats=1).against == str(tmp_path / "other.onnx")

    def test_both_are_timed_in_turns_in_each_runtime(self, residual_net: Write) -> None:
        found = profile_file(residual_net(), runtimes=("onnxruntime", UNOPTIMIZED.name), batch=3, repeats=4)
        assert list(found.latencies) == ["onnxruntime", UNOPTIMIZED.name]
        for latency in found.latencies.values():
            assert list(latency.timings) == ["float", "int8"]
            assert (latency.batch, latency.repeats, latency.reference) == (3, 4, "float")
        assert (found.batch, found.threads) == (3, 1)
        json.dumps(found.to_dict(), allow_nan=False)

    def test_external_data_counts(self, residual_net: Write, tmp_path: Path) -> None:
        path = residual_net()
        model = onnx.load(str(path))
        onnx.save(
            model, str(tmp_path / "external.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0
        )
        found = profile_file(tmp_path / "external.onnx", path, repeats=1)
        assert found.bytes == sum((tmp_path / name).stat().st_size for name in ("external.onnx", "w.bin"))

    def test_the_batch_of_the_file_is_kept(self, residual_net: Write) -> None:
        path = residual_net()
        model = onnx.load(str(path))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        onnx.save(model, str(path))
        assert profile_file(path, repeats=1).batch == 2
        with pytest.raises(ArtefactError, match="takes images of shape"):
            profile_file(path, repeats=1, batch=3)

    def test_a_slow_file_gets_a_warning_that_names_what_costs(
        self, residual_net: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fixed_ratio(monkeypatch, 0.9)
        found = profile_file(residual_net(relu_zero_point=128), repeats=3)
        assert found.warnings == ("int8 is not faster than float in onnxruntime: 0.90x.",)
        costs = {cost.name: cost for cost in found.costs}
        assert "zero point" in costs["conv1"].reason
        assert all(
            cost.op in ("QuantizeLinear", "DequantizeLinear", "FusedConv", "ReorderInput") for cost in found.costs
        )
        assert 0 < sum(cost.share for cost in found.costs) < 1
        text = render_profile(found)
        assert "warning: int8 is not faster" in text
        assert "FusedConv conv1: " in text

    def test_a_fast_file_gets_none(self, residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        fixed_ratio(monkeypatch, 1.5)
        found: Profile = profile_file(residual_net(), repeats=3)
        assert found.warnings == ()
        text = render_profile(found)
        assert "warning" not in text
        assert "batch 1, 1 thread(s), 3 calls of each in turns after 5 of warm-up" in text
        assert "onnxruntime  2.000 (1.500-3.000)  2.000 (1.500-3.000)  1.50x" in text

    def test_float_files_have_nothing_to_gain(self, tmp_path: Path) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(tmp_path / "m.onnx"))
        with pytest.raises(ArtefactError, match="nothing to gain"):
            profile_file(tmp_path / "m.onnx")

    def test_an_absent_runtime_says_what_to_install(self, residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None if name == "openvino" else name)
        with pytest.raises(RuntimeUnavailableError, match="pip install"):
            profile_file(residual_net(), runtimes=("openvino",))


class TestFilesOfOthers:
    def test_a_damaged_float_file_is_refused(self, residual_net: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"nothing")
        with pytest.raises(ArtefactError, match="is not an ONNX file"):
            profile_file(residual_net(), tmp_path / "bad.onnx", repeats=1)

    def test_the_twin_of_a_file_that_lists_its_initializers(self, residual_net: Callable[..., Path]) -> None:
        model = onnx.load(str(residual_net()))
        plain = float_twin(model)
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.ir_version = 3
        twin = float_twin(model)
        assert [value.name for value in twin.graph.input] == ["x"]
        assert twin.ir_version == 4
        assert [node.op_type for node in twin.graph.node] == [node.op_type for node in plain.graph.node]

    def test_the_twin_keeps_what_a_branch_reads(self, residual_net: Callable[..., Path], tmp_path: Path) -> None:
        def ending(name: str, *nodes: onnx.NodeProto) -> NDArray[Any]:
            model = onnx.load(str(residual_net()))
            model.graph.initializer.append(numpy_helper.from_array(np.array(False), "no"))
            model.graph.node.extend(nodes)
            del model.graph.output[:]
            model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
            onnx.save(float_twin(model), str(tmp_path / name))
            return OrtSession(tmp_path / name, optimized=False).run(random_inputs(model, 2).images)

        # What the branches read is behind a pair, which the twin takes out.
        branches = {}
        for key in ("then_branch", "else_branch"):
            value = helper.make_tensor_value_info(f"{key}_out", onnx.TensorProto.FLOAT, None)
            node = helper.make_node("Neg", ["act5.DQ.out"], [value.name])
            branches[key] = helper.make_graph([node], key, [], [value])
        chosen = ending("if.onnx", helper.make_node("If", ["no"], ["z"], "if", **branches))
        plain = ending("plain.onnx", helper.make_node("Neg", ["act5.DQ.out"], ["z"], "neg"))
        assert np.array_equal(chosen, plain)
