"""Targets are data: looked up by name, asked before anything is computed, and obeyed by the files written for them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import fx

from dfqkit.students.onnx_file import write_qdq
from dfqkit_export.backends import all_targets, get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.target import Cell, OperatorRule, QuantSpace, Target
from dfqkit_export.backends.target_text import describe, render_target, summary
from dfqkit_export.checker import check_model
from dfqkit_export.errors import TargetError
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.quantization import QuantFacts
from dfqkit_export.onnxfile.summary import LayerFacts, layer_facts
from tests._messages import raises_naming
from tests._toys import images, student

TARGETS = all_targets()
NAMES = [
    "onnxruntime",
    "onnxruntime-vnni",
    "onnxruntime-avx2",
    "onnxruntime-arm",
    "onnxruntime-tensorrt",
    "onnxruntime-qnn",
    "onnxruntime-openvino",
    "openvino",
    "tensorrt",
    "tensorrt-10",
    "tensorrt-11",
    "tensorrt-10-fp16",
    "tensorrt-11-fp16",
    "tensorrt-rtx",
]


def cells(target: Target) -> Iterator[Cell[object]]:
    yield from (target.opsets, target.dtypes, target.zero_point_zero, target.relu_zero_point, target.unsupported)
    for rule in target.operators:
        yield from (cell for _, cell in rule.cells())


class TestTable:
    def test_the_names(self) -> None:
        assert list(TARGETS) == NAMES

    @pytest.mark.parametrize("name", TARGETS)
    def test_what_holds_for_all(self, name: str) -> None:
        target = get_target(name)
        assert target.name == name
        assert target.title
        assert target.opset >= 17
        assert target.reads_opset(target.opset)
        assert target.weights.signed
        assert target.weights.symmetric
        assert target.weights.granularity == "per_channel"
        assert target.unsigned_activations.bits == target.signed_activations.bits
        assert all(quirk.endswith(".") for quirk in target.quirks)
        with pytest.raises(FrozenInstanceError):
            target.opset = 1  # type: ignore[misc]

    @pytest.mark.parametrize("name", TARGETS)
    def test_every_cell_has_a_source(self, name: str) -> None:
        found = list(cells(get_target(name)))
        assert len(found) > 20
        for cell in found:
            kind, _, where = cell.source.partition(": ")
            assert kind in ("measured", "read", "unknown"), cell
            assert len(where) > 10, cell

    @pytest.mark.parametrize("name", TARGETS)
    def test_operators_have_one_row_and_onnx_knows_them(self, name: str) -> None:
        target = get_target(name)
        listed = [op for rule in target.operators for op in rule.operators]
        assert len(set(listed)) == len(listed)
        for op in {*listed, *(name for name in target.unsupported.value if "." not in name)}:
            onnx.defs.get_schema(op)
        assert not target.unsupported.value & set(listed)

    def test_not_listed_and_listed_with_nothing_differ(self) -> None:
        target = get_target("onnxruntime")
        assert target.rule("Einsum") is None
        pad = target.rule("Pad")
        assert pad is not None
        assert not pad.integer
        assert pad.placement.value == "float"
        assert target.rule("Conv").integer  # type: ignore[union-attr]

    def test_what_makes_the_targets_differ(self) -> None:
        runtime, tensorrt, openvino = get_target("onnxruntime"), get_target("tensorrt"), get_target("openvino")
        assert not runtime.unsigned_activations.signed
        assert not runtime.signed_activations.signed
        assert (runtime.bias, runtime.quantize_outputs) == ("int32", True)
        assert tensorrt.unsigned_activations.signed
        assert tensorrt.signed_activations.symmetric
        assert (tensorrt.bias, tensorrt.quantize_outputs) == ("float", False)
        assert (openvino.signed_activations, openvino.quantize_outputs) == (runtime.signed_activations, False)
        assert (tensorrt.zero_point_zero.value, runtime.zero_point_zero.value) == (True, False)
        assert get_target("onnxruntime-avx2").weights.reduce_range
        assert not runtime.weights.reduce_range
        assert get_target("onnxruntime-tensorrt").opsets.value[1] < tensorrt.opsets.value[1]

    def test_tensorrt_10_and_11_differ_where_their_sources_do(self) -> None:
        old, new, both = (get_target(name) for name in ("tensorrt-10", "tensorrt-11", "tensorrt"))
        assert (old.opsets.value, new.opsets.value) == ((9, 20), (9, 25))
        assert old.refuses(["STFT", "DeformConv", "Det"]) == ("STFT", "Det")
        assert new.refuses(["STFT", "DeformConv", "Det"]) == both.refuses(["DeformConv", "Det"])
        assert old.opsets.value[1] >= old.opset
        told = " ".join(old.quirks)
        assert "--stronglyTyped" in told
        assert "Explicit Q/DQ" in new.quirks[-2]
        # Nobody here has run either: no cell may say that it was measured there.
        for target in (old, new):
            for cell in cells(target):
                if cell.source.startswith("measured"):
                    assert (
                        cell.source.startswith("measured: TensorRT for RTX")
                        or "parser of TensorRT for RTX" in cell.source
                    )

    def test_refused_operators(self) -> None:
        assert get_target("tensorrt").refuses(["Conv", "Unique", "Det", "Unique"]) == ("Unique", "Det")
        assert get_target("onnxruntime").refuses(["Unique"]) == ()

    def test_refused_operators_are_those_the_parser_of_rtx_refuses(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dfqkit[tensorrt-rtx]')")
        program = (
            "import onnx, tensorrt_rtx as trt\n"
            "logger = trt.Logger(trt.Logger.ERROR)\n"
            "network = trt.Builder(logger).create_network(0)\n"
            "parser = trt.OnnxParser(network, logger)\n"
            "names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}\n"
            "print(*sorted(name for name in names if not parser.supports_operator(name)))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        refused = set(done.stdout.splitlines()[-1].split())
        known = get_target("tensorrt-rtx").unsupported.value
        # Newer versions of onnx know more operators, and newer parsers may learn some.
        assert len(refused & known) > 40


class TestLookup:
    @pytest.mark.parametrize(
        ("asked", "near"), [("onnxruntim", "onnxruntime"), ("tensor_rt", "tensorrt"), ("ONNXRuntime", None)]
    )
    def test_unknown_names_get_the_nearest(self, asked: str, near: str | None) -> None:
        with pytest.raises(TargetError, match=r"Allowed: onnxruntime, onnxruntime-arm") as caught:
            get_target(asked)
        if near:
            assert f"Did you mean '{near}'?" in str(caught.value)

    def test_nothing_near(self) -> None:
        with pytest.raises(TargetError) as caught:
            get_target("zzz")
        assert "Did you mean" not in str(caught.value)


def space(*bits: int, **changes: object) -> QuantSpace:
    settings: dict[str, object] = {"bits": bits, "signed": True, "symmetric": True, "granularity": "per_tensor"}
    return QuantSpace(**{**settings, **changes})  # type: ignore[arg-type]


def chip(**changes: object) -> Target:
    settings: dict[str, object] = {
        "name": "chip", "title": "Chip", "backend": "chip", "opset": 17, "weights": space(8),
        "unsigned_activations": space(4, 8), "signed_activations": space(4, 8), "bias": "float",
        "quantize_outputs": True, "clip_before_quantize": False,
    }  # fmt: skip
    return Target(**{**settings, **changes})  # type: ignore[arg-type]


def conv(
    *, placement: str = "around", activations: QuantSpace, weights: QuantSpace, bias: str = "float"
) -> OperatorRule:
    def cell(value: object) -> Cell:  # type: ignore[type-arg]
        return Cell(value=value, source="read: a made-up page")

    return OperatorRule(
        operators=("Conv",), placement=cell(placement), activations=cell((activations,)), weights=cell((weights,)),
        bias=cell((bias,)),
    )  # fmt: skip


class TestSpace:
    def test_what_a_space_holds(self) -> None:
        anywhere, at_zero = space(4, 8, symmetric=False), space(8)
        assert anywhere.holds(at_zero)
        assert not at_zero.holds(anywhere)
        assert space(8).holds(space(8, narrow_range=True))
        assert not space(8, narrow_range=True).holds(space(8))
        assert not space(8).holds(space(8, signed=False))
        assert not space(8).holds(space(8, granularity="per_channel"))
        assert not space(8, reduce_range=True).holds(space(8))
        assert space(8).holds(space(8, reduce_range=True))

    def test_reduced_range_fills_seven_bits(self) -> None:
        assert [space(8, reduce_range=True).width(bits) for bits in (4, 7, 8)] == [4, 7, 7]
        assert space(8).width(8) == 8

    def test_the_type_of_the_codes(self) -> None:
        assert (space(8).dtype, space(8, signed=False).dtype) == ("int8", "uint8")


class TestTarget:
    @pytest.mark.parametrize(
        ("weights", "activations", "field"), [(4, 8, "4-bit weights"), (8, 2, "2-bit activations")]
    )
    def test_bits_that_cannot_run_are_refused(self, weights: int, activations: int, field: str) -> None:
        target = chip()
        with raises_naming(TargetError, "chip", field, "8 bits"):
            target.require(weight_bits=weights, activation_bits=activations)
        target.require(weight_bits=8, activation_bits=4)

    def test_a_table_that_its_own_student_breaks_is_refused(self) -> None:
        fits = conv(activations=space(4, 8), weights=space(8))
        assert chip(operators=(fits,)).rule("Conv") is fits
        with pytest.raises(TargetError, match=r"Target 'chip': weights .* not among"):
            chip(operators=(conv(activations=space(4, 8), weights=space(8, signed=False)),))
        with pytest.raises(TargetError, match=r"signed_activations .* not among"):
            chip(operators=(conv(activations=space(8), weights=space(8)),))
        with raises_naming(TargetError, "bias", "float", "Conv"):
            chip(operators=(conv(activations=space(4, 8), weights=space(8), bias="int32"),))
        with pytest.raises(TargetError, match=r"Q/DQ go 'inputs'"):
            chip(operators=(conv(placement="inputs", activations=space(4, 8), weights=space(8)),))


class TestText:
    def test_a_space_in_words(self) -> None:
        assert describe(space(2, 3, 4)) == "int8 2-4 bit per tensor, zero point 0"
        assert describe(space(4, 8, signed=False, symmetric=False)) == "uint8 4, 8 bit per tensor, any zero point"
        assert describe(get_target("onnxruntime-avx2").weights).endswith("lowest code unused, 7 bits filled")

    def test_the_summary_has_a_row_a_target(self) -> None:
        rows = summary(TARGETS.values())
        assert [row[0] for row in rows] == NAMES
        assert rows[NAMES.index("tensorrt")][2:] == (
            "opset 9-25",
            "weights int8 2-8 bit per channel, zero point 0, lowest code unused; activations int8 2-8 bit per tensor, "
            "zero point 0; bias float",
        )

    @pytest.mark.parametrize("name", TARGETS)
    def test_a_target_is_told_with_every_source(self, name: str) -> None:
        target = get_target(name)
        text = render_target(target)
        flat = " ".join(text.split())
        assert all(" ".join(cell.source.split()) in flat for cell in cells(target) if cell.value)
        assert all(" ".join(quirk.split()) in flat for quirk in target.quirks)
        assert max(len(line) for line in text.splitlines()) <= 140


# The files --------------------------------------------------------------------------------------------------------


Written = Callable[[str], tuple[fx.GraphModule, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a function that builds and writes the residual toy's 4-bit student for a target.

    Targets that want the same student share one.
    """
    folder = tmp_path_factory.mktemp("targets")
    made: dict[tuple[object, ...], tuple[fx.GraphModule, Path]] = {}

    def write(name: str) -> tuple[fx.GraphModule, Path]:
        target = get_target(name)
        wanted = (target.weights, target.unsigned_activations, target.signed_activations, target.bias)
        wanted = (*wanted, target.additions_agree, target.sums_fit)
        key = (*wanted, target.quantize_outputs, target.clip_before_quantize, target.opset)
        if key not in made:
            bits = "w4a4" if 4 in target.signed_activations.bits else "w4a8"
            graph = student("residual", bits, name, weight_range="max", bias_correction=False)
            write_qdq(graph, target, folder / f"{name}.onnx", metadata={})
            made[key] = graph, folder / f"{name}.onnx"
        return made[key]

    return write


