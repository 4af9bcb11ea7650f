"""Work that consists of parts which need nothing of each other: what a part is, and how parts are done.

What belongs here: the one seam between what has parts (shards of a set, cells of a comparison, targets of a stage) and
where they are done: in order in this process, or on Ray (`ray_parts`). A part is a
pure function of what all parts share and of its index, with the number of threads that the job says: on one kind of
machine its files are the same bytes wherever, whenever and however often it is done.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from dfqkit.progress import Bar
from dfqkit_export.backends.processor import this_processor

#: Hears from a part how much of it is done, from 0 to 1, and its loss terms.
Tell: TypeAlias = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Parts to be done.

    Attributes:
        name: What the parts are called: "shard", "cell".
        function: Does one, as ``function(common, index, tell)``, and returns a few lines: what JSON holds, or a
            dataclass of it; a function at the top of a module, since other processes find it by its name.
        common: What all parts share; small, for every worker is sent it.
        indices: Which parts, each behind those that it needs; the longest best come first.
        sizes: What each counts in the bar.
        alone: Returns the command that does one part alone.
        threads: Threads of torch in a part, and the cores that a worker has.
        gpus: GPUs of a part; a fraction lets several share one.
        memory: Bytes of a part, by which a cluster places it; 0 leaves it out of account.
        after: For a part that works on what another one left, that one.
    """

    name: str
    function: Callable[[Any, int, Tell], Any]
    common: Any
    indices: Sequence[int]
    sizes: Sequence[int]
    alone: Callable[[int], str]
    threads: int
    gpus: float = 0.0
    memory: int = 0
    after: Mapping[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bar's total."""
        return sum(self.sizes)


class Executor(Protocol):
    """Where parts are done."""

    def run(self, job: Job, bar: Bar) -> Iterator[tuple[int, Any]]:
        """Yield index and result of every part as it is done, in any order.

        Raises:
            DfqkitError: That of the first part that fails, with its index, its log, and how to do it alone.
        """


class Told:
    """What parts have told so far, as whole steps of one bar."""

    def __init__(self, job: Job, bar: Bar) -> None:
        self.bar, self.sizes = bar, dict(zip(job.indices, job.sizes, strict=True))
        self.shares: dict[int, float] = {}
        self.shown = 0

    def __call__(self, index: int, share: float, **terms: float) -> None:
        """Note that a share of a part is done; one that begins again after its worker was lost takes nothing back."""
        self.shares[index] = max(share, self.shares.get(index, 0.0))
        done = int(sum(self.sizes[part] * value for part, value in self.shares.items() if value < 1))
        done += sum(self.sizes[part] for part, value in self.shares.items() if value >= 1)
        if done > self.shown or terms:
            self.bar.advance(max(done - self.shown, 0), **terms)
            self.shown = max(done, self.shown)


class InOrder:
    """One part after the other, in this process."""

    def run(self, job: Job, bar: Bar) -> Iterator[tuple[int, Any]]:
        """Yield index and result of every part, in order; an error is the part's own."""
        import torch  # which a process that only hands out parts, or counts them, does without

        told = Told(job, bar)
        torch.set_num_threads(job.threads)
        for index in job.indices:

            def tell(share: float, *, part: int = index, **terms: float) -> None:
                told(part, share, **terms)

            result = job.function(job.common, index, tell)
            told(index, 1.0)
            yield index, result


def machine(*, gpu: bool = False) -> dict[str, str]:
    """Return what a part's bytes depend on beside its job: processor, instructions that torch uses, torch, GPU."""
    import torch

    from dfqkit_export._version import __version__

    found = {
        "processor": str(this_processor()["model"]),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),  # its own type of string would have whoever unpickles it import torch
        "python": platform.python_version(),
        "dfqkit": __version__,
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if gpu and torch.cuda.is_available() else {})


def parted(kinds: Sequence[dict[str, str]]) -> str:
    """Return in what machines differ, "" where they do not: ``instructions AVX2 and AVX512``.

    Example:
        >>> parted([{"torch": "2.9"}, {"torch": "2.10"}]), parted([{"torch": "2.9"}])
        ('torch 2.9 and 2.10', '')
    """
    names = dict.fromkeys(name for kind in kinds for name in kind)
    values = {name: list(dict.fromkeys(kind.get(name, "none") for kind in kinds)) for name in names}
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in values.items() if len(found) > 1)
