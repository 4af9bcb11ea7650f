"""Sets of images, told apart by what a teacher's BatchNorm layers remember."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqkit.cli import main
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.proxies import batchnorm_distance
from dfqkit_export.errors import TeacherError
from tests._toys import IMAGE, images, toy_teacher

RECIPE = Path(__file__).parents[2] / "recipes" / "digits"


def test_it_is_the_divergence_of_normals_of_the_whole_set_averaged_over_the_layers() -> None:
    teacher, shown = toy_teacher("residual"), images(30, 3)
    layers = [module for module in teacher.model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in layers]
    with torch.no_grad():
        teacher.model(shown)
    for handle in handles:
        handle.remove()
    expected = []
    for layer, x in zip(layers, seen, strict=True):
        variance, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        floor = 1e-3 * layer.running_var.double().mean()
        old = torch.distributions.Normal(layer.running_mean.double(), (layer.running_var.double() + floor).sqrt())
        new = torch.distributions.Normal(mean, (variance + floor).sqrt())
        expected.append(torch.distributions.kl_divergence(new, old).mean())
    for sizes in ([30], [7, 23], [10, 10, 10]):
        found = batchnorm_distance(teacher, shown.split(sizes))
        assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_a_teacher_without_such_layers_is_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(IMAGE.shape[0], 4, 3), nn.Flatten(), nn.LazyLinear(IMAGE.classes))
    plain(torch.zeros(1, *IMAGE.shape))
    with pytest.raises(TeacherError, match="no BatchNorm"):
        batchnorm_distance(Teacher.from_module(plain, IMAGE), [images(4, 3)])


def test_the_command_sorts_sets_and_the_training_images_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    sets = [str(tmp_path / "noise.npz"), str(RECIPE / "test.npz"), str(RECIPE / "train.npz")]
    assert main(["bank", "rank", "digits/dfq-w8a8-ort", *sets, "--limit", "96", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)["sets"]
    assert {row["n"] for row in found} == {96}
    assert found[-1]["images"] == sets[0]
    assert 10 * max(row["distance"] for row in found[:2]) < found[-1]["distance"]
    assert main(["bank", "rank", "digits/dfq-w8a8-ort", *sets, "--device", "cpu"]) == 0
    assert "nearest first" in capsys.readouterr().out
