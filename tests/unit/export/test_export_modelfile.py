"""Files that somebody else made: read whole, refused with a reason, and never reaching out of their own folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit.cli import main
from dfqkit_export.errors import ArtefactError
from dfqkit_export.onnxfile.external_data import PROTOBUF_LIMIT
from dfqkit_export.onnxfile.model import load_onnx, require_images
from tests._messages import raises_naming

Output = pytest.CaptureFixture[str]
Change = Callable[[onnx.ModelProto], None]


def tiny(
    *, opset: int = 18, sizes: tuple[object, ...] = ("N", 3, 8, 8), elem_type: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A convolution with Q/DQ in front of and behind it."""
    rng = np.random.default_rng(0)
    stored = {
        "scale": np.float32(0.05), "zero": np.uint8(0), "codes": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "weight_scale": np.full(4, 0.01, np.float32), "weight_zero": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "x_quantized"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], "x_dequantized"),
        helper.make_node("DequantizeLinear", ["codes", "weight_scale", "weight_zero"], ["weight"], "weight", axis=0),
        helper.make_node("Conv", ["x_dq", "weight"], ["made"], "conv"),
        helper.make_node("QuantizeLinear", ["made", "scale", "zero"], ["y_q"], "y_quantized"),
        helper.make_node("DequantizeLinear", ["y_q", "scale", "zero"], ["y"], "y_dequantized"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", elem_type, list(sizes))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, None, None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def outside(location: str, length: str = "") -> Change:
    """Let the codes point to another file."""

    def change(model: onnx.ModelProto) -> None:
        codes = next(tensor for tensor in model.graph.initializer if tensor.name == "codes")
        codes.ClearField("raw_data")
        codes.data_location = TensorProto.EXTERNAL
        codes.external_data.add(key="location", value=location)
        if length:
            codes.external_data.add(key="length", value=length)

    return change


def set_scale(*values: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "weight_scale")
        scale.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "weight_scale"))

    return change


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1]))


