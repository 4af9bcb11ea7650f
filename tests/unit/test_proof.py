"""What a report says of a run: numbers by hand, layers against an independent reading, and the images shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.run.answering import GradingSet, real_images, require_labels
from dfqkit.run.context import resolve_device
from dfqkit.run.measuring import (
    Measured,
    _layer_db,
    compare,
    compare_layers,
    student_layers,
)
from dfqkit.run.stages import plan
from dfqkit.run.target_check import Account
from dfqkit.run.validate import floors_about
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.student import build_student, calibrate_student, equalized_graph
from dfqkit.teacher import Teacher
from dfqkit_export.backends import get_target
from dfqkit_export.errors import ArtefactError, RecipeError, RuntimeUnavailableError
from dfqkit_export.images.labelled import LabelledImages
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import INTEGER_OPS, Metric
from dfqkit_export.report import LayerRow
from dfqkit_export.tasks.classification import LOGITS, Classification
from tests._messages import names, raises_naming
from tests._task_nets import Boxes
from tests._toys import IMAGE, images, student, toy_graph


def compared(logits: dict[str, Any], grading: GradingSet) -> list[Metric]:
    return compare(Classification(), {name: {LOGITS: value} for name, value in logits.items()}, grading)


class TestCompare:
    LOGITS: dict[str, Any] = {  # noqa: RUF012 - read only
        "teacher": np.log([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]),
        "student": np.log([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]),
        "onnxruntime": np.log([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]),
    }
    LABELS = np.array([0, 1, 2, 1])

    def metrics(self, labels: Any = LABELS) -> dict[tuple[str, str], Metric]:
        grading = GradingSet(name="real:x", count=4, batches=lambda: iter(()), labels=labels)
        found = compared(self.LOGITS, grading)
        assert all(metric.data == "real:x" and metric.n == 4 for metric in found)
        assert len({(m.name, m.subject) for m in found}) == len(found)
        return {(m.name, m.subject): m for m in found}

    def test_by_hand(self) -> None:
        found = self.metrics()
        # right: teacher images 0-2, student 0 and 2, runtime 0; all are wrong about the last
        assert {subject: found["top1", subject].value for subject in self.LOGITS} == {
            "teacher": 75.0, "student": 50.0, "onnxruntime": 25.0,
        }  # fmt: skip
        assert found["top1_drop", "student"].value == 25.0
        assert found["top1_drop", "onnxruntime"].value == 50.0
        assert found["top1_drop", "onnxruntime"].stderr == pytest.approx(25.0)  # d = 0 1 1 0: std 1/2 over sqrt 4
        assert found["agreement", "student"].value == 75.0
        assert found["agreement", "onnxruntime"].value == 50.0
        assert found["student_agreement", "onnxruntime"].value == 75.0
        assert found["student_top1_gap", "onnxruntime"].value == 25.0
        # The second image: 0.2 ln(0.2/0.6) + 0.6 ln(0.6/0.2), a quarter of the images.
        assert found["kl", "student"].value == pytest.approx(0.4 * np.log(3) / 4)
        noise = 2 * np.log(3) ** 2
        signal = float(np.square(self.LOGITS["teacher"]).sum())
        assert found["logit_sqnr_db", "student"].value == pytest.approx(10 * np.log10(signal / noise))
        assert found["top1", "teacher"].higher_is_better
        assert found["top1_drop", "student"].higher_is_better is False
        assert not [key for key in found if key[1] == "teacher" and key[0] != "top1"]

    def test_every_runtime_is_held_against_the_student(self) -> None:
        grading = GradingSet(name="real:x", count=4, batches=lambda: iter(()), labels=self.LABELS)
        found = compared({**self.LOGITS, "openvino": self.LOGITS["student"]}, grading)
        agreement = {m.subject: m.value for m in found if m.name == "student_agreement"}
        assert agreement == {"onnxruntime": 75.0, "openvino": 100.0}

    def test_without_labels(self) -> None:
        found = self.metrics(None)
        assert not {name for name, _ in found} & {"top1", "top1_drop", "student_top1_gap"}
        assert found["agreement", "onnxruntime"].value == 50.0
        assert found["student_agreement", "onnxruntime"].value == 75.0

    def test_an_exact_copy_has_no_finite_sqnr(self) -> None:
        grading = GradingSet(name="x", count=4, batches=lambda: iter(()), labels=None)
        found = compared(dict.fromkeys(self.LOGITS, self.LOGITS["teacher"]), grading)
        values = {(m.name, m.subject): m.value for m in found}
        assert values["logit_sqnr_db", "student"] is None
        assert values["kl", "student"] == 0
        assert values["agreement", "student"] == 100


class TestRealImages:
    def recipe(self, *overrides: str) -> Recipe:
        return load_recipe("digits/dfq-w8a8-ort", overrides)

    def test_they_are_found_beside_the_recipe(self) -> None:
        found = real_images(self.recipe("validate.limit=20"))
        assert found is not None
        assert found.images.shape == (20, 16, 16, 1)
        assert found.labels is not None
        assert len(real_images(self.recipe("validate.limit=20"), limit=5) or ()) == 5
        assert len(real_images(self.recipe("validate.limit=3"), limit=5) or ()) == 3
        assert len(real_images(self.recipe(), limit=5) or ()) == 5

    def test_none_are_fine_and_wrong_ones_are_named(self, tmp_path: Path) -> None:
        assert real_images(self.recipe("validate.data=null")) is None
        with raises_naming(RecipeError, "nowhere.npz"):
            real_images(self.recipe("validate.data=nowhere.npz"))
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
        with pytest.raises(ArtefactError, match=r"8x8 pixels.*16x16"):
            real_images(self.recipe(f"validate.data={tmp_path / 'a.npz'}"), limit=1)


class TestLayers:
    @pytest.mark.parametrize("name", ["residual", "option_a", "depthwise"])
    def test_outputs_are_those_behind_activation_and_quantizer(self, name: str, tmp_path: Path) -> None:
        quantized = student(name, "w4a8")
        write_qdq(quantized, get_target("onnxruntime"), tmp_path / "model.onnx", metadata={})
        inputs = images(4)
        found = student_layers(quantized, tmp_path / "model.onnx", inputs)
        weighted = {
            str(n.target): n for n in quantized.graph.nodes if isinstance(module(quantized, n), nn.Conv2d | nn.Linear)
        }
        additions = {n.name: n for n in quantized.graph.nodes if n.target is torch.add}
        assert set(found) == set(weighted) | set(additions)
        seen: dict[str, Tensor] = {}
        handles = [
            quantized.get_submodule(key).register_forward_hook(keep(seen, key))
            for key in {str(n.target) for n in quantized.graph.nodes if n.op == "call_module"}
        ]
        with torch.no_grad():
            quantized(inputs)
        for handle in handles:
            handle.remove()
        for key, node in (weighted | additions).items():
            chain = [node]
            while len(chain[-1].users) == 1 and passes(quantized, next(iter(chain[-1].users))):
                chain.append(next(iter(chain[-1].users)))
            if chain[-1].op == "call_module":
                assert np.array_equal(found[key], seen[str(chain[-1].target)].numpy())

    @pytest.mark.parametrize("equalize", [0, pytest.param(10, marks=pytest.mark.slow)])
    def test_rows_say_how_far_the_student_is_and_that_the_runtime_is_the_student(
        self, equalize: int, tmp_path: Path
    ) -> None:
        graph, target = toy_graph("option_a"), get_target("onnxruntime")
        config = QuantConfig(bits="w8a8", equalize=equalize)
        quantized = build_student(graph, config, target, IMAGE)
        calibrate_student(quantized, [images(16, 10)], config, IMAGE)
        freeze(quantized)
        files = tmp_path / "model.onnx", tmp_path / "teacher.onnx"
        write_qdq(quantized, target, files[0], metadata={})
        write_float(graph, files[1], metadata={}, opset=target.opset)
        inputs = images(8).numpy()
        reference = equalized_graph(graph, config) if equalize else None
        rows = compare_layers(quantized, *files, inputs, reference=reference)
        ours, floats = values_of(quantized, inputs), values_of(reference or graph, inputs)
        assert {row.name for row in rows} == {"stem.0", "b1.0", "b2.0", "add", "fc"}
        for row in rows:
            wanted = floats[behind(reference or graph, row.name)]
            found = ours[behind(quantized, row.name)]
            expected = 10 * np.log10((wanted.astype(float) ** 2).sum() / ((wanted - found) ** 2).sum())
            assert row.sqnr_student_db == pytest.approx(expected, abs=0.1)
            assert row.sqnr_student_db > 20
            assert row.sqnr_runtime_db is None or row.sqnr_runtime_db > 60

    def test_with_float_scales_no_layer_is_a_bit_from_the_runtime(self, tmp_path: Path) -> None:
        quantized = student("residual", scales="float", weight_range="max", activation_range="percentile")
        files = tmp_path / "model.onnx", tmp_path / "teacher.onnx"
        write_qdq(quantized, get_target("onnxruntime"), files[0], metadata={})
        write_float(toy_graph("residual"), files[1], metadata={})
        rows = compare_layers(quantized, *files, images(8).numpy())
        assert len(rows) == 9
        assert all(row.precision == "int8" and row.sqnr_runtime_db is None for row in rows)
        written = compare_layers(quantized, *files, images(8).numpy(), as_written=True)
        assert all(row.sqnr_runtime_db is None or row.sqnr_runtime_db > 30 for row in written)  # in float, both


def test_layers_of_different_shape_have_no_figure_and_masks_no_part_in_it(caplog: pytest.LogCaptureFixture) -> None:
    first, other = np.array([[3.0, 4.0, -np.inf]], np.float32), np.array([[3.0, 3.5, -np.inf]], np.float32)
    assert _layer_db("fc", first, other) == pytest.approx(20.0)
    assert not caplog.records
    assert _layer_db("fc", first, other.T) is None
    names(caplog.text, "fc", (1, 3), (3, 1))
    with pytest.raises(ArtefactError):
        _layer_db("fc", first, np.full_like(other, np.nan))


def values_of(graph: fx.GraphModule, inputs: Any) -> dict[fx.Node, Any]:
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    with torch.no_grad():
        Recorder(graph).run(torch.from_numpy(inputs))
    return {node: value.numpy() for node, value in found.items() if isinstance(value, Tensor)}


def behind(graph: fx.GraphModule, layer: str) -> fx.Node:
    """The node behind a layer, its activation and its quantizer."""
    node = next(n for n in graph.graph.nodes if layer in (n.name, n.target))
    while len(node.users) == 1 and passes(graph, next(iter(node.users))):
        node = next(iter(node.users))
    return node


def module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def passes(graph: fx.GraphModule, node: fx.Node) -> bool:
    return str(node.target).startswith("quant.") or isinstance(module(graph, node), nn.ReLU | nn.ReLU6)


def keep(seen: dict[str, Tensor], key: str) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        seen.setdefault(key, output)

    return hook


class TestDevice:
    @pytest.mark.parametrize("name", ["gpu", "cuda:0", "", "CPU"])
    def test_an_unknown_name_lists_the_known(self, name: str) -> None:
        with raises_naming(RecipeError, name, "auto, cpu, cuda"):
            resolve_device(name)

    def test_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
        with pytest.raises(RuntimeUnavailableError, match=r"Use --device cpu or auto") as caught:
            resolve_device("cuda")
        assert caught.value.exit_code == 3

    def test_with_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
        assert resolve_device("cpu") == torch.device("cpu")


class TestPlan:
    def test_it_names_every_stage_with_its_cost_and_ends_with_the_recipe(self) -> None:
        recipe = load_recipe("digits/dfq-w4a4-ort", ["distill.partners=[w3a3, w4a4]", "distill.steps=123"])
        text = plan(recipe)
        assert text.endswith(recipe.to_yaml())
        stages = [line.split()[0] for line in text.partition("name: ")[0].splitlines() if line and ":" not in line[:12]]
        assert [s for s in stages if s in ("synthesize", "quantize", "distill", "export", "validate")] == [
            "synthesize", "quantize", "distill", "export", "validate",
        ]  # fmt: skip
        for part in (
            "dfq (150 warm-up rounds of 128 images)",
            "3 student(s)",
            "123 steps of 64 images",
            "ONNX Runtime (CPU), w4a4",
            "test.npz",
        ):
            assert part in text

    def test_a_smaller_student_is_trained_first(self) -> None:
        assert "train       no: the teacher itself is quantized" in plan(load_recipe("digits/dfq-w4a4-ort"))
        section = "student={factory: 'dfqkit.models:digits_cnn', args: {width: 0.5}, steps: 77, batch: 32}"
        text = plan(load_recipe("digits/dfq-w4a4-ort", [section]))
        assert "train       dfqkit.models:digits_cnn, 77 steps of 32 images, a generator round every 10" in text
        assert text.index("\nsynthesize ") < text.index("\ntrain ") < text.index("\nquantize ")

    def test_without_distillation_labels_or_weights(self) -> None:
        text = plan(load_recipe("digits/dfq-w4a4-ort", ["distill=null", "validate.data=null", "teacher.weights=null"]))
        assert "no: the calibrated student ships" in text
        assert "1 student(s)" in text
        assert "synthetic images only" in text
        assert "weights random" in text


@pytest.mark.parametrize(
    ("left", "written", "counts"),
    [("conv", False, False), ("conv", True, True), ("other", False, True), ("", False, True)],
)
def test_only_the_usual_floor_forgives_what_was_left_in_float(left: str, written: bool, counts: bool) -> None:
    rows = [LayerRow(name=name, op="Conv", precision=kind) for name, kind in (("conv", "float"), ("next", "int8"))]
    measured = Measured(
        metrics=[], layers=tuple(rows), account=Account(subject=""), labelled=False, timing=None, estimate={}, drops=[],
        seen=[],
            doubts=[], breakdowns=[], kept={left: "its 8 bits cost a collapse"} if left else {}, floats={},
    )  # fmt: skip
    floor = f"{{metric: {INTEGER_OPS.name}, value: 100.0, unless_kept: {str(not written).lower()}}}"
    recipe = load_recipe("digits/dfq-w8a8-ort", [f"floors=[{floor}]"])
    assert [each.value for each in floors_about(recipe, measured)] == ([100.0] if counts else [])


class TestLabelsOfOtherTasks:
    def teacher(self) -> Teacher:
        image = ImageSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
        return Teacher.from_module(Boxes(), image)

    def labelled(self, labels: Any, classes: tuple[str, ...] = ()) -> LabelledImages:
        pixels = np.zeros((len(labels), 32, 32, 3), np.uint8)
        return LabelledImages(images=pixels, labels=labels, name="x", sha256="", classes=classes)

    def test_they_are_tried_before_anything_is_computed(self) -> None:
        boxes = np.empty(2, object)
        boxes[0] = boxes[1] = np.array([[1, 0, 0, 8, 8.0]])
        require_labels(self.teacher(), self.labelled(boxes, ("a", "b")))
        require_labels(self.teacher(), None)
        with raises_naming(ArtefactError, "3 classes", "a, b, c", "has 2"):
            require_labels(self.teacher(), self.labelled(boxes, ("a", "b", "c")))
        with raises_naming(ArtefactError, "detection", "(boxes, 5)", "COCO"):
            require_labels(self.teacher(), self.labelled(np.array([0, 1])))
