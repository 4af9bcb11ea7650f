"""Optimizer state as flat tensors, for checkpoints without pickle, and the one learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(lr: float, progress: float, *, floor: float = 0.0) -> float:
    """Cosine from ``lr`` at progress 0 to ``floor * lr`` at progress 1.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.
    """
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything an optimizer remembers, as ``<parameter index>.<name>``.

    Learning rates are the schedule's, not kept.
    """
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back copies of what `optimizer_tensors` returned; the optimizer works in place, the tensors stay as given.

    They may be on any device: the optimizer moves them to that of its parameters, but for the count of steps, which
    torch reads on the CPU.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.cpu().clone() if name == "step" else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def on_device(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return copies on ``device``, but for optimizers' counts of steps, which torch keeps on the CPU."""
    return {
        name: value.clone() if name.rpartition(".")[2] == "step" else value.to(device, copy=True)
        for name, value in tensors.items()
    }


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of all parts, each under ``part.name``; what `under` takes apart."""
    return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}
