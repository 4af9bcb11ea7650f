"""Context managers that read what a teacher computes, and leave nothing behind.

What belongs here: hooks with a lifetime. A tap is entered, one or several forwards run, it is left: all handles are
gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NoReturn

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from dfqkit.teacher.batchnorm_moments import can_join, channel_moments, normalised_with_moments, running_statistics
from dfqkit_export.errors import TeacherError
from dfqkit_export.words import did_you_mean


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """Statistics of the input of one BatchNorm layer, beside what training left in the layer.

    Attributes:
        name: The layer's module path.
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
    """Return every BatchNorm (1d, 2d, 3d, synchronised) of ``model`` that has running statistics, by module path.

    Layers that only compute the same, as torchvision's FrozenBatchNorm2d does, are not seen: nothing but the names of
    their buffers says what they are. Put a BatchNorm2d with the same numbers in their place.
    """
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
        >>> import torch
        >>> layer = nn.Sequential(nn.BatchNorm2d(2)).eval()
        >>> with BatchNormTap(layer) as tap:
        ...     _ = layer(torch.ones(4, 2, 3, 3))
        >>> [s.name for s in tap.statistics], tap.statistics[0].mean.tolist()
        (['0'], [1.0, 1.0])

    Raises:
        TeacherError: When there is no BatchNorm with running statistics, or one is in training mode.
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
                self._handles.append(layer.register_forward_pre_hook(self._reader(name), with_kwargs=True))
            else:
                vars(layer)["forward"] = _StandIn(self, name, layer)
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

    def deviations(self, form: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Return what ``form``, one of the BatchNorm terms of `losses`, makes of every entry of ``statistics``."""
        return [form(s.mean, s.variance, s.running_mean, s.running_variance) for s in self.statistics]

    def _reader(self, name: str) -> Callable[[_BatchNorm, tuple[Tensor, ...], dict[str, Tensor]], None]:
        return lambda layer, inputs, named: self._note(
            name, layer, *channel_moments(_first_argument(inputs, named).float())
        )

    def _note(self, name: str, layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
        left, spread = running_statistics(layer)
        self.statistics.append(
            BatchStatistics(name=name, mean=mean, variance=variance, running_mean=left, running_variance=spread)
        )


class _StandIn:
    """A layer's ``forward``: the layer and its statistics in one, which spares a pass over memory in every backward."""

    def __init__(self, tap: BatchNormTap, name: str, layer: _BatchNorm) -> None:
        self.tap, self.name, self.layer = tap, name, layer

    def __call__(self, input: Tensor) -> Tensor:
        layer = self.layer
        if not can_join(layer, input):
            self.tap._note(self.name, layer, *channel_moments(input.float()))
            return type(layer).forward(layer, input)
        y, mean, variance = normalised_with_moments(layer, input)
        self.tap._note(self.name, layer, mean, variance)
        return y

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse what copying and pickling ask for: a copy would go on reading for a tap that is long gone."""
        message = (
            f"BatchNorm '{self.name}' was copied or pickled while its statistics were read. Copy the model before or "
            "after the `with` block of the tap."
        )
        raise TeacherError(message)


def per_image(features: Tensor) -> Tensor:
    """Features (N, D); of maps, their mean over the positions."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def _first_argument(inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> Tensor:
    return next(iter((*inputs, *named.values())))


class LayerTap(_Tap):
    """Reads what enters or leaves layers during a forward, with gradient.

    ``values`` holds the last forward's, of a layer that is called several times the first call's; ``calls`` holds all
    of them.

    Args:
        model: Any module.
        names: Module paths, as `Module.named_modules` gives them.
        side: ``input`` for a layer's first argument, ``output`` for its result.

    Raises:
        TeacherError: For a name that the model does not have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], side: Literal["input", "output"] = "output") -> None:
        super().__init__()
        self.model, self.side = model, side
        known = dict(model.named_modules())
        missing = [name for name in names if name not in known]
        if missing:
            hint = did_you_mean(missing[0], known, n=3, cutoff=0.5)
            message = (
                f"The model has no layer '{missing[0]}'.{hint or ' It has ' + ', '.join(filter(None, known)) + '.'}"
            )
            raise TeacherError(message)
        self.layers = {name: known[name] for name in names}
        self.calls: dict[str, list[Tensor]] = {}

    @property
    def values(self) -> dict[str, Tensor]:
        """Of every layer the first call's, in the order of the calls."""
        return {name: found[0] for name, found in self.calls.items()}

    def __enter__(self) -> LayerTap:
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: self.calls.clear()))
        for name, layer in self.layers.items():
            if self.side == "input":
                self._handles.append(layer.register_forward_pre_hook(self._input_reader(name), with_kwargs=True))
            else:
                self._handles.append(layer.register_forward_hook(self._output_reader(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.calls.clear()

    def _input_reader(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def read(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            self.calls.setdefault(name, []).append(_first_argument(inputs, named))

        return read

    def _output_reader(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.calls.setdefault(name, []).append(output)

        return read


class FeatureTap(_Tap):
    """Reads what leaves ``quant.n`` for every point ``n`` during a forward; ``features`` holds the last forward's.

    Args:
        model: A student or a reference graph.
        points: Node names.
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
