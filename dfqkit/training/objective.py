"""What a student is trained for: the weighted loss terms between its answers and features and those of a reference.

What belongs here: which terms there are, which layers they compare, where both sides are measured, and the projections
that make two layers comparable. The formulas are `losses`; the loops that minimise the sum are `quantized_student` and
`float_student`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dfqkit import losses
from dfqkit.config.distill import LayerPair, ObjectiveConfig
from dfqkit.students.inputs import is_input
from dfqkit.students.nodes import call_behind, source
from dfqkit.tasks import Tensors, TorchTask
from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean, some

Features = Mapping[str, Tensor]


class _Projection(nn.Module):
    """A linear map of channels, the same at every position: (N, C, ...) to (N, D, ...).

    The regressor of Romero et al. (2015), one pixel wide, its weights drawn from N(0, 1 / C). Only the student has one:
    two trained sides would meet at 0.
    """

    def __init__(self, channels: int, out: int, rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn((out, channels), generator=rng, device=rng.device) / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(out, device=rng.device))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight[..., None, None], self.bias)


class Objective(nn.Module):
    """The sum that one student minimises. Its parameters are the projections', none where all channels agree.

    Args:
        config: Weights and options.
        pairs: The layers that are compared; of no account where no term does.
        ours: An example of the student's features, by name; only their shapes are read.
        theirs: The same of the reference.
        rng: Draws the projections' weights.
        task: What the outputs mean.

    Raises:
        RecipeError: When two layers cannot be compared; says which, and their shapes.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        pairs: Sequence[LayerPair],
        ours: Features,
        theirs: Features,
        rng: torch.Generator,
        task: TorchTask,
    ) -> None:
        super().__init__()
        self.config, self.weights, self.task = config, config.weights, task
        #: Makes the energy of a share of a batch the mean over all shares, where several processes have one each.
        self.average: Callable[[Tensor], Tensor] = lambda energy: energy
        self.pairs = list(pairs) if config.weights.of_layers else []
        self.projections = nn.ModuleDict()
        self.maps: list[int] = []
        for index, pair in enumerate(self.pairs):
            mine, other = _feature(ours, pair.student, "student"), _feature(theirs, pair.teacher, "teacher")
            _require_comparable(pair, mine, other)
            if mine.dim() == other.dim() == 4:
                self.maps.append(index)
            elif config.layers and (config.weights.relation or config.weights.attention):
                terms = " and ".join(name for name in config.weights.of_layers if name != "feature")
                message = (
                    f"Layer '{pair.teacher}' gives {_shape(other)}, but {terms} compare(s) feature maps (N, C, H, W). "
                    "Leave it out of layers, or set the weight to 0."
                )
                raise RecipeError(message)
            projects = config.weights.feature or (config.weights.relation and index in self.maps)
            if projects and mine.shape[1] != other.shape[1]:
                self.projections[str(index)] = _Projection(mine.shape[1], other.shape[1], rng)
        if config.weights.relation and len(self.maps) < 2:
            message = (
                f"weights.relation compares consecutive feature maps; there are {len(self.maps)} here. Set it to 0."
            )
            raise RecipeError(message)

    @property
    def student_names(self) -> list[str]:
        """The student's layers that are read."""
        return list(dict.fromkeys(pair.student for pair in self.pairs))

    @property
    def teacher_names(self) -> list[str]:
        """The reference's layers that are read."""
        return list(dict.fromkeys(pair.teacher for pair in self.pairs))

    def terms(self, answer: Tensors, wanted: Tensors, ours: Features, theirs: Features) -> dict[str, Tensor]:
        """Return every term of a weight above 0, unweighted; features may be missing where no term reads them."""
        computed: dict[str, Callable[[], Tensor]] = {
            "response": lambda: self.task.distance(wanted, answer, self.config.temperature),
            "feature": lambda: torch.stack([self._error(*both) for both in self._projected(ours, theirs)]).mean(),
            "relation": lambda: self._relation(ours, theirs),
            "attention": lambda: torch.stack(
                [losses.attention(*self._features(index, ours, theirs)) for index in self.maps]
            ).mean(),
            "logit_l1": lambda: _over_outputs(losses.logit_l1, answer, wanted),
            "logit_mse": lambda: _over_outputs(losses.logit_mse, answer, wanted),
        }
        return {name: compute() for name, compute in computed.items() if getattr(self.weights, name)}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum, a scalar."""
        return torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()

    def _features(self, index: int, ours: Features, theirs: Features) -> tuple[Tensor, Tensor]:
        return ours[self.pairs[index].student], theirs[self.pairs[index].teacher]

    def _project(self, index: int, feature: Tensor) -> Tensor:
        if str(index) in self.projections:
            feature = self.projections[str(index)](feature)
        return feature

    def _projected(self, ours: Features, theirs: Features) -> Iterator[tuple[Tensor, Tensor]]:
        """Both features of every pair, of the same shape: the larger pooled to the smaller, then the channels."""
        for index in range(len(self.pairs)):
            mine, other = self._features(index, ours, theirs)
            if mine.shape != other.shape:
                mine, other = _pooled(mine, other)
                mine = self._project(index, mine)
            yield mine, other

    def _error(self, mine: Tensor, other: Tensor) -> Tensor:
        if self.config.hint == "mse":
            return losses.hint(mine, other)
        return losses.relative_error(mine, other, self.average)

    def _relation(self, ours: Features, theirs: Features) -> Tensor:
        both = [self._features(index, ours, theirs) for index in self.maps]
        mine = [self._project(index, feature) for index, (feature, _) in zip(self.maps, both, strict=True)]
        pairs = zip(pairwise(mine), pairwise(other for _, other in both), strict=True)
        return torch.stack([losses.fsp(*pair) for pair in pairs]).mean()


def _over_outputs(loss: Callable[[Tensor, Tensor], Tensor], answer: Tensors, wanted: Tensors) -> Tensor:
    """Return the mean of a term over all outputs."""
    return torch.stack([loss(answer[name], wanted[name]) for name in answer]).mean()


def require_names(names: Sequence[str], known: Collection[str], where: str, whose: str) -> None:
    """Refuse names of layers in a section (``where``) that are not among those ``known``, the layers of ``whose``."""
    for name in names:
        if name not in known:
            message = (
                f"{where}.layers names '{name}', but {whose} has no layer of that name."
                f"{did_you_mean(name, known, n=3, cutoff=0.5)} There are: {some(list(known), 12)}."
            )
            raise RecipeError(message)


def _feature(features: Features, name: str, side: str) -> Tensor:
    found = features.get(name)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2:
        what = "is never called" if found is None else f"gives {type(found).__name__}, not features (N, C, ...)"
        message = (
            f"Layer '{name}' of the {side} {what}. Name one whose result is a tensor, such as a block or activation."
        )
        raise RecipeError(message)
    return found


def _require_comparable(pair: LayerPair, mine: Tensor, other: Tensor) -> None:
    """Refuse two features that neither pooling nor a projection makes one shape."""
    if mine.shape != other.shape and not (mine.dim() == other.dim() and mine.dim() in (2, 4)):
        message = (
            f"Layer '{pair.teacher}' of the teacher gives {_shape(other)} and '{pair.student}' of the student "
            f"{_shape(mine)}, which cannot be compared: both must be (N, C, H, W), or both (N, C), or alike. Name two "
            "layers at the same depth."
        )
        raise RecipeError(message)


def _shape(feature: Tensor) -> str:
    return f"(N, {', '.join(str(size) for size in feature.shape[1:])})"


def _pooled(mine: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Feature maps averaged to the smaller of their heights and widths; vectors as they are."""
    if mine.dim() != 4 or mine.shape[2:] == other.shape[2:]:
        return mine, other
    size = (min(mine.shape[2], other.shape[2]), min(mine.shape[3], other.shape[3]))
    return F.adaptive_avg_pool2d(mine, size), F.adaptive_avg_pool2d(other, size)


def measuring_points(student: fx.GraphModule) -> list[str]:
    """Return names of the nodes that a student quantizes with a quantizer of their own, the input left out."""
    sources = [(node, source(node)) for node in student.graph.nodes if node.op == "call_module"]
    return [point.name for node, point in sources if node.target == f"quant.{point.name}" and not is_input(point)]


def reference_graph(graph: fx.GraphModule, points: Sequence[str]) -> fx.GraphModule:
    """Return a copy of a float graph with an identity module ``quant.n`` behind each node ``n`` of ``points``."""
    reference = copy.deepcopy(graph)
    nodes = {node.name: node for node in reference.graph.nodes}
    for name in points:
        reference.add_submodule(f"quant.{name}", nn.Identity())
        call_behind(nodes[name], f"quant.{name}")
    reference.recompile()
    return reference.requires_grad_(False).eval()
