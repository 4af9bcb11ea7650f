from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfqkit.progress import Progress, duration, silent


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DFQKIT_PROGRESS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def lines(total: int, *, start: int = 0, step: int = 1, stop: int | None = None) -> list[str]:
    """What a stage shows where one step takes a second."""
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock).stage("distill", total=total, start=start) as bar:
        done = start
        while done < (stop or total):
            clock.now += step
            bar.advance(step, loss=0.5)
            done += step
    return stream.getvalue().splitlines()


def test_one_line_for_each_ten_per_cent() -> None:
    shown = lines(1200)
    assert len(shown) == 10
    assert shown[2] == "distill 30 % (360/1200) loss 0.5 | 14 min 0 s left"
    assert shown[-1] == "distill 100 % (1200/1200) loss 0.5 | 20 min 0 s"


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 11, 99, 1001])
def test_never_more_than_ten_lines_and_always_the_last(total: int) -> None:
    shown = lines(total)
    assert len(shown) <= 10
    assert shown[-1].startswith(f"distill 100 % ({total}/{total})")
    assert len(set(shown)) == len(shown)


def test_a_jump_over_several_tens_is_one_line() -> None:
    assert [line.split(" loss")[0] for line in lines(100, step=40, stop=80)] == [
        "distill 40 % (40/100)",
        "distill 80 % (80/100)",
    ]


def test_the_time_left_of_a_resumed_stage_does_not_count_what_was_done_before() -> None:
    # A third of the 150 steps here took 50 s, so 100 s are left; with the 850 before counted it would be 6 s.
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock).stage("distill", total=1000, start=850) as bar:
        clock.now += 50
        bar.advance(50)
    assert stream.getvalue() == "distill 90 % (900/1000) | 1 min 40 s left\n"


def test_terms_keep_their_last_value_and_their_order() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, clock=Clock()).stage("synthesize", total=2) as bar:
        bar.advance(1, bn=12345.678, entropy=0.25)
        bar.advance(1, entropy=0.125)
    assert stream.getvalue().splitlines()[-1] == "synthesize 100 % (2/2) bn 1.235e+04, entropy 0.125 | 0 s"


def test_a_stage_that_ends_early_says_where() -> None:
    assert lines(100, stop=37)[-1].startswith("distill 37 % (37/100)")


def test_a_stage_that_fails_says_nothing_more() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with Progress(stream=stream).stage("distill", total=100) as bar:
            bar.advance(5)
            message = "broken"
            raise ValueError(message)

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_it_can_be_silenced(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    quiet = Progress(quiet=True, stream=stream)
    monkeypatch.setenv("DFQKIT_PROGRESS", "0")
    for progress in (quiet, Progress(stream=stream), silent()):
        with progress.stage("distill", total=2) as bar:
            bar.advance(2, loss=1.0)
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def shown_in_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock).stage("distill", total=1200, start=600) as bar:
        clock.now += 80
        bar.advance(300, loss=0.12, agreement=97.1)
    return stream.getvalue()


def test_a_terminal_gets_a_bar_with_terms_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = shown_in_terminal(100, monkeypatch)
    assert "900/1200 1 min 20 s left loss 0.12, agreement 97.1" in shown
    assert "\x1b[3" not in shown  # NO_COLOR: cursor movements yes, colours no


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[3" in shown_in_terminal(100, monkeypatch) or "\x1b[9" in shown_in_terminal(100, monkeypatch)


def test_in_a_narrow_terminal_the_terms_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = shown_in_terminal(70, monkeypatch)
    assert "900/1200 1 min 20 s left" in shown
    assert "agreement" not in shown


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert (
        shown_in_terminal(100, monkeypatch) == "distill 75 % (900/1200) loss 0.12, agreement 97.1 | 1 min 20 s left\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.6, "1 h 0 min"), (90_000, "25 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_importing_it_imports_neither_rich_nor_torch() -> None:
    program = "import sys, dfqkit.progress; assert not {'rich', 'torch'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "export")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
