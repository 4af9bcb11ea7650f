"""Targets are data: looked up by name, asked before anything is computed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from dfqkit_export.errors import TargetError
from dfqkit_export.targets import TARGETS, QuantSpace, Target, get_target


@pytest.mark.parametrize("name", TARGETS)
def test_the_table(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.title
    assert target.opset >= 17
    assert target.weights.signed
    assert target.weights.symmetric
    assert target.weights.granularity == "per_channel"
    assert target.unsigned_activations.bits == target.signed_activations.bits
    assert all(quirk.endswith(".") for quirk in target.quirks)
    with pytest.raises(FrozenInstanceError):
        target.opset = 1  # type: ignore[misc]


def test_what_makes_the_targets_differ() -> None:
    runtime, tensorrt = get_target("onnxruntime"), get_target("tensorrt")
    assert not runtime.unsigned_activations.signed
    assert not runtime.signed_activations.signed
    assert (runtime.bias, runtime.quantize_outputs) == ("int32", True)
    assert tensorrt.unsigned_activations.signed
    assert tensorrt.signed_activations.symmetric
    assert (tensorrt.bias, tensorrt.quantize_outputs) == ("float", False)


@pytest.mark.parametrize(
    ("asked", "near"), [("onnxruntim", "onnxruntime"), ("tensor_rt", "tensorrt"), ("ONNXRuntime", None)]
)
def test_unknown_names_get_the_nearest(asked: str, near: str | None) -> None:
    with pytest.raises(TargetError, match=r"Allowed: onnxruntime, tensorrt") as caught:
        get_target(asked)
    if near:
        assert f"Did you mean '{near}'?" in str(caught.value)


def test_nothing_near() -> None:
    with pytest.raises(TargetError) as caught:
        get_target("zzz")
    assert "Did you mean" not in str(caught.value)


def space(*bits: int) -> QuantSpace:
    return QuantSpace(bits=bits, signed=True, symmetric=True, granularity="per_tensor")


@pytest.mark.parametrize(("weights", "activations", "field"), [(4, 8, "4-bit weights"), (8, 2, "2-bit activations")])
def test_bits_that_cannot_run_are_refused(weights: int, activations: int, field: str) -> None:
    target = Target(
        name="chip", title="Chip", runtime="chip", opset=17, weights=space(8), unsigned_activations=space(4, 8),
        signed_activations=space(4, 8), bias="float", quantize_outputs=True, clip_before_quantize=False,
    )  # fmt: skip
    with pytest.raises(TargetError, match=f"Target 'chip' cannot run {field}; it takes .*8 bits"):
        target.require(weight_bits=weights, activation_bits=activations)
    target.require(weight_bits=8, activation_bits=4)
