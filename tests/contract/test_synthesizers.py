"""What every registered synthesizer keeps, whatever its method: one battery over the registry, on digits."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.config.methods import METHODS
from dfqkit.config.quant import QuantConfig
from dfqkit.config.reading import load_recipe
from dfqkit.config.registry import synthesizer_config
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.run.context import teacher_of
from dfqkit.seeds import derive
from dfqkit.students.capture import float_graph
from dfqkit.students.student import build_student, calibrate_student
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import TEACHERS_PART, build_synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import get_target
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._hooks import hooks_on
from tests._pipelines import save_pipeline, tiny_unet
from tests._toys import Head, tiny_transformer

#: A small configuration of every method.
SMALL: dict[str, dict[str, Any]] = {
    "bank": {"path": "{bank}"},
    "cmi": {"batch": 32, "steps": 6, "width": 8, "latent": 16},
    "dafl": {"batch": 32, "warmup": 6, "width": 8, "latent": 32, "memory": 64},
    "deepinversion": {"batch": 32, "steps": 6},
    "deepinversion-adaptive": {"batch": 32, "steps": 6},
    "dfq": {"batch": 32, "warmup": 6, "width": 8, "latent": 32, "memory": 64},
    "diffusion": {"path": "{pipeline}", "batch": 32, "steps": 6, "guidance": 0.05},
    "fastdfkd": {"batch": 32, "steps": 3, "width": 8, "latent": 16, "warmup_batches": 2},
    "genie": {"batch": 32, "steps": 6, "width": 8, "latent": 16},
    "images": {"path": "{images}"},
    "metadata": {"records": "{records}", "batch": 32, "steps": 6},
    "mixture": {
        "sources": [
            {"method": "dfq", "share": 0.6, "batch": 32, "warmup": 6, "width": 8, "latent": 32, "memory": 64},
            {"method": "images", "share": 0.4, "path": "{images}"},
        ]
    },
    "noise": {"accept_noise": True},
    "procedural": {},
    "psaq": {"batch": 32, "steps": 6},
    "soft-targets": {"batch": 32, "steps": 6},
    "zeroq": {"batch": 32, "steps": 6},
    "zskd": {"batch": 32, "steps": 6},
    "zskt": {"batch": 32, "warmup": 6, "width": 8, "latent": 32, "memory": 64},
}

#: The term that must fall on methods that optimise, and what makes them run long enough for it.
FALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "cmi": ("bn", {"steps": 30}),
    "dafl": ("one_hot", {"warmup": 40}),
    "deepinversion": ("bn", {"steps": 30}),
    "deepinversion-adaptive": ("bn", {"steps": 30}),
    "dfq": ("bn", {"warmup": 30}),
    "fastdfkd": ("bn", {"warmup_batches": 12}),
    "genie": ("bn", {"steps": 30}),
    "metadata": ("all", {"steps": 30}),
    "psaq": ("entropy", {"steps": 40, "weights": {"tv": 0, "one_hot": 0}}),
    "soft-targets": ("kl", {"steps": 40}),
    "zeroq": ("bn", {"steps": 30}),
    "zskd": ("soft_label", {"steps": 40}),
    "zskt": ("adversarial", {"warmup": 30}),
}

DEMAND = Demand(training=16, fresh=16, game_rounds=4)

#: Methods whose images are the same for every seed, up to their order.
STORED = ("bank", "images")


@functools.cache
def digits() -> Teacher:
    return teacher_of(load_recipe("digits/dfq-w8a8-ort"))


@functools.cache
def transformer() -> Teacher:
    return tiny_transformer(digits().image)


@pytest.fixture
def teacher(request: pytest.FixtureRequest) -> Teacher:
    """One that offers what the method needs."""
    needs = synthesizer_config(request.node.callspec.params["name"]).needs
    return transformer() if "tokens" in needs else digits()


@pytest.fixture(scope="module")
def opponent() -> fx.GraphModule:
    teacher = digits()
    graph = float_graph(teacher.model, teacher.image)
    scheme = QuantConfig.model_validate({"bits": "w4a4"})
    student = build_student(graph, scheme, get_target("onnxruntime"), teacher.image)
    noise = torch.randn((32, *teacher.image.shape), generator=torch.Generator().manual_seed(0))
    calibrate_student(student, [noise], scheme, teacher.image)
    return student.requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return files_of(digits(), tmp_path_factory.mktemp("files"))


def files_of(teacher: Teacher, folder: Path) -> dict[str, str]:
    """What configurations name: similar images, a stored set, records, a diffusion model if there can be one."""
    from dfqkit.images import ImageBank

    rng = np.random.default_rng(0)
    channels, height, width = teacher.image.shape
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (64, height, width, channels), dtype=np.uint8))
    normalised = torch.randn((64, *teacher.image.shape), generator=torch.Generator().manual_seed(1))
    ImageBank.collect(teacher, iter([normalised]), "noise:test").save(folder / "bank.safetensors")
    records = Path(__file__).parents[2] / "recipes" / "digits" / "records.safetensors"
    if importlib.util.find_spec("diffusers"):
        save_pipeline(folder / "pipeline", tiny_unet(8, channels))
    return {
        "images": str(folder / "images.npz"),
        "bank": str(folder / "bank.safetensors"),
        "records": str(records),
        "pipeline": str(folder / "pipeline"),
    }


def config_of(name: str, files: dict[str, str], **changes: Any) -> SynthesizerConfig:
    if name == "diffusion":
        pytest.importorskip("diffusers", reason="diffusers is not installed (extra 'diffusers')")

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(**files)
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return synthesizer_config(name).model_validate({"method": name, **filled(SMALL[name]), **changes})


Make = Callable[..., Synthesizer]


@pytest.fixture
def make(teacher: Teacher, files: dict[str, str]) -> Make:
    def build(name: str, seed: int = 0, **changes: Any) -> Synthesizer:
        return build_synthesizer(config_of(name, files, **changes), teacher, derive(seed, "contract"), DEMAND)

    return build


def students_of(made: Synthesizer, name: str, opponent: nn.Module) -> list[nn.Module]:
    return [opponent] if "student" in synthesizer_config(name).needs else []


def warm(made: Synthesizer, students: Sequence[nn.Module], rounds: int | None = None) -> list[dict[str, float]]:
    return [made.synthesize(students) for _ in range(made.warmup_rounds if rounds is None else rounds)]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_every_method_is_in_the_battery() -> None:
    assert set(SMALL) == set(METHODS)


@pytest.mark.parametrize("name", SMALL)
def test_images_are_images(name: str, make: Make, teacher: Teacher, opponent: nn.Module) -> None:
    made = make(name)
    warm(made, students_of(made, name, opponent))
    assert made.available is None or made.available >= DEMAND.fresh
    low, high = teacher.image.bounds()
    for images in (made.training_batch(8), made.sample(5), made.sample(11), made.training_batch(3)):
        assert images.shape[1:] == teacher.image.shape
        assert images.dtype == torch.float32
        assert not images.requires_grad
        assert bool(torch.isfinite(images).all())
        assert low - 1e-4 <= float(images.min()) <= float(images.max()) <= high + 1e-4
        assert float(images.std()) > 1e-3, "all alike"


@pytest.mark.parametrize("name", SMALL)
def test_fresh_images_are_never_trained_on(name: str, make: Make, opponent: nn.Module) -> None:
    made = make(name)
    warm(made, students_of(made, name, opponent))
    trained = torch.cat([made.training_batch(16) for _ in range(2)]).flatten(1)
    fresh = made.sample(16).flatten(1)
    more = made.training_batch(16).flatten(1)
    distance = torch.cdist(fresh, torch.cat([trained, more]))
    assert float(distance.min()) > 1e-3
    assert len(torch.unique(fresh, dim=0)) == len(fresh)


@pytest.mark.parametrize("name", SMALL)
def test_teacher_student_and_global_state_are_untouched(
    name: str, make: Make, teacher: Teacher, opponent: nn.Module
) -> None:
    models = {"teacher": teacher.model, "student": opponent}
    before = {key: {n: v.clone() for n, v in tensors(m).items()} for key, m in models.items()}
    forwards = {key: [m.forward for m in model.modules()] for key, model in models.items()}
    rng = torch.get_rng_state()
    made = make(name)
    warm(made, students_of(made, name, opponent))
    made.synthesize([opponent])
    made.sample(4)
    made.training_batch(4)
    assert torch.equal(rng, torch.get_rng_state())
    for key, model in models.items():
        assert all(torch.equal(before[key][n], v) for n, v in tensors(model).items())
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
        assert not hooks_on(model)
        assert forwards[key] == [m.forward for m in model.modules()]
    assert not any(m.training for m in teacher.model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_images(name: str, make: Make, opponent: nn.Module) -> None:
    drawn = []
    for seed in (0, 0, 1):
        made = make(name, seed)
        warm(made, students_of(made, name, opponent))
        made.synthesize([opponent])
        drawn.append((made.training_batch(8), made.sample(8)))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    if name not in STORED:
        assert not torch.equal(drawn[0][1], drawn[2][1])


@pytest.mark.parametrize("part", [0.3, 1.0])
@pytest.mark.parametrize("name", SMALL)
def test_a_saved_state_continues_identically(name: str, part: float, make: Make, opponent: nn.Module) -> None:
    straight, first, resumed = make(name), make(name), make(name, 7)
    students = students_of(straight, name, opponent)
    total = straight.warmup_rounds
    stop = int(total * part)
    terms = warm(straight, students)
    before = warm(first, students, stop)
    state = first.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    assert all(isinstance(value, Tensor) for value in state.values())
    resumed.load_state_dict({key: value.contiguous() for key, value in state.items()})
    assert before + warm(resumed, students, total - stop) == terms
    assert resumed.synthesize([opponent]) == straight.synthesize([opponent])
    assert torch.equal(resumed.training_batch(12), straight.training_batch(12))
    assert torch.equal(resumed.sample(6), straight.sample(6))
    assert (resumed.cost, resumed.available) == (straight.cost, straight.available)
    assert all(torch.equal(state[key], kept[key]) for key in kept), "resuming changed the state it started from"


@pytest.mark.parametrize("name", FALLS)
def test_the_loss_falls(name: str, make: Make, opponent: nn.Module) -> None:
    term, longer = FALLS[name]
    made = make(name, **longer)
    values = [terms[term] for terms in warm(made, students_of(made, name, opponent))]
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("name", FALLS)
def test_a_budget_is_kept(name: str, teacher: Teacher, files: dict[str, str], opponent: nn.Module) -> None:
    sized = config_of(name, files).at_cost(700, DEMAND)
    made = build_synthesizer(sized, teacher, derive(0, "budget"), DEMAND)
    warm(made, students_of(made, name, opponent))
    assert 600 <= made.cost <= 700
    assert made.available is None or made.available >= DEMAND.fresh


@pytest.mark.parametrize("name", SMALL)
def test_any_source_can_be_low_passed(name: str, make: Make, opponent: nn.Module) -> None:
    plain, smooth = make(name), make(name, low_pass=0.15)
    for made in (plain, smooth):
        warm(made, students_of(made, name, opponent))

    def roughness(images: Tensor) -> float:
        return float((images[..., 1:] - images[..., :-1]).abs().mean())

    assert roughness(smooth.sample(8)) < 0.9 * roughness(plain.sample(8))


def test_what_a_teacher_lacks_is_said_before_any_compute() -> None:
    image = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)
    folded = Teacher.from_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Head(4)), image, "folded")
    for name in METHODS:
        kind = synthesizer_config(name)
        if "batchnorm" in kind.needs & TEACHERS_PART:
            with pytest.raises(RecipeError, match=r"'folded' does not have.*Use one of .*zskt"):
                build_synthesizer(kind.model_validate({"method": name}), folded, derive(0), DEMAND)
