"""An executor for tests: parts in reverse order, each from copies alone, as a process of its own would do it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from dfqkit.progress import Bar
from dfqkit.run.parts import Job


class Scattered:
    """Does the last part first; ``forget`` empties what a process keeps between parts."""

    def __init__(self, forget: Callable[[], None] = lambda: None) -> None:
        self.forget = forget
        self.jobs: list[Job] = []

    def run(self, job: Job, bar: Bar) -> Iterator[tuple[int, Any]]:
        """Yield index and result of every part; another process finds the function by its name."""
        self.jobs.append(job)
        function = getattr(import_module(job.function.__module__), job.function.__name__)
        assert function is job.function
        for index in reversed(job.indices):
            self.forget()
            common = json.loads(json.dumps(job.common))
            yield index, copy.deepcopy(function(common, index, lambda *_, **__: None))
            bar.advance(1)
