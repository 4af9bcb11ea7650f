"""How long models take, measured so that they can be compared.

What belongs here: interleaved timing of several sessions. Latency is information, never a gate: it depends on the
machine and on what else runs there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.session import Session
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.intervals import median_interval
from dfqkit_export.measure.kinds import LATENCY, SPEEDUP, Metric


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Spread of one session's durations, in milliseconds a call.

    Attributes:
        median: Half of the calls were faster.
        min: The fastest call.
        max: The slowest call.
        p10: One call in ten was faster.
        p90: One call in ten was slower.
        ratio: Median over the rounds of (the reference's duration / this session's duration): above 1 means faster than
            the reference. None where no reference was named.
        ratio_low: Lower end of the interval of 95 % of that median.
        ratio_high: Its upper end.
    """

    median: float
    min: float
    max: float
    p10: float
    p90: float
    ratio: float | None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Result of one interleaved measurement.

    Attributes:
        timings: Timing of each session, by name.
        reference: The session that ratios refer to, or None.
        repeats: Timed calls of each session.
        warmup: Calls of each session before the timed ones.
        batch: Images in a call.
    """

    timings: dict[str, Timing]
    reference: str | None
    repeats: int
    warmup: int
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers that JSON can hold, in the form that `Report.latency` takes."""
        return asdict(self)

    def metrics(self, *, data: str) -> list[Metric]:
        """Return one metric "latency" (median, ms) for each session, and "speedup" for those with a ratio.

        `data` says what images went in, for example "1x3x32x32".
        """
        found: list[Metric] = []
        for subject, timing in self.timings.items():
            where: dict[str, Any] = {"subject": subject, "data": data, "n": self.repeats}
            found.append(LATENCY.metric(value=timing.median, **where))
            if timing.ratio is not None and subject != self.reference:
                low, high = timing.ratio_low, timing.ratio_high
                interval = None if low is None or high is None else (low, high)
                found.append(SPEEDUP.metric(value=timing.ratio, interval=interval, **where))
        return found


def measure_latency(
    sessions: Mapping[str, Session],
    images: NDArray[np.float32],
    *,
    repeats: int = 50,
    warmup: int = 5,
    reference: str | None = None,
) -> Latency:
    """Time sessions in turns (A B A B ...), so that a change of the machine's load meets all of them.

    Every call is given the same batch (n, C, H, W), normalised. Ratios to the reference are taken within each round,
    which cancels slow drifts, and their median is reported.
    """
    if not sessions or repeats < 1 or warmup < 0:
        message = (
            "Latency needs at least one session, repeats of at least 1 and warmup of at least 0; found "
            f"{len(sessions)}, {repeats} and {warmup}."
        )
        raise ArtefactError(message)
    if reference is not None and reference not in sessions:
        message = f"Latency reference {reference!r} is not among the sessions {sorted(sessions)}. Name one of them."
        raise ArtefactError(message)
    for _ in range(warmup):
        for session in sessions.values():
            session.run(images)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(images)
            seconds[name].append(time.perf_counter() - start)
    durations = {name: 1000.0 * np.array(values) for name, values in seconds.items()}
    base = durations[reference] if reference is not None else None
    return Latency(
        timings={name: _timing(values, base) for name, values in durations.items()},
        reference=reference,
        repeats=repeats,
        warmup=warmup,
        batch=len(images),
    )


def _timing(values: NDArray[np.float64], base: NDArray[np.float64] | None) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    found = Timing(median=median, min=float(values.min()), max=float(values.max()), p10=p10, p90=p90, ratio=None)
    if base is None:
        return found
    ratios = base / values
    low, high = median_interval(ratios)
    return replace(found, ratio=float(np.median(ratios)), ratio_low=low, ratio_high=high)
