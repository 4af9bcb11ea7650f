"""The pre-flight: facts counted by hand, and what each kind of unsuitable model is told."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from dfqkit.models import cifar_resnet20, digits_cnn
from dfqkit.students.capture import export_graph
from dfqkit.students.preflight import examine, operators
from dfqkit.teacher import inspection
from dfqkit.teacher.inspection import TeacherFacts
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task
from tests._hooks import hooks_on

SMALL = ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=3)
CIFAR = ImageSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, classes=10)


def method(*needs: str) -> type:
    return type("Method", (), {"needs": frozenset(needs)})


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "dfq": method("batchnorm", "student"),
        "zskd": method("linear_head"),
        "dafl": method("features"),
        "lopes": method("records", "batchnorm"),
    }
    monkeypatch.setattr(inspection, "synthesizer_configs", lambda: table)


def captured(model: nn.Module, image: ImageSpec, task: Task) -> tuple[Counter[str], tuple[str, ...]]:
    """The first step of `examine`: the others take seconds, and say nothing more of a network that has them."""
    assert task.name == DEFAULT_TASK.name
    return operators(export_graph(model, image))


def inspected(teacher: Teacher) -> TeacherFacts:
    return inspection.inspect_teacher(teacher, captured)


def small_net(*, norm: nn.Module | None = None, forward_extra: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 3), norm or nn.BatchNorm2d(4), nn.ReLU(), forward_extra or nn.Identity()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_facts_of_a_small_network_are_those_counted_by_hand() -> None:
    facts = inspected(Teacher.from_module(small_net(), SMALL, "small"))
    assert facts.parameters == (4 * 9 + 4) + 2 * 4 + (4 * 3 + 3)
    assert facts.multiply_adds == 6 * 6 * 4 * 9 + 4 * 3
    assert (facts.convolutions, facts.linear_layers) == (1, 1)
    assert (facts.batchnorm, facts.batchnorm_layers) == ("statistics", ("1",))
    assert facts.head is not None
    assert (facts.head.name, facts.head.in_features, facts.head.out_features) == ("6", 4, 3)
    assert facts.provides == {"batchnorm", "classes", "linear_head", "features"}
    assert dict(facts.synthesizers) == {"dfq": (), "zskd": (), "dafl": (), "lopes": ("records",)}
    assert facts.capturable
    assert facts.unsupported == ()
    assert facts.operators["conv2d"] == facts.operators["batch_norm"] == facts.operators["linear"] == 1


def test_facts_of_resnet20() -> None:
    facts = inspected(Teacher.from_module(cifar_resnet20(), CIFAR))
    assert (facts.convolutions, facts.linear_layers, len(facts.batchnorm_layers)) == (19, 1, 19)
    stem, stage1, stage2 = 1024 * 16 * 27, 6 * 1024 * 16 * 144, 256 * 32 * (144 + 5 * 288)
    assert facts.multiply_adds == stem + stage1 + stage2 + 64 * 64 * (288 + 5 * 576) + 640
    assert facts.operators["add"] == 9
    assert facts.unsupported == ()
    assert facts.batchnorm_untrained == facts.batchnorm_layers  # random weights: statistics that no training ever set


def test_inspection_leaves_the_teacher_as_it_was() -> None:
    teacher = Teacher.from_module(digits_cnn(), ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.3,), classes=10))
    before = {key: tensor.clone() for key, tensor in teacher.model.state_dict().items()}
    inspected(teacher)
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.model.state_dict().items())
    assert not hooks_on(teacher.model)
    assert not any(layer.training for layer in teacher.model.modules())


@pytest.mark.parametrize(
    ("norm", "state", "text"),
    [
        (nn.GroupNorm(2, 4), "none", "none (never there, or folded into the convolutions)"),
        (nn.Sequential(nn.Identity()), "none", "none (never there"),
        (nn.InstanceNorm2d(4), "none", "none (never there"),
    ],
)
def test_a_network_without_batchnorm_loses_the_methods_that_need_it(norm: nn.Module, state: str, text: str) -> None:
    facts = inspected(Teacher.from_module(small_net(norm=norm), SMALL))
    assert facts.batchnorm == state
    assert facts.provides == {"classes", "linear_head", "features"}
    assert facts.synthesizers["dfq"] == ("batchnorm",)
    assert facts.synthesizers["zskd"] == ()
    assert text in facts.render_text()
    assert "synthesizer dfq" in facts.render_text()
    assert "does not apply: needs batchnorm" in facts.render_text()


def test_placeholders_show_that_batchnorm_was_folded() -> None:
    model = digits_cnn().eval()
    for block in (model.stage1, model.stage2, model.stage3):
        for i in (1, 2):
            conv, norm = getattr(block, f"conv{i}"), getattr(block, f"bn{i}")
            setattr(block, f"conv{i}", nn.utils.fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{i}", nn.Identity())
        if isinstance(block.shortcut, nn.Sequential):
            block.shortcut = nn.utils.fuse_conv_bn_eval(block.shortcut[0], block.shortcut[1])  # type: ignore[type-var]
    model.conv, model.bn = nn.utils.fuse_conv_bn_eval(model.conv, model.bn), nn.Identity()  # type: ignore[assignment]
    image = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.3,), classes=10)
    facts = inspected(Teacher.from_module(model, image))
    assert facts.batchnorm == "folded"
    assert "batchnorm" not in facts.provides
    assert "its statistics are gone" in facts.render_text()


def test_batchnorm_without_statistics_is_listed() -> None:
    model = small_net(forward_extra=nn.BatchNorm2d(4, track_running_stats=False)).eval()
    # Built directly: `from_module` refuses a model whose logits depend on the batch.
    facts = inspected(Teacher(model=model, image=SMALL, name="bare", sha256="0" * 64))
    assert (facts.batchnorm, facts.batchnorm_layers, facts.batchnorm_bare) == ("partial", ("1",), ("3",))
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    facts = inspected(Teacher(model=model.eval(), image=SMALL, name="bare", sha256="0" * 64))
    assert facts.batchnorm == "no statistics"
    assert "batchnorm" not in facts.provides


def test_a_convolutional_head_gives_features_but_no_linear_head() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    facts = inspected(Teacher.from_module(model, SMALL))
    assert facts.head is None
    assert facts.provides == {"classes", "features"}
    assert facts.synthesizers["zskd"] == ("linear_head",)


def test_a_linear_layer_that_is_not_last_is_no_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh())
    facts = inspected(Teacher.from_module(model, SMALL))
    assert facts.head is None
    assert facts.provides == {"classes"}


class Auxiliary(nn.Module):
    """Has layers that only training uses, like GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.auxiliary = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_layers_that_never_run_do_not_count() -> None:
    facts = inspected(Teacher.from_module(Auxiliary(), SMALL))
    assert facts.batchnorm_layers == ("net.1",)
    assert (facts.convolutions, facts.linear_layers) == (1, 1)
    assert facts.parameters == 2 * 63


