"""The checker's verdicts on TensorRT against a builder of that family: an error is a refusal, a warning is none."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dfqkit_export.backends.tensorrt_rtx import session as rtx
from dfqkit_export.backends.tensorrt_rtx.precision import realised_in_build
from dfqkit_export.checker import check_file
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from tests.unit.export._qdq_fixtures import FIXTURES, Fixture

pytest.importorskip("tensorrt_rtx", reason="the builder is an extra")

# Fixtures about which checker and builder say different things, and why.
DIFFERENCES = {
    "E1-uint8_activations": "checked for TensorRT 10 to 11, of which 10 refuses uint8; RTX reads it as int8 (W2 there)",
    "E8-new_opset": "RTX 1.7 reads this convolution of opset 26; the vendor's guide promises no more than 25",
    "W13-dynamic_sizes": "built with a range for each size it is accepted; the adapter declares only the batch",
}
# Warned of because the layer then computes in float, which the builder's log shows.
FLOAT = {"W3", "W4", "W5", "W6", "W15"}
# One of each kind in the fast tests: refused by the parser, by the builder, a crash, float, and accepted as it is.
FAST = {"E4-int32_bias", "E5-clip_of_weight_codes", "E3-scale_as_input", "W3-scale_of_rank_1"}


def name(case: Fixture) -> str:
    return f"{case.rule}-{case.name}"


CASES = [
    pytest.param(case, id=name(case), marks=() if name(case) in FAST else pytest.mark.slow)
    for case in FIXTURES
    if case.target in ("tensorrt", "tensorrt-rtx")
]


def accepted(path: Path) -> bool:
    try:
        return rtx.build(path, timeout=120).accepted
    except RuntimeCrashedError:
        return False
    except ArtefactError:  # More than the batch is open.
        return False


@pytest.mark.parametrize("case", CASES)
def test_the_builder_agrees(case: Fixture, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    onnx.save(case.make(True), str(path))
    agrees = accepted(path) == check_file(path, case.target).ok
    assert agrees == (name(case) not in DIFFERENCES), DIFFERENCES.get(name(case), "a difference that is not listed")


@pytest.mark.parametrize(
    "case",
    [pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in CASES],
)
def test_the_builder_accepts_the_neighbour(case: Fixture, tmp_path: Path) -> None:
    path = tmp_path / "good.onnx"
    onnx.save(case.make(False), str(path))
    assert accepted(path)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(*case.values, id=case.id, marks=case.marks)
        for case in CASES
        if str(case.id).split("-", maxsplit=1)[0] in FLOAT
    ],
)
def test_layers_of_these_rules_compute_in_float(case: Fixture, tmp_path: Path) -> None:
    counts = []
    for bad in (True, False):
        onnx.save(case.make(bad), str(tmp_path / "m.onnx"))
        counts.append(realised_in_build(rtx.build(tmp_path / "m.onnx", timeout=120)).integer_layers)
    # W15 has a convolution in front, which is integer in both; its neighbour's ConvTranspose is float as written.
    assert counts == ([1, 1] if case.rule == "W15" else [0, 1])


def test_every_listed_difference_is_a_fixture() -> None:
    assert set(DIFFERENCES) | FAST <= {name(case) for case in FIXTURES}
