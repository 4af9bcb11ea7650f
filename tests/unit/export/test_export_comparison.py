from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends import UNOPTIMIZED, all_backends
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import open_session
from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.comparison import (
    Comparison,
    Side,
    compare_files,
    compare_reports,
    render_comparison,
    render_differences,
)
from dfqkit_export.comparison import files as comparison_files
from dfqkit_export.comparison.layers import Apart
from dfqkit_export.comparison.matching import match_layers
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError, TargetError
from dfqkit_export.images.inputs import Inputs, random_inputs
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Report
from tests._messages import raises_naming

Write = Callable[..., Path]


def inputs(n: int) -> Inputs:
    images = np.random.default_rng(n).normal(size=(n, 3, 8, 8)).astype(np.float32)
    return Inputs(images=images, source="a test")


def edited(path: Path, edit: Callable[[onnx.ModelProto], object], name: str = "edited.onnx") -> Path:
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path.with_name(name)))
    return path.with_name(name)


def stored(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value)).astype(value.dtype), name))


def renamed(model: onnx.ModelProto) -> None:
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"


def compare(a: Path, b: Path, n: int = 8, **settings: Any) -> Comparison:
    return compare_files(Side(path=a), Side(path=b), inputs(n), threads=1, **settings)


class TestFiles:
    def test_a_file_does_not_part_from_itself(self, residual_net: Write) -> None:
        found = compare(residual_net(), residual_net())
        assert (found.flips, found.margin, found.logit_max_abs, found.logit_sqnr_db) == (0, None, 0.0, None)
        assert [layer.name for layer in found.layers] == ["conv1", "conv2", "add", "fc"]
        assert all((layer.max_abs, layer.parts) == (0.0, False) for layer in found.layers)
        assert (found.first, found.begins, found.notes) == (None, None, ())
        assert "no layer parts" in render_comparison(found)

    def test_the_first_changed_layer_is_named(self, residual_net: Write) -> None:
        path = residual_net()
        other = edited(path, lambda model: stored(model, "conv2.weight_int8", lambda codes: codes[::-1]))
        found = compare(path, other)
        assert found.first is not None
        assert found.first.name == "conv2"
        assert not found.layers[0].parts
        assert found.to_dict()["first_to_part"] == "conv2"
        assert "first at conv2: its error has" in render_comparison(found)

    def test_figures_of_a_layer_are_those_of_its_outputs(self, residual_net: Write) -> None:
        path = residual_net()
        other = edited(path, lambda model: stored(model, "conv1.bias_int32", lambda codes: codes + 150))
        found = compare(path, other).layers[0]
        # 150 steps of the bias (0.0002) are 1.5 steps of the output (0.02): one or two codes, where the ReLU is open.
        assert found.lsb == pytest.approx(2, abs=1e-3)
        assert found.max_abs == pytest.approx(0.04, abs=1e-4)
        assert found.differing is not None
        assert found.beyond is not None
        assert 0 < found.beyond < found.differing < 1

    def test_a_float_and_an_integer_file_are_compared_by_decibels(self, residual_net: Write, tmp_path: Path) -> None:
        from dfqkit_export.profiling import float_twin

        path = residual_net()
        onnx.save(float_twin(onnx.load(str(path))), str(tmp_path / "float.onnx"))
        found = compare(tmp_path / "float.onnx", path, min_sqnr=0.0)
        conv1 = found.layers[0]
        reference = OrtSession(tmp_path / "float.onnx", threads=1)
        assert found.logit_max_abs == pytest.approx(
            np.abs(reference.run(inputs(8).images) - OrtSession(path, threads=1).run(inputs(8).images)).max()
        )
        assert (conv1.differing, conv1.beyond) == (None, None)
        assert conv1.sqnr_db is not None
        assert not conv1.parts
        strict = compare(tmp_path / "float.onnx", path, min_sqnr=conv1.sqnr_db + 1)
        assert strict.first is not None
        assert strict.first.name == "conv1"

    def test_flips_and_their_margins_are_counted(self, residual_net: Write) -> None:
        path = residual_net()
        other = edited(path, lambda model: stored(model, "fc.bias_int32", lambda codes: codes + 10**6 * np.eye(10)[3]))
        found = compare(path, other)
        logits = OrtSession(path, threads=1).run(inputs(8).images)
        flipped = np.sort(logits[logits.argmax(1) != 3], axis=1)
        assert found.flips == len(flipped) > 0
        assert found.margin == pytest.approx((flipped[:, -1] - flipped[:, -2]).max())
        assert f"{len(flipped)} of 8 images flip" in render_comparison(found)

    def test_one_file_in_two_settings_of_a_runtime(self, residual_net: Write) -> None:
        path = residual_net()
        found = compare_files(Side(path=path), Side(path=path, runtime=UNOPTIMIZED.name), inputs(8), threads=1)
        assert found.first is None
        assert found.flips == 0

    def test_values_that_are_not_finite_are_named(self, tmp_path: Path, qdq: Any) -> None:
        def write(name: str, value: float) -> Path:
            b = qdq()
            b.constant("w", np.full((2, 3, 1, 1), value, np.float32))
            pooled = b.node("GlobalAveragePool", [b.node("Conv", ["x", "w"], "conv")], "pool")
            return Path(b.save(tmp_path / name, b.node("Flatten", [pooled], "flat"), rank=2))

        found = compare(write("a.onnx", 1.0), write("b.onnx", math.nan))
        assert found.logit_max_abs is None
        assert found.first is not None
        assert found.first.why == "not the same values are NaN or infinite"
        json.dumps(found.to_dict(), allow_nan=False)
        assert "not finite" in render_comparison(found)

    def test_fixed_batches_are_kept(self, residual_net: Write) -> None:
        def fix(model: onnx.ModelProto) -> None:
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3

        path = residual_net()
        fixed = edited(path, fix)
        assert compare(fixed, path, n=8).n == 6
        with pytest.raises(ArtefactError, match="batches of 3 images, found 2 image"):
            compare(fixed, path, n=2)

    def test_other_classes_are_refused(self, residual_net: Write) -> None:
        def drop(model: onnx.ModelProto) -> None:
            for name in ("weight_int8", "weight_scale", "weight_zero_point", "bias_int32", "bias_scale"):
                stored(model, f"fc.{name}", lambda value: value[:7])
            stored(model, "fc.bias_zero_point", lambda value: value[:7])

        path = residual_net()
        with pytest.raises(ArtefactError, match=r"\(8, 10\) and \(8, 7\)"):
            compare(path, edited(path, drop))

    def test_layers_of_other_sizes_are_left_out_and_said(self, tmp_path: Path, qdq: Any) -> None:
        def write(name: str, pads: int) -> Path:
            b = qdq()
            b.constant("w", np.ones((2, 3, 1, 1), np.float32))
            pooled = b.node("GlobalAveragePool", [b.node("Conv", ["x", "w"], "conv", pads=[pads] * 4)], "pool")
            return Path(b.save(tmp_path / name, b.node("Flatten", [pooled], "flat"), rank=2))

        found = compare(write("a.onnx", 0), write("b.onnx", 1))
        assert found.layers == ()
        assert found.notes == ("conv gives (2, 8, 8) in A and (2, 10, 10) in B: not compared.",)

    def test_a_runtime_without_inner_outputs_gives_logits(
        self, residual_net: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = comparison_files.open_session
        monkeypatch.setattr(
            comparison_files, "open_session", lambda name, path, **options: real("onnxruntime", path, **options)
        )
        path = residual_net()
        found = compare_files(Side(path=path), Side(path=path, runtime="tensorrt"), inputs(2), threads=1)
        assert (found.layers, found.logit_max_abs) == ((), 0.0)
        assert "tensorrt gives outputs only" in found.notes[0]

    @pytest.mark.skipif(saturates(this_processor()), reason="OpenVINO's sums of 8-bit products saturate without VNNI")
    def test_a_runtime_that_fuses_across_layers_is_seen_through(self, tmp_path: Path, qdq: Any) -> None:
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'dfqkit[openvino]'")

        def write(name: str, quantized: bool) -> Path:
            b = qdq()
            # Scales of which no sum of codes lies half way between two: ties are rounded in either direction.
            x = b.qdq("x", "in", zero_point=128, scale=0.0213)
            r = b.qdq(b.node("Relu", [b.conv(x, "conv1", (3, 4))], "r1"), "a1", scale=0.0371)
            h = b.qdq(b.node("Relu", [b.conv(r, "conv2", (4, 4))], "r2"), "a2", scale=0.0917)
            c = b.conv(h, "conv3", (4, 4))
            c = b.qdq(c, "a3", zero_point=128, scale=1.4317) if quantized else c
            a = b.qdq(b.node("Relu", [b.node("Add", [c, r], "add")], "r3"), "a4", scale=0.2093)
            pooled = b.qdq(b.node("Flatten", [b.node("GlobalAveragePool", [a], "pool")], "flat"), "a5", scale=0.0513)
            return Path(b.save(tmp_path / name, b.gemm(pooled, "fc", (4, 10)), rank=2))

        path, without = write("a.onnx", True), write("b.onnx", False)
        found = compare_files(Side(path=path), Side(path=path, runtime="openvino"), inputs(16), threads=1)
        assert found.begins is not None
        assert found.begins.name == "add"
        assert [layer.name for layer in found.layers] == ["conv1", "conv2", "add", "fc"]
        assert "conv3 with add" in found.notes[0]
        assert "For 1 the file rounds to codes in between, which OpenVINO then leaves out" in found.notes[0]
        # That is the whole difference: it computes what the file says without the pair between the two.
        images = inputs(16).images
        meant = open_session(UNOPTIMIZED.name, without, threads=1).run(images)
        np.testing.assert_allclose(open_session("openvino", path, threads=1).run(images), meant, atol=1e-4)
        assert "rounds" not in comparison_files.disturbance_note("openvino", onnx.load(str(without)), {"conv3": "add"})
        assert found.logit_max_abs is not None
        assert found.logit_max_abs > 1e-3

    def test_a_bias_that_onnxruntime_rounds_is_told(self, tmp_path: Path, qdq: Any) -> None:
        b = qdq()
        x = b.qdq("x", "in", zero_point=128)
        coarse = {"scale": 0.5, "dtype": "int8"}  # a step of the bias: 0.5 x 0.02
        w = b.qdq(b.constant("w", np.ones((2, 3, 1, 1), np.float32)), "weight", **coarse)
        biased = b.node("Conv", [x, w, b.constant("bias", np.array([0.0049, 0.0149], np.float32))], "conv")
        pooled = b.node("GlobalAveragePool", [b.qdq(biased, "out", zero_point=128, scale=0.001)], "pool")
        path = b.save(tmp_path / "m.onnx", b.node("Flatten", [pooled], "flat"), rank=2)
        zeros = Inputs(images=np.zeros((1, 3, 8, 8), np.float32), source="zeros")
        found = compare_files(Side(path=path, runtime=UNOPTIMIZED.name), Side(path=path), zeros, threads=1)
        assert found.logit_max_abs == pytest.approx(0.005, abs=1e-4)  # 0.0049 becomes 0, 0.0149 becomes 0.01
        assert len(found.notes) == 1
        assert found.notes[0].startswith("In B, onnxruntime rounds the float biases of 1 convolution(s)")

    def test_runtimes_are_named(self, residual_net: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        assert set(all_backends()) >= {
            "onnxruntime",
            "onnxruntime-unoptimized",
            "openvino",
            "tensorrt",
            "tensorrt-rtx",
        }
        with pytest.raises(TargetError, match=r"Unknown runtime 'tvm'\. Allowed: onnxruntime, .*openvino"):
            open_session("tvm", residual_net())
        monkeypatch.setattr("dfqkit_export.backends.base.find_spec", lambda name: None)
        with raises_naming(RuntimeUnavailableError, "openvino", "pip install"):
            open_session("openvino", residual_net())


class TestMatching:
    def test_names_decide_where_they_fit(self, residual_net: Write) -> None:
        model = onnx.load(str(residual_net()))
        found = match_layers(model, model)
        assert found.how == "by name"
        assert found.pairs == (("conv1", "conv1"), ("conv2", "conv2"), ("add", "add"), ("fc", "fc"))

    def test_positions_and_weight_shapes_decide_otherwise(self, residual_net: Write) -> None:
        path = residual_net()
        found = match_layers(onnx.load(str(path)), onnx.load(str(edited(path, renamed))))
        assert found.how.startswith("by position")
        assert [pair[0] for pair in found.pairs] == ["conv1", "conv2", "add", "fc"]
        assert (found.only_a, found.only_b) == ((), ())

    def test_names_of_other_layers_do_not_deceive(self, residual_net: Write) -> None:
        def swap(model: onnx.ModelProto) -> None:
            for node in model.graph.node:
                node.name = {"conv1": "conv2", "conv2": "conv1"}.get(node.name, node.name)

        path = residual_net()
        found = match_layers(onnx.load(str(path)), onnx.load(str(edited(path, swap))))
        assert found.pairs[:2] == (("conv1", "conv2"), ("conv2", "conv1"))

    def test_layers_of_one_file_only_are_told(self, tmp_path: Path, qdq: Any) -> None:
        def write(name: str, shapes: list[tuple[int, int]], prefix: str) -> onnx.ModelProto:
            b = qdq()
            x = "x"
            for index, shape in enumerate(shapes):
                b.constant(f"w{index}", np.ones((shape[1], shape[0], 1, 1), np.float32))
                x = b.node("Conv", [x, f"w{index}"], f"{prefix}{index}")
            return onnx.load(str(b.save(tmp_path / name, x)))

        found = match_layers(
            write("a.onnx", [(3, 4), (4, 5), (5, 6)], "a"), write("b.onnx", [(3, 4), (4, 9), (9, 5), (5, 6)], "b")
        )
        assert found.pairs == (("a0", "b0"), ("a2", "b3"))
        assert (found.only_a, found.only_b) == (("a1",), ("b1", "b2"))

    def test_a_transposed_matrix_is_the_same_layer(self, tmp_path: Path, qdq: Any) -> None:
        def write(name: str, op: str, shape: tuple[int, int], **attributes: int) -> onnx.ModelProto:
            b = qdq()
            b.constant("w", np.ones(shape, np.float32))
            return onnx.load(
                str(b.save(tmp_path / name, b.node(op, [b.node("Flatten", ["x"]), "w"], op, **attributes), rank=2))
            )

        found = match_layers(write("a.onnx", "Gemm", (5, 192), transB=1), write("b.onnx", "MatMul", (192, 5)))
        assert found.pairs == (("Gemm", "MatMul"),)


def test_a_layer_parts_when_its_error_exceeds_the_quantizers() -> None:
    step = 0.5
    codes = np.zeros((1, 1200), np.float32)
    for wrong, parts in ((99, False), (101, True)):  # step^2 / 12 is that of 100 of 1200 values one code apart
        other = codes.copy()
        other[0, :wrong] = step
        apart = Apart(step, step)
        apart.add(codes, other)
        found = apart.difference("a", "b", 20.0)
        assert (found.parts, found.lsb) == (parts, 1.0)
        assert found.differing == pytest.approx(wrong / 1200)
        assert found.beyond == 0.0


def test_batches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 10, 7)).astype(np.float32)
    whole, parts = Apart(None, 0.1), Apart(None, 0.1)
    whole.add(a, b)
    parts.add(a[:4], b[:4])
    parts.add(a[4:], b[4:])
    expected = 10 * np.log10(np.square(a, dtype=np.float64).sum() / np.square(a.astype(np.float64) - b).sum())
    for found in (whole.difference("a", "b", 20.0), parts.difference("a", "b", 20.0)):
        assert found.sqnr_db == pytest.approx(expected)
        assert found.lsb == pytest.approx(np.abs(a.astype(np.float64) - b).max() / 0.1)
        assert found.parts


