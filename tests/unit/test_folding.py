"""What a network computes of its parameters is folded, and the graph computes what the model does in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.folding import Affine
from dfqkit.students.freezing import freeze
from dfqkit.students.nodes import op_name
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.student import build_student, calibrate_student
from dfqkit.teacher import load_teacher
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming
from tests._toys import IMAGE, Head, conv_bn, images, randomise, student


class Net(nn.Module):
    """A body given as a function, between a stem (N, 8, 16, 16) and a head."""

    def __init__(
        self, body: Callable[[Net, Tensor], Tensor], head: nn.Module | None = None, **modules: nn.Module
    ) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), body
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = head or Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


def net(body: Callable[[Net, Tensor], Tensor], head: nn.Module | None = None, **modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(body, head, **modules))


def folded(model: nn.Module) -> fx.GraphModule:
    """The model's graph, within 1e-5 of what the model computes in float64."""
    graph, x = float_graph(model, IMAGE), images(5)
    with torch.no_grad():
        wanted, found = copy.deepcopy(model).double()(x.double()), graph(x).double()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    return graph


def layers(graph: fx.GraphModule) -> dict[str, int]:
    """How many layers of each kind a graph calls: depthwise affine convolutions and float affines apart."""
    counts = {"layer": 0, "affine_norm": 0, "Affine": 0, "function": 0}
    for node in graph.graph.nodes:
        if node.op == "call_function" and op_name(node.target) in ("mul", "add", "sub", "div", "addcmul", "rsqrt"):
            counts["function"] += 1
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Affine):
            counts["Affine"] += 1
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            counts["affine_norm" if hasattr(module, "affine_norm") else "layer"] += 1
    return counts


def counts(layer: int, affine_norm: int = 0, affine: int = 0, function: int = 0) -> dict[str, int]:
    return {"layer": layer, "affine_norm": affine_norm, "Affine": affine, "function": function}


def frozen(channels: int, seed: int = 3) -> FrozenBatchNorm2d:
    norm, rng = FrozenBatchNorm2d(channels), torch.Generator().manual_seed(seed)
    for value, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
        value.copy_(torch.rand(channels, generator=rng) + low)
    return norm


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 a channel, as two families of networks compute them."""

    def __init__(self, *args: int, by_norm: bool, **options: int) -> None:
        super().__init__(*args, **options)
        self.gain, self.by_norm = nn.Parameter(torch.linspace(0.5, 1.5, args[1]).reshape(-1, 1, 1, 1)), by_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.by_norm:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, weight=self.gain.flatten(), training=True, momentum=0.0)
            weight = weight.reshape_as(self.weight)
        else:
            variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
            weight = (self.weight - mean) / torch.sqrt(variance + 1e-6) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LowRank(nn.Linear):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.down, self.up = nn.Parameter(torch.randn(2, args[0])), nn.Parameter(torch.randn(args[1], 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


class Cosine(nn.Module):
    """A head of cosines with a learned temperature; its product is written as a matrix's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IMAGE.classes, 8))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x.mean((2, 3)), dim=1)
        return self.temperature.exp() * (x @ F.normalize(self.weight, dim=1).t())


def beside(other: nn.Module) -> nn.Module:
    return net(lambda m, x: m.other(x), other=other)


