"""An `fx` graph that is built while it is tried: every call runs on two batches, and what differs follows the batch.

What belongs here: values and how calls on them become nodes. Arithmetic on shapes needs no rules of its own so: it is
computed for both batches, and a number that is the same in both is a constant. What calls are made is said by the
modules beside this one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.folding import add_buffer, add_submodule
from dfqkit.students.inputs import split
from dfqkit.students.naming import unique
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec

#: The two batches; one image alone would hide which axes follow it.
TRIED = (2, 3)

_WEIGHT_ENDINGS = re.compile(r"([./](weight|kernel|gamma|scale|W)|[._]w_0)(:0)?$")


@dataclass(frozen=True, eq=False)
class Value:
    """What a tensor of the file is.

    Attributes:
        examples: What it is for a batch of each of `TRIED`.
        node: The node that computes it from the image; None where it is known without: a constant, or what follows from
            the size of the batch alone.
        name: What the file calls it.
    """

    examples: tuple[Tensor, Tensor]
    node: fx.Node | None = None
    name: str = ""

    @property
    def constant(self) -> Tensor | None:
        """Its value, where that depends on nothing."""
        one, other = self.examples
        if self.node is None and (one is other or (one.shape == other.shape and torch.equal(one, other))):
            return one
        return None

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return self.examples[0].dim()

    @property
    def moving(self) -> tuple[int, ...]:
        """The axes whose size follows the batch."""
        one, other = (each.shape for each in self.examples)
        return tuple(axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)

    def sizes(self) -> list[int | Size]:
        """Return its shape."""
        one, other = (each.shape for each in self.examples)
        return [size_of(a, b) for a, b in zip(one, other, strict=True)]

    def at(self, batch: int) -> list[int]:
        """Return its shape for a batch of another size."""
        return [size if isinstance(size, int) else size.at(batch) for size in self.sizes()]


@dataclass(frozen=True)
class Size:
    """A whole number that follows the batch: what it is for each of `TRIED`."""

    first: int
    second: int

    @property
    def factor(self) -> int:
        """By how much it grows an image."""
        return (self.second - self.first) // (TRIED[1] - TRIED[0])

    @property
    def rest(self) -> int:
        """What it is without any image."""
        return self.first - self.factor * TRIED[0]

    def at(self, batch: int) -> int:
        """Return what it is for a batch of another size."""
        return self.factor * batch + self.rest


def size_of(first: int, second: int) -> int | Size:
    """Return the number where both are the same, else that which follows the batch."""
    return int(first) if first == second else Size(int(first), int(second))


def known(value: Tensor, name: str = "") -> Value:
    """Return a constant."""
    return Value((value, value), None, name)


class Building:
    """The graph under construction.

    Args:
        image: What images it takes.
        batch: How many the file takes at once; None for any number.
        names: Names of its inputs, where the image has none.

    Attributes:
        inputs: What goes in, by name.
    """

    def __init__(self, image: ImageSpec, batch: int | None, names: Sequence[str] = ("image",)) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.batch = batch or 1
        self.fixed = batch is not None
        rng = torch.Generator().manual_seed(0)
        images = image.normalize(torch.rand((max(TRIED), *image.shape), generator=rng))
        examples = [split(images[:size], image) for size in TRIED]
        self.inputs = {
            name: Value((one, other), self.graph.placeholder(_identifier(f"input_{name}" if image.inputs else "image")))
            for name, one, other in zip([entry.name for entry in image.inputs] or names, *examples, strict=True)
        }
        first = next((entry.name for entry in image.inputs if entry.shape is None), names[0])
        self._image: Any = self.inputs[first].node
        self._numbers: dict[tuple[int, int], fx.Node] = {}
        self._layers: dict[tuple[Any, ...], str] = {}
        self._paths: set[str] = set()
        self._holders: set[str] = set()
        self._stored: dict[int, tuple[Tensor, str]] = {}

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Return what a function gives of values, sizes, and plain arguments.

        It becomes a node where it reads the image, or makes a tensor whose shape follows the batch.
        """
        (found,) = self.several(function, *args, **kwargs)
        return found

    def several(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Value, ...]:
        """Return all that a function gives, as `call` does."""
        found = [self._tried(function, (args, kwargs), which) for which in (0, 1)]
        emit = lambda: self.graph.call_function(function, self._nodes(args), self._nodes(kwargs))  # noqa: E731
        return self._result(found, emit, reads=_reads((args, kwargs)))

    def layer(self, node: Operator, module: nn.Module, *args: Any) -> Value:
        """Return what a layer gives; it stands at a path named after its weight, or after the node.

        Called with the same parameters again it is the same layer.
        """
        (found,) = self.layers(node, module, *args)
        return found

    def layers(self, node: Operator, module: nn.Module, *args: Any) -> tuple[Value, ...]:
        """Return all that a layer gives, as `layer` does."""
        key = (node.inputs[1:], repr(module), node.kind)
        if key not in self._layers:
            self._layers[key] = self._free(layer_path(node))
            add_submodule(self.root, self._layers[key], module.eval().requires_grad_(False))
        path = self._layers[key]
        held = self.root.get_submodule(path)
        found = [self._tried(held, (args, {}), which) for which in (0, 1)]
        return self._result(found, lambda: self.graph.call_module(path, self._nodes(args)), reads=_reads((args, {})))

    def finish(self, outputs: dict[str, Value]) -> fx.GraphModule:
        """Return the module, which gives its outputs by name, or alone where there is one."""
        made = {name: self._nodes(value) for name, value in outputs.items()}
        self.graph.output(made if len(made) > 1 else next(iter(made.values())))
        graph = fx.GraphModule(self.root, self.graph, class_name="OnnxGraph")
        graph.graph.eliminate_dead_code()
        graph.delete_all_unused_submodules()
        graph.graph.lint()
        graph.recompile()
        return graph.eval()

    def _tried(self, function: Callable[..., Any], given: Any, which: int) -> Any:
        args, kwargs = _mapped(given, lambda each: each.examples[which], lambda each: (each.first, each.second)[which])
        with torch.no_grad():
            return function(*args, **kwargs)

    def _result(self, found: Sequence[Any], emit: Callable[[], fx.Node], *, reads: bool) -> tuple[Value, ...]:
        one, other = found
        several = isinstance(one, tuple | list)
        pairs = list(zip(one, other, strict=True)) if several else [(one, other)]
        if not reads and all(a.shape == b.shape for a, b in pairs):
            made = [Value(pair) for pair in pairs]
        else:
            node = emit()
            nodes = [self.graph.call_function(operator.getitem, (node, i)) for i in range(len(pairs))]
            made = [Value(pair, each) for pair, each in zip(pairs, nodes if several else [node], strict=not several)]
        return tuple(made)

    def _nodes(self, given: Any) -> Any:
        return _mapped(given, self._node, self._number)

    def _node(self, value: Value) -> fx.Node:
        if value.node is not None:
            return value.node
        constant = value.constant
        if constant is None:
            message = "it computes with the number of images in a batch"
            raise TeacherError(message)
        if id(constant) not in self._stored:
            path = add_buffer(self.root, "", _identifier(f"constant_{value.name or len(self._stored)}"), constant)
            self._stored[id(constant)] = (constant, path)  # kept, so that its id stays its own
        return self.graph.get_attr(self._stored[id(constant)][1])

    def _number(self, size: Size) -> fx.Node:
        key = (size.factor, size.rest)
        if size.at(TRIED[1]) != size.second:
            message = f"a size is {size.first} for {TRIED[0]} images and {size.second} for {TRIED[1]}"
            raise TeacherError(message)
        if key not in self._numbers:
            if key == (1, 0):
                made = self.graph.call_function(torch.ops.aten.sym_size.int, (self._image, 0))
            elif key[1]:
                made = self.graph.call_function(operator.add, (self._scaled(key[0]), key[1]))
            else:
                made = self.graph.call_function(operator.mul, (self._scaled(1), key[0]))
            self._numbers[key] = made
        return self._numbers[key]

    def _scaled(self, factor: int) -> fx.Node:
        return self._number(Size(factor * TRIED[0], factor * TRIED[1]))

    def _free(self, path: str) -> str:
        """Return a path at which, above which and below which no layer stands."""
        count, candidate = 0, path
        while (
            candidate in self._paths or candidate in self._holders or any(p in self._paths for p in _above(candidate))
        ):
            count += 1
            candidate = f"{path.replace('.', '_') if count > 1 else path}_{count}"
        self._paths.add(candidate)
        self._holders.update(_above(candidate))
        return candidate