class TestReports:
    @staticmethod
    def metric(name: str, value: float | None, better: bool | None = True, stderr: float | None = None) -> Metric:
        return Metric(
            name=name,
            subject="onnxruntime",
            data="real:x",
            value=value,
            unit="%",
            n=100,
            stderr=stderr,
            higher_is_better=better,
        )

    @pytest.mark.parametrize(
        ("a", "b", "change"),
        [
            (("top1", 90.0, True, 1.0), ("top1", 92.0, True, 1.0), "noise"),
            (("top1", 90.0, True, 1.0), ("top1", 93.0, True, 1.0), "better"),
            (("kl", 0.2, False, 0.01), ("kl", 0.3, False, 0.01), "worse"),
            (("size", 5.0, False), ("size", 5.0, False), "same"),
            (("size", 5.0, False), ("size", 4.0, False), "better"),
            (("latency", 5.0, False), ("latency", 4.0, False), "changed"),
            (("count", 5.0, None), ("count", 4.0, None), "changed"),
            (("sqnr", None, True), ("sqnr", 4.0, True), "changed"),
        ],
    )
    def test_each_metric_gets_its_word(self, a: tuple[Any, ...], b: tuple[Any, ...], change: str) -> None:
        found = compare_reports(
            Report(title="one", metrics=[self.metric(*a)]), Report(title="two", metrics=[self.metric(*b)])
        )
        assert [metric.change for metric in found.metrics] == [change]

    def test_what_matters_comes_first_and_a_thousandth_of_a_decibel_is_not_worse(self) -> None:
        a = [self.metric("sqnr_db", 30.0), self.metric("size", 10.0), self.metric("sqnr_db:y", 30.0)]
        a += [self.metric("top1", 90.0, stderr=0.5), self.metric("agreement", 99.0), self.metric("top5", 99.0)]
        by = {"sqnr_db": -0.001, "size": 0.0, "sqnr_db:y": -3.0, "top1": -0.5, "agreement": -1.0, "top5": 1.0}
        b = [replace(metric, value=metric.value + by[metric.name]) for metric in a]
        found = compare_reports(Report(title="one", metrics=a), Report(title="two", metrics=b))
        assert [(metric.name, metric.change) for metric in found.metrics] == [
            ("sqnr_db:y", "worse"), ("agreement", "worse"), ("top5", "better"), ("top1", "noise"),
            ("sqnr_db", "negligible"), ("size", "same"),
        ]  # fmt: skip

    def test_metrics_of_one_report_only_are_kept(self) -> None:
        found = compare_reports(
            Report(title="one", metrics=[self.metric("a", 1.0), self.metric("both", 2.0, stderr=0.3)]),
            Report(title="two", metrics=[self.metric("both", 4.0, stderr=0.4), self.metric("b", 3.0)]),
        )
        assert [(m.name, m.change) for m in found.metrics] == [
            ("both", "better"),
            ("a", "only in A"),
            ("b", "only in B"),
        ]
        assert found.metrics[0].noise == pytest.approx(1.0)
        text = render_differences(found)
        assert "+2 (2 s.e. 1)" in text
        assert "one: ok" in text
        json.dumps(found.to_dict(), allow_nan=False)