conv, linear, norm1d = nn.Conv2d, nn.Linear, nn.BatchNorm1d
COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: beside(parametrizations.weight_norm(conv(8, 8, 3))),
    "weight norm of old": lambda: beside(weight_norm(conv(8, 8, 3))),
    "spectral norm": lambda: beside(parametrizations.spectral_norm(conv(8, 8, 3))),
    "spectral norm of old": lambda: beside(spectral_norm(nn.ConvTranspose2d(8, 8, 3))),
    "standardised": lambda: beside(Standardised(8, 8, 3, by_norm=False)),
    "standardised by norm": lambda: beside(Standardised(8, 8, 3, by_norm=True)),
    "bias": lambda: net(lambda m, x: F.conv2d(x, m.other.weight, m.other.bias * 2), other=conv(8, 8, 3)),
    "low rank": lambda: net(lambda m, x: m.other(x.mean((2, 3)))[:, :, None, None], other=LowRank(8, 8)),
    "cosine head": lambda: net(lambda m, x: x, head=Cosine()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_stored_ones_under_their_layers_name(name: str) -> None:
    model, layer = COMPUTED[name](), "head" if "head" in name else "other"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = folded(model)
    assert isinstance(graph.get_submodule(layer), nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    assert not {"rsqrt", "mv", "_weight_norm", "var_mean", "batch_norm", "exp"} & {
        op_name(node.target) for node in graph.graph.nodes
    }
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_layer_called_twice_computes_one_weight() -> None:
    graph = folded(net(lambda m, x: m.other(m.other(x)), other=parametrizations.weight_norm(conv(8, 8, 3))))
    assert [str(n.target) for n in graph.graph.nodes if n.op == "call_module"].count("other") == 2


def table(m: Net, x: Tensor) -> Tensor:
    """Attention over 4 x 4 places with a bias looked up in a table, beside a mask made in the forward."""
    tokens = m.other(F.avg_pool2d(x, 4)).flatten(2).transpose(1, 2)
    places = torch.arange(16)
    distance = (places[:, None] % 4 - places[None] % 4) + 4 * (places[:, None] // 4 - places[None] // 4)
    bias = m.bias.weight[(distance + 15).reshape(-1)].reshape(16, 16)
    attended = torch.softmax(tokens @ tokens.transpose(1, 2) * 8**-0.5 + bias, -1) @ tokens
    return attended.transpose(1, 2).reshape(-1, 8, 4, 4)


def test_an_attention_bias_is_looked_up_once() -> None:
    graph = folded(net(table, other=conv(8, 8, 1), bias=nn.Embedding(31, 1)))
    assert not {"index", "arange", "remainder"} & {op_name(node.target) for node in graph.graph.nodes}


def test_a_large_constant_that_is_made_of_a_small_one_is_not_stored() -> None:
    graph = folded(
        net(lambda m, x: x * m.other.bias.reshape(8, 1, 1).expand(40000, 8, 16, 16)[:1], other=conv(8, 8, 1))
    )
    assert all(value.numel() < 2**20 for value in graph.state_dict().values())


def test_random_numbers_are_no_constant() -> None:
    with raises_naming(TeacherError, "does not compute"):
        float_graph(net(lambda m, x: x + torch.rand(8, 1, 1)), IMAGE)


def normalised(m: Net, x: Tensor) -> Tensor:
    mean, deviation = (torch.linspace(*ends, 8).reshape(8, 1, 1) for ends in ((0.1, 0.5), (0.5, 2.0)))
    return m.other(torch.relu(x).sub(mean) / deviation)


def vector(ends: tuple[float, float], *shape: int) -> Tensor:
    return torch.linspace(*ends, 8).reshape(shape)


def joined(m: Net, x: Tensor) -> Tensor:
    return torch.relu(m.norm(x + m.other(x)))


#: Body or model, and what is left of it: layers with those of stem and head, depthwise affines, float affines.
AFFINES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "frozen norm behind a convolution": (
        lambda: net(lambda m, x: m.norm(m.other(x)), other=conv(8, 8, 3), norm=frozen(8)), counts(3)),
    "frozen norm behind an addition": (
        lambda: net(joined, other=conv(8, 8, 3, padding=1), norm=frozen(8)), counts(3, 1, function=1)),
    "frozen norm behind a transposed convolution": (
        lambda: net(lambda m, x: m.norm(m.other(x)), other=nn.ConvTranspose2d(8, 8, 2, 2), norm=frozen(8)), counts(3)),
    "norm behind a grouped transposed convolution": (
        lambda: net(lambda m, x: m.norm(m.other(x)),
                    other=nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=4, dilation=2),
                    norm=nn.BatchNorm2d(8)), counts(3)),
    "scale in front of a grouped transposed convolution": (
        lambda: net(lambda m, x: m.other(torch.relu(x) * vector((0.5, 2), 8, 1, 1)),
                    other=nn.ConvTranspose2d(8, 8, 3, groups=2)), counts(3)),
    "shift in front of a transposed convolution": (
        lambda: net(lambda m, x: m.other(torch.relu(x) + vector((0.5, 2), 8, 1, 1)),
                    other=nn.ConvTranspose2d(8, 8, 3, groups=2)), counts(3, 1)),
    "mean and deviation in front of a convolution": (
        lambda: net(normalised, other=conv(8, 8, 3, groups=2)), counts(3)),
    "mean and deviation in front of padding": (
        lambda: net(normalised, other=conv(8, 8, 3, padding=1)), counts(3, 1)),
    "mean and deviation in front of padding by name": (
        lambda: net(normalised, other=conv(8, 8, 3, padding="same")), counts(3, 1)),
    "deviation in front of padding": (
        lambda: net(lambda m, x: m.other(torch.relu(x) / vector((0.5, 2), 8, 1, 1)), other=conv(8, 8, 3, padding=1)),
        counts(3)),
    "scale read twice": (
        lambda: net(lambda m, x: m.other(y := torch.relu(x) * vector((0.5, 2), 1, 8, 1, 1)) + m.third(y),
                    other=conv(8, 8, 3), third=conv(8, 8, 3)), counts(4, function=1)),
    "scale read by a layer and an addition": (
        lambda: net(lambda m, x: m.other(y := torch.relu(x) * vector((0.5, 2), 8, 1, 1)) + y,
                    other=conv(8, 8, 1)), counts(3, 1, function=1)),
    "scale of a layer that runs twice": (
        lambda: net(lambda m, x: m.other(m.other(x) * vector((0.5, 2), 8, 1, 1)), other=conv(8, 8, 1)), counts(4, 1)),
    "one number": (
        lambda: net(lambda m, x: 3 - (-m.other(x) * 0.5 + 1), other=conv(8, 8, 1)), counts(3)),
    "addcmul": (
        lambda: net(lambda m, x: torch.addcmul(vector((-1, 1), 8, 1, 1), vector((0.5, 2), 8, 1, 1), m.other(x)),
                    other=conv(8, 8, 1)), counts(3)),
    "rows": (
        lambda: net(lambda m, x: m.other(x) * torch.linspace(0.5, 2, 16).reshape(16, 1), other=conv(8, 8, 1)),
        counts(3, function=1)),
    "instance norm with statistics": (
        lambda: net(lambda m, x: m.norm(m.other(x)), other=conv(8, 8, 3),
                    norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), counts(3)),
    "norm without weights": (
        lambda: net(lambda m, x: m.norm(torch.relu(x)), norm=nn.BatchNorm2d(8, affine=False)), counts(2)),
    "norm in front of pooling and a linear layer": (
        lambda: net(lambda m, x: torch.relu(x), head=nn.Sequential(nn.BatchNorm2d(8), Head(8))), counts(2)),
    "norm in front of rows of all places": (
        lambda: net(lambda m, x: torch.relu(x), head=nn.Sequential(nn.BatchNorm2d(8), nn.Flatten(), linear(2048, 5))),
        counts(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINES)
def test_scales_and_shifts_go_into_layers_where_that_is_exact(name: str) -> None:
    make, left = AFFINES[name]
    assert layers(folded(make())) == left


def tokens(x: Tensor) -> Tensor:
    """Four by four places: (N, 16, 8)."""
    return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)


def maps(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, 8, 4, 4)


def rows(m: Net, x: Tensor) -> Tensor:
    y = m.other(tokens(x))
    return maps(torch.relu(m.norm(y.flatten(0, 1)).reshape_as(y)))


def pooled(x: Tensor) -> Tensor:
    return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1)


def head(*layers: nn.Module) -> nn.Module:
    return net(lambda m, x: torch.relu(x).mean((2, 3)), head=nn.Sequential(*layers))


NORMS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "head of two norms": (
        lambda: net(lambda m, x: pooled(x), head=nn.Sequential(
            norm1d(16), nn.Dropout(), linear(16, 8, bias=False), nn.ReLU(), norm1d(8), linear(8, 5))), counts(3)),
    "behind its linear layer": (lambda: head(linear(8, 8), norm1d(8), nn.ReLU(), linear(8, 5)), counts(3)),
    "between two linear layers": (lambda: head(linear(8, 8), norm1d(8), linear(8, 5)), counts(3)),
    "at the end": (lambda: head(linear(8, 5), nn.ReLU(), norm1d(5)), counts(2, affine=1)),
    "behind a ReLU that two read": (
        lambda: net(lambda m, x: m.other(y := m.norm(torch.relu(x).mean((2, 3)))) + m.third(y), head=nn.Identity(),
                    norm=norm1d(8), other=linear(8, 5), third=linear(8, 5)), counts(3, function=1)),
    "over the images and places of tokens": (lambda: net(rows, other=linear(8, 8), norm=norm1d(8)), counts(3)),
    "over places": (
        lambda: net(lambda m, x: maps(m.norm(m.other(tokens(x)))), other=linear(8, 8), norm=norm1d(16)),
        counts(3, affine=1)),
    "over as many places as channels": (
        lambda: net(lambda m, x: m.norm(m.other(tokens(x)[:, :8])).mean(1), head=linear(8, 5), other=linear(8, 8),
                    norm=norm1d(8)), counts(3, affine=1)),
    "over channels of tokens": (
        lambda: net(lambda m, x: maps(m.norm(m.other(tokens(x)).transpose(1, 2)).transpose(1, 2)), other=linear(8, 8),
                    norm=norm1d(8)), counts(3)),
    "behind a convolution over one axis": (
        lambda: net(lambda m, x: torch.relu(m.norm(m.other(x.flatten(2)))).mean(2), head=linear(8, 5), norm=norm1d(8),
                    other=nn.Conv1d(8, 8, 3, 2, 1, groups=2)), counts(3)),
    "behind a transposed one": (
        lambda: net(lambda m, x: torch.relu(m.norm(m.other(x.flatten(2)))).mean(2), head=linear(8, 5), norm=norm1d(8),
                    other=nn.ConvTranspose1d(8, 8, 3, 2, 1, output_padding=1)), counts(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_vectors_and_tokens_go_along_their_own_axis(name: str) -> None:
    make, left = NORMS[name]
    assert layers(folded(make())) == left


def test_a_transposed_convolution_stays_in_float_and_its_student_is_the_file(tmp_path: Path) -> None:
    up = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU())
    graph = student(net(lambda m, x: m.other(m.up(torch.relu(x))), other=conv(8, 8, 3), up=up))
    assert "up_0" not in dict(graph.quant.named_children())
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    with torch.no_grad():
        expected = graph(x).numpy()
    found = OrtSession(tmp_path / "m.onnx", threads=1).run(x.numpy())
    assert np.mean(found == expected) > 0.9  # a sum in another order moves a code now and then
    assert realised_precision(tmp_path / "m.onnx").float_layers == 1


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8)])
def test_a_norm_that_uses_the_statistics_of_the_batch_is_refused(norm: nn.Module) -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        return F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True)

    with raises_naming(TeacherError, "running statistics", "track_running_stats"):
        float_graph(net(body, norm=norm), IMAGE)