def layer_path(node: Operator) -> str:
    """Return the path of a node's layer: that of its weight where its name has one, else the node's own name."""
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    base = _WEIGHT_ENDINGS.sub("", weight)
    if base == weight:
        base = node.name
    parts = [_identifier(part).strip("_") for part in re.split(r"[./:]+", base)]
    return ".".join(filter(None, parts)) or node.kind.lower()


def refuse(node: Operator, what: str, todo: str) -> TeacherError:
    """Return the error of a node that cannot be taken over."""
    return TeacherError(f"{node.told[0].upper()}{node.told[1:]} {what}. {todo}")


def _identifier(text: str) -> str:
    plain = re.sub(r"\W", "_", text, flags=re.ASCII)
    return plain if plain != "quant" else unique(plain, {plain})


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _reads(given: Any) -> bool:
    """Return whether any value among arguments is computed from the image."""
    found: list[bool] = []
    _mapped(given, lambda each: found.append(each.node is not None), lambda _: None)
    return any(found)


def _mapped(given: Any, of_value: Callable[[Value], Any], of_size: Callable[[Size], Any]) -> Any:
    """Return arguments with another thing in the place of each value and size."""
    if isinstance(given, Value):
        return of_value(given)
    if isinstance(given, Size):
        return of_size(given)
    if isinstance(given, tuple | list):
        return type(given)(_mapped(each, of_value, of_size) for each in given)
    if isinstance(given, dict):
        return {key: _mapped(each, of_value, of_size) for key, each in given.items()}
    if isinstance(given, slice):
        ends = (given.start, given.stop, given.step)
        return slice(*(_mapped(each, of_value, of_size) for each in ends))
    return given
