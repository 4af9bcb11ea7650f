"""Several processes that take each training step together, as torchrun starts them.

What belongs here: who this process is among them, its share of a batch, and the few numbers on which all must agree.
Gradients are averaged by torch's DistributedDataParallel. Every process draws the same whole batch from the same
random numbers and takes its share of it, so that the effective batch, and what is learned from it, is the recipe's
whatever their number. What cannot be equal is the order of sums: two processes agree with one to about seven digits of
a loss, not to the bit.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dfqkit.progress import processes
from dfqkit_export.errors import RecipeError

#: One process may make images for hours while the others wait; a lost one is noticed by torchrun, not by the clock.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: Number of this one; the first one, 0, writes files, talks, judges and decides.
        world: How many there are.
        gpu: Whether each has a GPU.
    """

    rank: int = 0
    world: int = 1
    gpu: bool = False

    @classmethod
    def joined(cls, device: str) -> Ranks:
        """Return who this process is among those that torchrun started; alone where it started none."""
        if processes() == 1:
            return ALONE
        gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return cls(rank=int(os.environ["RANK"]), world=processes(), gpu=gpu)

    @contextmanager
    def met(self) -> Iterator[None]:
        """Begin and end a process group, for which each waits until all are here.

        There is none in between, when the first process works alone: Brevitas' bias correction adds up over any group
        that it finds, and would wait for the others forever.
        """
        if self.world == 1:
            yield
            return
        begun = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = _stores.PrefixStore(f"dfqkit/{begun}/{next(_MEETINGS)}", _store(self.first, self.world))
        kind = "cpu:gloo,cuda:nccl" if self.gpu else "gloo"
        dist.init_process_group(kind, store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        with self.met():
            self.told(0.0)

    def told(self, value: float) -> float:
        """Return the first process's value in all of them."""
        if self.world == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(held, 0)
        return float(held)

    def share(self, images: Tensor) -> Tensor:
        """Return this process's images of a batch (N, C, H, W)."""
        return images.chunk(self.world)[self.rank]

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the means over all processes."""
        if self.world == 1:
            return dict(values)
        held = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(held)
        return dict(zip(values, (held / self.world).tolist(), strict=True))

    def average(self, value: Tensor) -> Tensor:
        """Return the mean over all processes of a tensor that takes no gradient."""
        if self.world == 1:
            return value
        held = value.detach().clone()
        dist.all_reduce(held)
        return held / self.world

    def together(self, step: nn.Module) -> nn.Module:
        """Return a module whose gradients are the means over all processes."""
        if self.world == 1:
            return step
        # Ranges of layers that a step does not reach get no gradient. Buffers are equal already.
        return DistributedDataParallel(step, find_unused_parameters=True, broadcast_buffers=False)

    def require_shares(self, section: str, config: Any) -> None:
        """Refuse what several processes would compute otherwise than one."""
        if self.world > 1 and config.batch % self.world:
            message = (
                f"{section}.batch is {config.batch}, which {self.world} processes cannot share evenly. Start as many "
                "as divide it, or change the batch."
            )
            raise RecipeError(message)
        alone = [name for name in ("harder", "replay") if getattr(config, name)]
        if self.world > 1 and alone:
            message = (
                f"{section}.{alone[0]} takes gradients or distances of single images, which several processes do not "
                "share. Leave it out, or start one process."
            )
            raise RecipeError(message)


ALONE = Ranks()
_stores: Any = dist  # whose stores its stubs do not export
_MEETINGS = itertools.count()


@cache
def _store(first: bool, world: int) -> Any:
    """Return what the processes find each other by: torchrun's own, or the first one's where it has none."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return _stores.TCPStore(host, port, world, serves, timeout=_PATIENCE)