def without_pairs(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def cut_initializer(model: onnx.ModelProto) -> None:
    codes = next(tensor for tensor in model.graph.initializer if tensor.name == "codes")
    codes.raw_data = codes.raw_data[:-5]


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[0] = "nowhere"


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def nothing(model: onnx.ModelProto) -> None:
    """Leave the model as it is."""


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a changed model into a folder of its own."""

    def save(change: Change = nothing, **settings: object) -> Path:
        model = tiny(**settings)  # type: ignore[arg-type]
        change(model)
        (tmp_path / "models").mkdir(exist_ok=True)
        path = tmp_path / "models" / "m.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


class TestGood:
    def test_a_whole_file(self, saved: Callable[..., Path]) -> None:
        model = load_onnx(saved())
        require_images(model, "m.onnx")
        assert len(model.graph.node) == 6

    def test_external_data_beside_it(self, saved: Callable[..., Path]) -> None:
        path = saved()
        onnx.save_model(tiny(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        assert (path.parent / "weights.bin").stat().st_size > 0
        assert load_onnx(path) == tiny()

    def test_external_data_in_a_constant_of_a_branch(self, saved: Callable[..., Path]) -> None:
        def change(model: onnx.ModelProto) -> None:
            hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[2])
            hidden.data_location = TensorProto.EXTERNAL
            hidden.external_data.add(key="location", value="../secret")
            constant = helper.make_node("Constant", [], ["branch"], value=hidden)
            branch = helper.make_graph(
                [constant], "branch", [], [helper.make_tensor_value_info("branch", TensorProto.FLOAT, [2])]
            )
            model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
            model.graph.node.append(helper.make_node("If", ["choice"], ["z"], then_branch=branch, else_branch=branch))

        with pytest.raises(ArtefactError, match=r"'hidden' in '[.][.]/secret', outside"):
            load_onnx(saved(change))


BAD: dict[str, tuple[Change, dict[str, object], str]] = {
    "opset too new": (nothing, {"opset": 99}, r"opset 99; onnx .* knows 7 to .*Upgrade onnx"),
    "opset too old": (nothing, {"opset": 6}, r"opset 6; read are 7 to .*convert_version"),
    "no opset": (no_opset, {}, "names no opset"),
    "data missing": (outside("gone.bin"), {}, "keeps 'codes' in 'gone.bin', which is not beside it"),
    "data absolute": (outside("/etc/hostname"), {}, "in '/etc/hostname', outside of the model's own folder"),
    "data above": (outside("../secret.bin"), {}, "in '../secret.bin', outside of the model's own folder"),
    "data in and out": (outside("sub/../../secret.bin"), {}, "outside of the model's own folder"),
    "data nowhere": (outside(""), {}, "in '', outside of the model's own folder"),
    "data behind a link": (outside("link.bin"), {}, "in 'link.bin', outside of the model's own folder"),
    "data too short": (outside("short.bin"), {}, "'codes' that is not whole"),
    "data ends early": (outside("short.bin", "108"), {}, "bytes 0 to 108, but that file has 7"),
    "data of no length": (outside("short.bin", "-1"), {}, "at '-1', which is no number of bytes"),
    "cut initializer": (cut_initializer, {}, "'codes' that is not whole"),
    "dangling": (dangling, {}, "node 'conv' reads 'nowhere', which no input"),
    "two inputs": (second_input, {}, r"has 2 inputs \('x', 'mask'\); allowed is one"),
    "open height": (nothing, {"sizes": ("N", 3, "H", 8)}, "leaves 'H' of its input 'x' open"),
    "open unnamed": (nothing, {"sizes": ("N", 3, 8, None)}, "leaves '\\?' of its input 'x' open"),
    "rank": (nothing, {"sizes": ("N", 3)}, "float with 2 dimensions; allowed is float with 4"),
    "codes as input": (nothing, {"elem_type": TensorProto.UINT8}, "of type uint8 with 4 dimensions"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_2_with_its_own_reason(
    case: str, saved: Callable[..., Path], tmp_path: Path, capsys: Output
) -> None:
    change, settings, message = BAD[case]
    path = saved(change, **settings)
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    (path.parent / "short.bin").write_bytes(bytes(7))
    assert main(["inspect", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: Model '{path}'")
    assert "Traceback" not in err
    assert re.search(message, err), err


def test_a_float_file_is_described_whatever_it_leaves_open(saved: Callable[..., Path], capsys: Output) -> None:
    path = saved(without_pairs, sizes=(-1, 3, "H", None))
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr()
    assert "float32 (?, 3, H, ?)" in said.out
    assert f"`dfqkit quantize {path}`" in said.err
    for asked in (["--target", "onnxruntime"], ["--fix", str(path.with_name("fixed.onnx"))]):
        assert main(["inspect", str(path), *asked]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "not an ONNX file but empty"),
        ("text", b"<html>no model</html>", "not an ONNX file but begins with b'<html>no'"),
        ("checkpoint", b"PK\x03\x04" + bytes(100), "a zip archive"),
        ("pickle", b"\x80\x04K\x01.", "a pickle"),
    ],
)
def test_what_is_no_onnx(name: str, content: bytes, message: str, tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_no_cut_of_a_file_is_taken_for_a_whole_one(saved: Callable[..., Path], tmp_path: Path, capsys: Output) -> None:
    whole = saved().read_bytes()
    path = tmp_path / "cut.onnx"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ArtefactError, match=r"not a complete ONNX file|not an ONNX file"):
            load_onnx(path)
    assert main(["inspect", str(path)]) == 2
    assert "not a complete ONNX file" in capsys.readouterr().err


def test_a_file_beyond_protobufs_limit_is_refused_by_its_size(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(PROTOBUF_LIMIT + 1)  # sparse: takes no room, and reading it would take two gigabytes
    assert path.stat().st_blocks * 512 < 2**20
    assert main(["inspect", str(path)]) == 2
    assert f"has {2**31} bytes" in (err := capsys.readouterr().err)
    assert "save_as_external_data=True" in err


def test_a_file_that_is_not_there(capsys: Output) -> None:
    assert main(["inspect", "nowhere.onnx"]) == 2
    assert "'nowhere.onnx' is not a file" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -0.5])
def test_scales_that_are_no_scales_are_an_error_of_the_checker(
    value: float, saved: Callable[..., Path], capsys: Output
) -> None:
    path = saved(set_scale(0.1, value, 0.1, 0.1))
    for target in ("onnxruntime", "tensorrt", "openvino"):
        assert main(["inspect", str(path), "--target", target]) == 1
        assert "error: " in (out := capsys.readouterr().out)
        assert "scale" in out


def test_uint8_for_tensorrt_is_an_error_of_the_checker(saved: Callable[..., Path], capsys: Output) -> None:
    assert main(["inspect", str(saved()), "--target", "tensorrt"]) == 1
    assert "E1 error: x_quantized: its codes are uint8" in capsys.readouterr().out
    assert main(["inspect", str(saved()), "--target", "onnxruntime"]) == 0


@pytest.mark.parametrize(("target", "opset"), [("tensorrt", 26), ("onnxruntime-tensorrt", 21), ("tensorrt-rtx", 9)])
def test_an_opset_that_the_target_does_not_read_is_an_error_of_the_checker(
    target: str, opset: int, saved: Callable[..., Path], capsys: Output
) -> None:
    assert main(["inspect", str(saved(opset=opset)), "--target", target]) == 1
    assert f"opset {opset}" in capsys.readouterr().out


def without_output(model: onnx.ModelProto) -> None:
    del model.graph.node[5].output[:]
    model.graph.output[0].name = "made"


def own_without_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Print", ["y"], [], "print", domain="my.own"))
    model.opset_import.append(helper.make_opsetid("my.own", 1))


def without_weight(model: onnx.ModelProto) -> None:
    del model.graph.node[3].input[1:]


def without_scale(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[1:]


def broken_axis(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute[0].CopyFrom(helper.make_attribute("axis", 0.5))


def made_twice(model: onnx.ModelProto) -> None:
    model.graph.node[4].output[0] = "made"


def unmade_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nobody"


def outputs_gone(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_output, r"node 'y_dequantized' is not what ONNX allows: .*output size 0 not in range .*\]\. Export"),
        (own_without_output, r"node 'print' is not what ONNX allows: it has no output"),
        (without_weight, r"node 'conv' is not what ONNX allows: .*input size 1 not in range"),
        (without_scale, r"node 'x_quantized' is not what ONNX allows: .*input size 1 not in range"),
        (broken_axis, r"node 'weight' is not what ONNX allows: .*axis.*INT"),
        (made_twice, r"'made' is made twice"),
        (unmade_output, r"has the output 'nobody', which nothing makes"),
        (outputs_gone, r"has no output\. Export"),
    ],
)
def test_nodes_and_graphs_that_onnx_does_not_allow(change: Change, message: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(ArtefactError, match=message):
        load_onnx(saved(change))


def test_names_that_are_no_text(saved: Callable[..., Path]) -> None:
    path = saved()
    path.write_bytes(path.read_bytes().replace(b"x_dequantized", b"x_dequant\xa8zed"))
    with raises_naming(ArtefactError, "node number 1"):
        load_onnx(path)


def test_a_scale_as_input_is_no_second_image(saved: Callable[..., Path]) -> None:
    def scale_as_input(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))

    def read_as_data(model: onnx.ModelProto) -> None:
        scale_as_input(model)
        model.graph.node.append(helper.make_node("Neg", ["scale"], ["negative"]))

    require_images(load_onnx(saved(scale_as_input)), "m.onnx")
    with pytest.raises(ArtefactError, match=r"has 2 inputs \('x', 'scale'\)"):
        require_images(load_onnx(saved(read_as_data)), "m.onnx")


def test_odd_inputs_are_described(saved: Callable[..., Path]) -> None:
    with pytest.raises(ArtefactError, match="takes batches of 0 images"):
        require_images(load_onnx(saved(sizes=(0, 3, 8, 8))), "m.onnx")
    require_images(load_onnx(saved(sizes=(-1, 3, 8, 8))), "m.onnx")  # as Paddle writes any number
    with pytest.raises(ArtefactError, match="of type an unknown type"):
        require_images(load_onnx(saved(elem_type=99)), "m.onnx")


def test_more_than_two_gigabytes_beside_the_file_are_refused(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(outside("codes.bin"))
    (path.parent / "codes.bin").write_bytes(bytes(4 * 27))
    load_onnx(path)
    monkeypatch.setattr("dfqkit_export.onnxfile.external_data.PROTOBUF_LIMIT", path.stat().st_size + 107)
    with raises_naming(ArtefactError, "2 GiB", "beside it"):
        load_onnx(path)
