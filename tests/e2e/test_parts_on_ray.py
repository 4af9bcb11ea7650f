"""Parts of several commands by two workers of Ray: what comes of them is what one process makes in order."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqkit.cli import main
from dfqkit.progress import silent
from dfqkit.run import answering
from dfqkit.run.folder import RunFolder
from dfqkit.run.parts import Job, Tell
from dfqkit.run.ray_parts import executor
from tests.unit.test_parts_of_runs import LADDER, SMALL, TWO, convolution, left

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    yield
    ray.shutdown()


CLUSTER = ["--cluster", "local", "--workers", "2"]


def test_families_are_proven_by_two_workers_as_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prove", str(convolution(tmp_path / "model.onnx")), "--json", "--limit", "4", "--on", "sse,avx-vnni,avx2"]
    found = []
    for more in ([], CLUSTER):
        assert main([*words, *more]) in (0, 1)
        found.append(json.loads(capsys.readouterr().out))
    for each in found:
        for row in each["rows"]:
            del row["seconds"]
    assert found[0] == found[1]
    assert len(found[0]["rows"]) == 3


@pytest.mark.parametrize("overrides", [(LADDER,), (TWO,)], ids=["candidates", "targets"])
def test_runs_by_two_workers_leave_what_one_process_makes(overrides: tuple[str, ...], tmp_path: Path) -> None:
    found = []
    for name, more in (("in-order", ["--threads", "1"]), ("by-two", CLUSTER)):
        words = [word for override in (*SMALL, *overrides) for word in ("--set", override)]
        out = tmp_path / name
        assert main(["run", "digits/procedural-w8a8-ort", "-q", "--out", str(out), *words, *more]) in (0, 1)
        found.append(left(RunFolder.open(out)))
    for document in (document for each in found for document in each.values() if isinstance(document, dict)):
        assert document["provenance"]["threads"] == 1
    assert found[0] == found[1]


def noted(common: str, index: int, _tell: Tell) -> list[int]:
    """Leave a file behind, the first part late; return whether its own is there, and the priority."""
    found = (Path(common) / "0").exists()
    time.sleep(0.0 if index else 1.0)
    (Path(common) / str(index)).touch()
    return [found, os.nice(0)]


def test_a_part_waits_for_the_one_that_it_needs_and_no_worker_is_slower_than_this_process(tmp_path: Path) -> None:
    job = Job(
        name="note", function=noted, common=str(tmp_path), indices=range(3), sizes=[1] * 3, alone=str, threads=1,
        after={2: 0},
    )  # fmt: skip
    with silent().stage("notes", total=3) as bar:
        found = dict(executor("local", 2).run(job, bar))
    assert found[2][0]
    assert {each[1] for each in found.values()} == {os.nice(0)}


def test_answers_of_ranges_by_two_workers_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "RANGE", 24)
    found = []
    for name, more in (("in-order", ["--threads", "1"]), ("by-two", CLUSTER)):
        words = [word for override in SMALL for word in ("--set", override)]
        out = tmp_path / name
        assert main(["run", "digits/procedural-w8a8-ort", "-q", "--out", str(out), *words, *more]) in (0, 1)
        found.append(left(RunFolder.open(out)))
    assert found[0] == found[1]