class Branch(nn.Module):
    """Takes a path that depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # the line that the message must name
            return x * 2
        return x


def test_data_dependent_control_flow_is_located(capfd: pytest.CaptureFixture[str]) -> None:
    facts = inspected(Teacher.from_module(small_net(forward_extra=Branch()), SMALL))
    line = Branch.forward.__code__.co_firstlineno + 1
    assert not facts.capturable
    assert facts.capture_problem is not None
    assert f"test_inspection.py:{line} in forward: `if x.mean() > 0:" in facts.capture_problem
    assert "torch.where" in facts.capture_problem
    assert (dict(facts.operators), facts.unsupported) == ({}, ())
    assert facts.synthesizers["dfq"] == ()  # images can be made from it all the same
    assert "capturable" in facts.render_text()
    assert "no: " in facts.render_text()
    assert capfd.readouterr().err == ""  # torch would print the partial graph


class PerImage(nn.Module):
    """A Python loop over the batch: the batch size becomes a constant of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one * 2 for one in x])


def test_a_batch_size_baked_into_the_graph_is_reported() -> None:
    facts = inspected(Teacher.from_module(small_net(forward_extra=PerImage()), SMALL))
    line = PerImage.forward.__code__.co_firstlineno + 1
    assert facts.capture_problem is not None
    assert f"test_inspection.py:{line} in forward: `return torch.stack(" in facts.capture_problem
    assert "makes the batch size a constant" in facts.capture_problem


class Erf(nn.Module):
    """An operator that no integer kernel runs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


def test_operators_without_an_integer_form_are_named() -> None:
    facts = inspected(Teacher.from_module(small_net(forward_extra=Erf()), SMALL))
    assert facts.unsupported == ("erf",)
    assert "left in float" in facts.render_text()


class Lgamma(nn.Module):
    """An operator that ONNX has no form of."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) + torch.lgamma(x.abs() + 1)


def test_an_operator_without_an_onnx_form_is_named_with_its_line() -> None:
    teacher = Teacher.from_module(small_net(forward_extra=Lgamma()), SMALL)
    facts = inspection.inspect_teacher(teacher, examine)
    line = Lgamma.forward.__code__.co_firstlineno + 1
    assert not facts.capturable
    assert facts.capture_problem is not None
    assert "'lgamma'" in facts.capture_problem
    assert f"test_inspection.py:{line} in forward: `return torch.erf(x) + torch.lgamma(" in facts.capture_problem
    assert "ONNX" in facts.capture_problem


def test_a_network_that_can_be_written_is_capturable() -> None:
    facts = inspection.inspect_teacher(Teacher.from_module(small_net(), SMALL), examine)
    assert facts.capturable
    assert facts.operators["conv2d"] == 1


def test_facts_survive_json() -> None:
    facts = inspected(Teacher.from_module(small_net(), SMALL, "small"))
    values = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert values["head"] == {"name": "6", "in_features": 4, "out_features": 3}
    assert values["provides"] == ["batchnorm", "classes", "features", "linear_head"]
    assert values["capturable"] is True
    assert values["synthesizers"]["lopes"] == ["records"]


def test_torchvision_networks_can_be_inspected() -> None:
    image = ImageSpec(shape=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, classes=10)
    facts = inspected(load_teacher("torchvision:resnet18", image))
    assert (facts.convolutions, len(facts.batchnorm_layers)) == (20, 20)
    assert facts.head is not None
    assert (facts.head.name, facts.head.in_features) == ("fc", 512)
    assert facts.unsupported == ()
