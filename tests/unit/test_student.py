"""Students as files, and equalization, which must not change the function."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import brevitas.nn as qnn
import pytest
import torch
from brevitas.graph.calibrate import quantization_status_manager
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.placement import quantized_graph
from dfqkit.students.student import (
    build_student,
    calibrate_student,
    equalized_graph,
    load_student,
    restore,
    save_student,
    snapshot,
)
from dfqkit_export.backends import get_target
from dfqkit_export.errors import ArtefactError, TargetError
from tests._toys import IMAGE, built_student, images, randomise, toy_graph

TARGET = get_target("onnxruntime")


def without_quantization(model: fx.GraphModule, inputs: Tensor) -> Tensor:
    off = quantization_status_manager(model, disable_act_quant=True, disable_weight_quant=True, is_training=False)
    with torch.no_grad(), off:
        answer: Tensor = model(inputs)
    return answer


@pytest.mark.parametrize(
    "name", ["residual", *(pytest.param(name, marks=pytest.mark.slow) for name in ("depthwise", "preactivation"))]
)
@pytest.mark.parametrize(
    "options", [{}, {"bits": "w4a4", "scales": "float"}, {"bits": "w4a8", "equalize": 3}], ids=["w8", "float", "equal"]
)
def test_a_file_gives_back_every_bit(name: str, options: dict[str, object], tmp_path: Path) -> None:
    config = QuantConfig.model_validate(options)
    made = built_student(name, config)
    save_student(made, tmp_path / "s.safetensors")
    again = built_student(name, config, calibrated=False)
    load_student(again, tmp_path / "s.safetensors", config)
    stored, loaded = snapshot(made), snapshot(again)
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)
    with torch.no_grad():
        assert torch.equal(made(images(4)), again(images(4)))
    trainable = [[key for key, p in model.named_parameters() if p.requires_grad] for model in (made, again)]
    assert trainable[0] == trainable[1]
    save_student(again, tmp_path / "t.safetensors")
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()


@pytest.mark.parametrize("scales", ["power_of_two", "float"])
def test_restoring_keeps_the_parameters_that_an_optimizer_holds(scales: str) -> None:
    """Brevitas makes its quantizers anew on loading, behind the back of the optimizer, unless told not to."""
    config = QuantConfig.model_validate({"bits": "w4a4", "scales": scales})
    made = built_student("option_a", config)
    held = dict(made.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in held.items()}
    restore(made, snapshot(made), config)
    assert all(parameter is held[name] for name, parameter in made.named_parameters())
    assert {name: parameter.requires_grad for name, parameter in made.named_parameters()} == flags


def test_a_snapshot_is_a_copy_and_restores() -> None:
    config = QuantConfig(bits="w4a4")
    made = built_student("option_a", config)
    kept = snapshot(made)
    with torch.no_grad():
        before = made(images(4))
        for parameter in made.parameters():
            parameter.add_(0.1)
        assert not torch.equal(made(images(4)), before)
    restore(made, kept, config)
    with torch.no_grad():
        assert torch.equal(made(images(4)), before)
        for parameter in made.parameters():
            parameter.add_(0.1)
    restore(made, kept, config)  # the snapshot was not taken over, but copied
    with torch.no_grad():
        assert torch.equal(made(images(4)), before)


@pytest.mark.parametrize("wrong", ["another model", "another scheme", "truncated", "missing"])
def test_a_file_that_does_not_fit_is_refused_shortly(wrong: str, tmp_path: Path) -> None:
    path, config = tmp_path / "s.safetensors", QuantConfig()
    save_student(built_student("shuffle" if wrong == "another model" else "option_a", config), path)
    if wrong == "another scheme":
        with torch.no_grad():
            made = built_student("option_a", config)
            made.fc = nn.Linear(12, 7)  # type: ignore[assignment]
        save_student(made, path)
    elif wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif wrong == "missing":
        path = tmp_path / "nowhere.safetensors"
    with pytest.raises(ArtefactError, match=f"{path.name}.*dfqkit run --resume") as caught:
        load_student(built_student("option_a", config, calibrated=False), path, config)
    assert len(str(caught.value)) < 600
    assert ("of another model or scheme" in str(caught.value)) == wrong.startswith("another")


@pytest.mark.parametrize("name", ["residual", "option_a", "depthwise", "squeeze_excite", "shuffle", "preactivation"])
def test_equalization_keeps_the_function_and_leaves_the_given_graph_alone(name: str) -> None:
    graph = toy_graph(name)
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    inputs = images(8)
    with torch.no_grad():
        wanted = graph(inputs)
    equal = built_student(name, QuantConfig(equalize=10), calibrated=False)
    assert all(torch.equal(before[key], value) for key, value in graph.state_dict().items())
    found = without_quantization(equal, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(
            equalized_graph(graph, QuantConfig(equalize=10))(inputs), found, rtol=1e-3, atol=1e-3
        )
        assert torch.equal(graph(inputs), wanted)


def test_equalization_evens_the_ranges_of_a_pair_of_layers() -> None:
    """Nagel et al. (2019), equation 11: afterwards both layers' ranges of each channel are equal."""
    pair = randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)
        )
    )
    with torch.no_grad():
        pair[0].weight.mul_(torch.logspace(-2, 2, 6).reshape(-1, 1, 1, 1))
    graph = float_graph(pair, IMAGE)
    equal = equalized_graph(graph, QuantConfig(equalize=20))

    def unevenness(model: fx.GraphModule) -> float:
        first, second = (m.weight.detach().abs() for m in model.modules() if isinstance(m, nn.Conv2d))
        ratio = first.amax((1, 2, 3)) / second.amax((0, 2, 3))
        return float(ratio.max() / ratio.min())

    assert unevenness(graph) > 1e3
    assert unevenness(equal) < 1.5


