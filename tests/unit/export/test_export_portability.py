"""Files in the kernels of other processors: what is proven, what is run, and what is said of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit.cli import main
from dfqkit_export.backends.onnxruntime.kernels import ADDITIONS, Codes, mul_fused, mul_plain, parting_additions
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.backends.saturation import LEAST, MOST, bound, met, rows_of_pairs
from dfqkit_export.comparison.inputs import Inputs
from dfqkit_export.comparison.portability import (
    EQUAL,
    FAMILIES,
    PARTS,
    PROVEN,
    UNSEEN,
    Portability,
    families,
    own_family,
    prove,
    render_portability,
)
from dfqkit_export.comparison.portability import environment as environments
from dfqkit_export.comparison.portability.bounds import Proof
from dfqkit_export.comparison.portability.environment import environment_of, prepare
from dfqkit_export.comparison.portability.proving import Place, Row
from dfqkit_export.errors import RuntimeUnavailableError, TargetError

Write = Callable[..., Path]
OWN = own_family()


def inputs(n: int = 4, size: int = 8) -> Inputs:
    values = np.random.default_rng(0).normal(size=(n, 3, size, size)).astype(np.float32)
    return Inputs(images=values, source="drawn numbers")


def _of_two(op: str, codes: tuple[Codes, Codes, Codes], path: Path) -> np.ndarray:  # type: ignore[type-arg]
    """What the runtime gives for all pairs of codes."""
    constants = {
        f"{tensor}.{part}": array
        for tensor, each in zip("abc", codes, strict=True)
        for part, array in (("scale", np.float32(each.scale)), ("zero", np.uint8(each.zero)))
    }
    names = [word for tensor in "abc" for word in (tensor, f"{tensor}.scale", f"{tensor}.zero")]
    node = helper.make_node(op, [name for name in names if name != "c"], ["c"], domain="com.microsoft")
    ends = {name: helper.make_tensor_value_info(name, TensorProto.UINT8, [256, 256]) for name in "abc"}
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph([node], "two", [ends["a"], ends["b"]], [ends["c"]], stored)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(path))
    import onnxruntime

    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"a": a, "b": b})[0])


def _drawn(seed: int, *, product: bool = False) -> tuple[Codes, Codes, Codes]:
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-6, 0, 3)) if seed % 2 else 2.0 ** -rng.integers(0, 9, 3)
    if product:
        scales[2] = scales[0] * scales[1] * 2.0 ** rng.integers(3, 9)
    zeros = rng.choice([0, 7, 100, 128], 3)
    first, second, out = (Codes(scale=float(s), zero=int(z)) for s, z in zip(scales, zeros, strict=True))
    return first, second, out


@pytest.mark.skipif(OWN is None, reason="the family of this processor is not in the table")
@pytest.mark.parametrize("seed", range(6))
def test_additions_and_products_are_this_processors(tmp_path: Path, seed: int) -> None:
    assert OWN is not None
    codes = _drawn(seed)
    np.testing.assert_array_equal(_of_two("QLinearAdd", codes, tmp_path / "m.onnx"), ADDITIONS[OWN.addition](*codes))
    codes, product = _drawn(seed, product=True), mul_fused if OWN.machine == "aarch64" else mul_plain
    np.testing.assert_array_equal(_of_two("QLinearMul", codes, tmp_path / "m.onnx"), product(*codes))


def test_additions_part_on_ties_and_not_beside_them() -> None:
    fine, coarse = Codes(scale=0.25, zero=128), Codes(scale=0.5, zero=0)
    assert parting_additions(fine, fine, coarse) > 1000  # every odd sum lies half way between two codes
    assert parting_additions(fine, fine, replace(coarse, scale=0.5 * (1 + 2**-8))) == 0
    assert parting_additions(fine, fine, fine) == 0


class TestSaturation:
    def test_neighbours_are_channels_first(self) -> None:
        codes = np.arange(2 * 3 * 1 * 2).reshape(2, 3, 1, 2)
        assert rows_of_pairs(codes)[0].tolist() == [[0, 2], [4, 1], [3, 5]]
        assert rows_of_pairs(codes[:, :, :, :1])[1].tolist() == [[6, 8], [10, 0]]

    def test_the_bound_is_met_and_not_passed(self) -> None:
        rng = np.random.default_rng(0)
        for high in (15, 255):
            codes = rng.integers(-127, 128, (6, 5, 3, 3)).astype(np.int8)
            found, pairs = bound(codes, 0, high), rows_of_pairs(codes)
            signs = np.concatenate([pairs > 0, pairs < 0]).reshape(12, -1)[:, : 5 * 9]
            assert (met(codes, high * signs.astype(np.int64)) > 0) == bool(found.channels.any()) == (high == 255)
        assert bound(np.array([[64, 64]]), 0, 255).furthest == 2 * 255 * 64 < MOST
        assert bound(np.array([[64, 65]]), 0, 255).channels.tolist() == [255 * 129 - MOST]
        assert bound(np.array([[-64, -65]]), 0, 255).channels.tolist() == [LEAST + 255 * 129]


class TestProof:
    def test_what_holds_everywhere_and_what_does_not(self, residual_net: Write) -> None:
        proof = Proof(residual_net())
        assert proof.open == []
        assert proof.against(FAMILIES["avx-vnni"]) == []
        assert any("conv1" in why and "sums of two products" in why for why in proof.against(FAMILIES["avx2"]))
        assert proof.against(FAMILIES["neon"]) == []

    def test_ties_of_additions_part(self, residual_net: Write) -> None:
        path = residual_net()
        model = onnx.load(str(path))
        for tensor in model.graph.initializer:
            if tensor.name.startswith(("act2", "act3")) and tensor.data_type == TensorProto.FLOAT:
                scale = 0.02 if tensor.name.startswith("act2") else 0.04  # twice the inputs': every odd sum is a tie
                tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, scale, np.float32), tensor.name))
        onnx.save(model, str(path))
        proof = Proof(path)
        assert proof.against(FAMILIES["sse"]) == []
        (why,) = proof.against(FAMILIES["neon"])
        assert "the addition add gives other codes" in why

    def test_float_proves_nothing(self, residual_net: Write) -> None:
        proof = Proof(residual_net(relu_zero_point=3))
        assert any("runs in float" in why for why in proof.against(FAMILIES["sse"]))


@pytest.mark.parametrize("op", ["Pad", "Exp"])
def test_a_float_operator_that_only_moves_values_keeps_nothing_from_a_proof(tmp_path: Path, op: str) -> None:
    extra = [numpy_helper.from_array(np.int64([0, 0, 1, 1]), "pads"), numpy_helper.from_array(np.float32(0.5), "s")]
    extra += [numpy_helper.from_array(np.uint8(3), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node(op, ["xd", "pads"][: 2 if op == "Pad" else 1], ["p"], name="moved"),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy"]
    graph = helper.make_graph(nodes, "pad", ends[:1], ends[1:], extra)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert bool(Proof(tmp_path / "m.onnx").open) == (op != "Pad")


@pytest.mark.skipif(OWN is None or saturates(this_processor()), reason="this processor's sums of products saturate")
def test_the_own_family_is_run_and_equal(residual_net: Write) -> None:
    assert OWN is not None
    found = prove(residual_net(), inputs(5), [OWN.name])
    (row,) = found.rows
    assert (row.bits, row.largest, row.flips, row.n, row.how) == (1.0, 0.0, 0, 5, "on this machine")
    assert row.verdict in (PROVEN, EQUAL)
    assert row.version
    assert found.worse([OWN.name]) == []
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["verdict"] == row.verdict


def test_an_answer_from_elsewhere_is_compared_layer_by_layer(
    residual_net: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file stands for another processor: its first convolution has one other weight."""
    path, real = residual_net(), environments.Environment
    from dfqkit_export.comparison.portability import proving

    changed = onnx.load(str(path))
    codes = next(
        tensor for tensor in changed.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 3
    )
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    start, runs = proving._start, []

    def elsewhere(environment: environments.Environment, folder: Path) -> None:
        runs.append(environment)
        if environment.how == "elsewhere":
            request = json.loads((folder / "request.json").read_text())
            graph = onnx.ModelProto()
            graph.CopyFrom(changed)
            onnx.save(graph, str(folder / "changed.onnx"))
            graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in request["tensors"])
            onnx.save(graph, str(folder / "laid.onnx"))
            request |= {"model": str(folder / "changed.onnx"), "exposed": str(folder / "laid.onnx")}
            (folder / "request.json").write_text(json.dumps(request))
        start(environment, folder)

    monkeypatch.setattr(proving, "_start", elsewhere)
    monkeypatch.setattr(
        proving, "environment_of", lambda family, version: real(command=(sys.executable,), how="elsewhere")
    )
    found = prove(path, inputs(3), ["neon"])
    (row,) = found.rows
    assert row.verdict == PARTS
    assert row.first is not None
    assert (row.first.name, row.first.op) == ("conv1", "Conv")
    assert row.first.codes > 0
    assert 0 < row.first.share <= 1
    assert row.bits is not None
    assert row.bits < 1
    assert found.worse([]) == [row]
    assert [environment.how for environment in runs] == ["on this machine", "elsewhere", "elsewhere", "on this machine"]
    assert "parts at conv1 by" in render_portability(found)


