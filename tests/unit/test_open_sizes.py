"""Files that leave height and width open: they are what the network is at another size, or it is said why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dfqkit
from dfqkit.cli import main as cli
from dfqkit.run.open_sizes import open_axes
from dfqkit.students.capture import float_graph
from dfqkit.students.naming import OPEN_AXES
from dfqkit.students.onnx_file import float_model
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import TeacherError
from dfqkit_export.tasks import task_of
from tests._onnx_files import file, op, weights
from tests._task_nets import UNet

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
SMALL = {
    "bank": {"calibration": 16, "held_out": 8, "grading": 16, "batch": 8},
    "validate": {"latency_repeats": 0},
}
CALL: dict[str, Any] = {"task": "generic", "method": "procedural", "target": "onnxruntime-avx2", "options": SMALL}
LARGER = (48, 80)


def spec(**more: Any) -> dfqkit.ImageSpec:
    return dfqkit.ImageSpec(shape=(3, 16, 24), mean=MEAN, std=STD, **more)


def pixels(image: dfqkit.ImageSpec) -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, *LARGER)).astype(np.float32)
    return image.normalize(codes / np.float32(255))


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean()))


def told(model: onnx.ModelProto) -> list[list[int | str]]:
    values = (*model.graph.input, *model.graph.output)
    return [[size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] for value in values]


@pytest.mark.parametrize("more", [{}, {"layout": "NHWC", "dtype": "uint8"}])
def test_a_network_of_torch_is_left_open_where_that_is_asked_for(more: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, image = UNet(), spec(dynamic=True, **more)
    result = dfqkit.quantize(network, image=image, out=tmp_path / "run", **CALL)
    sizes = ["N", "height", "width", 3] if more else ["N", 3, "height", "width"]
    assert told(onnx.load(result.model))[0] == sizes
    x = pixels(image)
    wanted = network.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(OrtSession(tmp_path / "run" / "teacher.onnx").run(x), wanted, atol=1e-4)
    assert sqnr(wanted, OrtSession(result.model).run(x)) > 25
    assert cli(["inspect", str(result.model)]) == 0
    assert cli(["bundle", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0


class Viewed(nn.Module):
    """A layer over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 8 * 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).flatten(1))


class Placed(nn.Module):
    """What lies at each position depends on where that is, by numbers that follow from the size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + torch.linspace(0, 1, x.shape[3])


class Resized(nn.Module):
    """A small U-Net: what lies deeper is brought to the size of what it is joined with."""

    def __init__(self, **way: Any) -> None:
        super().__init__()
        self.first, self.deep, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.first(x))
        deep = torch.relu(self.deep(seen))
        way = self.way or {"size": seen.shape[-2:]}
        return self.last(torch.cat([seen, functional.interpolate(deep, **way)], 1))


def test_a_scale_in_place_of_a_size_is_the_same_network_and_stays_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = spec(dynamic=True)
    teacher = Teacher.from_module(Resized(scale_factor=2).eval(), image, task=task_of({"name": "generic"}))
    graph = float_graph(teacher.model, image, teacher.task)
    graph.meta[OPEN_AXES] = open_axes(teacher, graph, 17)
    onnx.save(float_model(graph, 17), tmp_path / "open.onnx")
    sized = Resized().eval()
    sized.load_state_dict(teacher.model.state_dict())
    for size in ((16, 24), LARGER):
        x = torch.rand(2, 3, *size)
        np.testing.assert_allclose(
            OrtSession(tmp_path / "open.onnx").run(x.numpy()), sized(x).detach().numpy(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Viewed, "at "),
        (Placed, "numbers that follow from the size"),
        (
            Resized,
            r"'upsample_nearest2d' at .*interpolate\(deep.* takes \[80, 152\], and \[16, 24\] here.*scale_factor",
        ),
    ],
)
def test_a_network_of_one_size_is_refused_before_anything_is_made(
    network: type[nn.Module], why: str, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=rf"cannot stay open, but are 16 x 24, since.*{why}.*Leave image\.dynamic"):
        dfqkit.quantize(network(), image=spec(dynamic=True), out=tmp_path / "run", **CALL)
    assert not list((tmp_path / "run").glob("images/*"))


def net(path: Path, *more: onnx.NodeProto, high: int | str = "high") -> Path:
    nodes = [op("Conv", "x w", "c", pads=[1, 1, 1, 1]), op("Relu", "c", "r"), *more]
    stored = {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 3, 3, seed=1)}
    stored |= {"s": np.float32([1, 1, 2, 2]), "e": np.zeros(0, np.float32)}
    return file(path, nodes, stored, shape=("n", 3, high, "wide"))


@pytest.mark.parametrize("high", ["high", 16])
def test_a_file_that_leaves_them_open_has_a_student_that_does(high: int | str, tmp_path: Path) -> None:
    up = (op("Resize", "r e s", "u", mode="nearest"), op("Conv", "u v", "d"), op("Relu", "d", "y"))
    path = net(tmp_path / "net.onnx", *up, high=high)
    result = dfqkit.quantize(f"onnx:{path}", image=spec(), out=tmp_path / "run", **CALL)
    assert told(onnx.load(result.model))[0] == ["n", 3, high, "wide"]
    x = pixels(spec())[:, :, : high if isinstance(high, int) else None]
    (wanted,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(OrtSession(tmp_path / "run" / "teacher.onnx").run(x), wanted, rtol=1e-3, atol=1e-4)
    assert sqnr(wanted, OrtSession(result.model).run(x)) > 25


def test_a_file_whose_translation_holds_sizes_has_a_student_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = (op("Shape", "r", "a"), op("Reshape", "r a", "b"), op("MatMul", "b m", "y"))
    path = net(tmp_path / "net.onnx", *turned)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights(24, 24), "m"))
    onnx.save(model, path)
    result = dfqkit.quantize(f"onnx:{path}", image=spec(), out=tmp_path / "run", **CALL)
    assert told(onnx.load(result.model))[0] == ["n", 3, 16, 24]
    assert "cannot stay open, but are 16 x 24" in caplog.text