def fits(facts: QuantFacts, spaces: tuple[QuantSpace, ...]) -> bool:
    return any(
        facts.dtype == space.dtype
        and facts.bits <= max(space.bits)
        and facts.granularity == space.granularity
        and (facts.zero_point == 0 or not space.symmetric)
        for space in spaces
    )


def weight_fits(layer: LayerFacts, spaces: tuple[QuantSpace, ...]) -> bool:
    weight = layer.weight
    return weight is not None and any(
        weight.dtype == space.dtype
        and weight.bits <= space.width(8)
        and weight.granularity == space.granularity
        and (weight.zero_point == 0 or not space.symmetric)
        for space in spaces
    )


# Building a student takes seconds; the other targets share one of these two, or differ in what the slow tests see.
_FAST = (
    *("onnxruntime", "onnxruntime-vnni", "onnxruntime-arm", "tensorrt", "tensorrt-10", "tensorrt-11", "tensorrt-rtx"),
    *("tensorrt-11-fp16", "onnxruntime-tensorrt"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in TARGETS]
)
class TestFiles:
    """The same table that chose the student's quantizers judges the file."""

    def test_types_bias_and_opset_are_the_tables(self, name: str, written: Written) -> None:
        target = get_target(name)
        model = onnx.load(written(name)[1])
        assert target.reads_opset(model.opset_import[0].version)
        assert not target.refuses(node.op_type for node in model.graph.node)
        layers = layer_facts(model)
        assert {layer.op for layer in layers} == {"Conv", "Gemm", "Add"}
        for layer in layers:
            rule = target.rule(layer.op)
            assert rule is not None
            for facts in (layer.input, layer.residual, layer.output):
                assert facts is None or fits(facts, rule.activations.value), layer
            if rule.weights is None:
                continue
            assert layer.input is not None
            assert weight_fits(layer, rule.weights.value), layer
            assert layer.bias == {"float": target.floats, "int32": "int32"}[target.bias]
            if rule.placement.value == "around":
                assert layer.output is not None

    def test_every_pair_has_a_type_and_zero_point_the_target_takes(self, name: str, written: Written) -> None:
        target = get_target(name)
        graph = SourceGraph(onnx.load(written(name)[1]).graph)
        for node in onnx.load(written(name)[1]).graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            zero = graph.constant(node.input[2])
            assert zero is not None
            if zero.dtype == np.int32:
                assert target.bias == "int32"
                continue
            assert str(zero.dtype) in target.dtypes.value
            assert not target.zero_point_zero.value or not zero.any()

    def test_the_checker_has_nothing_against_it(self, name: str, written: Written) -> None:
        assert check_model(onnx.load(written(name)[1]), name).problems == ()

    def test_it_computes_what_the_student_computes(self, name: str, written: Written) -> None:
        (graph, path), target = written(name), get_target(name)
        x = images(32)
        expected = graph(x).detach().numpy()
        # Half a code of 8 bits, which float16 rounds over, in front of the last layer.
        atol = 0.02 * np.abs(expected).max() if target.floats == "float16" else 1e-5
        np.testing.assert_allclose(OrtSession(path, threads=1, optimized=False).run(x.numpy()), expected, atol=atol)


