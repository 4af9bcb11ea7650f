"""Context managers that read what a teacher computes, and leave nothing behind.

What belongs here: hooks with a lifetime. A tap is entered, one or several forwards run, it is left: all handles are
gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import Literal

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from dfqkit_export.errors import TeacherError

from .moments import can_join, channel_moments, normalised_with_moments


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """Statistics of the input of one BatchNorm layer, beside what training left in the layer.

    Attributes:
        name: the layer's module path.
        mean: (C,) over batch and positions, with gradient.
        variance: (C,), biased, with gradient.
        running_mean: (C,) of the layer.
        running_variance: (C,) of the layer.
    """

    name: str
    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm (1d, 2d, 3d, synchronised) of ``model`` that has running statistics, by module path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


class _Tap:
    """Hooks with a lifetime: put on when entered, all taken off when left, also by an exception."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class BatchNormTap(_Tap):
    """Reads the statistics of every BatchNorm input during a forward.

    ``statistics`` holds one entry a call, in forward order, of the last forward; a layer called twice gives two.

    Example:
        >>> layer = nn.Sequential(nn.BatchNorm2d(2)).eval()
        >>> with BatchNormTap(layer) as tap:
        ...     _ = layer(torch.ones(4, 2, 3, 3))
        >>> [s.name for s in tap.statistics], tap.statistics[0].mean.tolist()
        (['0'], [1.0, 1.0])

    Raises:
        TeacherError: when there is no BatchNorm with running statistics, or one is in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = batch_norms(model)
        self.statistics: list[BatchStatistics] = []
        self._replaced: list[_BatchNorm] = []
        if not self.layers:
            message = (
                "The model has no BatchNorm layer with running statistics, which this method reads. Found none of them "
                "(folded, or another normalisation?). Use the checkpoint before folding, or a method that needs no "
                "BatchNorm."
            )
            raise TeacherError(message)

    def __enter__(self) -> BatchNormTap:
        training = [name for name, layer in self.layers.items() if layer.training]
        if training:
            message = (
                f"BatchNorm '{training[0]}' is in training mode; reading it would change it. Call model.eval() first."
            )
            raise TeacherError(message)
        self._handles.append(self.model.register_forward_pre_hook(self._clear))
        for name, layer in self.layers.items():
            if "forward" in vars(layer):  # someone else stands in for it; its input is still to be had
                self._handles.append(layer.register_forward_pre_hook(self._reader(name)))
            else:
                vars(layer)["forward"] = self._stand_in(name, layer)
                self._replaced.append(layer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for layer in self._replaced:
            del vars(layer)["forward"]
        self._replaced.clear()

    def _clear(self, module: nn.Module, inputs: object) -> None:
        self.statistics.clear()

    def _reader(self, name: str) -> Callable[[_BatchNorm, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: self._note(name, layer, *channel_moments(inputs[0].float()))

    def _stand_in(self, name: str, layer: _BatchNorm) -> Callable[[Tensor], Tensor]:
        """The layer and its statistics in one, which spares a pass over memory in every backward."""

        def forward(x: Tensor) -> Tensor:
            if not can_join(layer, x):
                self._note(name, layer, *channel_moments(x.float()))
                return type(layer).forward(layer, x)
            y, mean, variance = normalised_with_moments(layer, x)
            self._note(name, layer, mean, variance)
            return y

        return forward

    def _note(self, name: str, layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
        self.statistics.append(
            BatchStatistics(
                name=name,
                mean=mean,
                variance=variance,
                running_mean=layer.running_mean,  # type: ignore[arg-type]
                running_variance=layer.running_var,  # type: ignore[arg-type]
            )
        )


class LayerTap(_Tap):
    """Reads what enters or leaves layers during a forward, with gradient; ``values`` holds the last forward's.

    Args:
        model: any module.
        names: module paths, as `Module.named_modules` gives them.
        side: ``input`` for a layer's first argument, ``output`` for its result.

    Raises:
        TeacherError: for a name that the model does not have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], side: Literal["input", "output"] = "output") -> None:
        super().__init__()
        self.model, self.side = model, side
        known = dict(model.named_modules())
        missing = [name for name in names if name not in known]
        if missing:
            near = get_close_matches(missing[0], known, n=3, cutoff=0.5)
            message = (
                f"The model has no layer '{missing[0]}'. "
                f"{'Near: ' + ', '.join(near) if near else 'It has ' + ', '.join(name for name in known if name)}."
            )
            raise TeacherError(message)
        self.layers = {name: known[name] for name in names}
        self.values: dict[str, Tensor] = {}

    def __enter__(self) -> LayerTap:
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: self.values.clear()))
        for name, layer in self.layers.items():
            if self.side == "input":
                self._handles.append(layer.register_forward_pre_hook(self._input_reader(name)))
            else:
                self._handles.append(layer.register_forward_hook(self._output_reader(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.values.clear()

    def _input_reader(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.values.setdefault(name, inputs[0])

        return read

    def _output_reader(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.values.setdefault(name, output)

        return read


class FeatureTap(_Tap):
    """Reads what leaves ``quant.n`` for every point ``n`` during a forward; ``features`` holds the last forward's.

    Args:
        model: a student or a reference graph.
        points: node names.
    """

    def __init__(self, model: fx.GraphModule, points: Sequence[str]) -> None:
        super().__init__()
        self.model, self.points = model, points
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> FeatureTap:
        modules = {name: self.model.get_submodule(f"quant.{name}") for name in self.points}
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: self.features.clear()))
        for name, module in modules.items():
            self._handles.append(module.register_forward_hook(self._reader(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.features.clear()

    def _reader(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(module: nn.Module, inputs: object, output: Tensor) -> None:
            # A quantizer that serves again further down is called twice; its first call is the point itself.
            self.features.setdefault(name, output)

        return read
