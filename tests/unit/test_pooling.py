"""Average pooling computes the same in torch, in the ONNX file, and in the runtime's integer kernels."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.pooling import AveragePool, adaptive_matrix
from dfqkit.students.student import build_student, calibrate_student
from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET
from dfqkit_export.backends.opening import open_session
from dfqkit_export.images.spec import ImageSpec
from tests._toys import Head, conv_bn, images, randomise

SIZES = list(itertools.product((5, 6, 7, 8), (6, 9)))


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (4, 3)])
@pytest.mark.parametrize("stride", [(2, 2), (3, 1), (3, 3)])
def test_windows_at_borders_are_those_of_torch(kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    for size, padding, ceil, include, divisor in itertools.product(
        SIZES, ((0, 0), (1, 1), (1, 0)), (False, True), (False, True), (None, 3)
    ):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        pool = AveragePool(kernel=kernel, stride=stride, padding=padding, ceil=ceil, include=include).on(size, divisor)
        found = pool.module()(nn.functional.pad(x, pool.zeros)) * pool.factor
        torch.testing.assert_close(found, nn.functional.avg_pool2d(x, kernel, stride, padding, ceil, include, divisor))


def test_adaptive_windows_are_those_of_torch() -> None:
    for size, wanted in itertools.product(range(3, 12), range(2, 9)):
        x = torch.randn(1, 1, size, size + 1, generator=torch.Generator().manual_seed(0))
        found = adaptive_matrix(size, wanted) @ x @ adaptive_matrix(size + 1, wanted).T
        torch.testing.assert_close(found, nn.functional.adaptive_avg_pool2d(x, wanted))


IMAGE = ImageSpec(shape=(3, 13, 13), mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3), classes=5)


class Pooled(nn.Module):
    """Poolings whose windows hang over the border, between layers."""

    def __init__(self, padding: int, *, include: bool) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 8), Head(8)
        self.pool = nn.AvgPool2d(3 if padding else 2, 2, padding, ceil_mode=True, count_include_pad=include)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.pool(self.pool(torch.relu(self.stem(x)))))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("padding", "include"),
    [pytest.param(0, True, marks=pytest.mark.slow), (1, True), pytest.param(1, False, marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_the_file_and_its_integer_kernels_pool_as_torch_does(tmp_path: Path, padding: int, *, include: bool) -> None:
    model, x = randomise(Pooled(padding, include=include)), images(4, image=IMAGE)
    graph, path = float_graph(model, IMAGE), tmp_path / "float.onnx"
    write_float(graph, path, metadata={})
    theirs = torch.from_numpy(open_session(DEFAULT.name, path, threads=1).run(x.numpy()))
    torch.testing.assert_close(theirs, model(x), rtol=1e-4, atol=1e-4)
    quantized = build_student(graph, QuantConfig(), DEFAULT_TARGET, IMAGE)
    calibrate_student(quantized, [x], QuantConfig(), IMAGE)
    freeze(quantized)
    write_qdq(quantized, DEFAULT_TARGET, path, metadata={})
    theirs = torch.from_numpy(open_session(DEFAULT.name, path, threads=1).run(x.numpy()))
    assert float((theirs - quantized(x)).norm() / theirs.norm()) < 0.02
    assert float((theirs - model(x)).norm() / theirs.norm()) < 0.1
