"""The teachers of the drop estimate's study: other people's, the embedded one, and small ones that are trained here.

What belongs here: networks, their labelled images, and from what their synthetic images come. `estimate_rows` quantizes
them. A teacher that is trained here has its weights kept in the study's folder, so that it is trained once; it sees no
image that tells the truth afterwards. Other people's teachers and images are in DFQKIT_ASSETS; EfficientNet-Lite0 needs
the packages that `real_size` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfqkit.models import cifar_resnet20, cifar_resnet32, digits_cnn
from dfqkit.teacher.load import Teacher
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from tests.benchmarks.real_size import DATA, IMAGENET, NETS

RECIPES = Path(__file__).parents[2] / "recipes"
CIFAR = ImageSpec(shape=(3, 32, 32), mean=IMAGENET[0], std=IMAGENET[1], classes=10)
DIGITS = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=10)
#: Images of a file that are read, at most.
MOST = 4000
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A teacher whose drops can be known.

    Attributes:
        teacher: The network.
        images: Labelled images uint8 (N, C, H, W) that took no part in its training.
        labels: Of these, (N,).
        sources: From what its synthetic images come; those that are left out would take minutes.
    """

    teacher: Teacher
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: tuple[str, ...] = ("zeroq", "procedural")

    @property
    def large(self) -> bool:
        """Whether its images are of the size for which few are made, without generators."""
        return self.teacher.image.shape[1] > 64


def _assets() -> Path:
    return Path(os.environ["DFQKIT_ASSETS"])


def _stored(path: Path, classes: int = 10, most: int = MOST) -> Images:
    """Images as channels first, of the first so many classes."""
    with np.load(path) as found:
        images, labels = found["images"], found["labels"].astype(np.int64)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    chosen = (labels < classes) & (np.arange(len(labels)) < most)
    return np.ascontiguousarray(images[chosen]), labels[chosen]


def _digits() -> tuple[Images, Images]:
    """600 digits that train, and 1,197 that tell the truth, of the recipes' two files together."""
    sets = [_stored(RECIPES / "digits" / name) for name in ("train.npz", "test.npz")]
    images, labels = (np.concatenate([found[index] for found in sets]) for index in (0, 1))
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order[:600]], labels[order[:600]]), (images[order[600:]], labels[order[600:]])


def _layer(inside: int, outside: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outside)]


def plain(classes: int, channels: int = 1, width: int = 12) -> nn.Module:
    """Convolutions without a shortcut, largest values of 2x2, a hidden linear layer; after VGG."""
    layers: list[nn.Module] = []
    for inside, outside in ((channels, width), (width, 2 * width), (2 * width, 3 * width)):
        layers += [*_layer(inside, outside), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12 * width, 32), nn.ReLU(), nn.Linear(32, classes)]
    return nn.Sequential(*layers, *head)


