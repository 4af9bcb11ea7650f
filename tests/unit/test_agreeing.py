"""Students whose files compute the same codes on every processor: scales around additions, and sums of two products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import fx

from dfqkit.students.agreeing import QUOTIENT_BITS, STEP, TRIED, agree
from dfqkit.students.integer_student import IntegerStudent
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import activation_parameters, weight_codes
from dfqkit.students.quantizers import activation_proxy, scale_to
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.comparison.portability import FAMILIES
from dfqkit_export.comparison.portability.bounds import Proof
from tests._toys import images, student

NAME, FREE = "onnxruntime", "onnxruntime-vnni"


def written(graph: fx.GraphModule, target: str, path: Path) -> Path:
    write_qdq(graph, get_target(target), path, metadata={})
    return path


def scales(graph: fx.GraphModule) -> dict[str, float]:
    quantizers = graph.get_submodule("quant").named_children()
    return {name: float(activation_parameters(activation_proxy(each))[0]) for name, each in quantizers}


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_file_is_proven_equal_everywhere_and_is_the_student(tmp_path: Path, bits: str) -> None:
    graph = student("residual", bits)
    path = written(graph, NAME, tmp_path / "m.onnx")
    proof, x = Proof(path), images(16)
    assert {name: proof.against(family) for name, family in FAMILIES.items()} == {name: [] for name in FAMILIES}
    np.testing.assert_array_equal(OrtSession(path, threads=1).run(x.numpy()), IntegerStudent(graph).run(x).numpy())
    free = Proof(written(student("residual", bits, FREE), FREE, tmp_path / "free.onnx"))
    assert free.against(FAMILIES["avx2"])
    assert free.against(FAMILIES["neon"])


def test_scales_move_little_and_only_up() -> None:
    before, after = scales(student("residual", target=FREE)), scales(student("residual"))
    moved = [after[name] / before[name] for name in before if after[name] != before[name]]
    assert 0 < len(moved) <= 2  # the sum's, and that of the branch which nothing else reads
    assert all(1 < ratio <= max(1 + TRIED * STEP, 1 + 2.0 ** (1 - QUOTIENT_BITS)) for ratio in moved)


def test_what_agrees_stays_and_other_targets_are_left_alone() -> None:
    graph = student("residual", frozen=False)
    before = scales(graph)
    agree(graph)
    assert scales(graph) == before
    free = student("residual", target=FREE, frozen=False)
    before = scales(free)
    agree(free)
    assert scales(free) == before


def test_scales_that_are_learned_are_brought_to_agree(tmp_path: Path) -> None:
    graph = student("residual", scales="float")
    assert Proof(written(graph, NAME, tmp_path / "m.onnx")).against(FAMILIES["neon"]) == []


def test_a_scale_is_set_with_the_zero_point_that_it_had() -> None:
    graph = student("residual", frozen=False)
    for quantizer in graph.get_submodule("quant").children():
        proxy = activation_proxy(quantizer)
        _, zero, *_ = activation_parameters(proxy)
        for wanted in (0.3, 0.0371):
            scale_to(quantizer, wanted)
            scale, now, *_ = activation_parameters(proxy)
            assert (float(scale), now) == (pytest.approx(wanted, rel=1e-6), zero)


def test_only_channels_whose_sums_do_not_fit_get_a_larger_scale() -> None:
    bound, free = student("residual"), student("residual", target=FREE)
    found = {}
    for name in ("stem.0", "a1.0"):
        pairs = zip(weight_codes(bound.get_submodule(name))[1], weight_codes(free.get_submodule(name))[1], strict=True)
        found[name] = [float(ours / theirs) for ours, theirs in pairs]
    assert all(1 <= ratio <= 2.3 for ratio in found["stem.0"])
    assert 1.0 in found["stem.0"]
    assert max(found["stem.0"]) > 1