def test_without_equalization_nothing_is_copied() -> None:
    graph = toy_graph("option_a")
    assert equalized_graph(graph, QuantConfig()) is graph


def test_equalization_is_the_same_every_time() -> None:
    config = QuantConfig(equalize=5)
    one, two = (equalized_graph(toy_graph("residual"), config).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_scheme_is_checked_against_the_target() -> None:
    narrow = dataclasses.replace(TARGET, weights=dataclasses.replace(TARGET.weights, bits=(8,)))
    with pytest.raises(TargetError, match=r"4-bit weights"):
        build_student(toy_graph("option_a"), QuantConfig(bits="w4a8"), narrow, IMAGE)


def test_without_bias_correction_a_file_gives_back_every_bit_too(tmp_path: Path) -> None:
    config = QuantConfig(bits="w4a4", bias_correction=False)
    made = built_student("option_a", config)
    save_student(made, tmp_path / "s.safetensors")  # before anything else has run it
    again = built_student("option_a", config, calibrated=False)
    load_student(again, tmp_path / "s.safetensors", config)
    with torch.no_grad():
        assert torch.equal(made(images(4)), again(images(4)))


def test_bias_correction_moves_biases_alone() -> None:
    config = QuantConfig(bits="w4a4", bias_correction=False)
    plain = built_student("option_a", config)
    corrected = built_student("option_a", config.model_copy(update={"bias_correction": True}))
    one, two = snapshot(plain), snapshot(corrected)
    changed = {key for key in one if not torch.equal(one[key], two[key])}
    layers = {key for key, m in plain.named_modules() if isinstance(m, qnn.QuantConv2d | qnn.QuantLinear)}
    assert changed == {f"{key}.bias" for key in layers}


def test_building_is_placement_on_the_equalized_graph() -> None:
    config = QuantConfig(bits="w4a8", equalize=4)
    by_hand = quantized_graph(equalized_graph(toy_graph("residual"), config), config, TARGET, IMAGE)
    calibrate_student(by_hand, [images(16, seed) for seed in (10, 11)], config, IMAGE)
    one, two = snapshot(by_hand), snapshot(built_student("residual", config))
    assert all(torch.equal(one[key], two[key]) for key in one)
