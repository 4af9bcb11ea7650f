"""What the stages share that play a synthesizer against students: checkpoints, its saved states, the loop.

What belongs here: nothing that is one stage's alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from dfqkit.run.context import Context
from dfqkit.run.folder import RunFolder
from dfqkit.synthesis.base import Synthesizer
from dfqkit.training.loop import Loop
from dfqkit_export.errors import ArtefactError

#: Seconds between two checkpoints inside a stage. Taking one changes nothing that is computed.
CHECKPOINT_SECONDS = float(os.environ.get("DFQKIT_CHECKPOINT_SECONDS", "20"))

#: Saved states of the synthesizer: after the warm-up, and after the game with a float student.
WARM, TRAINED = "synthesizer", "synthesizer_after_train"


class Checkpoints:
    """Saves the state of a stage, or of STAGE.PART, now and then, and hands back what an interrupted run left."""

    def __init__(self, folder: RunFolder, stage: str) -> None:
        self.folder, self.stage, self.last = folder, stage, time.monotonic()

    def restore(self, put_back: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
        """Hand an interrupted run's state to ``put_back``, if there is one."""
        found = self.folder.load_state(self.stage)
        if found is not None:
            put_back(*found)

    def offer(self, state: Callable[[], tuple[dict[str, Tensor], dict[str, object]]]) -> None:
        """Save, if the last time was long enough ago."""
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS:
            self.folder.save_state(self.stage, *state())
            self.last = time.monotonic()


def drawn(draw: Callable[[int], Tensor], count: int, batch: int) -> Iterator[Tensor]:
    """Yield so many images in batches."""
    for start in range(0, count, batch):
        yield draw(min(batch, count - start))


def saved_synthesizer(context: Context, state: str) -> Synthesizer:
    """Return the recipe's synthesizer, as an earlier stage left it in the saved state of that name."""
    made = context.new_synthesizer()
    loaded = context.folder.load_state(state)
    if loaded is None:
        path = context.folder.path
        message = f"The synthesizer's state is missing from '{path}'. `dfqkit run --resume {path}` makes it again."
        raise ArtefactError(message)
    made.load_state_dict(loaded[0])
    return made


def play(context: Context, stage: str, loop: Loop[Any, Any]) -> None:
    """Run a loop to its end, from where an interrupted run left it."""
    part = context.part.name
    saved = Checkpoints(context.folder, f"{stage}.{part}" if part else stage)
    saved.restore(loop.load_state)
    with context.progress.stage(stage, total=loop.config.steps, start=loop.step) as bar:
        while loop.step < loop.config.steps:
            bar.advance(1, **loop.run_step())
            if context.ranks.first:
                saved.offer(loop.state)


def found_out(loop: Loop[Any, Any]) -> dict[str, object]:
    """Return what a loop tells of itself."""
    return {"judged": loop.judged, "kept": f"step {loop.kept_step}", "curve": loop.curve}
