"""Every source on a teacher with two outputs and no classes: it works, or says beforehand that it needs them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqkit import tasks
from dfqkit.config.methods import METHODS
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import provides
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._toy_task import NAME, Scene, SceneNet, TorchScene
from tests.contract.test_synthesizers import DEMAND, SMALL, config_of, files_of, warm

#: Methods whose terms about classes can be left out.
OFF: dict[str, dict[str, float]] = {
    "cmi": {"one_hot": 0},
    "deepinversion": {"ce": 0},
    "dfq": {"instance_entropy": 0, "batch_entropy": 0},
    "fastdfkd": {"one_hot": 0},
}
#: Methods that are about classes, or logits.
REFUSED = {"dafl", "deepinversion-adaptive", "metadata", "mixture", "psaq", "soft-targets", "zskd", "zskt"}
#: Methods with a weight for objects.
FINDING = {*OFF, "genie", "zeroq"}


class Finding(TorchScene):
    """The toy, whose map is where something is, and whose pose is how large."""

    def objectness(self, outputs: tasks.Tensors) -> Tensor | None:
        return outputs["map"].sigmoid().flatten(2).mT

    def object_sizes(self, outputs: tasks.Tensors) -> Tensor | None:
        return outputs["pose"].sigmoid()[:, :1].expand(-1, outputs["map"].flatten(1).shape[1])


@pytest.fixture(params=[TorchScene])
def torch_part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(tasks._TASKS, NAME, request.param)
    tasks.torch_task.cache_clear()
    yield
    tasks.torch_task.cache_clear()


@pytest.fixture
def teacher(torch_part: None) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SceneNet()
    return Teacher.from_module(model, ImageSpec(shape=(3, 12, 20), mean=(0.5,) * 3, std=(0.25,) * 3), task=Scene())


@pytest.fixture
def made(teacher: Teacher, tmp_path: Path) -> Any:
    files = files_of(teacher, tmp_path)

    def make(name: str, **changes: Any) -> tuple[SynthesizerConfig, Synthesizer]:
        config = config_of(name, files, **changes)
        return config, build_synthesizer(config, teacher, derive(0, "scene"), DEMAND)

    return make


def use(made: Synthesizer, teacher: Teacher) -> None:
    warm(made, ())
    other = copy.deepcopy(teacher.model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    terms = made.synthesize([other])
    assert all(torch.tensor(value).isfinite() for value in terms.values())
    for images in (made.training_batch(5), made.sample(6)):
        assert images.shape[1:] == teacher.image.shape
        assert bool(images.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_each_works_or_says_what_it_needs(name: str, made: Any, teacher: Teacher) -> None:
    if name in OFF or name in REFUSED:
        with pytest.raises(RecipeError, match=r"does not have.*Use one of .*(genie|noise).*zeroq") as caught:
            made(name)
        assert "classes" in str(caught.value)
        assert all(f"weights.{term}: 0" in str(caught.value) for term in OFF.get(name, ()))
    else:
        use(made(name)[1], teacher)


@pytest.mark.parametrize("name", OFF)
def test_without_its_terms_about_classes_it_works(name: str, made: Any, teacher: Teacher) -> None:
    config, synthesizer = made(name, weights=OFF[name])
    assert "classes" in config.needs - config.needed
    use(synthesizer, teacher)


def test_the_lists_are_whole() -> None:
    assert {*OFF, *REFUSED} <= set(SMALL) == set(METHODS)


@pytest.mark.parametrize("name", sorted(FINDING))
def test_objects_are_not_asked_of_a_task_that_finds_none(name: str, made: Any, teacher: Teacher) -> None:
    assert "objects" not in provides(teacher)
    with pytest.raises(RecipeError, match=r"finds objects.*weights.objects: 0"):
        made(name, weights=OFF.get(name, {}) | {"objects": 1.0})


@pytest.mark.parametrize("torch_part", [Finding], indirect=True)
@pytest.mark.parametrize("name", sorted(FINDING))
def test_asked_for_objects_images_show_more_of_them(name: str, made: Any, teacher: Teacher) -> None:
    assert "objects" in provides(teacher)
    longer = {"warmup": 30} if name == "dfq" else {"warmup_batches": 20} if name == "fastdfkd" else {"steps": 30}
    last = []
    for weight in (1e-6, 30.0):
        weights = OFF.get(name, {}) | {"objects": weight}
        config, synthesizer = made(name, weights=weights, **longer)
        assert "objects" in config.needed
        terms = warm(synthesizer, ())
        assert all("objects" in each for each in terms)
        last.append(sum(each["objects"] for each in terms[-3:]) / 3)
    assert last[1] < last[0] - 0.02


@pytest.mark.parametrize("torch_part", [Finding], indirect=True)
def test_objects_alone_need_no_statistics(teacher: Teacher) -> None:
    folded = SceneNet()
    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            folded.set_submodule(name, nn.Identity())
    bare = Teacher.from_module(folded, teacher.image, task=teacher.task)
    options = {"weights": {"bn": 0, "input": 0, "objects": 1}, "start": "procedural", "steps": 3, "batch": 4}
    config = config_of("zeroq", {}, **options)
    assert config.needed == {"objects"}
    assert "batchnorm" not in provides(bare)
    synthesizer = build_synthesizer(config, bare, derive(0), DEMAND)
    assert {name for terms in warm(synthesizer, ()) for name in terms} == {"objects"}


def test_of_a_teacher_without_anything_only_those_that_need_nothing(tmp_path: Path) -> None:
    image = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=4)
    bare = Teacher.from_module(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Softmax(1)), image, "bare")
    for name in ("noise", "procedural"):
        config = config_of(name, {})
        assert build_synthesizer(config, bare, derive(0), DEMAND).sample(2).shape == (2, 3, 8, 8)
