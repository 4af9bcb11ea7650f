"""Progress on stderr: a bar in a terminal, a line for every ten per cent elsewhere, nothing where it is not wanted.

Elsewhere a line comes at least every `EVERY` seconds, too, between stages as within a long step (`Pulse`).

What belongs here: how progress looks. When there is progress is up to the stages, which get a `Progress` and tell it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichDisplay


#: Seconds without a line after which one says that work goes on, where there is no terminal.
EVERY = 15.0


def processes() -> int:
    """Return how many processes torchrun started to work together; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Return whether this is the one of them that writes and talks."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


class Bar(Protocol):
    """What a stage tells how far it is."""

    def advance(self, steps: int = 1, /, **terms: float) -> None:
        """Note that so many more steps are done; a loss term that is not given keeps its last value."""


class Progress:
    """Shows the progress of one stage after the other, on stderr if there is no ``stream``.

    Silent if `quiet`, or if the environment has `DFQKIT_PROGRESS=0`. The bar has no colours if it has `NO_COLOR`.

    Example:
        >>> with Progress(quiet=True).stage("distill", total=2) as bar:
        ...     bar.advance(1, loss=0.12)
        ...     bar.advance(1, loss=0.11)
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quiet = quiet or os.environ.get("DFQKIT_PROGRESS") == "0" or not first_process()
        self._stream = stream
        self._clock = clock
        self._whole: _Whole | None = None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take what the stages of a run are expected to last; bars then say what is left of all of them, too."""
        self._whole = _Whole(seconds, self._clock)

    def enter(self, stage: str) -> None:
        """Note that a stage of a run begins, whatever its bars are called."""
        if self._whole is not None:
            self._whole.enter(stage)

    @contextmanager
    def alive(self, text: str) -> Iterator[None]:
        """Write what begins and, until it has ended, that it goes on (`Pulse`)."""
        if self.quiet:
            yield
            return
        PULSE.start(text, stream=self._stream)
        try:
            yield
        finally:
            PULSE.stop()

    def note(self, text: str) -> None:
        """Write a line between two bars."""
        if not self.quiet:
            PULSE.write(text, self._stream or sys.stderr)

    @contextmanager
    def stage(self, name: str, *, total: int, start: int = 0) -> Iterator[Bar]:
        """Show a stage to its last step; those up to ``start`` were done before and do not count in the time left."""
        stream = self._stream or sys.stderr
        count = _Count(name, total, start, self._clock, self._whole)
        PULSE.doing = count.told
        if self.quiet:
            yield count
        elif _is_terminal(stream):
            with _display(stream) as display:
                yield _RichBar(count, display)
        else:
            bar = _PlainBar(count, stream)
            yield bar
            bar.close()
        PULSE.doing = lambda: f"after {name}"


def silent() -> Progress:
    """Return a `Progress` that shows nothing."""
    return Progress(quiet=True)


class Pulse:
    """The sign of life of a process: a line at once, and others where nothing was written for long.

    Attributes:
        doing: Tells what is being done; a stage sets it.
    """

    def __init__(self) -> None:
        self.doing: Callable[[], str] = str
        self._last = 0.0
        self._over = threading.Event()

    def start(self, text: str, *, stream: TextIO | None = None, every: float = EVERY) -> None:
        """Write what begins and, where ``stream`` (stderr) is no terminal, a line after ``every`` seconds without."""
        self.stop()
        stream, self._over = stream or sys.stderr, threading.Event()
        self.doing = lambda: text
        self.write(text, stream)
        if not _is_terminal(stream):
            threading.Thread(target=self._beat, args=(stream, every, self._over), daemon=True).start()

    def stop(self) -> None:
        """Write no more."""
        self._over.set()

    def write(self, text: str, stream: TextIO) -> None:
        """Write a line at once, from which on the silence counts."""
        self._last = time.monotonic()
        print(f"{text}\n", end="", file=stream, flush=True)  # in one piece, whatever another thread writes

    def _beat(self, stream: TextIO, every: float, over: threading.Event) -> None:
        begun = time.monotonic()
        while not over.wait(max(self._last + every - time.monotonic(), every / 100)):
            if time.monotonic() - self._last >= every:
                self.write(f"still at it: {self.doing()} | {duration(time.monotonic() - begun)} so far", stream)


