"""The float graph computes what the model computes, in modules that the rest understands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import export_graph, float_graph
from dfqkit.students.nodes import REGRID, STRUCTURAL, op_name, tensor_shapes
from dfqkit.students.placement import plan
from dfqkit_export.backends import get_target
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming
from tests._toys import IMAGE, TOYS, Head, conv_bn, images, randomise, toy


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


class Net(nn.Module):
    """A body given as a function, between a stem and a head."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.body = body
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


def net(body: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    return randomise(Net(body, **modules))


def check(model: nn.Module, image: ImageSpec = IMAGE) -> fx.GraphModule:
    x = images(3, image=image)
    graph = float_graph(model, image)
    assert relative_error(graph(x), model(x)) < 1e-5
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in graph.modules())
    return graph


@pytest.mark.parametrize("name", TOYS)
def test_toys_keep_their_function_and_names(name: str) -> None:
    model = toy(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = check(model)
    weighted = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    found = {n for n, m in graph.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert weighted <= found
    assert found - weighted <= {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not {p.data_ptr() for p in graph.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_any_batch_size_works() -> None:
    model = toy("shuffle")
    graph = float_graph(model, IMAGE)
    for n in (1, 5, 32):
        assert relative_error(graph(images(n)), model(images(n))) < 1e-5


def test_batch_norm_after_a_convolution_is_folded_and_any_other_is_a_depthwise_convolution() -> None:
    graph = float_graph(toy("preactivation"), IMAGE)
    affine = {n: m for n, m in graph.named_modules() if getattr(m, "affine_norm", False)}
    assert set(affine) == {"norm1", "norm2"}
    assert all(m.groups == m.out_channels and m.kernel_size == (1, 1) for m in affine.values())
    assert not any(getattr(m, "affine_norm", False) for m in float_graph(toy("residual"), IMAGE).modules())


def test_silu_and_hardswish_become_gate_and_product() -> None:
    for name, gate in (("squeeze_excite", nn.Sigmoid), ("hard_gate", nn.Hardsigmoid)):
        graph = float_graph(toy(name), IMAGE)
        assert any(isinstance(m, gate) for m in graph.modules())
        assert not any(isinstance(m, nn.SiLU | nn.Hardswish) for m in graph.modules())


def scaled_sum(m: Net, x: Tensor) -> Tensor:
    return torch.add(x, m.other(x), alpha=-2.0)


def reused_in_place(m: Net, x: Tensor) -> Tensor:
    y = torch.relu_(x)
    return y + x


def shared_layer(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.other(m.norm(m.other(x))))


def shared_weight(m: Net, x: Tensor) -> Tensor:
    wide = nn.functional.conv2d(x, m.other.weight, m.other.bias, padding=2, dilation=2)
    return m.other(x) + wide


def batch_arithmetic(m: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return m.other(x.reshape(n * 2, c // 2, h, w).relu().reshape(n, c, h, w))


def norm_used_twice(m: Net, x: Tensor) -> Tensor:
    y = m.other(x)
    return m.norm(y) + y


def slices_written(m: Net, x: Tensor) -> Tensor:
    y = m.norm(m.other(x))
    y[:, 0] = 0
    y[:, 1:2].mul_(2)
    kept = y.flatten(1).clone()
    return y.clamp_(0) + kept.mean()


def used_after_in_place(m: Net, x: Tensor) -> Tensor:
    y = m.norm(m.other(x))
    return nn.functional.elu_(y) * y


def grad_islands(m: Net, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(True):
        y = m.norm(m.other(x))
    with torch.no_grad():
        return m.other(y)


def autocast_islands(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m.norm(m.other(x.float()))
    with torch.autocast("cuda", dtype=torch.float16):  # says nothing on another device
        return y + m.other(x)


def batch_as_numbers(m: Net, x: Tensor) -> Tensor:
    n = int(x.shape[0])
    y = x.reshape(n * 2, 4, 16, 16).relu().reshape(len(x), 8, 16, 16)
    row = m.norm.bias.view(1, 8, 1, 1).expand(n, 8, 1, 16)
    return m.other(torch.cat([row, y], 2)) + torch.arange(n - 1, n).view(-1, 1, 1, 1) * 0


BODIES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "add with alpha": scaled_sum,
    "in place, then used again": reused_in_place,
    "layer called twice": shared_layer,
    "weight with two dilations": shared_weight,
    "arithmetic on the batch size": batch_arithmetic,
    "batch norm beside its input": norm_used_twice,
    "slices written to": slices_written,
    "in place, then read": used_after_in_place,
    "input written to": lambda m, x: x.sub_(1.0) * x,
    "LeakyReLU in place": lambda m, x: nn.functional.leaky_relu(m.norm(m.other(x)), 0.1, inplace=True),
    "grad islands": grad_islands,
    "autocast islands": autocast_islands,
    "batch size as a number": batch_as_numbers,
    "mean of everything": lambda m, x: x * x.mean(),
    "constant": lambda m, x: x * 0.5 + 1.0,
    "weight of the image's own": lambda m, x: nn.functional.conv2d(x, m.other.weight * x.mean()),
    "average pool": lambda m, x: nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool over the border": lambda m, x: nn.functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True)[:, :, :8, :8],
    "average pool with a divisor": lambda m, x: nn.functional.avg_pool2d(x, 2, divisor_override=3),
    "uneven adaptive pool": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (5, 7)),
    "max pool": lambda m, x: nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "adaptive pool": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (4, 8)),
    "hardtanh": lambda m, x: nn.functional.hardtanh(m.other(x), -2.0, 3.0),
}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("name", BODIES)
def test_constructions(name: str) -> None:
    check(net(BODIES[name], other=nn.Conv2d(8, 8, 3, padding=1), norm=nn.BatchNorm2d(8)))


def test_a_layer_called_twice_stays_one_layer() -> None:
    graph = float_graph(net(shared_layer, other=nn.Conv2d(8, 8, 3, padding=1), norm=nn.BatchNorm2d(8)), IMAGE)
    calls = [n for n in graph.graph.nodes if n.op == "call_module" and n.target == "other"]
    assert len(calls) == 2


def test_module_names_never_clash() -> None:
    model = net(lambda m, x: m.relu_1(torch.relu(m.quant(torch.relu(x)))), relu_1=conv_bn(8, 8), quant=conv_bn(8, 8))
    graph = check(model)
    assert isinstance(graph.get_submodule("model_quant.0"), nn.Conv2d)
    assert isinstance(graph.get_submodule("relu_1.0"), nn.Conv2d)


def test_joining_a_single_tensor_is_nothing() -> None:
    graph = check(net(lambda m, x: torch.cat([m.other(torch.cat([x], 1)), x], 1)[:, :8], other=conv_bn(8, 8)))
    assert len([n for n in graph.graph.nodes if n.target is torch.cat]) == 1


def test_linear_with_batch_norm_is_folded() -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = conv_bn(3, 8), nn.AdaptiveAvgPool2d(1)
            self.hidden, self.norm, self.fc = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, IMAGE.classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.norm(self.hidden(self.pool(self.conv(x)).flatten(1)))))

    check(randomise(Mlp()))


def data_dependent(m: Net, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def test_control_flow_on_values_is_refused_with_the_line() -> None:
    with raises_naming(TeacherError, "test_capture.py", "in data_dependent", "if x.sum() > 0"):
        export_graph(net(data_dependent), IMAGE)


def low_precision(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.other(x).float()


def branch_operator(m: Net, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: m.other(x), lambda x: -m.other(x), (x,))  # type: ignore[no-any-return]


def loop_over_the_batch(m: Net, x: Tensor) -> Tensor:
    return torch.stack([image * 2 for image in x])


def other_for_one(m: Net, x: Tensor) -> Tensor:
    return x if x.shape[0] != 1 else x * 2


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (low_precision, ("bfloat16", "enabled=False", "test_capture.py")),
        (branch_operator, ("'cond'", "torch.where", "test_capture.py")),
        (loop_over_the_batch, ("batch size a constant", "in loop_over_the_batch", "loop over the images")),
        (other_for_one, ("on 1 random image", "treats this one apart")),
    ],
)
def test_what_no_graph_holds_is_refused_in_words(body: Callable[[Net, Tensor], Tensor], told: tuple[str, ...]) -> None:
    with raises_naming(TeacherError, *told):
        float_graph(net(body, other=nn.Conv2d(8, 8, 3, padding=1)), IMAGE)


def test_an_axis_that_the_batch_alone_has_is_not_squeezed_out() -> None:
    model = net(lambda m, x: m.other(x.mean((2, 3), keepdim=True).squeeze().view(-1, 8, 1, 1)), other=conv_bn(8, 8))
    graph = check(model)
    assert graph(images(1)).shape == (1, IMAGE.classes)


def test_in_place_operators_alone_change_nothing_in_the_graph() -> None:
    def plain(m: Net, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(m.other(x), 0.1).flatten(1)[:, :, None, None]

    def in_place(m: Net, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu_(m.other(x), 0.1).flatten(1)[:, :, None, None]

    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(self, self.stem(x)).flatten(1)[:, : IMAGE.classes]

    found = [str(float_graph(randomise(Flat(b, other=conv_bn(8, 8))), IMAGE).graph) for b in (plain, in_place)]
    assert found[0] == found[1]


def test_the_model_keeps_its_mode() -> None:
    model = toy("residual").train()
    model.stem.eval()
    before = [module.training for module in model.modules()]
    float_graph(model, IMAGE)
    assert [module.training for module in model.modules()] == before


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "no running statistics": (
        net(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(8, track_running_stats=False)),
        "no running statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(TeacherError, match=message):
        float_graph(model, IMAGE)


def test_the_global_random_state_is_left_alone() -> None:
    model = toy("preactivation")
    before = torch.get_rng_state()
    float_graph(model, IMAGE)
    assert torch.equal(before, torch.get_rng_state())


class Windows(nn.Module):
    """Attention with further axes between the image's and the tokens', or with none."""

    def __init__(
        self, axes: tuple[int, ...], mask: tuple[int, ...] | None, key_heads: int | None, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.causal = causal
        self.stem, self.head, self.axes, self.key_heads = conv_bn(3, 8), Head(8), axes, key_heads
        self.mask = None if mask is None else nn.Buffer(torch.randn(mask, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q = x.reshape(-1, *self.axes)
        k = q.flip(-1)[:, : self.key_heads]
        found = scaled_dot_product_attention(q, k, 2 * k, self.mask, is_causal=self.causal, scale=0.7)
        return self.head(x + found.reshape(x.shape))


@pytest.mark.parametrize(
    ("axes", "mask", "key_heads"),
    [
        ((2, 4, 16, 16), None, None),
        ((2, 4, 16, 16), (1, 2, 4, 16, 16), None),
        ((2, 4, 16, 16), (4, 16, 16), None),
        ((2, 4, 16, 16), (16, 16), None),
        ((2, 4, 16, 16), None, 1),
        ((128, 16), (1, 128, 128), None),
    ],
)
def test_attention_is_two_products_which_may_be_on_codes(
    axes: tuple[int, ...], mask: tuple[int, ...] | None, key_heads: int | None
) -> None:
    graph = check(randomise(Windows(axes, mask, key_heads)))
    assert [op_name(n.target) for n in graph.graph.nodes].count("matmul") == 2
    products = [n for n in graph.graph.nodes if n.target is torch.matmul]
    decided = plan(graph, QuantConfig(), get_target("onnxruntime"), IMAGE)
    assert {n.name for product in products for n in map(_through_moves, product.all_input_nodes)} <= set(
        decided.activations
    )


def _through_moves(node: fx.Node) -> fx.Node:
    return _through_moves(node.all_input_nodes[0]) if op_name(node.target) in STRUCTURAL | REGRID else node


def test_attention_that_stays_one_operator_has_four_axes_which_files_hold() -> None:
    graph = check(randomise(Windows((2, 4, 16, 16), None, None, causal=True)))
    attention = next(n for n in graph.graph.nodes if op_name(n.target) == "scaled_dot_product_attention")
    shapes = tensor_shapes(graph, images(2))
    assert {len(shapes[node]) for node in attention.all_input_nodes} == {4}


def test_op_names() -> None:
    assert op_name(torch.ops.aten.add_.Tensor) == "add_"
    assert op_name(torch.cat) == "cat"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x1_0",
        "densenet121",
        "efficientnet_b0",
        "regnet_y_400mf",
        "convnext_tiny",
    ],
)
def test_torchvision_models_keep_their_function(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    image = ImageSpec(shape=(3, 64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10)
    with torch.random.fork_rng(devices=[]):
        model = randomise(torchvision.models.get_model(name, weights=None, num_classes=10))
    check(model, image)
