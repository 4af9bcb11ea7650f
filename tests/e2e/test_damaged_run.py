"""A run's folder with any one file or entry damaged: the same bytes or a refusal that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests._damage import Judge, interrupted_run, places
from tests._shared import TINY, finished_run, once, run

_OTHER = [*TINY, "seed=1"]
Factory = pytest.TempPathFactory


def _folder(factory: Factory, stage: str, overrides: list[str]) -> Path:
    name = f"interrupted-{stage}-{len(overrides)}"
    return once(factory, name, lambda path: interrupted_run(path, stage, 3, overrides))


def _judge(folder: Path, other: Path, finished: Path, capsys: pytest.CaptureFixture[str], stride: int) -> list[str]:
    judge = Judge(folder, finished.parent / f"judge-{folder.name}", (finished / "model.onnx").read_bytes(), capsys)
    every = list(places(folder, other))
    assert len(every) >= 100
    return [text for place in every[stride // 2 :: stride] for text in judge.wrong(place)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["synthesize", "distill"])
def test_an_interrupted_run(stage: str, tmp_path_factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = (_folder(tmp_path_factory, stage, overrides) for overrides in (TINY, _OTHER))
    assert _judge(folder, other, finished_run(tmp_path_factory), capsys, 61) == []


@pytest.mark.slow
def test_a_finished_run(tmp_path_factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    other = once(tmp_path_factory, "other", lambda path: run(path, overrides=_OTHER))
    finished = finished_run(tmp_path_factory)
    assert _judge(finished, other, finished, capsys, 37) == []