class TestOddOutputs:
    """Models that are no classifiers, or compute on other types than float32."""

    @staticmethod
    def ending(path: Path, name: str, *nodes: onnx.NodeProto) -> Path:
        """Write a net to another file, with nodes behind its output "y"."""
        model = onnx.load(str(path))
        model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["y"], "y"))
        model.graph.node.extend(nodes)
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=nodes[-1].output[0]))
        onnx.save(model, str(path.with_name(name)))
        return path.with_name(name)

    @pytest.mark.parametrize(
        ("node", "found"),
        [
            (helper.make_node("ReduceMean", ["y"], ["z"], keepdims=0), r"float32 and shape \(\)"),
            (helper.make_node("IsNaN", ["y"], ["z"]), r"bool and shape \(4, 10\)"),
        ],
    )
    def test_what_is_no_logits_is_refused(self, node: onnx.NodeProto, found: str, residual_net: Write) -> None:
        path = self.ending(residual_net(), "odd.onnx", node)
        inputs = random_inputs(onnx.load(str(path)), 4)
        with pytest.raises(ArtefactError, match=rf"has type {found} for 4 image\(s\)"):
            compare_files(Side(path=path), Side(path=path, runtime="onnxruntime-unoptimized"), inputs)

    def test_layers_of_other_types_are_seen(self, residual_net: Write) -> None:
        wide = [
            helper.make_node("Cast", ["y"], ["wide"], "widen", to=TensorProto.DOUBLE),
            helper.make_node("Add", ["wide", "wide"], ["z"], "twice"),
        ]
        path = self.ending(residual_net(), "wide.onnx", *wide)
        found = compare_files(Side(path=path), Side(path=path), random_inputs(onnx.load(str(path)), 4))
        assert [layer.max_abs for layer in found.layers if layer.name == "twice"] == [0.0]

    def test_infinite_logits_part_nothing_that_is_equal(self, residual_net: Write) -> None:
        infinite = [
            helper.make_node("Sub", ["y", "y"], ["none"]),
            helper.make_node("Log", ["none"], ["z"]),
        ]
        path = self.ending(residual_net(), "infinite.onnx", *infinite)
        found = compare_files(Side(path=path), Side(path=path), random_inputs(onnx.load(str(path)), 4))
        assert (found.flips, found.margin, found.first) == (0, None, None)
