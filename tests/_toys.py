"""Tiny networks that hold the constructions of real classifiers, with random weights and BatchNorm statistics."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.placement import quantized_graph
from dfqkit.students.student import build_student, calibrate_student
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import get_target
from dfqkit_export.images.spec import ImageSpec

IMAGE = ImageSpec(shape=(3, 16, 16), mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3), classes=5)


def conv_bn(
    channels: int, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, IMAGE.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class Residual(nn.Module):
    """Stem, max pooling, an identity and a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.a1, self.a2 = conv_bn(8, 8), conv_bn(8, 8)
        self.b1, self.b2 = conv_bn(8, 12, stride=2), conv_bn(12, 12)
        self.down = conv_bn(8, 12, kernel=1, stride=2)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem(x)))
        x = self.relu(self.a2(self.relu(self.a1(x))) + x)
        out = self.b2(self.relu(self.b1(x)))
        out += self.down(x)
        return self.head(self.relu(out))


class OptionA(nn.Module):
    """The shortcut without parameters of the CIFAR ResNets: slice and pad."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.b1, self.b2 = conv_bn(6, 12, stride=2), conv_bn(12, 12)
        self.fc = nn.Linear(12, IMAGE.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        skip = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        x = torch.relu(self.b2(torch.relu(self.b1(x))) + skip)
        x = nn.functional.avg_pool2d(x, x.size(3))
        return self.fc(x.view(x.size(0), -1))


class Depthwise(nn.Module):
    """Inverted residual with ReLU6 and linear bottleneck (MobileNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.expand, self.depth, self.project = (
            conv_bn(8, 16, kernel=1),
            conv_bn(16, 16, groups=16),
            conv_bn(16, 8, kernel=1),
        )
        self.act = nn.ReLU6(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.project(self.act(self.depth(self.act(self.expand(x)))))
        return self.head(self.drop(x))


class SqueezeExcite(nn.Module):
    """SiLU and a squeeze-and-excitation gate (EfficientNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8, stride=2), conv_bn(8, 8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.act = nn.SiLU(inplace=True)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = torch.sigmoid(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.act(self.body(x * gate)))


class HardGate(nn.Module):
    """Hardswish and a hard-sigmoid gate (MobileNetV3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8, stride=2), conv_bn(8, 8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.act = nn.Hardswish(inplace=True)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = nn.functional.hardsigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        return self.head(torch.relu(self.body(x * gate)))


class Shuffle(nn.Module):
    """Chunk, concatenate and channel shuffle (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv_bn(3, 8, stride=2), conv_bn(4, 4)
        self.last = conv_bn(8, 8, kernel=1)
        self.fc = nn.Linear(8, IMAGE.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, torch.relu(self.branch(changed))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.fc(torch.relu(self.last(x)).mean([2, 3]))


class PreActivation(nn.Module):
    """BatchNorm in front of the convolution, so that it cannot be folded backwards (WRN, DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv(torch.relu(self.norm1(x)))], 1)
        return self.head(torch.relu(self.norm2(x)))


class ChannelsLast(nn.Module):
    """LayerNorm, linear layers on maps with channels last, GELU and layer scale (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.linspace(0.2, 0.9, 8).reshape(8, 1, 1))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.norm(self.depth(x).permute(0, 2, 3, 1))
        branch = self.narrow(nn.functional.gelu(self.wide(branch)))
        x = x + self.scale * branch.permute(0, 3, 1, 2)
        return self.head(torch.relu(x))


class InputTransform(nn.Module):
    """A change of the input's normalisation, pooling that rounds up, branches joined (GoogLeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.left, self.right = conv_bn(8, 4, kernel=1), conv_bn(8, 6)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        channels = [torch.unsqueeze(x[:, c], 1) * (0.3 + 0.2 * c) + 0.1 * (c - 1) for c in range(3)]
        x = self.pool(torch.relu(self.stem(torch.cat(channels, 1))))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(x)


TOYS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "option_a": OptionA,
    "depthwise": Depthwise,
    "squeeze_excite": SqueezeExcite,
    "hard_gate": HardGate,
    "shuffle": Shuffle,
    "preactivation": PreActivation,
    "channels_last": ChannelsLast,
    "input_transform": InputTransform,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain and BatchNorm layers as training could have left them; eval mode."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=rng) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                if module.affine:
                    uniform(module.weight, 0.6, 1.4)
                    uniform(module.bias, -0.3, 0.5)
                if module.running_mean is not None:
                    uniform(module.running_mean, -0.3, 0.3)
                    uniform(module.running_var, 0.5, 2.0)
            elif isinstance(module, nn.LayerNorm):
                uniform(module.weight, 0.6, 1.4)
                uniform(module.bias, -0.3, 0.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng) * (2.0 / fan_in) ** 0.5)
                if module.bias is not None:
                    uniform(module.bias, -0.2, 0.2)
    return model.eval()


def toy(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return randomise(TOYS[name](), seed)


@functools.lru_cache
def toy_graph(name: str) -> fx.GraphModule:
    """A toy's float graph; shared by tests, so that none may change it."""
    return float_graph(toy(name), IMAGE)


def toy_teacher(name: str = "residual", seed: int = 0) -> Teacher:
    return Teacher.from_module(toy(name, seed), IMAGE, name)


def images(n: int, seed: int = 1, image: ImageSpec = IMAGE) -> Tensor:
    """Normalised images (n, C, H, W): noise, smoothed a little, over the whole range of [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand((n, *image.shape), generator=rng)
    smooth = nn.functional.avg_pool2d(noise, 3, 1, 1)
    return image.normalize((0.5 * noise + 1.5 * smooth - 0.5).clamp(0, 1))


def student(
    name: str | nn.Module, bits: str = "w8a8", target: str = "onnxruntime", *, frozen: bool = True, **options: object
) -> fx.GraphModule:
    """A toy's fake-quantized student: built, calibrated, bias-corrected and, unless told otherwise, frozen."""
    config = QuantConfig(bits=bits, **options)  # type: ignore[arg-type]

    def make() -> fx.GraphModule:
        graph = toy_graph(name) if isinstance(name, str) else float_graph(name, IMAGE)
        quantized = quantized_graph(graph, config, get_target(target), IMAGE)
        calibrate_student(quantized, [images(16, seed) for seed in (10, 11)], config, IMAGE)
        if frozen:
            freeze(quantized)
        return quantized

    return make() if isinstance(name, nn.Module) else _copy((name, config.model_dump_json(), target, frozen), make)


def built_student(name: str, config: QuantConfig, *, calibrated: bool = True) -> fx.GraphModule:
    """A toy's student as a run builds it for ONNX Runtime: equalized where the scheme says so, not frozen."""

    def make() -> fx.GraphModule:
        made = build_student(toy_graph(name), config, get_target("onnxruntime"), IMAGE)
        if calibrated:
            calibrate_student(made, [images(16, seed) for seed in (10, 11)], config, IMAGE)
        return made

    return _copy(("built", name, config.model_dump_json(), calibrated), make)


_MADE: dict[tuple[object, ...], fx.GraphModule] = {}


def _copy(key: tuple[object, ...], make: Callable[[], fx.GraphModule]) -> fx.GraphModule:
    """Return a copy of what is made once: to search the scales takes many times as long as to copy them."""
    if key not in _MADE:
        _MADE[key] = make()
    return copy.deepcopy(_MADE[key])


class TinyTransformer(nn.Module):
    """Patches, a class token, two blocks of attention with LayerNorm; no BatchNorm anywhere.

    ``kind`` is how attention is written: "softmax" and two products, "fused" in one function, or torch's "module".
    """

    def __init__(self, image: ImageSpec = IMAGE, kind: str = "softmax", dim: int = 16, patch: int = 4) -> None:
        super().__init__()
        channels, height, width = image.shape
        self.kind, self.heads = kind, 2
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.places = nn.Parameter(torch.randn(1, 1 + height // patch * (width // patch), dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        module = kind == "module"
        self.mixing = nn.ModuleList(
            nn.MultiheadAttention(dim, 2, batch_first=True) if module else nn.Linear(dim, 3 * dim) for _ in range(2)
        )
        self.wide = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(2))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(dim, image.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for index in range(2):
            x = x + self.attention(self.norms[2 * index](x), self.mixing[index])
            x = x + self.narrow[index](nn.functional.gelu(self.wide[index](self.norms[2 * index + 1](x))))
        return self.head(self.norms[4](x)[:, 0])

    def attention(self, x: Tensor, mixing: nn.Module) -> Tensor:
        if self.kind == "module":
            return mixing(x, x, x, need_weights=False)[0]
        q, k, v = mixing(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.kind == "fused":
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        weights = self.dropout((q @ k.mT * q.shape[3] ** -0.5).softmax(-1))
        return (weights @ v).transpose(1, 2).flatten(2)


def tiny_transformer(image: ImageSpec = IMAGE, kind: str = "softmax", seed: int = 0) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyTransformer(image, kind)
    return Teacher.from_module(model, image, "transformer")
