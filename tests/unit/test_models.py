"""The factories against the checkpoints in circulation, published sizes, and torch.export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfqkit import models
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming

CIFAR = ImageSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10)

CHECKPOINTS = {
    "cifar10_resnet20": models.cifar_resnet20,
    "cifar10_resnet32": models.cifar_resnet32,
    "imagenet_mobilenetv1_0.75_224": models.mobilenet_v1_075,
    "imagenet_fdmobilenet_0.5x": models.fd_mobilenet_05,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cifar_test(assets: Path, count: int) -> tuple[Tensor, np.ndarray]:
    with np.load(assets / "cifar10_test.npz") as archive:
        images, labels = archive["images"][:count], archive["labels"][:count]
    return CIFAR.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255), labels


def count_right(model: nn.Module, x: Tensor, labels: np.ndarray) -> int:
    with torch.no_grad():
        predicted = torch.cat([model(batch) for batch in x.split(250)]).argmax(1)
    return int((predicted.numpy() == labels).sum())


def test_the_face_detector_answers_as_its_onnx_form_does(assets: Path) -> None:
    model = models.rfb_320().eval()
    model.load_state_dict(load_file(assets / "rfb320.safetensors"), strict=True)
    x = torch.randn(1, 3, 240, 320, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(assets / "rfb320.onnx"), options)
    with torch.no_grad():
        answers = model(x)
    for found, wanted in zip(answers, session.run(["scores", "boxes"], {"input": x.numpy()}), strict=True):
        assert np.abs(found.numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_published_checkpoint_loads_strictly(assets: Path, name: str) -> None:
    model = CHECKPOINTS[name]()
    state = load_file(assets / f"{name}.safetensors")
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


def test_resnet20_labels_the_first_thousand_test_images_as_measured(assets: Path) -> None:
    model = models.cifar_resnet20().eval()
    model.load_state_dict(load_file(assets / "cifar10_resnet20.safetensors"))
    # 915 was counted on these 1,000 images; an image on the border may move with another build's summation order.
    assert abs(count_right(model, *cifar_test(assets, 1000)) - 915) <= 1


@pytest.mark.slow
def test_resnet20_reaches_its_published_accuracy(assets: Path) -> None:
    model = models.cifar_resnet20().eval()
    model.load_state_dict(load_file(assets / "cifar10_resnet20.safetensors"))
    assert abs(count_right(model, *cifar_test(assets, 10_000)) - 9173) <= 3


@pytest.mark.parametrize(
    ("factory", "millions"),
    [
        (models.cifar_resnet8, 0.08),
        (models.cifar_resnet20, 0.27),
        (models.cifar_resnet32, 0.46),
        (models.cifar_resnet44, 0.66),
        (models.cifar_resnet56, 0.85),
        (models.cifar_resnet110, 1.7),
        (models.mobilenet_v1_025, 0.5),
        (models.mobilenet_v1_050, 1.3),
        (models.mobilenet_v1_075, 2.6),
        (models.mobilenet_v1_100, 4.2),
        (models.fd_mobilenet_10, 2.9),
        (models.wrn_16_1, 0.2),
        (models.wrn_16_2, 0.7),
        (models.wrn_40_1, 0.6),
        (models.wrn_40_2, 2.2),
    ],
)
def test_parameter_counts_are_those_of_the_papers(factory: type[nn.Module], millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(factory()) / 1e6, digits) == millions


def test_digits_network_is_small() -> None:
    assert parameters(models.digits_cnn()) < 60_000
    assert parameters(models.digits_cnn(width=0.5)) < parameters(models.digits_cnn()) / 3


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.cifar_resnet8(7), (3, 32, 32)),
        (models.cifar_resnet20(7), (3, 32, 32)),
        (models.wrn(10, 1, 7), (3, 32, 32)),
        (models.mobilenet_v1(0.25, 7), (3, 64, 64)),
        (models.fd_mobilenet(0.25, 7), (3, 64, 64)),
        (models.digits_cnn(7), (1, 16, 16)),
        (models.digits_cnn(7, width=0.5), (1, 16, 16)),
    ],
    ids=[
        "cifar_resnet8",
        "cifar_resnet20",
        "wrn",
        "mobilenet_v1",
        "fd_mobilenet",
        "digits",
        "digits of half the width",
    ],
)
def test_capture_keeps_the_batch_dynamic_and_the_function_unchanged(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.eval()
    program = torch.export.export(model, (torch.rand(2, *shape),), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    x = torch.rand((5, *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = model(x), program.module()(x)
    assert wanted.shape == (5, 7)
    torch.testing.assert_close(found, wanted)


def test_option_a_shortcut_subsamples_and_pads_channels_with_zeros_on_both_sides() -> None:
    block = models.cifar_resnet20().layer2[0].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()  # leaves relu(shortcut) as the block's output
        x = torch.rand((2, 16, 8, 8), generator=torch.Generator().manual_seed(0))
        found = block(x).numpy()
    wanted = np.zeros((2, 32, 4, 4), np.float32)
    wanted[:, 8:24] = x.numpy()[:, :, ::2, ::2]
    np.testing.assert_array_equal(found, wanted)


def test_mobilenet_pads_stride_two_as_tensorflow_does() -> None:
    block = models.mobilenet_v1(0.25).blocks[1]
    x = torch.rand((1, 16, 6, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = block.dw(block.pad(x)).numpy()[0]
    kernel, image = block.dw.weight.detach().numpy()[:, 0], np.pad(x.numpy()[0], ((0, 0), (0, 1), (0, 1)))
    # TensorFlow, size 6, stride 2, kernel 3: 3 outputs, one row of padding in all, and the odd one goes below.
    wanted = [[(image[:, i : i + 3, j : j + 3] * kernel).sum((1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(found, np.transpose(wanted, (2, 0, 1)), atol=1e-6)


def test_wrn_shortcut_takes_the_activated_input_where_the_width_changes() -> None:
    block = models.wrn(10, 2).block1.layer[0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
        x = torch.randn((2, 16, 4, 4), generator=torch.Generator().manual_seed(0))
        found = block(x)
        wanted = torch.einsum("oi,nihw->nohw", block.convShortcut.weight[:, :, 0, 0], block.bn1(x).clamp(min=0))
    torch.testing.assert_close(found, wanted)


def test_wrn_has_the_names_of_the_shared_checkpoints() -> None:
    names = set(models.wrn_16_1().state_dict())
    assert {"conv1.weight", "block1.layer.0.bn1.weight", "block2.layer.0.convShortcut.weight", "fc.bias"} <= names
    assert "block1.layer.0.convShortcut.weight" not in names  # 16 channels stay 16


@pytest.mark.parametrize(("depth", "width"), [(41, 2), (4, 1), (40, 0)])
def test_wrn_refuses_sizes_that_do_not_exist(depth: int, width: int) -> None:
    with raises_naming(TeacherError, f"WRN-{depth}-{width}", "6n + 4"):
        models.wrn(depth, width)
