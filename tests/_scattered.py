"""An executor for tests: parts in reverse order, each from what a wire carries, as a process of its own would do it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from dfqkit.progress import Bar
from dfqkit.run.parts import Job


class Scattered:
    """Does the last part first; ``forget`` empties what a process keeps between parts."""

    def __init__(self, forget: Callable[[], None] = lambda: None) -> None:
        self.forget = forget
        self.jobs: list[Job] = []

    def run(self, job: Job, bar: Bar) -> Iterator[tuple[int, Any]]:
        """Yield index and result of every part."""
        self.jobs.append(job)
        for index in reversed(job.indices):
            self.forget()
            function, common = pickle.loads(pickle.dumps((job.function, job.common)))  # noqa: S301
            yield index, pickle.loads(pickle.dumps(function(common, index, lambda *_, **__: None)))  # noqa: S301
            bar.advance(1)