def without_training(model: nn.Module) -> nn.Module:
    """The model with every BatchNorm replaced by the frozen one of the same numbers."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            other = FrozenBatchNorm2d(child.num_features, child.eps)
            other.load_state_dict({key: getattr(child, key) for key in other.state_dict()})
            setattr(model, name, other)
        else:
            without_training(child)
    return model


@pytest.mark.slow
def test_a_real_network_with_frozen_norms_loses_nothing(assets: Path, tmp_path: Path) -> None:
    image = ImageSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10)
    teacher = load_teacher("dfqkit.models:cifar_resnet20", image, assets / "cifar10_resnet20.safetensors")

    def read(name: str, n: int) -> tuple[Tensor, NDArray[np.int64]]:
        with np.load(assets / name) as stored:
            pixels = torch.from_numpy(stored["images"][:n]).permute(0, 3, 1, 2).float() / 255
            return image.normalize(pixels), stored["labels"][:n].astype(np.int64)

    scheme, target = QuantConfig(bits="w8a8"), get_target("onnxruntime")
    graph = build_student(float_graph(without_training(copy.deepcopy(teacher.model)), image), scheme, target, image)
    calibrate_student(graph, list(read("cifar10_train10k.npz", 128)[0].split(64)), scheme, image)
    freeze(graph)
    write_qdq(graph, target, tmp_path / "m.onnx", metadata={})
    x, labels = read("cifar10_test.npz", 1000)
    answers = OrtSession(tmp_path / "m.onnx", threads=1).run(x.numpy()).argmax(1)
    assert 100 * np.mean(answers == labels) >= 91.4  # the teacher itself has 91.5
    realised = realised_precision(tmp_path / "m.onnx")
    assert (realised.float_layers, realised.integer_macs) == (0, 1.0)
