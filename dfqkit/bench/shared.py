"""A comparison's syntheses and trials as parts, which any process can do.

What belongs here: what a process that has only the command's words needs to do one of them. Doing it is `trials`, and
what was done lies in the comparison's folder, where whoever asked finds it as if it had been done in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from dfqkit.bench.grid import Grid, Trial
from dfqkit.bench.trials import Bench
from dfqkit.config.reading import parse_recipe
from dfqkit.progress import silent
from dfqkit.run.parts import Executor, Job, Tell

#: That of this process, by its folder and grid.
_BENCHES: dict[str, Bench] = {}


def share(bench: Bench, trials: Sequence[Trial], executor: Executor, command: str) -> None:
    """Have trials done by an executor, with the syntheses that they need; those that are done cost nothing.

    ``command`` does the whole comparison in order, so that one part alone is done by it, too.
    """
    sources = list(dict.fromkeys((trial.contestant, trial.seed) for trial in trials))
    # All syntheses come first, since they take longest; no trial waits for any but its own.
    wanted = [list(source) for source in sources]
    wanted += [[trial.contestant, trial.seed, trial.bits, trial.mode] for trial in trials]
    job = Job(
        name="synthesis or trial",
        function=bench_part,
        common={**_common(bench), "parts": wanted},
        indices=range(len(wanted)),
        sizes=[1] * len(wanted),
        alone=lambda _: command,
        threads=torch.get_num_threads(),
        gpus=float(bench.device.startswith("cuda")),
        after={len(sources) + at: sources.index((one.contestant, one.seed)) for at, one in enumerate(trials)},
    )
    with bench.progress.stage("syntheses and trials", total=job.size) as bar:
        for _ in executor.run(job, bar):
            pass


def bench_part(common: Mapping[str, Any], index: int, _tell: Tell) -> str:
    """Make the images of a contestant and seed, or do a trial with them; return where the result is."""
    (contestant, seed, *rest), bench = common["parts"][index], _bench(common)
    if not rest:
        return str(bench.synthesis(contestant, seed).path)
    trial = Trial(contestant=contestant, bits=rest[0], seed=seed, mode=rest[1])
    bench.result(trial)
    return str(bench.out / "cells" / trial.folder)


def _common(bench: Bench) -> dict[str, Any]:
    grid = {field.name: getattr(bench.grid, field.name) for field in fields(Grid) if field.name != "contestants"}
    recipes = {
        name: [recipe.to_yaml(), None if recipe.directory is None else str(recipe.directory.resolve())]
        for name, recipe in bench.grid.contestants.items()
    }
    return {"grid": grid, "recipes": recipes, "out": str(bench.out.resolve()), "device": bench.device}


def _bench(common: Mapping[str, Any]) -> Bench:
    key = repr((common["out"], common["grid"], common["recipes"]))
    if key not in _BENCHES:
        contestants = {
            name: parse_recipe(text, name).found_in(Path(directory) if directory else None)
            for name, (text, directory) in common["recipes"].items()
        }
        grid = Grid(contestants=contestants, **common["grid"])
        _BENCHES.clear()
        _BENCHES[key] = Bench.prepare(grid, Path(common["out"]), device=common["device"], progress=silent())
    return _BENCHES[key]
