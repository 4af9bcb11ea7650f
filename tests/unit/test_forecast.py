"""What a run says before it computes: stages, minutes, memory, disk, what would be cheaper, and that it asks."""

from __future__ import annotations

import argparse
import io
import math

import pytest

from dfqkit.cli import running
from dfqkit.config.reading import load_recipe
from dfqkit.progress import PULSE, Progress
from dfqkit.run import forecast as module
from dfqkit.run.forecast import Forecast, forecast
from dfqkit_export.errors import RecipeError
from tests._shared import tiny

LONG = Forecast(seconds={"synthesize": 4000.0}, rounds={"synthesize": "many"}, memory=2**30, disk=2**20)


def test_every_stage_that_has_something_to_do_is_told_in_80_columns() -> None:
    told = forecast(tiny(), device="cpu")
    assert list(told.seconds) == ["synthesize", "quantize", "distill", "export", "validate"]
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in told.seconds.values())
    assert told.memory > 2**27
    lines = told.lines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.lstrip().startswith(name) for line in lines) for name in told.seconds)


def test_more_rounds_take_longer_and_what_takes_long_says_what_is_cheaper() -> None:
    few, many = (module._told(tiny(f"distill.steps={steps}"), 100.0, 0.1) for steps in (10, 1000))
    assert many.seconds["distill"] == pytest.approx(100 * few.seconds["distill"])
    assert any("distill.steps=500" in text for text in many.cheaper)


def test_a_ladder_is_bounded_by_its_time() -> None:
    recipe = load_recipe("digits/dfq-w8a8-ort", ["ladder={max_time: 5}"])
    told = module._told(recipe, 1.0, 0.01)
    rung = module._PASSES["candidate"] * 0.01 * (recipe.bank.calibration + recipe.bank.held_out + 64)
    assert told.most["quantize"] == pytest.approx(min(8 * rung, 300 + rung) + module._FIXED["quantize"])
    assert "at most" in told.lines()[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ask(monkeypatch: pytest.MonkeyPatch, answer: str, **given: bool) -> dict[str, float] | None:
    monkeypatch.setattr(module, "forecast", lambda *_: LONG)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", Terminal())
    settings = {"quiet": False, "dry_run": False, "yes": False, "device": None, **given}
    return running.announce(argparse.Namespace(**settings), tiny(), None)


def test_a_long_run_asks_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, "y\n") == LONG.seconds
    assert ask(monkeypatch, "", yes=True) == LONG.seconds
    assert ask(monkeypatch, "", dry_run=True) == LONG.seconds
    assert ask(monkeypatch, "", quiet=True) is None
    with pytest.raises(RecipeError, match="--yes"):
        ask(monkeypatch, "\n")


def test_signs_of_life_say_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(PULSE, "doing", lambda: "loading")
    monkeypatch.setattr(module, "forecast", lambda *_: told.append(PULSE.doing()) or LONG)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    running.announce(argparse.Namespace(quiet=False, dry_run=True, yes=False, device=None), tiny(), None)
    assert "timing one round" in told[0]
    assert PULSE.doing() == "after the plan"


def test_bars_say_what_is_left_of_all_stages() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(stream=stream, clock=lambda: now[0])
    progress.expect({"synthesize": 10.0, "distill": 60.0})
    progress.enter("synthesize")
    with progress.stage("synthesize", total=10) as bar:
        now[0] += 10.0
        bar.advance(5)
    progress.enter("distill")
    with progress.stage("a part of it", total=10) as bar:
        now[0] += 20.0
        bar.advance(5)
    first, second = [line for line in stream.getvalue().splitlines() if "50 %" in line]
    assert first.endswith("10 s left | 1 min 10 s left in all")
    assert second.endswith("40 s left in all")