class TestEnvironments:
    def test_unknown_families_get_the_nearest(self) -> None:
        with pytest.raises(TargetError, match="Did you mean 'avx2'"):
            families(["avx22"])

    def test_what_is_missing_is_said_with_what_gets_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(environments, "own_family", lambda: FAMILIES["avx512-vnni"])
        monkeypatch.setattr(environments.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(environments.sys, "platform", "linux")
        monkeypatch.setattr(environments.shutil, "which", lambda name: None)
        with pytest.raises(RuntimeUnavailableError, match="apt-get install -y qemu-user-static"):
            environment_of(FAMILIES["sse"])
        with pytest.raises(RuntimeUnavailableError, match="no processor with AVX-VNNI"):
            environment_of(FAMILIES["avx-vnni"])
        with pytest.raises(RuntimeUnavailableError, match="no apt-get here"):
            prepare(FAMILIES["neon"])
        monkeypatch.setattr(environments.shutil, "which", lambda name: "/bin/true")
        with pytest.raises(RuntimeUnavailableError, match="dfqkit prove --prepare --on neon"):
            environment_of(FAMILIES["neon"])
        monkeypatch.setattr(environments.platform, "machine", lambda: "riscv64")
        with pytest.raises(RuntimeUnavailableError, match="on Linux on x86_64 alone"):
            environment_of(FAMILIES["sse"])


def test_the_table_says_what_was_found_and_what_was_not() -> None:
    rows = (
        Row(family="sse", title="SSE", verdict=EQUAL, version="1.32", how="qemu", n=8, bits=1.0, largest=0.0, flips=0),
        Row(family="avx-vnni", title="VNNI", verdict=PROVEN, why=("no emulator",)),
        Row(
            family="avx2", title="AVX2", verdict=PARTS, version="1.32.0", how="qemu", n=8, bits=0.5, largest=2.0,
            flips=3, first=Place(name="stem", op="Conv", codes=6, share=0.1), exact=EQUAL,
        ),
        Row(family="neon", title="NEON", verdict=UNSEEN, why=("not prepared",)),
    )  # fmt: skip
    found = Portability(file="m.onnx", sha256="", images="x.npz", n=8, reference="here", rows=rows)
    text = render_portability(found)
    for part in (
        "equal on these 8 images", "proven equal", "parts at stem by 6 codes, flips 3 of 8", "not looked at",
        "never speed", "AVX2: with session.x64quantprecision set to 1: equal on these images",
        "VNNI: not run: no emulator", "NEON: not looked at: not prepared",
    ):  # fmt: skip
        assert part in text
    assert [row.family for row in found.worse(["neon"])] == ["avx2", "neon"]


def test_the_command_says_it_in_json_and_by_its_code(
    residual_net: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if OWN is None:
        pytest.skip("the family of this processor is not in the table")
    np.save(tmp_path / "x.npy", inputs(3).images)
    words = ["prove", str(residual_net()), "--on", OWN.name, "--images", str(tmp_path / "x.npy"), "--json"]
    code = main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert code == int(found["rows"][0]["verdict"] == PARTS)
    assert main(["prove"]) == 2
    assert main(["prove", "m.onnx", "--on", "mmx"]) == 2


def _emulates(name: str) -> bool:
    try:
        environment_of(FAMILIES[name])
    except RuntimeUnavailableError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sse", "avx2", "neon", "neon-dot"])
def test_emulated_kernels_give_what_is_proven(residual_net: Write, name: str) -> None:
    if not _emulates(name):
        pytest.skip("not prepared: `dfqkit prove --prepare`")
    path, family = residual_net(), FAMILIES[name]
    (row,) = prove(path, inputs(4), [name]).rows
    assert row.n == 4
    assert row.verdict == PARTS if row.bits != 1.0 else row.verdict in (EQUAL, PROVEN)
    if not Proof(path).against(family):
        assert row.verdict == PROVEN
    if family.saturates and row.verdict == PARTS:
        assert row.exact == EQUAL
    assert OrtSession(path).run(inputs(1).images).shape == (1, 10)