#: That of this process.
PULSE = Pulse()


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Return a time in at most two units.

    Example:
        >>> duration(5.2), duration(80), duration(7500)
        ('5 s', '1 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


class _Whole:
    """How far all stages of a run are, by what each was expected to last and what those before it did."""

    def __init__(self, seconds: Mapping[str, float], clock: Callable[[], float]) -> None:
        self._expected, self._clock = dict(seconds), clock
        self._stage, self._since, self._begun = "", clock(), clock()

    def enter(self, stage: str) -> None:
        self._stage, self._since = stage, self._clock()

    def left(self, name: str, share: float) -> float:
        """Return the seconds left while a bar stands at a share of its total."""
        names, elapsed = list(self._expected), self._clock() - self._since
        later = names[names.index(self._stage) + 1 :] if self._stage in names else []
        expected = self._expected.get(self._stage, 0.0)
        own = elapsed * (1 / share - 1) if name == self._stage and share > 0 else max(expected - elapsed, 0.0)
        return own + sum(self._expected[other] for other in later)

    def told(self, name: str, share: float) -> tuple[int, str]:
        """Return the percent of all that is done, and the time left in words."""
        left, spent = self.left(name, share), self._clock() - self._begun
        return round(100 * spent / max(spent + left, 1e-9)), f"{duration(left)} left in all"


class _Count:
    """How far a stage is; a bar that shows nothing."""

    def __init__(
        self, name: str, total: int, start: int, clock: Callable[[], float], whole: _Whole | None = None
    ) -> None:
        self.whole = whole
        self.name, self.total, self.start, self.done = name, max(total, 1), start, start
        self._clock = clock
        self._since = clock()
        self._terms: dict[str, float] = {}

    def advance(self, steps: int = 1, /, **terms: float) -> None:
        self.done += steps
        self._terms.update(terms)

    @property
    def percent(self) -> int:
        return min(100, 100 * self.done // self.total)

    def told(self) -> str:
        return f"{self.name} {self.percent} % ({self.done}/{self.total})"

    def of_all(self) -> tuple[int, str] | None:
        """Return the percent of the whole run, and its time left in words; None where nothing was expected."""
        return None if self.whole is None else self.whole.told(self.name, self.done / self.total)

    def terms(self) -> str:
        return ", ".join(f"{name} {float(value):.4g}" for name, value in self._terms.items())

    def time(self) -> str:
        """Return the time left or, at the end, the time it took here; empty before the first step."""
        elapsed, steps = self._clock() - self._since, self.done - self.start
        if self.done >= self.total:
            return duration(elapsed)
        return f"{duration(elapsed / steps * (self.total - self.done))} left" if steps > 0 else ""


class _PlainBar:
    def __init__(self, count: _Count, stream: TextIO) -> None:
        self._count, self._stream = count, stream
        self._shown = count.percent

    def advance(self, steps: int = 1, /, **terms: float) -> None:
        self._count.advance(steps, **terms)
        if self._count.percent // 10 > self._shown // 10:
            self._show()

    def close(self) -> None:
        """Show where a stage ended that did not need all its steps."""
        if self._count.percent > self._shown:
            self._show()

    def _show(self) -> None:
        count = self._count
        self._shown = count.percent
        text = f"{count.told()} {count.terms()}".rstrip()
        whole = count.of_all()
        parts = (text, count.time(), whole[1] if whole else "")
        PULSE.write(" | ".join(part for part in parts if part), self._stream)


class _RichBar:
    def __init__(self, count: _Count, display: RichDisplay) -> None:
        self._count, self._display = count, display
        self._task = display.add_task(count.name, total=count.total, completed=count.start, **self._fields())
        self._whole = None if count.whole is None else display.add_task("all stages", total=100, time="", terms="")

    def advance(self, steps: int = 1, /, **terms: float) -> None:
        self._count.advance(steps, **terms)
        self._display.update(self._task, completed=self._count.done, **self._fields())
        whole = self._count.of_all()
        if whole is not None and self._whole is not None:
            self._display.update(self._whole, completed=whole[0], time=whole[1])

    def _fields(self) -> dict[str, Any]:
        return {"terms": self._count.terms(), "time": self._count.time()}


def _display(stream: TextIO) -> RichDisplay:
    # Imported here so that what shows no bar does not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichDisplay
    from rich.table import Column

    def column(text: str, ratio: int | None = None) -> TextColumn:
        return TextColumn(text, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=ratio))

    return RichDisplay(
        column("{task.description}"),
        BarColumn(bar_width=24),
        column("{task.completed:.0f}/{task.total:.0f}"),
        column("{task.fields[time]}"),
        column("{task.fields[terms]}", ratio=1),  # what the others leave
        console=Console(file=stream),
        refresh_per_second=4,
        expand=True,
        redirect_stdout=False,  # results go there
    )
