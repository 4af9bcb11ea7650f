"""What TensorRT's own accounts say: the inspector's two schemas, RTX's log, and, where it is installed, RTX itself."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.precision import LayerPrecision
from dfqkit_export.backends.tensorrt.engine_layers import EngineLayer, match_layers
from dfqkit_export.backends.tensorrt.precision import parse_layer_info, realised_in_tensorrt
from dfqkit_export.backends.tensorrt.targets import TENSORRT
from dfqkit_export.backends.tensorrt_rtx import session as rtx
from dfqkit_export.backends.tensorrt_rtx.precision import parse_rtx_log
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from tests.unit.export._qdq_models import Net, ort, trt

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'dfqkit[tensorrt-rtx]'"
)

# In the form of RTX 1.7.1.116, with the tensors' other fields shortened.
TABLE = """Layers:
Name: __mye888_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: \x20
Name: glue_myl0_1, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,8], Datatype: Float, Format: (Linear) Row \
major linear format }], Constants: [], Outputs: [ { Name: b, Datatype: Int8, Format: (NHWC) }], TacticName: t, \
StreamId: 0, Metadata: [ONNX Layer: in.Q]\x1f[ONNX Layer: conv]
Name: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: b, Dimensions: [-1,4,8,8], Datatype: Int8, Format: (NHWC) \
}, { Name: c, Datatype: Float }], Constants: [ { Name: w, Datatype: Half }], Outputs: [ { Name: d, Datatype: Float }], \
TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv]\x1f[ONNX Layer: blocks[0].w/codes]
"""


def save(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, str(path))
    return path


def one_conv(path: Path, **options: Any) -> Path:
    """Write a quantized convolution; `scale` is the input's, `names` False leaves nodes without names."""
    b = trt()
    names = options.pop("names", True)
    x = b.qdq("x", "in", scale=options.pop("scale", 0.02))
    model = b.model(b.conv(x, **options))
    for node in model.graph.node if not names else ():
        node.name = ""
    return save(path, model)


class TestLog:
    def test_layers_have_types_and_nodes(self) -> None:
        first, glue, conv = parse_rtx_log(["Parsing node: conv [Conv]", TABLE, "Total Weights Memory: 1"])
        assert first == EngineLayer(name="__mye888_0_myl0_0", kind="shape_call", inputs=(), outputs=(), nodes=())
        assert (glue.kind, glue.inputs, glue.outputs) == ("kgen", ("float32",), ("int8",))
        assert conv == EngineLayer(
            name="conv_myl0_2",
            kind="correlation",
            inputs=("int8", "float32"),
            outputs=("float32",),
            nodes=("conv", "blocks[0].w/codes"),
        )

    @pytest.mark.parametrize(
        "line",
        [
            "Name: x, LayerType: correlation",
            "Name: x, LayerType: correlation, Inputs: [ { Name: y",
            "Name: x, LayerType: correlation, Outputs: [], Metadata: [ONNX Layer: conv",
            "Name: , LayerType: ",
        ],
    )
    def test_what_is_cut_off_is_left_out(self, line: str) -> None:
        (layer,) = parse_rtx_log([line])
        assert (layer.inputs, layer.nodes) == ((), ())

    def test_no_table_is_no_layers(self) -> None:
        assert parse_rtx_log(["LayerType: in passing", ""]) == ()


class TestInspector:
    TENSOR = {"Name": "b", "Location": "Device", "Dimensions": [8, 4, 8, 8]}  # noqa: RUF012 - read only
    FORMS = pytest.mark.parametrize(
        ("form", "ends"),
        [
            ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, {"Bindings": ["x", "y"]}),
            ({"Format": "Row major linear format", "Datatype": "Int8"}, {"I/O Tensors": [{"Name": "x"}]}),
        ],
        ids=["10", "11"],
    )

    def document(self, form: dict[str, str], ends: dict[str, Any]) -> str:
        layer = {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{**self.TENSOR, **form}],
            "Outputs": [{**self.TENSOR, **form}],
            "Weights": {"Type": "Int8", "Count": 108},
            "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
        }
        return json.dumps({"Layers": [layer], **ends})

    @FORMS
    def test_both_schemas_say_the_same(self, form: dict[str, str], ends: dict[str, Any]) -> None:
        assert parse_layer_info(self.document(form, ends)) == (
            EngineLayer(
                name="conv + relu",
                kind="CaskConvolution",
                inputs=("int8",),
                outputs=("int8",),
                nodes=("conv", "relu"),
            ),
        )

    @FORMS
    def test_a_file_from_another_machine_answers_too(
        self, form: dict[str, str], ends: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "layers.json").write_text(self.document(form, ends))
        realised = realised_in_tensorrt(one_conv(tmp_path / "m.onnx"), tmp_path / "layers.json")
        (layer,) = realised.layers
        assert (layer.name, layer.precision, layer.executed_as, layer.kernel) == (
            "conv", "int8", "CaskConvolution", "conv + relu",
        )  # fmt: skip
        assert layer.macs == 3 * 9 * 4 * 64

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("{", "not JSON"),
            ("[]", "no list 'Layers'"),
            ('{"Layers": 3}', "no list 'Layers'"),
            ('{"Layers": ["conv + relu"]}', "detailed profiling verbosity"),
            ("[" * 100_000, "not JSON"),
        ],
    )
    def test_other_documents_are_refused(self, text: str, match: str) -> None:
        with pytest.raises(ArtefactError, match=match):
            parse_layer_info(text)

    def test_odd_fields_do_not_matter(self) -> None:
        layers = parse_layer_info('{"Layers": [{"Inputs": [1, {}], "Outputs": null, "Metadata": null}]}')
        assert layers == (EngineLayer(name="", kind="", inputs=("", ""), outputs=(), nodes=()),)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"gone\.json"):
            realised_in_tensorrt(one_conv(tmp_path / "m.onnx"), tmp_path / "gone.json")


