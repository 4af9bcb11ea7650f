"""Context managers that read what a teacher computes, and leave nothing behind.

What belongs here: hooks with a lifetime. A tap is entered, one or several forwards run, it is left: all handles are
gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self, TypeGuard

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from dfqkit.teacher.batchnorm_moments import can_join, channel_moments, normalised_with_moments, running_statistics
from dfqkit_export.errors import TeacherError
from dfqkit_export.words import did_you_mean

#: What a frozen BatchNorm holds.
_FROZEN = {"weight", "bias", "running_mean", "running_var"}


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """Statistics (C,) of the input of one BatchNorm layer, with gradient, beside what training left in the layer.

    Mean and biased variance are over batch and positions; ``name`` is the layer's module path.
    """

    name: str
    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a layer is a BatchNorm, or holds its four tensors (C,) as buffers, as torchvision's frozen one."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return isinstance(module, _BatchNorm)
    buffers = dict(module.named_buffers(recurse=False))
    shapes = {buffers[name].shape for name in _FROZEN if name in buffers}
    return len(shapes) == 1 and buffers.keys() >= _FROZEN and not any(True for _ in module.parameters())


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return every BatchNorm (1d, 2d, 3d, synchronised, frozen) of ``model`` with running statistics, by module path.

    Of frozen ones no more is asked than `running_statistics`.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if is_batch_norm(module) and module.running_mean is not None and module.running_var is not None
    }


class Tap:
    """Hooks with a lifetime: put on when entered, all taken off when left, also by an exception."""

    def __init__(self) -> None:
        self._hooks = ExitStack()

    def __exit__(self, *_: object) -> None:
        self._hooks.close()


class BatchNormTap(Tap):
    """Reads the statistics of every BatchNorm input during a forward.

    ``statistics`` holds one entry a call, in forward order, of the last forward; a layer called twice gives two.

    Example:
        >>> import torch
        >>> layer = nn.Sequential(nn.BatchNorm2d(2)).eval()
        >>> with BatchNormTap(layer) as tap:
        ...     _ = layer(torch.ones(4, 2, 3, 3))
        >>> [s.name for s in tap.statistics], tap.statistics[0].mean.tolist()
        (['0'], [1.0, 1.0])
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
        self._hooks.enter_context(self.model.register_forward_pre_hook(self._clear))
        for name, layer in self.layers.items():
            if "forward" in vars(layer) or not isinstance(layer, _BatchNorm):
                # Someone else stands in for it, or it is a frozen one: its input is still to be had.
                self._hooks.enter_context(layer.register_forward_pre_hook(self._reader(name), with_kwargs=True))
            else:
                vars(layer)["forward"] = _StandIn(self, name, layer)
                self._replaced.append(layer)
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for layer in self._replaced:
            del vars(layer)["forward"]
        self._replaced.clear()

    def _clear(self, *_: object) -> None:  # a method can be pickled with the model, which the stand-ins then refuse
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


def _first_argument(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    first: Tensor = next(iter((*inputs, *named.values())))
    return first


class LayerTap(Tap):
    """Reads what enters or leaves layers during a forward, with gradient.

    ``values`` holds the last forward's, of a layer that is called several times the first call's; ``calls`` holds all
    of them. Of a layer's ``input`` it is the first argument. Names are those that `Module.named_modules` gives.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], side: Literal["input", "output"] = "output") -> None:
        super().__init__()
        self.model, self.side = model, side
        known = dict(model.named_modules(remove_duplicate=False))
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

    def __enter__(self) -> Self:
        self._hooks.enter_context(self.model.register_forward_pre_hook(lambda *_: self.calls.clear()))
        for name, layer in self.layers.items():
            self._hooks.enter_context(self._watch(name, layer))
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.calls.clear()

    def _watch(self, name: str, layer: nn.Module) -> RemovableHandle:
        def note(value: Tensor) -> None:
            self.calls.setdefault(name, []).append(value)

        if self.side == "output":
            return layer.register_forward_hook(lambda _, inputs, output: note(output))
        return layer.register_forward_pre_hook(
            lambda _, inputs, named: note(_first_argument(inputs, named)), with_kwargs=True
        )


class FeatureTap(LayerTap):
    """Reads what leaves ``quant.n`` for every point ``n`` of a student or a reference graph during a forward.

    A quantizer that serves again further down is called twice; its first call is the point itself.
    """

    def __init__(self, model: fx.GraphModule, points: Sequence[str]) -> None:
        super().__init__(model, [f"quant.{name}" for name in points])

    @property
    def features(self) -> dict[str, Tensor]:
        """The last forward's, by point."""
        return {name.removeprefix("quant."): value for name, value in self.values.items()}
