"""Images of a diffusion model: the package's own sampler beside ours, colours, guidance, folders that will not do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from dfqkit.config.synthesis import UNKNOWN, Demand
from dfqkit.run.context import teacher_of
from dfqkit.seeds import derive
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.diffusion import DiffusionConfig
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.proxies import batchnorm_distance
from dfqkit_export.errors import ArtefactError, MissingExtraError
from tests._messages import raises_naming
from tests._pipelines import STEPS, save_pipeline, tiny_unet, train
from tests._toys import IMAGE, toy_teacher

DEMAND = Demand(training=8, fresh=8)
DIGITS = Path(__file__).parents[2] / "recipes" / "digits"


def source(folder: Path, teacher: Any = None, demand: Demand = DEMAND, **changes: Any) -> PoolSynthesizer:
    config = DiffusionConfig.model_validate({"path": str(folder), "batch": 16, "steps": 5} | changes)
    made = build_synthesizer(config, teacher or toy_teacher("option_a"), derive(0, "diffusion"), demand)
    assert isinstance(made, PoolSynthesizer)
    return made


def drawn(made: PoolSynthesizer) -> Tensor:
    """All images in the order in which they were made, from 0 to 1."""
    terms = [made.synthesize() for _ in range(made.warmup_rounds)]
    assert all(np.isfinite(list(each.values())).all() for each in terms)
    assert made.available == len(made.training) == 8
    return torch.stack([made.training, made.fresh], 1).flatten(0, 1).float() / 255


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_images_are_those_of_the_packages_own_pipeline(tmp_path: Path, eta: float, prediction: str) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet(8, 3), prediction_type=prediction)
    import diffusers

    made = source(folder, eta=eta)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(16, derive(0, "diffusion"), eta=eta, num_inference_steps=5, output_type="np").images
    wanted = torch.from_numpy(found).permute(0, 3, 1, 2)
    wanted = F.interpolate(wanted, IMAGE.shape[1:], mode="bilinear", antialias=True)
    assert (drawn(made) - wanted).abs().max() < 1.01 / 255
    assert made.cost == 16 * 5


def test_grey_becomes_colour_and_colour_grey(tmp_path: Path) -> None:
    grey = drawn(source(save_pipeline(tmp_path / "grey", tiny_unet(8, 1))))
    assert grey.shape[1:] == IMAGE.shape
    assert torch.equal(grey[:, 0], grey[:, 1])
    digits = teacher_of(load_recipe("digits/dfq-w8a8-ort"))
    made = source(save_pipeline(tmp_path / "colour", tiny_unet(8, 3)), digits)
    made._begin()
    wanted = ((made.x / 2 + 0.5).clamp(0, 1) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    found = digits.image.denormalize(made._finish())
    assert torch.allclose(F.avg_pool2d(found, 2).mean(), wanted.mean(), atol=1e-3)


def test_a_variance_that_a_network_predicts_is_left_out(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet(8, 3, out_channels=6), variance_type="learned_range")
    assert drawn(source(folder)).shape[1:] == IMAGE.shape


@pytest.mark.parametrize(
    ("weights", "term"),
    [
        ({}, "bn"),
        ({"bn": 0, "instance_entropy": 1}, "instance_entropy"),
        ({"bn": 0, "batch_entropy": 1}, "batch_entropy"),
    ],
)
def test_guidance_lowers_what_it_is_asked_to(tmp_path: Path, weights: dict[str, float], term: str) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet(8, 3))
    values = {}
    for guidance in (1e-6, 0.1):
        made = source(folder, guidance=guidance, weights=weights, steps=20)
        terms = [made.synthesize() for _ in range(20)]
        assert {*terms[0]} == {term}
        values[guidance] = terms[-1][term]
    assert values[0.1] < values[1e-6] - 0.01 * abs(values[1e-6])


def test_a_step_of_guidance_is_down_the_gradient_and_as_long_as_asked(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet(8, 3))
    plain, guided = source(folder), source(folder, guidance=0.2)
    for made in (plain, guided):
        made.synthesize()
    moved = (guided.x - plain.x) / float(plain.schedule.alphas_cumprod[int(plain.schedule.timesteps[1])]) ** 0.5
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-3)


def test_what_it_says_of_itself() -> None:
    plain, guided = (DiffusionConfig(path="folder", guidance=guidance) for guidance in (0.0, 0.1))
    assert plain.needed == {"pipeline"}
    assert guided.needed == {"pipeline", "batchnorm"}
    assert (plain.real_data(), plain.made_from()) == (UNKNOWN, "a given diffusion model")
    assert [plain.at_cost(passes, Demand(training=128)).steps for passes in (128, 10**6)] == [1, 50]


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    folder, other = (save_pipeline(tmp_path / name, tiny_unet(8, 3)) for name in ("pipeline", "other"))
    with raises_naming(ArtefactError, "will not do", "at least synthesis.steps (51)"):
        source(folder, steps=STEPS + 1)
    with raises_naming(ArtefactError, "images of 2 channels", "for 3 channels (1 and 3 stand in"):
        source(save_pipeline(tmp_path / "two", tiny_unet(8, 2)))
    with raises_naming(ArtefactError, "wants a class for each", "without classes"):
        source(save_pipeline(tmp_path / "classes", tiny_unet(8, 3, num_class_embeds=4)))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")  # pickled weights are never read
    weights.rename(tmp_path / "away")
    with raises_naming(ArtefactError, str(folder), "safetensors"):
        source(folder)
    index = other / "model_index.json"
    index.write_text(index.read_text().replace("DDPMScheduler", "EDMEulerScheduler"))
    with raises_naming(ArtefactError, "has EDMEulerScheduler", "DDIMScheduler or DDPMScheduler"):
        source(other)
    with raises_naming(ArtefactError, "will not do", "model_index.json"):
        source(tmp_path)


def test_what_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with raises_naming(MissingExtraError, "diffusers", "[diffusers]"):
        source(tmp_path)
    assert MissingExtraError.exit_code == 3


@pytest.mark.slow
def test_a_model_of_digits_gives_images_that_calibrate_digits(tmp_path: Path) -> None:
    images = torch.from_numpy(np.load(DIGITS / "train.npz")["images"]).float().view(-1, 1, 16, 16) / 127.5 - 1
    unet = tiny_unet(16, 1)
    losses = train(unet, images, 250)
    assert np.mean(losses[-50:]) < 0.5 * np.mean(losses[:5])
    teacher = teacher_of(load_recipe("digits/dfq-w8a8-ort"))
    folder = save_pipeline(tmp_path / "pipeline", unet)
    distance = {}
    for guidance in (0.0, 0.05):
        made = source(folder, teacher, Demand(training=256), batch=128, steps=25, guidance=guidance)
        for _ in range(made.warmup_rounds):
            made.synthesize()
        distance[guidance] = batchnorm_distance(teacher, [made.training_batch(256)])
    noise = batchnorm_distance(teacher, [torch.randn((256, *teacher.image.shape), generator=derive(0))])
    print("nats a channel, by guidance:", distance, "noise:", noise)
    assert distance[0.05] < distance[0.0] < 0.5 * noise
    settings = f"synthesis={{method: diffusion, path: {folder}, batch: 128, steps: 10, guidance: 0.05}}"
    run = ["digits/procedural-w8a8-ort", "--set", settings, "--out", str(tmp_path / "run"), "-q", "--device", "cpu"]
    assert main(["run", *run]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["synthesis"]["made_from"] == "a given diffusion model"
    assert report["synthesis"]["data_free"] is None