@pytest.mark.slow
def test_eight_bit_weights_fill_seven_bits_without_vnni(written: Written) -> None:
    for name, bits in (("onnxruntime", 8), ("onnxruntime-avx2", 7)):
        layers = layer_facts(onnx.load(written(name)[1]))
        assert [layer.weight.bits for layer in (layers[0], layers[-1]) if layer.weight] == [bits, bits]
    # Two products of the largest codes fit the 16 bits in which they are added.
    assert 2 * 255 * (2 ** (bits - 1) - 1) < 2**15


_IN_OPENVINO = (
    "import sys; import numpy as np; from dfqkit_export.backends.opening import open_session\n"
    "np.save(sys.argv[3], open_session('openvino', sys.argv[1]).run(np.load(sys.argv[2])))"
)


@pytest.mark.slow
def test_openvino_computes_the_students_numbers_in_integers(written: Written, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino (pip install 'dfqkit[openvino]')")
    from dfqkit_export.backends.opening import realised_precision

    graph, path = written("openvino")
    x = images(32)
    expected = graph(x).detach().numpy()
    np.save(tmp_path / "x.npy", x.numpy())
    # The second is held to the kernels of processors without VNNI, where 8-bit codes saturate.
    for isa in ("ALL", "AVX2"):
        files = [str(path), str(tmp_path / "x.npy"), str(tmp_path / f"{isa}.npy")]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        subprocess.run([sys.executable, "-c", _IN_OPENVINO, *files], check=True, timeout=300, env=environment)
        np.testing.assert_allclose(np.load(files[-1]), expected, atol=1e-5, err_msg=isa)
    assert realised_precision(path, "openvino").integer_macs == 1.0


def test_replacing_a_field_keeps_the_table() -> None:
    narrow = dataclasses.replace(get_target("onnxruntime"), weights=space(4, granularity="per_channel"))
    assert narrow.operators == get_target("onnxruntime").operators