class TestMatch:
    def layers(self, *layers: EngineLayer, **options: Any) -> tuple[LayerPrecision, ...]:
        b = trt()
        x = b.qdq("x", "in", **options)
        return match_layers(b.model(b.conv(x)), layers, target=TENSORRT).layers

    def layer(self, kind: str, first: str, *nodes: str, name: str = "k") -> EngineLayer:
        return EngineLayer(name=name, kind=kind, inputs=(first,), outputs=("float32",), nodes=nodes)

    def test_the_layer_that_multiplies_counts_and_not_the_code_around_it(self) -> None:
        glue = self.layer("kgen", "float32", "in.Q", "conv")
        (found,) = self.layers(glue, self.layer("correlation", "int8", "conv"), self.layer("kgen", "float32", "conv"))
        assert (found.precision, found.executed_as, found.detail) == ("int8", "correlation", "")
        realised = match_layers(trt().model("x"), [glue], target=TENSORRT)
        assert realised.float_ops == ()

    def test_a_float_layer_has_its_reason(self) -> None:
        (found,) = self.layers(self.layer("correlation", "float32", "conv"), scale=[0.02])
        assert found.precision == "float"
        assert "'in.Q'" in found.detail or "'in.DQ'" in found.detail
        assert "rule W3" in found.detail
        assert "rank 0" in found.detail

    def test_without_metadata_the_name_decides(self) -> None:
        for name in ("conv_myl0_7", "conv + relu"):
            (found,) = self.layers(self.layer("CaskConvolution", "int8", name=name))
            assert found.precision == "int8"
        (found,) = self.layers(self.layer("CaskConvolution", "int8", name="conv2_myl0_7"))
        assert (found.precision, found.executed_as) == ("float", "")
        assert "no layer of its own" in found.detail

    def test_a_node_that_only_glue_names_is_not_found(self) -> None:
        (found,) = self.layers(self.layer("kgen", "int8", "conv"))
        assert (found.precision, found.executed_as) == ("float", "")


@needs_rtx
class TestRtx:
    """Each builds one engine, in about a second of computing."""

    def test_a_small_net_runs_in_integers(self, tmp_path: Path) -> None:
        b = trt()
        x = b.qdq(b.relu(b.conv(b.qdq("x", "in"), "conv")), "act")
        pooled = b.qdq(b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flatten"), "pooled")
        realised = realised_precision(save(tmp_path / "m.onnx", b.model(b.gemm(pooled), rank=2)), "tensorrt-rtx")
        assert [(layer.name, layer.precision) for layer in realised.layers] == [("conv", "int8"), ("fc", "int8")]
        assert realised.integer_ops == realised.integer_macs == 1.0

    def test_a_scale_of_rank_one_runs_in_float_and_the_reason_is_known(self, tmp_path: Path) -> None:
        realised = realised_precision(one_conv(tmp_path / "m.onnx", scale=[0.02], names=False), "tensorrt-rtx")
        (layer,) = realised.layers
        assert (layer.precision, layer.op) == ("float", "Conv")
        assert "rule W3" in layer.detail

    def test_files_of_another_target_are_refused_at_their_node(self, tmp_path: Path) -> None:
        b: Net = ort()
        path = save(tmp_path / "m.onnx", b.model(b.conv(b.qdq("x", "in"))))
        build = rtx.build(path)
        assert not build.accepted
        assert (build.problems[0].node, build.problems[0].operator) == ("in.Q", "QuantizeLinear")
        assert any(message.startswith("ERROR") for message in build.messages)
        with pytest.raises(ArtefactError, match=r"not accepted by tensorrt-rtx 1\..*'in\.Q'"):
            build.require()

    def test_the_same_file_gives_the_same_engine(self, tmp_path: Path) -> None:
        path = one_conv(tmp_path / "m.onnx")
        first, _ = (rtx.build(path, tmp_path / name, compute_capability="SM89") for name in "ab")
        assert first.engine is not None
        assert first.engine_bytes == first.engine.stat().st_size > 0
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_scale_that_is_an_input_crashes_the_library_and_not_us(self, tmp_path: Path) -> None:
        model = onnx.load(str(one_conv(tmp_path / "m.onnx")))
        model.graph.input.append(helper.make_tensor_value_info("in.scale", TensorProto.FLOAT, []))
        kept = [tensor for tensor in model.graph.initializer if tensor.name != "in.scale"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        with pytest.raises(RuntimeCrashedError, match=r"(?s)building.*m\.onnx.*SIGSEGV.*building the engine"):
            rtx.build(save(tmp_path / "m.onnx", model))

    def test_running_needs_a_gpu_and_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from dfqkit_export.errors import RuntimeUnavailableError

        monkeypatch.setattr("dfqkit_export.backends.tensorrt_rtx.session.missing_gpu", lambda: "there is no GPU")
        with pytest.raises(RuntimeUnavailableError, match="there is no GPU"):
            rtx.load(one_conv(tmp_path / "m.onnx")).run(np.zeros((1, 3, 8, 8), np.float32))
