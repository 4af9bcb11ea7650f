"""The normal form of a captured graph: modules and functions that quantizer, equalizer and ONNX writer understand.

What belongs here: the translation of ATen operators, one method an operator family. Capturing is `capture`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.folding import Affine, add_submodule
from dfqkit.students.functional import IDENTITIES
from dfqkit.students.inputs import is_part
from dfqkit.students.nodes import op_name, source, tensor_at
from dfqkit.students.pooling import AveragePool, adaptive_matrix
from dfqkit.students.user_code import at, place_of_node
from dfqkit.students.weighted import ONE_AXIS, OPERATORS, arguments, is_layer, make_layer, operands
from dfqkit.tasks import placed
from dfqkit_export.errors import TeacherError

_OPS = (
    "conv2d conv1d linear matmul mm batch_norm relu relu_ hardtanh hardtanh_ relu6 silu silu_ hardswish hardswish_ "
    "hardsigmoid hardsigmoid_ sigmoid sigmoid_ add add_ mul mul_ cat max_pool2d avg_pool2d adaptive_avg_pool2d mean "
    "flatten view reshape reshape_as view_as permute transpose contiguous slice select pad constant_pad_nd chunk "
    "split getitem dropout dropout_ sym_size unsqueeze squeeze clone alias detach detach_ feature_dropout "
    "alpha_dropout"
)

#: Operators of the normal form that may carry quantized values; anything else runs, but stays in float.
SUPPORTED_OPS: frozenset[str] = frozenset(_OPS.split())

#: Norms that may have stored statistics: channels scaled and shifted.
_NORMS = ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
_NORM = ("weight", "bias", "running_mean", "running_var")


def _owners(model: nn.Module) -> set[str]:
    """Paths of all modules that hold parameters or buffers, and of what these lie in."""
    paths = (name.split(".")[:-1] for name in model.state_dict())
    return {".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}


def _two(value: Any) -> tuple[int, ...]:
    """Return a size for each of two axes; nothing of nothing."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) * (2 if len(value) == 1 else 1)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


