from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfqkit.progress import Progress, Pulse, duration, silent


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


def wait_for(text: str, stream: io.StringIO) -> None:
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


def test_there_is_a_line_after_every_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, pulse = io.StringIO(), Pulse()
    monkeypatch.setattr("dfqkit.progress.PULSE", pulse)
    pulse.start("loading", stream=stream, every=0.05)
    assert stream.getvalue() == "loading\n"
    wait_for("still at it: loading | ", stream)
    with Progress(stream=stream).stage("quantize", total=4) as bar:
        wait_for("still at it: quantize 0 % (0/4) | ", stream)
        bar.advance(1)
        wait_for("still at it: quantize 25 % (1/4) | ", stream)
    wait_for("still at it: after quantize | ", stream)
    pulse.stop()
    time.sleep(0.1)  # one line may be on its way
    before = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == before
    assert all(line.endswith("so far") or "still" not in line for line in before.splitlines())


def test_no_line_comes_where_others_do() -> None:
    stream, pulse = io.StringIO(), Pulse()
    pulse.start("loading", stream=stream, every=5.0)
    for _ in range(20):
        time.sleep(0.01)
        pulse.write("a line", stream)
    pulse.stop()
    assert "still" not in stream.getvalue()


def test_a_terminal_has_its_bar_and_no_such_lines() -> None:
    stream, pulse = Terminal(), Pulse()
    pulse.start("loading", stream=stream, every=0.01)
    time.sleep(0.1)
    pulse.stop()
    assert stream.getvalue() == "loading\n"


def test_what_python_calls_begins_with_a_line_where_it_is_wanted() -> None:
    stream = io.StringIO()
    with Progress(stream=stream).alive("loading"):
        assert stream.getvalue() == "loading\n"
    with Progress(stream=stream, quiet=True).alive("loading"):
        pass
    assert stream.getvalue() == "loading\n"


#: Words of commands that load a network. All but `init`, which tells nothing else, can be quiet.
LOADING = (
    "run digits/dfq-w8a8-ort --out out", "run --resume RUN", "synthesize digits/dfq-w8a8-ort --n 2 --out out",
    "quantize timm:resnet18 --no-weights", "bench digits/dfq-w8a8-ort --out out",
    "record digits/dfq-w8a8-ort --data a.npz --out a.safetensors",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "quiet"),
    [("init timm:resnet18 --no-weights", False), *((words, quiet) for words in LOADING for quiet in (False, True))],
)
def test_a_command_says_that_it_begins_before_it_imports_torch(words: str, quiet: bool, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print('torch is imported', file=sys.stderr)\n"
        "            sys.exit(7)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from dfqkit.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "export")])}
    command = [sys.executable, "-c", program, *words.split(), *["-q"] * quiet]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 7, done.stderr
    first = [] if quiet else [f"dfqkit {words.split()[0]}: loading torch and the network"]
    assert done.stderr.splitlines() == [*first, "torch is imported"]
