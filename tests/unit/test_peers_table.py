"""The benchmark beside other tools: its rows, and how much of a file is integers."""

from __future__ import annotations

import itertools
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save


@pytest.fixture(name="peers")
def _peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return import_module("peers")


def test_rows_say_what_was_simulated_how_much_is_integers_and_what_stood_in_the_way(peers: Any) -> None:
    key = {"network": "fdmobilenet", "bits": "w8a8", "seconds": 70.2}
    graded = peers.real_size.compared(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]), np.array([1, 2, 3, 0]))
    assert (graded["float"], graded["top1"], graded["drop"], graded["agreement"]) == (75.0, 50.0, 25.0, 75.0)
    rows = [
        {**key, **graded, "tool": "mct", "from": "its own", "images_made": 32, "steps": 60, "run": "simulated",
         "as_in_torch": 64, "coded": "0 of 24"},
        {**key, **graded, "tool": "onnxsim", "from": "its noise", "run": "integers", "coded": "1 of 24"},
        {**key, "tool": "esp-ppq", "from": "real", "run": "as exported", "failed": "a | b"},
    ]  # fmt: skip
    header, _, simulated, integers, failed = peers.table(rows).splitlines()
    assert {line.count("|") for line in (header, simulated, integers, failed)} == {header.count("|")}
    assert "| 32 its own, 60 steps | simulated, file as torch on 64 of 64 | 4 | 75.00 | 50.00 | 25.00 ± " in simulated
    assert "integers, 1 of 24 layers" in integers
    assert "a / b" in failed


def test_a_layer_counts_as_coded_where_its_weights_come_from_integers(peers: Any, tmp_path: Path) -> None:
    def weights(name: str, dtype: type) -> TensorProto:
        return numpy_helper.from_array(np.ones((2, 2), dtype), name)

    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["y", "float"], ["z"]),
    ]
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "z")]
    graph = helper.make_graph(
        nodes, "two", ends[:1], ends[1:], [weights("codes", np.int8), scale, weights("float", np.float32)]
    )
    save(helper.make_model(graph), tmp_path / "two.onnx")
    assert peers.coded(tmp_path / "two.onnx") == "1 of 2"


def test_the_images_that_were_given_are_spread_evenly(peers: Any) -> None:
    given = peers.taken(1300)
    assert len(set(given)) == peers.COUNT
    assert {after - before for before, after in itertools.pairwise(given)} == {20, 21}
