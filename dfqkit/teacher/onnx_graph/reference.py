"""What a file gives in its own runtime, asked in a process of its own: whoever gave the file may have made anything.

What belongs here: the child's half of the proof; it imports no torch. The other half is `proof`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dfqkit_export.backends import DEFAULT, UNOPTIMIZED
from dfqkit_export.backends.opening import open_session


def answer(*, model: str, images: str, out: str, batch: int, as_written: bool = False) -> bool:
    """Run a file on stored images (N, C, H, W), one after the other, and store its outputs by place.

    A file that takes ``batch`` images at once is given each so often. One that takes any number gets one: some say so
    and are written for one. ``as_written``: by another runtime, which optimizes nothing, and in rows of any length.
    """
    session = open_session((UNOPTIMIZED if as_written else DEFAULT).name, model, threads=1)
    given = np.load(images, allow_pickle=False)
    found = [session.run_all(np.repeat(one[None], batch, axis=0)) for one in given]
    for each in found:
        for name, values in each.items():
            each[name] = values.ravel() if as_written else values[: len(values) // batch]
    stacked = {str(place): np.concatenate([each[name] for each in found]) for place, name in enumerate(found[0])}
    np.savez(Path(out), allow_pickle=False, **stacked)
    return True