class Normaliser:
    """Rebuilds an exported graph node by node. One method an operator family.

    The outputs of the given names are kept; a tuple gives them in that order. The rebuilt graph returns
    one as it is, several as a mapping; its output node has the names as ``meta["outputs"]``.
    """

    def __init__(self, source: fx.GraphModule, outputs: Sequence[str]) -> None:
        self.source, self.outputs = source, list(outputs)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.named: dict[str, str] = {}  # weight and options -> module: a layer called twice stays one layer
        self.used: set[str] = set()
        self.reserved = _owners(source)
        self.parameters = dict(source.named_parameters(remove_duplicate=False))

    def build(self) -> fx.GraphModule:
        """Return the rebuilt graph; BatchNorms are modules of their own in it."""
        for node in self.source.graph.nodes:
            last = next(reversed(self.graph.nodes), None)
            if node.op == "placeholder":
                self.env[node] = self.graph.placeholder("image")
                self.env[node].meta["example_shape"] = tuple(node.meta["val"].shape[1:])
            elif node.op == "output":
                self._output(node)
            elif node.op == "call_function":
                self.env[node] = self._convert(node)
            elif node.op != "get_attr" and not (node.op == "call_module" and "guards" in str(node.target)):
                message = f"Unexpected node '{node.name}' ({node.op} {node.target}) in the exported graph."
                raise TeacherError(message)
            self._note_place(node, last)
        return fx.GraphModule(self.root, self.graph)

    def _note_place(self, node: fx.Node, last: fx.Node | None) -> None:
        """Let the nodes made of one, those behind ``last``, know its line in the user's code."""
        made = next(reversed(self.graph.nodes), None)
        while made is not None and made is not last and made.op != "root":
            made.meta["stack_trace"] = node.meta.get("stack_trace")
            made = made.prev

    def _output(self, node: fx.Node) -> None:
        """Keep the named outputs: torch.export lays a tuple or mapping out as a list, with a mapping's names aside."""
        values = list(node.args[0]) if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
        spec: Any = getattr(getattr(self.source.graph._codegen, "pytree_info", None), "out_spec", None)
        mapping = isinstance(kind := getattr(spec, "type", None), type) and issubclass(kind, dict)
        keys: list[str] = spec.context if mapping else placed(self.outputs, len(values))
        if len(values) != len(keys) or not set(self.outputs) <= set(keys):
            message = (
                f"The model returns {len(values)} tensors{f' ({keys})' if mapping else ''}; needed are "
                f"{', '.join(self.outputs)}, in this order or by these names. Wrap it in a module that returns them."
            )
            raise TeacherError(message)
        found = dict(zip(keys, self._map(values), strict=True))
        result = {name: found[name] for name in self.outputs}
        kept = self.graph.output(result if len(result) > 1 else result[self.outputs[0]])
        kept.meta["outputs"] = tuple(self.outputs)

    def _convert(self, node: fx.Node) -> fx.Node:
        if node.target is operator.getitem and op_name(source(node).target) in _NORMS:
            return self._of(source(node))  # the decomposed form gives statistics beside the values
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._copy(node)  # arithmetic on sizes, which has the same names
        name = op_name(node.target).rstrip("_")
        handlers: dict[str, Callable[[fx.Node], fx.Node]] = {
            **dict.fromkeys(OPERATORS, self._weighted),
            **dict.fromkeys(_NORMS, self._batch_norm),
            "squeeze": self._squeeze,
            "max_pool2d": self._max_pool,
            "avg_pool2d": self._avg_pool,
            "adaptive_avg_pool2d": self._adaptive_pool,
            "mean": self._mean,
            "hardtanh": self._hardtanh,
            "add": self._add,
            "cat": self._cat,
            "reshape_as": self._reshape_as,
            "view_as": self._reshape_as,
            "scaled_dot_product_attention": self._attention,
        }
        functions: dict[str, Callable[..., Any]] = {
            "mul": torch.mul,
            "view": torch.reshape,
            "_unsafe_view": torch.reshape,
            "reshape": torch.reshape,
            "flatten": torch.flatten,
        }
        modules = {"relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}
        # x * gate(x) in two steps, so that both the gate and the product can be quantized
        gated: dict[str, type[nn.Module]] = {"silu": nn.Sigmoid, "hardswish": nn.Hardsigmoid}
        if name in IDENTITIES:
            return self._of(source(node))
        if name in modules:
            return self._module(node, modules[name](), name)
        if name in gated:
            gate = self._module(node, gated[name](), f"{name}_gate")
            return self.graph.call_function(torch.mul, (self._of(source(node)), gate))
        if name in functions:
            return self.graph.call_function(functions[name], self._map(node.args))
        return handlers.get(name, self._copy)(node)

    def _of(self, node: fx.Node) -> fx.Node:
        """Return what stands for a node of the source, and register the constant that it may be."""
        if node.op != "get_attr":
            return self.env[node]
        name = "constant_" + str(node.target).replace(".", "_")
        if not hasattr(self.root, name):
            self.root.register_buffer(name, self._stored(node))
        constant = self.graph.get_attr(name)
        constant.meta.update({"owner": node.meta["owner"]} if "owner" in node.meta else {})
        return constant

    def _map(self, value: Any) -> Any:
        return fx.map_arg(value, self._of)

    def _stored(self, node: fx.Node) -> Tensor:
        return tensor_at(self.source, node.target).detach().clone()

    def _tensor(self, node: object) -> Tensor | None:
        return self._stored(node) if isinstance(node, fx.Node) else None

    def _unique(self, base: str, *, generated: bool = True) -> str:
        if base.partition(".")[0] == "quant":
            base = f"model_{base}"  # `quant` holds the quantizers
        candidate, count = base, 0
        while candidate in self.used or (generated and candidate in self.reserved):
            count += 1
            candidate = f"{base}_{count}"
        self.used.add(candidate)
        return candidate

    def _module(self, node: fx.Node, module: nn.Module, name: str) -> fx.Node:
        target = self._unique(name)
        add_submodule(self.root, target, module)
        return self.graph.call_module(target, (self._of(source(node)),))

    def _weighted(self, node: fx.Node) -> fx.Node:
        """Make a layer, with the operators around it that give its input the axes which it wants."""
        if not is_layer(node):
            return self._copy(node)  # a weight that is computed from the image: no layer, but it runs
        x, weight, bias = operands(node)
        path, name = str(weight.target), op_name(node.target)
        rank = x.meta["val"].dim()
        # With two strides it is two layers, and so it is on vectors and on maps, and in another module (tied weights).
        options = [getattr(value, "target", value) for value in arguments(node).values() if value is not x]
        base = weight.meta.get("owner") or self._owner(node, path)
        key = f"{base} {name} {rank} {options}"
        if key not in self.named:
            self.named[key] = self._unique(base, generated=False)
            add_submodule(self.root, self.named[key], make_layer(node, self._stored(weight), self._tensor(bias)))
        before = self._of(x)
        if name in ONE_AXIS:
            before = self.graph.call_function(torch.unsqueeze, (before, 2))
            return self.graph.call_function(torch.squeeze, (self.graph.call_module(self.named[key], (before,)), 2))
        if weight.meta["val"].dim() > 2 or rank != 4:
            return self.graph.call_module(self.named[key], (before,))
        # Channels last: a 1x1 convolution between two permutations, most of which then cancel (`rewriting`).
        before = self.graph.call_function(torch.permute, (before, (0, 3, 1, 2)))
        layer = self.graph.call_module(self.named[key], (before,))
        return self.graph.call_function(torch.permute, (layer, (0, 2, 3, 1)))

    def _owner(self, node: fx.Node, path: str) -> str:
        """Return the path of the module that holds a weight: of several that share it, the one that is called."""
        if not path.endswith(".weight"):
            return path.replace(".", "_")
        place = str(next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0])
        held = self.parameters.get(f"{place}.weight")
        return place if held is not None and held is self.parameters.get(path) else path.removesuffix(".weight")

    def _batch_norm(self, node: fx.Node) -> fx.Node:
        """Make an `Affine` of a norm with stored statistics: channels are the second axis, whatever is behind."""
        given = arguments(node)
        weight, bias, mean, variance = (self._tensor(given[key]) for key in _NORM)
        if mean is None or variance is None or given.get("training") or given.get("use_input_stats"):
            if "use_input_stats" in given:
                return self._copy(node)  # instance norm treats every image alone
            message = (
                f"BatchNorm '{node.name}' has no running statistics or does not use them, but the batch's own, so it "
                "cannot be folded. Train the model with track_running_stats=True and pass it in eval mode, or replace "
                "the layer."
            )
            raise TeacherError(message)
        shape = (-1, *[1] * (source(node).meta["val"].dim() - 2))
        scale = (torch.ones_like(mean) if weight is None else weight) / torch.sqrt(variance + float(given["eps"]))
        shift = (torch.zeros_like(mean) if bias is None else bias) - mean * scale
        path = str(given["running_mean"].target)
        target = self._unique(path.removesuffix(".running_mean"), generated=False)
        add_submodule(self.root, target, Affine(scale.reshape(shape), shift.reshape(shape)))
        return self.graph.call_module(target, (self._of(source(node)),))

    def _squeeze(self, node: fx.Node) -> fx.Node:
        """Name the axes that a `squeeze()` without any takes out: of one image it would take the batch's too."""
        if len(node.args) > 1:
            return self._copy(node)
        sizes = source(node).meta["val"].shape
        axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        return self.graph.call_function(torch.ops.aten.squeeze.dims, (self._of(source(node)), axes))

    def _max_pool(self, node: fx.Node) -> fx.Node:
        kernel, stride, padding, dilation, ceil = (
            _pair(_argument(node, i, default)) for i, default in ((1, 1), (2, None), (3, 0), (4, 1), (5, False))
        )
        return self._module(node, nn.MaxPool2d(kernel, stride or kernel, padding, dilation, ceil_mode=ceil), "max_pool")

    def _avg_pool(self, node: fx.Node) -> fx.Node:
        kernel, stride, padding = (_two(_argument(node, i, default)) for i, default in ((1, 1), (2, ()), (3, 0)))
        ceil, include, divisor = (_argument(node, i, default) for i, default in ((4, False), (5, True), (6, None)))
        spatial = tuple(source(node).meta["val"].shape[2:])
        asked = AveragePool(kernel=kernel, stride=stride or kernel, padding=padding, ceil=ceil, include=include)
        pool = asked.on(spatial, divisor)
        if spatial == kernel and padding == (0, 0) and divisor is None:
            return self._module(node, nn.AdaptiveAvgPool2d(1), "global_pool")
        before = self._of(source(node))
        if any(pool.zeros):
            before = self.graph.call_function(torch.ops.aten.constant_pad_nd.default, (before, list(pool.zeros), 0.0))
        pooled = self._module(node, pool.module(), "avg_pool")
        pooled.args = (before,)
        return pooled if pool.factor == 1 else self.graph.call_function(torch.mul, (pooled, pool.factor))

    def _adaptive_pool(self, node: fx.Node) -> fx.Node:
        size, spatial = tuple(_argument(node, 1)), tuple(source(node).meta["val"].shape[2:])
        if size == (1, 1):
            return self._module(node, nn.AdaptiveAvgPool2d(1), "global_pool")
        if size == spatial:
            return self._of(source(node))
        if all(have % want == 0 for have, want in zip(spatial, size, strict=True)):
            kernel = _pair([have // want for have, want in zip(spatial, size, strict=True)])
            return self._module(node, nn.AvgPool2d(kernel, kernel), "avg_pool")
        # Windows of several sizes have no ONNX form; along each axis they are a matrix.
        like = source(node).meta["val"]
        rows, columns = (adaptive_matrix(*sizes).to(like.dtype) for sizes in zip(spatial, size, strict=True))
        value = self.graph.call_function(torch.matmul, (self._constant(node, rows), self._of(source(node))))
        return self.graph.call_function(torch.matmul, (value, self._constant(node, columns.T.contiguous())))

    def _constant(self, node: fx.Node, value: Tensor) -> fx.Node:
        """Store a tensor that a node is computed with."""
        name = self._unique(f"{node.name}_constant")
        self.root.register_buffer(name, value.to(node.meta["val"].device))
        return self.graph.get_attr(name)

    def _mean(self, node: fx.Node) -> fx.Node:
        rank, asked = source(node).meta["val"].dim(), _argument(node, 1)
        dims = sorted(dim % rank for dim in asked) if isinstance(asked, (list, tuple)) else []
        if rank != 4 or dims != [2, 3]:
            return self._copy(node)
        pooled = self._module(node, nn.AdaptiveAvgPool2d(1), "global_pool")
        return pooled if _argument(node, 2, False) else self.graph.call_function(torch.flatten, (pooled, 1))

    def _hardtanh(self, node: fx.Node) -> fx.Node:
        low, high = _argument(node, 1, -1.0), _argument(node, 2, 1.0)
        if (low, high) == (0, 6):
            return self._module(node, nn.ReLU6(), "relu6")
        return self._module(node, nn.Hardtanh(float(low), float(high)), "hardtanh")

    def _add(self, node: fx.Node) -> fx.Node:
        first, second = self._map(node.args[:2])
        if _argument(node, 2, 1) != 1:
            second = self.graph.call_function(torch.mul, (second, _argument(node, 2)))
        return self.graph.call_function(torch.add, (first, second))

    def _reshape_as(self, node: fx.Node) -> fx.Node:
        """Write the sizes that are numbers: the other tensor is read by one operator less."""
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if sizes.count(-1) > 1:
            return self._copy(node)
        return self.graph.call_function(torch.reshape, (self._of(source(node)), sizes))

    def _attention(self, node: fx.Node) -> fx.Node:
        """Write attention as two products with a softmax between them, each of which a target may compute on codes."""
        given = arguments(node)
        query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
        added = mask is None or mask.meta["val"].is_floating_point()
        if given["is_causal"] or given.get("enable_gqa") or not added:
            return self._four_axes(node)
        scale = query.meta["val"].shape[-1] ** -0.5 if given.get("scale") is None else given["scale"]
        call = self.graph.call_function
        products = call(torch.matmul, (self._of(query), call(torch.transpose, (self._of(key), -2, -1))))
        products = call(torch.mul, (products, scale))
        products = products if mask is None else call(torch.add, (products, self._of(mask)))
        return call(torch.matmul, (call(torch.softmax, (products, -1)), self._of(value)))

    def _four_axes(self, node: fx.Node) -> fx.Node:
        """Let attention see four axes, all that the exporter writes: those between the first and the last two are one.

        Every axis but the first must be a number; else the operator stays as it is.
        """
        given, kwargs = arguments(node), dict(node.kwargs)
        names = ("query", "key", "value", "attn_mask")
        shapes = {name: list(given[name].meta["val"].shape) for name in names if given[name] is not None}
        rank, heads = len(shapes["query"]), shapes["query"][1:-2]
        numbers = all(
            isinstance(size, int) for shape in (*shapes.values(), node.meta["val"].shape) for size in shape[1:]
        )
        if rank in (2, 4) or not numbers or max(map(len, shapes.values())) > rank:
            return self._copy(node)
        four: list[fx.Node | None] = []
        for name in names:
            kwargs.pop(name, None)
            if name not in shapes:
                four.append(None)
                continue
            sizes, value = [1] * (rank - len(shapes[name])) + shapes[name], self._of(given[name])
            own = sizes[1:-2]
            if set(own) - {1} and own != heads and (name == "attn_mask" or not given.get("enable_gqa")):
                value = self.graph.call_function(torch.reshape, (value, [-1, *sizes[1:]]))
                value = self.graph.call_function(torch.ops.aten.expand.default, (value, [-1, *heads, -1, -1]))
                own = heads
            four.append(self.graph.call_function(torch.reshape, (value, [-1, math.prod(own), *sizes[-2:]])))
        target: Any = node.target
        found = self.graph.call_function(target, (*four, *self._map(node.args[4:])), kwargs)
        return self.graph.call_function(torch.reshape, (found, [-1, *node.meta["val"].shape[1:]]))

    def _cat(self, node: fx.Node) -> fx.Node:
        parts: Any = node.args[0]
        if len(parts) == 1:  # DenseNet's first layers: no kernel runs it on codes
            return self._of(parts[0])
        return self.graph.call_function(torch.cat, self._map(node.args))

    def _copy(self, node: fx.Node) -> fx.Node:
        target = node.target
        if callable(target):
            given = (self._map(node.args), self._map(node.kwargs))
            name = str(node.args[1]) if is_part(node) else None
            return self.graph.create_node("call_function", target, *given, name=name)
        message = f"Unexpected operator '{target}' ('{node.name}'){at(place_of_node(node))} in the exported graph."
        raise TeacherError(message)


def _argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """Positional argument ``index`` of an ATen call, looking at keyword arguments and the operator's own default."""
    if index < len(node.args):
        return node.args[index]
    schema = getattr(node.target, "_schema", None)
    if schema is not None and index < len(schema.arguments):
        argument = schema.arguments[index]
        if argument.name in node.kwargs:
            return node.kwargs[argument.name]
    return default