def separable(classes: int, channels: int = 1, width: int = 16) -> nn.Module:
    """Depthwise and pointwise convolutions with ReLU6; after MobileNetV1."""
    layers: list[nn.Module] = [*_layer(channels, width), nn.ReLU6()]
    for inside, outside, stride in ((1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1)):
        inside, outside = inside * width, outside * width
        layers += [*_layer(inside, inside, stride, groups=inside), nn.ReLU6()]
        layers += [*_layer(inside, outside, kernel=1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def _moved(x: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    """Shift a batch by up to an eighth of its side and, where asked, turn half of it the other way round."""
    side, reach = x.shape[-1], x.shape[-1] // 8
    padded = nn.functional.pad(x, (reach,) * 4, mode="replicate")
    row, column = (int(value) for value in torch.randint(2 * reach + 1, (2,), generator=rng))
    x = padded[..., row : row + side, column : column + side]
    turned = torch.rand(len(x), generator=rng) < 0.5
    return torch.where(turned[:, None, None, None], x.flip(-1), x) if flip else x


def _trained(model: nn.Module, image: ImageSpec, images: Images, *, epochs: int, file: Path) -> Teacher:
    """Train a network with AdamW and a one-cycle rate, or read what an earlier call left."""
    if not file.exists():
        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        rng, batch = torch.Generator().manual_seed(0), 64
        x, y = image.normalize(torch.from_numpy(images[0]).float() / 255), torch.from_numpy(images[1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
        steps = len(x) // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
        for _ in range(epochs):
            for chosen in torch.randperm(len(x), generator=rng)[: steps * batch].view(steps, batch):
                logits = model.train()(_moved(x[chosen], image is not DIGITS, rng))
                loss = nn.functional.cross_entropy(logits, y[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file))
    return Teacher.from_module(model, image, name=file.stem)


def _small(build: Callable[[int], nn.Module], epochs: int, classes: int) -> Callable[[str, Path], Known]:
    """A network of CIFAR-10's first classes at 16 pixels, of the 10,000 training images at hand."""

    def halved(name: str, most: int) -> Images:
        images, labels = _stored(_assets() / name, classes, most)
        means = images.reshape(len(images), 3, 16, 2, 16, 2).mean(axis=(3, 5))
        return means.round().astype(np.uint8), labels

    def known(name: str, folder: Path) -> Known:
        image = ImageSpec(shape=(3, 16, 16), mean=CIFAR.mean, std=CIFAR.std, classes=classes)
        train, (images, labels) = halved("cifar10_train10k.npz", 10_000), halved("cifar10_test.npz", MOST)
        teacher = _trained(build(classes), image, train, epochs=epochs, file=folder / f"{name}.safetensors")
        return Known(teacher=teacher, images=images, labels=labels)

    return known


def _of_digits(build: Callable[[int], nn.Module], epochs: int) -> Callable[[str, Path], Known]:
    def known(name: str, folder: Path) -> Known:
        train, (images, labels) = _digits()
        teacher = _trained(build(10), DIGITS, train, epochs=epochs, file=folder / f"{name}.safetensors")
        return Known(teacher=teacher, images=images, labels=labels)

    return known


def _published(
    build: Callable[[], nn.Module], weights: Path, image: ImageSpec, test: Path, sources: tuple[str, ...]
) -> Known:
    model = build()
    model.load_state_dict(load_file(weights))
    images, labels = _stored(test)
    return Known(teacher=Teacher.from_module(model, image), images=images, labels=labels, sources=sources)


def _cifar(build: Callable[[], nn.Module], weights: str) -> Callable[[str, Path], Known]:
    sources, test = Known.sources, "cifar10_test.npz"
    return lambda name, folder: _published(build, _assets() / weights, CIFAR, _assets() / test, sources)


def _imagenet(net: str, *sources: str, limit: int | None = None) -> Callable[[str, Path], Known]:
    """A network of `real_size`."""

    def known(name: str, folder: Path) -> Known:
        factory, weights, (mean, std) = NETS[net]
        image = ImageSpec(shape=(3, 224, 224), mean=mean, std=std, classes=1000)
        where, _, function = factory.partition(":")
        module = "tests.benchmarks.real_size" if where.endswith(".py") else where
        model: Any = getattr(import_module(module), function)()
        if weights is not None:
            model.load_state_dict(load_file(_assets() / weights))
        found = load_images(_assets() / DATA, image, resize=256, crop=224, limit=limit)
        assert found.labels is not None
        images = np.ascontiguousarray(found.images.transpose(0, 3, 1, 2))
        teacher = Teacher.from_module(model, image)
        return Known(teacher=teacher, images=images, labels=found.labels, sources=sources)

    return known


#: What makes a teacher of the study, given its name and the folder of weights; cheap ones first.
TEACHERS: dict[str, Callable[[str, Path], Known]] = {
    "digits-resnet8": lambda name, folder: _published(
        digits_cnn,
        RECIPES / "digits" / "teacher.safetensors",
        DIGITS,
        RECIPES / "digits" / "test.npz",
        ("zeroq", "procedural", "dfq"),
    ),
    "cifar-resnet20": _cifar(cifar_resnet20, "cifar10_resnet20.safetensors"),
    "digits-plain": _of_digits(plain, 30),
    "digits-separable": _of_digits(separable, 30),
    "cifar-16px-plain": _small(lambda classes: plain(classes, 3, 16), 6, 10),
    "imagenet-fdmobilenet-0.5": _imagenet("fdmobilenet", "zeroq", "procedural"),
    "cifar-16px-separable-5": _small(lambda classes: separable(classes, 3, 16), 6, 5),
    "digits-narrow": _of_digits(lambda classes: digits_cnn(classes, 0.4), 15),
    "imagenet-mobilenetv1-0.75": _imagenet("mobilenetv1", "procedural", limit=650),
    "cifar-resnet32": _cifar(cifar_resnet32, "cifar10_resnet32.safetensors"),
    "imagenet-efficientnet-lite0": _imagenet("efficientnet_lite0", "procedural", limit=650),
}
