"""Parts of a run wherever they are done: each works from the files in the run's folder and leaves its own there.

What belongs here: how a part is sent, and what the process that does it has: the context of the run, opened once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfqkit.progress import Bar, silent
from dfqkit.run.binding import bind_teacher
from dfqkit.run.context import Context, recipe_of, resolve_device
from dfqkit.run.folder import RunFolder
from dfqkit.run.parts import Job
from dfqkit.run.stage import Part, Stage, only

#: Those of this process, by what tells them apart.
_CONTEXTS: dict[str, Context] = {}


def spread(
    context: Context,
    stage: str,
    function: Callable[..., Any],
    sizes: Sequence[int],
    bar: Bar,
    first: int = 0,
    **common: Any,
) -> Generator[tuple[int, Any], None, None]:
    """Yield index and result of each part of a stage, from the ``first`` on, as the run's executor does them.

    ``function`` does one and finds the context by `context_of`; ``sizes`` are what each counts in the bar; ``common``
    is what parts are told beside, as JSON holds it. Alone, the command that does the stage in order does them all.
    """
    place = {"folder": str(context.folder.path.resolve()), "device": context.device.type, "stage": stage}
    common |= {"place": place | {"part": asdict(context.part)}}
    job = Job(
        name=f"{stage} part",
        function=function,
        common=common,
        indices=range(first, len(sizes)),
        sizes=sizes[first:],
        alone=lambda _: only(stage, context.folder.path),
        threads=torch.get_num_threads(),
        gpus=float(context.device.type == "cuda"),
    )
    key = json.dumps(common["place"])
    _CONTEXTS[key] = context
    try:
        if job.indices:
            yield from context.executor.run(job, bar)
    finally:
        _CONTEXTS.pop(key, None)


def context_of(common: Mapping[str, Any], stages: Sequence[Stage] = ()) -> Context:
    """Return the context that a part is about: that of this process, or the run's folder opened by another one."""
    place = common["place"]
    key = json.dumps(place)
    if key not in _CONTEXTS:
        _CONTEXTS.clear()
        folder = RunFolder.open(Path(place["folder"]))
        device, recipe = resolve_device(place["device"]), recipe_of(folder)
        whole = Context(folder=folder, recipe=recipe, device=device, progress=silent(), stages=stages)
        bind_teacher(whole)
        _CONTEXTS[key] = whole.about(Part(**place["part"]))
    return _CONTEXTS[key]
